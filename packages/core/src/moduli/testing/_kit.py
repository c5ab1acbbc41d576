"""Checks of a subject: what a case is, running its checks, and one pytest test for all of them."""

from __future__ import annotations

import dataclasses
import unittest
from collections.abc import Callable, Iterable, Mapping
from typing import Any

__all__ = ["Case", "Check", "parametrize_with_checks", "run_checks"]

Check = Callable[[Any], None]


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Case:
    """What a kit of checks looks at; each kit has a class of its own.

    Attributes:
      name: how reports call it; by default found from the subject.
      skip: checks that do not fit the subject, and why: ``{"pickles": "it holds a lambda"}``.
    """

    name: str = ""
    skip: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def _hold(self, *, name: str, skip: Mapping[str, str] | None, **values: Any) -> None:
        """Sets the fields, which are frozen, in a constructor."""
        for key, value in {**values, "name": name, "skip": dict(skip or {})}.items():
            object.__setattr__(self, key, value)

    def checks(self) -> list[Check]:
        """Returns the checks: functions that take the case and raise where it fails."""
        raise NotImplementedError

    def title(self) -> str:
        """Returns what reports call the subject."""
        return self.name or type(self).__name__


def run_checks(case: Case) -> None:
    """Runs every check of a case.

    Raises:
      AssertionError: names every check that fails, with what it says.
    """
    _known(case)
    checks = [check for check in case.checks() if check.__name__ not in case.skip]
    failed: list[tuple[str, Exception]] = []
    for check in checks:
        try:
            check(case)
        except unittest.SkipTest:
            continue
        except Exception as error:
            failed.append((check.__name__, error))
    if failed:
        lines = [f"- {name}: {_text(error)}" for name, error in failed]
        raise AssertionError(
            f"{case.title()} fails {len(failed)} of {len(checks)} checks:\n" + "\n".join(lines)
        ) from failed[0][1]


def parametrize_with_checks(cases: Iterable[Case]) -> Callable[[Callable[..., Any]], Any]:
    """Makes one pytest test of each case and each of its checks.

    Args:
      cases: such as :class:`LayerCase` and :class:`PluginCase`; no two with one name.

    Returns:
      A decorator for a test that takes ``case`` and ``check``, and calls ``check(case)``.

    Example:
      >>> import jax.numpy as jnp, moduli as nnx
      >>> from moduli.testing import LayerCase, parametrize_with_checks
      >>> @parametrize_with_checks([
      ...     LayerCase(lambda rngs: nnx.Linear(2, 3, rngs=rngs), jnp.ones((4, 2))),
      ... ])
      ... def test_it_is_a_good_citizen(case, check):
      ...     check(case)
    """
    import pytest

    cases = list(cases)
    titles = [case.title() for case in cases]
    for title in titles:
        if titles.count(title) > 1:
            raise ValueError(f"two cases are named {title!r}; give them a name: `name=...`")
    parameters = []
    for case, title in zip(cases, titles, strict=True):
        _known(case)
        for check in case.checks():
            reason = case.skip.get(check.__name__)
            marks = () if reason is None else (pytest.mark.skip(reason=reason),)
            name = f"{title}-{check.__name__}"
            parameters.append(pytest.param(case, check, id=name, marks=marks))
    return pytest.mark.parametrize(("case", "check"), parameters)


def _known(case: Case) -> None:
    names = [check.__name__ for check in case.checks()]
    for name in case.skip:
        if name not in names:
            raise ValueError(f"{case.title()} skips {name!r}, which is none of {', '.join(names)}")


def _text(error: Exception) -> str:
    text = str(error).strip() or "no message"
    kind = "" if isinstance(error, AssertionError) else f"{type(error).__name__}: "
    return kind + text.replace("\n", "\n  ")
