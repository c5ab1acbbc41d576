"""The version of the hooks, and how hooks and arguments are deprecated."""

from __future__ import annotations

import pytest

import moduli as nnx
from moduli import errors, hookspecs
from moduli._facade.command_line import main
from moduli._plugins import specs


class Plugin:
    @nnx.hookimpl
    def moduli_module_created(self, module):
        module.seen = True


def of_version(version):
    plugin = Plugin()
    plugin.moduli_hook_version = version
    return plugin


@pytest.mark.parametrize("version", [1, (1,), (1, 0), hookspecs.VERSION, None])
def test_a_plugin_for_this_version_runs(version):
    with nnx.using(of_version(version)):
        assert nnx.Dict().seen


@pytest.mark.parametrize(
    ("version", "message"),
    [
        (2, r"written for version 2 of moduli's hooks, and this is version 1\.0"),
        ((1, 7), r"written for version 1\.7"),
        (0, "written for version 0"),
        ("1.0", "moduli_hook_version is '1.0'"),
        (1.0, "moduli_hook_version is 1.0"),
        ((), r"moduli_hook_version is \(\)"),
    ],
)
def test_a_plugin_for_another_version_does_not(version, message):
    with pytest.raises(errors.PluginError, match=message), nnx.using(of_version(version)):
        pass


@pytest.fixture
def old_hooks(monkeypatch):
    """Declares hooks for the test alone, one deprecated and one with such an argument."""
    monkeypatch.setattr(specs, "_added", list(specs._added))

    class Hooks:
        @staticmethod
        @nnx.hookspec(warn_on_impl=DeprecationWarning("implement moduli_fine"))
        def moduli_old(size):
            pass

        @staticmethod
        @nnx.hookspec(warn_on_impl_args={"width": DeprecationWarning("take `size`")})
        def moduli_fine(size, width):
            pass

    nnx.plugins.add_hookspecs(Hooks)


SOURCE = """
import moduli

@moduli.hookimpl
def {hook}({arguments}):
    return {arguments}
"""
ENTRY = "[moduli]\naged = aged_plugin\n"


@pytest.mark.parametrize(
    ("hook", "arguments", "text"),
    [("moduli_old", "size", "implement moduli_fine"), ("moduli_fine", "width", "take `size`")],
)
def test_who_implements_what_is_deprecated_is_told_and_still_runs(
    distribution, old_hooks, hook, arguments, text, capsys
):
    distribution("aged-plugin", SOURCE.format(hook=hook, arguments=arguments), ENTRY)
    with pytest.warns(DeprecationWarning, match=text) as caught:
        assert nnx.plugins.collect(hook, size=1, width=2)
    assert "aged_plugin" in caught[0].filename
    nnx.plugins.rediscover()
    assert main(["doctor"]) == 1  # lists it, and does not warn
    assert text in capsys.readouterr().out


def test_what_is_not_deprecated_gives_no_warning(distribution, old_hooks, capsys):
    distribution("aged-plugin", SOURCE.format(hook="moduli_fine", arguments="size"), ENTRY)
    assert nnx.plugins.collect("moduli_fine", size=1, width=2) == [("aged", 1)]
    main(["plugins"])
    assert "hooks of version 1.0" in capsys.readouterr().out
