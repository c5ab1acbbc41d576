"""All checks. Needs ``pip install nox moduli-matrix``; ``nox -l`` lists what there is."""

import moduli_matrix
import nox

nox.options.sessions = ["tests", "lint", "types"]
nox.options.default_venv_backend = "uv|virtualenv"

# Each Python, JAX and backend: `nox -s matrix`, or `nox -s matrix -- 3.12 newest cpu8`.
moduli_matrix.sessions(".[test]", run="pytest")


@nox.session
def tests(session: nox.Session) -> None:
    """Tests and docstrings on this Python; a plugin that fails to load is an error."""
    session.install(".[test]")
    session.run("pytest", *session.posargs, env={"MODULI_STRICT": "1"})
    session.run("python", "-m", "moduli", "doctor")


@nox.session
def lint(session: nox.Session) -> None:
    """Style."""
    session.install(".[lint]")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session
def types(session: nox.Session) -> None:
    """Types."""
    session.install(".[test,lint]")
    session.run("pyright")
    session.run("mypy")
