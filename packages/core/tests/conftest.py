"""What the tests of core share."""

from __future__ import annotations

import importlib
import pathlib
import sys
import textwrap
from collections.abc import Callable, Iterator

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent))  # core_models stands beside the tests


@pytest.fixture
def fresh_plugins() -> Iterator[None]:
    """Looks for plugins anew before and after the test."""
    from moduli import _plugins
    from moduli._facade import resolve as _facade

    _plugins.rediscover()
    _facade.forget()
    yield
    _plugins.rediscover()
    _facade.forget()


@pytest.fixture
def distribution(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, fresh_plugins: None
) -> Callable[..., pathlib.Path]:
    """Installs a distribution for the test: a module, metadata and entry points on sys.path."""

    def install(name: str, source: str, entry_points: str, version: str = "1.0") -> pathlib.Path:
        module = name.replace("-", "_")
        (tmp_path / f"{module}.py").write_text(textwrap.dedent(source))
        info = tmp_path / f"{module}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        (info / "entry_points.txt").write_text(textwrap.dedent(entry_points))
        monkeypatch.syspath_prepend(str(tmp_path))
        sys.modules.pop(module, None)
        importlib.invalidate_caches()
        return tmp_path

    return install
