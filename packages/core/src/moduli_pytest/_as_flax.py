"""The option ``--moduli-as-flax`` of pytest: tests written for flax.nnx run on moduli."""

from __future__ import annotations

from typing import Any

__all__ = ["pytest_addoption", "pytest_load_initial_conftests"]


def pytest_addoption(parser: Any) -> None:
    """Adds the option; a hook of pytest."""
    parser.getgroup("moduli").addoption(
        "--moduli-as-flax",
        action="store_true",
        help="let flax.nnx be moduli for the tests and what they import, as moduli.as_flax() does",
    )


def pytest_load_initial_conftests(early_config: Any) -> None:
    """Does what the option says, before any conftest is imported; a hook of pytest."""
    if early_config.known_args_namespace.moduli_as_flax:
        import moduli

        try:
            moduli.as_flax()
        except (moduli.errors.ModuliError, moduli.errors.MissingPluginError) as error:
            raise SystemExit(f"--moduli-as-flax: {error}") from None
