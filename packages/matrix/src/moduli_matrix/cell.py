"""One cell of the matrix: a Python, a JAX, a backend, and how a nox session becomes it."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import shutil
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from moduli_matrix import probe, supported

if TYPE_CHECKING:
    import nox

PROBE = "moduli_matrix_probe"  # the name that probe.py has in an environment under test


@dataclasses.dataclass(frozen=True)
class Cell:
    """A Python, a JAX and a backend to run tests with.

    Args:
        python: the version of Python, ``"3.12"``.
        jax: ``"lowest"``, ``"middle"``, ``"newest"`` or ``"nightly"``.
        backend: what to compute on.
    """

    python: str
    jax: str
    backend: supported.Backend

    @property
    def words(self) -> tuple[str, str, str]:
        """What a user may choose the cell by."""
        return (self.python, self.jax, self.backend.name)

    @property
    def about(self) -> str:
        """The cell in one line, for ``nox -l``."""
        version, last = supported.JAX[self.jax], supported.LAST_JAX.get(self.python)
        if version is None and last:
            version = f"{last}, its last" if self.jax == "newest" else "it has none"
        jax = f"{self.jax} JAX ({version})" if version else f"{self.jax} JAX"
        return f"The tests on Python {self.python}, {jax}, {self.backend.about}."

    @property
    def requirements(self) -> list[str]:
        """What pip and uv have to be asked for: jax and jaxlib of the version, with the extra."""
        version = supported.JAX[self.jax]
        pin = f"=={version}" if version else ""
        extra = f"[{self.backend.extra}]" if self.backend.extra else ""
        return [f"jax{extra}{pin}", f"jaxlib{pin}"]

    def absent(self) -> str | None:
        """Returns why the cell cannot run here; None if it can (nox itself looks for Pythons)."""
        if self.jax == "nightly":
            last = supported.LAST_JAX.get(self.python)
            if last:
                return f"JAX has no nightly builds for Python {self.python}; {last} was the last"
            if not os.environ.get(supported.NIGHTLY_INDEX):
                return (
                    "no index of nightly builds: set JAX_NIGHTLY_INDEX to the one that JAX's page "
                    "on installation names"
                )
        return self.backend.absent()

    def asked(self) -> dict[str, Any]:
        """Returns what the probe compares with what it finds."""
        return {
            "python": self.python,
            "jax": supported.JAX[self.jax] or self.jax,
            "platform": self.backend.platform,
            "devices": self.backend.expected_devices(),
            "x64": self.backend.x64,
        }

    def install(self, session: nox.Session, *what: str) -> None:
        """Installs projects and packages together with the cell's JAX, in one resolution."""
        options: list[str] = []
        if supported.JAX[self.jax] is None:
            options = ["--upgrade"]  # an environment that is used again has yesterday's newest
        if self.jax == "nightly":
            options += ["--pre", "--extra-index-url", os.environ[supported.NIGHTLY_INDEX]]
        session.install(*options, *what, *self.requirements)

    def environment(self, session: nox.Session) -> dict[str, str | None]:
        """Returns the variables of the cell, with the probe where the session can import it."""
        folder = pathlib.Path(session.create_tmp()).resolve() / "probe"
        folder.mkdir(exist_ok=True)
        shutil.copyfile(probe.__file__, folder / f"{PROBE}.py")
        paths = [os.environ.get("PYTHONPATH"), str(folder)]
        return {
            **self.backend.environment(),
            "PYTHONPATH": os.pathsep.join(path for path in paths if path),
            probe.ASKED: json.dumps(self.asked()),
        }

    def run(
        self, session: nox.Session, *command: str, env: Mapping[str, str | None] | None = None
    ) -> None:
        """Runs a command in the cell; prints what really runs, and fails if it is something else.

        It is checked before the command in a process of its own, and in the process of the tests
        too if the command is pytest: a ``conftest.py`` may change what the environment asked for.

        Args:
            session: the nox session.
            command: the program and its arguments.
            env: more variables; None removes one.
        """
        variables = {**self.environment(session), **(env or {})}
        session.run("python", "-m", PROBE, env=variables)
        words = list(command)
        for start in (["pytest"], ["python", "-m", "pytest"]):
            if words[: len(start)] == start:
                words[len(start) : len(start)] = ["-p", PROBE]
        session.run(*words, env=variables)
