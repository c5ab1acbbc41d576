"""Names of ``moduli`` that strangers claim: nothing they declare breaks the host."""

from __future__ import annotations

import inspect
import warnings

import pytest

import moduli as nnx
from moduli import errors, plugins
from moduli._facade import resolve


@pytest.fixture
def claim(distribution):
    """Installs a distribution that claims names; without a module of its own if source is None."""

    def install(name, *names, source="class Thing:\n    pass\n", plugin=""):
        module = name.replace("-", "_")
        lines = ["[moduli.names]", *(f"{n} = {module}:Thing" for n in names)]
        if plugin:
            lines += ["[moduli]", f"{plugin} = {module}"]
        distribution(name, source, "\n".join(lines))
        resolve.forget()

    return install


@pytest.mark.parametrize("name", ["Linear", "metrics", "save", "jit", "Module", "testing"])
def test_a_reserved_name_is_ours_and_its_claimant_is_named_once(claim, name):
    ours = getattr(nnx, name)
    claim("greedy-dist", name)
    with pytest.warns(plugins.PluginWarning, match=rf"greedy-dist 1\.0 claims moduli\.{name}") as w:
        dir(nnx)  # reads the claims
        assert getattr(nnx, name) is ours
        assert getattr(nnx, name) is ours
    assert len(w) == 1


def test_a_submodule_that_is_not_imported_yet_is_reserved(claim, monkeypatch):
    monkeypatch.delitem(vars(nnx), "lowlevel", raising=False)
    claim("greedy-dist", "lowlevel")
    with pytest.warns(plugins.PluginWarning, match="greedy-dist"):
        assert not hasattr(nnx, "lowlevel")


def test_a_stranger_does_not_get_a_name_of_ours_that_is_not_installed(claim, monkeypatch):
    from moduli._facade import claims

    claim("greedy-dist", "Linear")
    real = claims.installed
    monkeypatch.setattr(
        claims,
        "installed",
        lambda group: real(group)._replace(
            points=[p for p in real(group).points if p.distribution != "moduli-layers"]
        ),
    )
    with (
        pytest.warns(plugins.PluginWarning, match="greedy-dist"),
        pytest.raises(errors.MissingPluginError, match=r'pip install "moduli\[layers\]"'),
    ):
        nnx.Linear
    with pytest.raises(ImportError, match=r'pip install "moduli\[layers\]".*pip install -e'):
        from moduli import Linear  # noqa: F401


@pytest.mark.parametrize(
    ("choice", "works"),
    [("-second-dist", True), ("-Second_Dist", True), ("first-dist", True), ("none", False)],
)
def test_the_choice_of_plugins_decides_between_two_strangers(claim, monkeypatch, choice, works):
    claim("first-dist", "Thing")
    claim("second-dist", "Thing")
    with pytest.raises(errors.NameClashError, match=r"first-dist 1\.0.*second-dist 1\.0"):
        nnx.Thing
    assert not hasattr(nnx, "Thing")
    resolve.forget()
    monkeypatch.setenv("MODULI_PLUGINS", choice)
    if works:
        assert nnx.Thing.__module__ == "first_dist"
    else:
        with pytest.raises(AttributeError, match="MODULI_PLUGINS leaves its names out"):
            nnx.Thing
        with pytest.raises(ImportError, match="MODULI_PLUGINS leaves its names out"):
            from moduli import Thing  # type: ignore[attr-defined] # noqa: F401
    assert nnx.Linear(1, 1, rngs=nnx.Rngs(0)) is not None  # ours stand, whatever is chosen
    nnx.Dict()  # the choice names what is installed


def test_the_names_of_a_plugin_go_with_it(claim, monkeypatch):
    claim("whole-dist", "Thing", plugin="whole")
    monkeypatch.setenv("MODULI_PLUGINS", "-whole")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "Thing" not in dir(nnx) and not hasattr(nnx, "Thing")


@pytest.mark.parametrize(
    "source", ["", "raise OSError('gone')", "import sys; sys.exit(3)", "import no_such_module"]
)
def test_a_name_that_does_not_load_is_no_attribute(claim, source):
    claim("ghost-dist", "Ghost", source=source)
    assert not hasattr(nnx, "Ghost")
    assert getattr(nnx, "Ghost", 1) == 1
    assert dict(inspect.getmembers(nnx))["Module"] is nnx.Module
    with pytest.raises(errors.BrokenNameError, match=r"moduli\.Ghost.*ghost-dist 1\.0") as caught:
        nnx.Ghost
    assert caught.value.name == "Ghost"
    with pytest.raises(ImportError, match=r"moduli\.Ghost.*ghost-dist 1\.0"):
        from moduli import Ghost  # type: ignore[attr-defined] # noqa: F401
