"""Makes nox sessions of the cells: one for each, and one that runs those that are chosen."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from moduli_matrix import supported
from moduli_matrix.cell import Cell

if TYPE_CHECKING:
    import nox

Run = Callable[["nox.Session", Cell], None]


def cells(
    name: str = "matrix",
    *,
    pythons: Iterable[str] = supported.PYTHONS,
    jax: Iterable[str] = tuple(supported.JAX),
    backends: Iterable[supported.Backend | str] = supported.BACKENDS,
) -> Callable[[Run], Run]:
    """Makes a session of each cell from a function that installs and runs the tests in one.

    A session ``NAME`` runs all cells, or those that have the words after ``--``; a session
    ``NAME-3.12-newest-cpu8`` is one cell. A cell that this machine cannot run is skipped and says
    why. None is run by a bare ``nox``.

    Args:
        name: the name of the session, and the beginning of the names of the cells' sessions.
        pythons: versions of Python.
        jax: names of versions of JAX, out of :data:`JAX`.
        backends: backends of your own, or names out of :data:`BACKENDS`.

    Returns:
        A decorator for ``f(session, cell)``.

    Raises:
        ValueError: for a JAX or a backend that is none of those.

    Example:
        A noxfile that needs more than ``sessions`` does::

            @moduli_matrix.cells(backends=["cpu", "x64"])
            def matrix(session, cell):
                cell.install(session, ".[test]")
                cell.run(session, "pytest", *session.posargs)
    """
    grid = [
        Cell(python, version, backend)
        for python in pythons
        for version in known("JAX", jax, supported.JAX)
        for backend in chosen_backends(backends)
    ]

    def decorate(run: Run) -> Run:
        import nox

        @nox.session(name=name, python=False, default=False)
        def all_of_them(session: nox.Session) -> None:
            chosen, rest = choose(grid, session.posargs)
            if not chosen:
                words = " ".join(session.posargs)
                session.error(f"no cell has all of the words {words!r}; `nox -l` lists the cells")
            for cell in chosen:
                session.notify(session_name(name, cell), rest)

        all_of_them.__doc__ = (
            "All of the cells below, or those with the words of ``-- 3.12 newest cpu8``."
        )
        for cell in grid:
            register(name, cell, run)
        return run

    return decorate


def session_name(name: str, cell: Cell) -> str:
    """Returns the name of a cell's session."""
    return "-".join((name, *cell.words))


def register(name: str, cell: Cell, run: Run) -> None:
    """Makes the session of one cell."""
    import nox

    def one(session: nox.Session) -> None:
        reason = cell.absent()
        if reason is not None:
            session.skip(reason)
        run(session, cell)

    one.__doc__ = cell.about
    decorate = nox.session(
        name=session_name(name, cell),
        python=cell.python,
        default=False,
        venv_backend="uv|virtualenv",
        download_python="never",  # a Python that is not here is skipped, and nox says so
    )
    decorate(one)


def choose(grid: Sequence[Cell], words: Sequence[str]) -> tuple[list[Cell], list[str]]:
    """Returns the cells that have the first words, and the words after them."""
    known_words = {word for cell in grid for word in cell.words}
    rest = list(words)
    wanted: list[str] = []
    while rest and rest[0] in known_words:
        wanted.append(rest.pop(0))
    return [cell for cell in grid if set(wanted) <= set(cell.words)], rest


def known(kind: str, names: Iterable[str], all_names: Iterable[str]) -> list[str]:
    """Returns the names as a list, or raises for one that there is not."""
    asked, there_are = list(names), list(all_names)
    for name in asked:
        if name not in there_are:
            raise ValueError(f"{name!r} is no {kind} of the matrix: write {' or '.join(there_are)}")
    return asked


def chosen_backends(asked: Iterable[supported.Backend | str]) -> list[supported.Backend]:
    """Returns backends for backends and names of backends."""
    by_name = {backend.name: backend for backend in supported.BACKENDS}
    return [
        by_name[known("backend", [item], by_name)[0]] if isinstance(item, str) else item
        for item in asked
    ]


def sessions(
    *install: str,
    run: str | Sequence[str] = "pytest",
    name: str = "matrix",
    pythons: Iterable[str] = supported.PYTHONS,
    jax: Iterable[str] = tuple(supported.JAX),
    backends: Iterable[supported.Backend | str] = supported.BACKENDS,
) -> None:
    """Makes the sessions of a plugin: each cell installs it and runs its tests.

    ``MODULI_STRICT=1`` is set: a plugin that fails to load is an error there.

    Args:
        install: what pip installs, such as ``".[test]"``.
        run: the command, as a word or a list of words; what stands after ``--`` is added.
        name: the name of the sessions.
        pythons: versions of Python.
        jax: names of versions of JAX, out of :data:`JAX`.
        backends: backends of your own, or names out of :data:`BACKENDS`.

    Example:
        A whole ``noxfile.py``::

            import moduli_matrix

            moduli_matrix.sessions(".[test]", run="pytest")
    """
    command = [run] if isinstance(run, str) else list(run)

    @cells(name, pythons=pythons, jax=jax, backends=backends)
    def tests(session: nox.Session, cell: Cell) -> None:
        cell.install(session, *install)
        cell.run(session, *command, *session.posargs, env={"MODULI_STRICT": "1"})
