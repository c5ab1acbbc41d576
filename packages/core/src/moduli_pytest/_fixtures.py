"""Fixtures: a made-up installed distribution, plugins looked for anew, a count of compilations."""

from __future__ import annotations

import importlib
import pathlib
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping

import pytest

__all__ = ["moduli_compilations", "moduli_distribution", "moduli_fresh_plugins"]


@pytest.fixture
def moduli_fresh_plugins() -> Iterator[None]:
    """Looks for installed plugins and names anew, before the test and after it."""
    from moduli.testing import forget_plugins

    forget_plugins()
    yield
    forget_plugins()


@pytest.fixture
def moduli_distribution(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, moduli_fresh_plugins: None
) -> Iterator[Callable[..., pathlib.Path]]:
    """Installs distributions for one test: modules, metadata and entry points on ``sys.path``.

    ``install(name, source, entry_points, version, requires=())`` writes the module ``name`` (with
    underscores) and its metadata, and returns the folder, for a subprocess's ``PYTHONPATH``.
    ``entry_points`` is text as in ``entry_points.txt``, or a dict of dicts of ``pyproject.toml``.
    """
    modules: list[str] = []

    def install(
        name: str,
        source: str = "",
        entry_points: str | Mapping[str, Mapping[str, str]] = "",
        version: str = "1.0",
        *,
        requires: Iterable[str] = (),
    ) -> pathlib.Path:
        module = name.replace("-", "_")
        modules.append(module)
        (tmp_path / f"{module}.py").write_text(textwrap.dedent(source), encoding="utf-8")
        info = tmp_path / f"{module}-{version}.dist-info"
        info.mkdir()
        metadata = [f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"]
        metadata += [f"Requires-Dist: {requirement}\n" for requirement in requires]
        (info / "METADATA").write_text("".join(metadata), encoding="utf-8")
        (info / "entry_points.txt").write_text(_lines(entry_points), encoding="utf-8")
        monkeypatch.syspath_prepend(str(tmp_path))
        sys.modules.pop(module, None)
        importlib.invalidate_caches()
        from moduli.testing import forget_plugins

        forget_plugins()  # they may have been looked for since the test began
        return tmp_path

    yield install
    for module in modules:
        sys.modules.pop(module, None)


@pytest.fixture
def moduli_compilations() -> Callable[..., int]:
    """Counts the programs that XLA compiles in a call: :func:`moduli.testing.compilations`."""
    from moduli.testing import compilations

    return compilations


def _lines(entry_points: str | Mapping[str, Mapping[str, str]]) -> str:
    if isinstance(entry_points, str):
        return textwrap.dedent(entry_points)
    return "".join(
        f"[{group}]\n" + "".join(f"{name} = {target}\n" for name, target in points.items())
        for group, points in entry_points.items()
    )
