"""The kit for checkpoint formats: every bit comes back, or an error says that it does not."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import tempfile
import unittest
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import moduli
from moduli import _plugins
from moduli._base.compat import is_key_array
from moduli._base.hook_markers import hookimpl
from moduli._graph.split import clone, graphdef, state
from moduli._graph.state import to_flat_state
from moduli._graph.walk import iter_graph
from moduli._module.containers import Dict
from moduli._variable.box import Variable
from moduli._variable.kinds import BatchStat, Param
from moduli.testing._kit import Case, Check, run_checks
from moduli.testing._threads import in_threads

__all__ = ["FormatCase", "check_format"]

_HOOK = "moduli_checkpoint_formats"
_FLIPS, _CUTS = 24, 6


@dataclasses.dataclass(frozen=True, eq=False, init=False)
class FormatCase(Case):
    """A checkpoint format for :func:`check_format` and :func:`parametrize_with_checks`.

    It takes the arguments of :func:`check_format`.
    """

    format: Any

    def __init__(
        self, format: Any, *, name: str = "", skip: Mapping[str, str] | None = None
    ) -> None:
        self._hold(name=name, skip=skip, format=format)

    def found(self) -> Any:
        """Returns the format."""
        if not isinstance(self.format, str):
            return self.format
        known = _known()
        if self.format not in known:
            raise AssertionError(
                f"no installed plugin has a format {self.format!r}; {sorted(known)} are known. "
                "`python -m moduli doctor` says why a plugin is off"
            )
        return known[self.format]

    def block(self) -> AbstractContextManager[Any]:
        """Opens a block in which the format is known."""
        installed = isinstance(self.format, str)
        return nullcontext() if installed else moduli.using(_Plugin(self.format))

    def title(self) -> str:
        """Returns the format's name."""
        named = self.name or (self.format if isinstance(self.format, str) else "")
        return named or str(getattr(self.format, "name", type(self.format).__name__))

    def checks(self) -> list[Check]:
        """Returns the checks."""
        return list(CHECKS)


def check_format(format: Any, *, name: str = "", skip: Mapping[str, str] | None = None) -> None:
    """Checks that a checkpoint format keeps what it is given, and says so when it cannot.

    Its name and suffixes are its own; values of every dtype come back to the bit; a changed or cut
    file is a CheckpointError and never another value; an interrupted save leaves the old file;
    several files can be written and read at once.

    Args:
      format: the ``moduli_interop.Format``, or the name of one that is installed.
      name: how reports call it.
      skip: checks that do not fit it, and why.

    Raises:
      AssertionError: names every check that fails, and what to do.

    Example:
      >>> from moduli.testing import check_format
      >>> check_format("npz")
    """
    run_checks(FormatCase(format, name=name, skip=skip))


class _Plugin:
    def __init__(self, format: Any) -> None:
        self.format = format

    @hookimpl
    def moduli_checkpoint_formats(self) -> list[Any]:
        """Returns the format under test."""
        return [self.format]


def claims_own_names(case: FormatCase) -> None:
    """It has a name and suffixes, which no other format has, and functions to save and load."""
    format = case.found()
    if not isinstance(format.name, str) or not format.name:
        raise AssertionError(f"its name is {format.name!r}; users write `format='mine'`")
    suffixes = format.suffixes
    if not isinstance(suffixes, tuple) or not suffixes:
        raise AssertionError(f"its suffixes are {suffixes!r}; write a tuple, as in ('.mine',)")
    for suffix in suffixes:
        if not isinstance(suffix, str) or suffix[:1] != "." or suffix != suffix.lower():
            raise AssertionError(f"its suffix {suffix!r} is not a dot and lower-case letters")
    for attribute in ("save", "load"):
        if not callable(getattr(format, attribute)):
            raise AssertionError(f"its {attribute!r} is no function")
    if isinstance(case.format, str):
        return
    for other in _known().values():
        if other == format:  # it is installed, and tested by its own package
            continue
        if other.name == format.name:
            raise AssertionError(f"the name {format.name!r} is taken by an installed format")
        if common := sorted(set(other.suffixes) & set(suffixes)):
            raise AssertionError(f"the suffixes {common} are those of the format {other.name!r}")


def keeps_every_bit(case: FormatCase) -> None:
    """Values of every dtype, empty ones, keys, tuples and Python's scalars come back to the bit."""
    with _file(case) as file:
        for name, value in _values().items():
            model, other = _model(value), _blank(_model(value))
            moduli.save(file, model, format=case.found().name)
            moduli.load(file, other, format=case.found().name)
            _assert_same(other, model, f"a value of {name}")


def keeps_kinds_and_sharing(case: FormatCase) -> None:
    """Kinds, paths, metadata and Variables in two places come back, also without a model."""
    shared = Param(jnp.arange(3.0))
    model = Dict(a=Dict(w=shared, n=BatchStat(jnp.ones(()))), b=Dict(again=shared))
    with _file(case) as file:
        moduli.save(file, model, metadata={"step": 3}, format=case.found().name)
        info = moduli.inspect_checkpoint(file)
        if info.metadata != {"step": 3}:
            raise AssertionError(f"metadata came back as {info.metadata!r}, not {{'step': 3}}")
        found = sorted((leaf.path, leaf.kind) for leaf in info.leaves)
        if found != [(("a", "n"), "BatchStat"), (("a", "w"), "Param")]:
            raise AssertionError(f"`moduli.inspect_checkpoint` lists {found}")
        blank = Dict(a=Dict(w=Param(jnp.zeros(3)), n=BatchStat(jnp.zeros(()))), b=Dict())
        blank.b.again = blank.a.w
        _assert_same(moduli.load(file, blank), model, "a model with a shared Variable")
        loaded = moduli.load_state(file)
        if not isinstance(loaded.a.w, Param) or not isinstance(loaded.a.n, BatchStat):
            raise AssertionError("`moduli.load_state` gives other kinds of Variables")


def is_found_by_suffix_and_content(case: FormatCase) -> None:
    """Its suffix chooses it; it recognizes its own files, and no others."""
    format, model = case.found(), _model(jnp.ones(3))
    with _file(case) as file:
        moduli.save(file, model)
        if moduli.inspect_checkpoint(file).format != format.name:
            raise AssertionError(f"a file named {os.path.basename(file)} is taken for another one")
        if format.recognizes is None or not os.path.exists(file):
            return
        if not format.recognizes(file):
            raise AssertionError("`recognizes` does not know a file that `save` wrote")
        folder = os.path.dirname(file)
        for other, content in (("nothing in it", b""), ("text", b"moduli"), ("zeros", bytes(4096))):
            path = os.path.join(folder, other)
            pathlib.Path(path).write_bytes(content)
            _is_not(format, path, f"a file with {other}")
        for name, known in _known().items():
            if name not in (format.name, "orbax"):  # which needs a package of its own
                path = os.path.join(folder, "other" + known.suffixes[0])
                moduli.save(path, model, format=name)
                _is_not(format, path, f"a file of the format {name!r}")
        _is_not(format, folder, "a folder of files")
        _is_not(format, os.path.join(folder, "missing"), "a path where nothing is")


def refuses_damage(case: FormatCase) -> None:
    """A changed byte or a cut file is a CheckpointError, or the values are right all the same."""
    model = Dict(w=Param(jnp.arange(64.0)), n=BatchStat(jnp.arange(7)))
    with _file(case) as file:
        moduli.save(file, model)
        parts = _parts(file)
        random = np.random.default_rng(0)
        for part in parts:
            content = part.read_bytes()
            most = max(2, _FLIPS // len(parts))
            places = {0, len(content) - 1, *random.integers(0, max(1, len(content)), most).tolist()}
            for place in sorted(p for p in places if 0 <= p < len(content)):
                damaged = bytearray(content)
                damaged[place] ^= 1 << int(random.integers(8))
                part.write_bytes(damaged)
                _assert_refused(file, model, f"byte {place} of {part.name} is changed")
            cuts = np.linspace(0, len(content), max(2, _CUTS // len(parts)), endpoint=False)
            for length in cuts.astype(int).tolist():
                part.write_bytes(content[:length])
                _assert_refused(file, model, f"{part.name} ends after {length} bytes")
            part.write_bytes(content)
        _assert_same(moduli.load(file, _blank(model)), model, "the undamaged file")


def keeps_the_old_file(case: FormatCase) -> None:
    """A save that is interrupted leaves the file that was there, and no other."""
    format = case.found()
    model = Dict(a=Param(jnp.arange(4.0)), b=Param(jnp.arange(5.0)))
    with _file(case) as file:
        moduli.save(file, model)
        if not os.path.exists(file):
            raise unittest.SkipTest("it writes no files")
        folder = pathlib.Path(file).parent
        before = sorted(folder.iterdir())
        old = os.stat(file).st_ino
        moduli.save(file, model)
        if os.path.isfile(file) and os.stat(file).st_ino == old:
            raise AssertionError(
                "`save` writes into the file that is there, so a process that dies in the middle "
                "leaves neither the old checkpoint nor the new; write with "
                "moduli_interop.atomic_write"
            )
        whole = format.load(file)
        leaves = list(whole.leaves)
        broken = dataclasses.replace(leaves[-1].value, read=_interrupted, live=None)
        leaves[-1] = dataclasses.replace(leaves[-1], value=broken)
        try:
            format.save(file, dataclasses.replace(whole, leaves=tuple(leaves), read_all=None))
        except _Interrupted:
            pass
        except Exception as error:
            if _Interrupted not in map(type, _causes(error)):
                raise
        else:
            raise AssertionError("`save` goes on when an array cannot be read")
        try:
            _assert_same(moduli.load(file, _blank(model)), model, "the old file")
        except Exception as error:
            raise AssertionError(
                "an interrupted save destroys the file that was there "
                f"({type(error).__name__}: {error}); write with moduli_interop.atomic_write or "
                "atomic_folder"
            ) from error
        if left := sorted(set(folder.iterdir()) - set(before)):
            raise AssertionError(f"an interrupted save leaves {', '.join(p.name for p in left)}")


def runs_in_threads(case: FormatCase) -> None:
    """Files are written and read at once in several threads."""
    with tempfile.TemporaryDirectory() as folder, case.block():
        name, suffix = case.found().name, case.found().suffixes[0]

        def work(number: int) -> None:
            with case.block():  # plugins of a block are of one thread
                file = os.path.join(folder, f"file{number}{suffix}")
                model = _model(jnp.full(50, float(number)))
                for _ in range(3):
                    moduli.save(file, model, format=name)
                    other = moduli.load(file, _blank(model), format=name)
                    _assert_same(other, model, "a file written in a thread")

        in_threads(work, 4)


CHECKS = (
    *(claims_own_names, keeps_every_bit, keeps_kinds_and_sharing, is_found_by_suffix_and_content),
    *(refuses_damage, keeps_the_old_file, runs_in_threads),
)


class _Interrupted(Exception):
    pass


def _interrupted() -> Any:
    raise _Interrupted


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _known() -> dict[str, Any]:
    made = _plugins.contributions("checkpoint format", _HOOK, _plugins.by_attribute)
    return dict(made.values)


@contextmanager
def _file(case: FormatCase) -> Iterator[str]:
    if not hasattr(moduli, "save"):
        raise unittest.SkipTest("moduli-interop, which has checkpoints, is not installed")
    with tempfile.TemporaryDirectory() as folder, case.block():
        path = pathlib.Path(folder, "files")
        path.mkdir()
        yield str(path / f"model{case.found().suffixes[0]}")


def _values() -> dict[str, Any]:
    floats = np.array([0.0, -0.0, np.inf, -np.inf, 1e-45, 3.4e38, 1 / 3], np.float32)
    payload = np.array([0x7FC00001, 0xFFC12345], np.uint32).view(np.float32)  # NaNs, told apart
    values: dict[str, Any] = {
        "float32": jnp.asarray(np.concatenate([floats, payload])),
        "float16": jnp.asarray(floats[:4].astype(np.float16)),
        "bfloat16": jnp.asarray(floats, jnp.bfloat16),
        "float8_e4m3fn": jnp.asarray([0.5, -1.0], jnp.float8_e4m3fn),
        "int8": jnp.asarray([-128, 127], jnp.int8),
        "uint32": jnp.asarray([0, 2**32 - 1], jnp.uint32),
        "bool": jnp.asarray([True, False]),
        "complex64": jnp.asarray([1 + 2j, -0.0j]),
        "no elements": jnp.zeros((0, 3)),
        "no axes": jnp.asarray(2.5),
        "a transposed array": jnp.arange(6.0).reshape(2, 3).T,
        "keys": jax.random.split(jax.random.key(1), 3),
        "numpy": np.arange(4, dtype=np.float64)[::-1],
        "a tuple": (jnp.ones(2), jnp.zeros(2)),
    }
    return values


def _model(value: Any) -> Any:
    return Dict(part=Dict(x=Variable(value), w=Param(jnp.ones(2))))


def _blank(model: Any) -> Any:
    """Returns a copy whose arrays are all zero, or others."""
    made = clone(model)

    def other(x: Any) -> Any:
        if is_key_array(x):
            return jax.random.split(jax.random.key(99), x.shape[0])
        return np.zeros_like(x) if isinstance(x, np.ndarray) else jnp.zeros_like(x)

    for _, variable in iter_graph(made):
        if isinstance(variable, Variable):
            variable.value = jax.tree.map(other, variable.value)
    return made


def _assert_same(actual: Any, expected: Any, what: str) -> None:
    if graphdef(actual) is not graphdef(expected):
        raise AssertionError(f"{what} comes back with another structure")
    right = dict(to_flat_state(state(expected)).items())
    for path, leaf in to_flat_state(state(actual)).items():
        for x, y in zip(jax.tree.leaves(leaf), jax.tree.leaves(right[path]), strict=True):
            if type(x) is not type(y) or x.dtype != y.dtype or x.shape != y.shape:
                raise AssertionError(
                    f"{what} comes back as {type(x).__name__} {x.dtype}{x.shape}, not as "
                    f"{type(y).__name__} {y.dtype}{y.shape}"
                )
            if is_key_array(x):
                x, y = jax.random.key_data(x), jax.random.key_data(y)
            if np.asarray(x).tobytes() != np.asarray(y).tobytes():
                raise AssertionError(f"{what} comes back with other bits: {x}, not {y}")


def _parts(file: str) -> list[pathlib.Path]:
    path = pathlib.Path(file)
    if not path.exists():
        raise unittest.SkipTest("it writes no files")
    if path.is_file():
        return [path]
    return sorted(part for part in path.rglob("*") if part.is_file())


def _assert_refused(file: str, model: Any, what: str) -> None:
    other = _blank(model)
    kept = clone(other)
    try:
        moduli.load(file, other)
    except moduli.CheckpointError:
        _assert_same(other, kept, f"a model that was not loaded, as {what},")
        return
    except Exception as error:
        raise AssertionError(
            f"`load` raises {type(error).__name__}, {error}, where {what}; raise a CheckpointError"
        ) from error
    _assert_same(other, model, f"a model from a file in which {what}")


def _is_not(format: Any, path: str, what: str) -> None:
    try:
        taken = format.recognizes(path)
    except Exception as error:
        raise AssertionError(
            f"`recognizes` raises {type(error).__name__}, {error}, for {what}; return False"
        ) from error
    if taken:
        raise AssertionError(f"`recognizes` takes {what} for its own")
