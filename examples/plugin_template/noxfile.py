"""The tests on every Python found here, with the oldest and the newest JAX."""

import nox

nox.options.default_venv_backend = "uv|virtualenv"


@nox.session(python=["3.11", "3.12", "3.13"])
@nox.parametrize("jax", ["jax==0.9.0", "jax"])
def tests(session: nox.Session, jax: str) -> None:
    """Runs the tests; a plugin that fails to load is an error."""
    session.install(".[test]", jax)
    session.run("pytest", *session.posargs, env={"MODULI_STRICT": "1"})
