"""How to install a package of moduli's own: the command, as it works where this one came from."""

from __future__ import annotations

import pathlib

__all__ = ["install_hint"]


def install_hint(extra: str) -> str:
    """Returns the command that installs a package of ours.

    Args:
      extra: the extra of ``moduli`` that brings it, such as ``"layers"``.

    Returns:
      The command. Where moduli runs from a checkout that holds the package, also the one that
      installs it from there: no index has a checkout's version.

    Example:
      >>> from moduli._base.install_hint import install_hint
      >>> install_hint("layers").partition(" (")[0]
      'pip install "moduli[layers]"'
    """
    command = f'pip install "moduli[{extra}]"'
    packages = pathlib.Path(__file__).resolve().parents[4]
    if (packages / extra / "pyproject.toml").is_file():
        command += f" (from this checkout: pip install -e {packages / extra})"
    return command
