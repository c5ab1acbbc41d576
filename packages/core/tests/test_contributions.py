"""Things that plugins contribute by name: ours are reserved, and no conflict is silent."""

from __future__ import annotations

import warnings

import jax
import pytest

import moduli as nnx
from moduli import errors, plugins
from moduli._facade.command_line import main


@pytest.fixture
def plugin(distribution):
    """Installs a plugin of a name, with some source after ``import moduli``."""

    def install(name, source):
        entry = f"[moduli]\n{name} = {name}_plugin\n"
        distribution(f"{name}-plugin", "import moduli\n" + source, entry)

    return install


MODES = """
@moduli.hookimpl
def moduli_mode_attributes(mode):
    return {%r: %s}
"""
KIND = """
class Kind(moduli.Variable):
    pass

@moduli.hookimpl
def moduli_variable_names():
    return {%r: Kind}
"""


@pytest.mark.parametrize("phase", [-5, 5])
def test_a_plugin_cannot_turn_dropout_on_in_eval(plugin, phase, capsys):
    plugin("backwards", f"moduli_phase = {phase}\n" + MODES % ("deterministic", "mode == 'train'"))
    model = nnx.Dict(drop=nnx.Dropout(0.5, rngs=nnx.Rngs(0)))
    with pytest.warns(
        plugins.PluginWarning,
        match=r"'backwards' of backwards-plugin 1\.0.*'deterministic'.*'layers'.*True",
    ) as caught:
        model.eval()
        model.eval()
    assert len(caught) == 1
    assert model.drop.deterministic is True
    with pytest.warns(plugins.PluginWarning, match="backwards"):  # of the other mode
        model.train()
    assert model.drop.deterministic is False
    assert main(["doctor"]) == 1
    assert "'deterministic'" in capsys.readouterr().out


@pytest.mark.parametrize("method", ["train", "eval"])
def test_two_plugins_of_one_mode_attribute_are_both_named_where_a_module_has_it(plugin, method):
    plugin("one", MODES % ("noisy", "mode == 'eval'"))
    plugin("two", MODES % ("noisy", "mode == 'train'"))

    class Noisy(nnx.Module):
        def __init__(self):
            self.noisy = "as it was"

    quiet, noisy = nnx.Dict(a=nnx.Param(1.0)), Noisy()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        getattr(quiet, method)()  # has no such attribute
        getattr(noisy, method)(noisy=3)  # says itself what it wants
    assert noisy.noisy == 3
    with pytest.raises(errors.NameClashError, match=r"'two'.*'noisy'.*'one'"):
        getattr(noisy, method)()
    assert noisy.noisy == 3


def test_two_plugins_that_agree_are_no_conflict(plugin):
    plugin("one", MODES % ("deterministic", "mode == 'eval'"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = nnx.Dict(drop=nnx.Dropout(0.5, rngs=nnx.Rngs(0)))
        model.eval()
    assert model.drop.deterministic is True


@pytest.mark.parametrize("name", ["params", "batch_stats", "lora_params"])
def test_a_kind_of_ours_keeps_its_name(plugin, name, capsys):
    ours = nnx.variable_type_from_name(name)
    plugin("thief", KIND % name)
    plugins.rediscover()
    with pytest.warns(plugins.PluginWarning, match=rf"'thief' of thief-plugin 1\.0.*'{name}'") as w:
        assert nnx.variable_type_from_name(name) is ours
        assert nnx.variable_name_from_type(ours) == name
    assert len(w) == 1
    assert main(["doctor"]) == 1
    assert f"kind of Variable '{name}'" in capsys.readouterr().out


def test_two_plugins_of_one_kind_are_both_named_at_use(plugin, capsys):
    plugin("one", KIND % "moving")
    plugin("two", KIND % "moving")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert nnx.variable_type_from_name("params") is nnx.Param
    with pytest.raises(errors.NameClashError, match=r"'two'.*'moving'.*'one'"):
        nnx.variable_type_from_name("moving")
    assert main(["doctor"]) == 1
    assert "'moving'" in capsys.readouterr().out


FORMAT = """
from moduli_interop import Format

def refuse(*args, **kwargs):
    raise AssertionError("of the plugin")

@moduli.hookimpl
def moduli_checkpoint_formats():
    return [Format(name=%r, suffixes=(%r,), save=refuse, load=refuse)]
"""


@pytest.mark.parametrize("name", ["npz", "mine"])
def test_an_installed_format_takes_neither_names_nor_files_of_ours(plugin, tmp_path, name, capsys):
    plugin("one", FORMAT % (name, ".npz"))
    plugin("two", FORMAT % (name, ".npz"))
    model, file = nnx.Dict(x=nnx.Param(2.0)), str(tmp_path / "x.npz")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore" if name == "npz" else "error", plugins.PluginWarning)
        nnx.save(file, model)
        assert float(nnx.load(file, nnx.Dict(x=nnx.Param(0.0))).x) == 2.0
        if name == "mine":
            with pytest.raises(nnx.CheckpointError, match=r"'one'.*'two'.*named 'mine'"):
                nnx.save(file, model, format="mine")
    assert main(["doctor"]) == 1
    assert f"the checkpoint format {name!r}" in capsys.readouterr().out


BRIDGE = """
import equinox
from moduli_interop.bridge import Bridge, LayerRule

def wrong(*_):
    raise AssertionError("of the plugin")

def rules():
    {fails}
    return [LayerRule(moduli.Linear, equinox.nn.Linear, wrong, wrong)]

@moduli.hookimpl
def moduli_bridges():
    return [Bridge("equinox", {package!r}, "equinox", rules)]
"""


@pytest.mark.parametrize(
    ("fails", "package", "text"),
    [
        ("", "equinox", "its rule for .*Linear is left out"),
        ("1 / 0", "equinox", "its bridge to equinox is left out: ZeroDivisionError"),
        ("", "no_such_package", "its bridge to equinox is left out: MissingFrameworkError"),
    ],
)
def test_an_installed_bridge_takes_no_layers_of_ours(plugin, fails, package, text):
    equinox = pytest.importorskip("equinox")
    plugin("greedy", "moduli_phase = -9\n" + BRIDGE.format(fails=fails, package=package))
    theirs = equinox.nn.Linear(2, 3, key=jax.random.key(0))
    with pytest.warns(plugins.PluginWarning, match=rf"'greedy' of greedy-plugin 1\.0, {text}"):
        ours = nnx.bridge.from_framework("equinox", theirs)
    assert isinstance(ours, nnx.Linear)
