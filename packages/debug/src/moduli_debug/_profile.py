"""profile: where the time and the memory of a model that runs eagerly go, module by module.

JAX computes behind Python's back, so a time is true only if the clock stops when the results are
there. The plugin waits for a call's inputs before its clock starts (that work is the caller's) and
for its output, and for what it wrote into Variables, before the clock stops. What the plugin itself
does is taken off the clock.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jax.core import Tracer

import moduli
from moduli import errors, plugins
from moduli_debug._capture import check_function, owner_of
from moduli_debug._module_filter import path_text

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["ModuleProfile", "Profile", "profile"]

Path = tuple[Any, ...]
_clock = time.perf_counter


@dataclasses.dataclass(frozen=True)
class ModuleProfile:
    """What the calls of one module cost, one row of a :class:`Profile`.

    Attributes:
      path: where the module stands.
      module: its class.
      calls: how many of its calls ran eagerly.
      total_seconds: wall time of these calls, with that of the modules that they call.
      own_seconds: the same without the modules that they call.
      output_bytes: bytes of all arrays that the calls returned.
      live_bytes: by how much the bytes of all arrays that are alive grew during the calls: what was
        returned and kept, less what was given free.
      peak_bytes: the most that a call needed beyond what was in use when it began, if the device
        reports it and the call reached a new peak of the process; otherwise None.
    """

    path: Path
    module: str
    calls: int
    total_seconds: float
    own_seconds: float
    output_bytes: int
    live_bytes: int
    peak_bytes: int | None


@dataclasses.dataclass(frozen=True)
class Profile:
    """The cost of one eager run by module; ``print`` shows it as a table.

    Attributes:
      rows: one for each module that was called, in the order of the first calls.
      seconds: wall time of the whole run, with what stands outside of modules.
      compiled: paths of modules that were called only while a transform was tracing, in the order
        of the first calls. What they cost is part of the module that calls the transform.
      device: the device on which the run was.
      reports_peak: whether that device reports the peak of its memory.

    Example:
      >>> import jax.numpy as jnp, moduli as nnx
      >>> class Double(nnx.Module):
      ...     def __call__(self, x):
      ...         return 2 * x
      >>> model, x = nnx.Sequential(Double(), Double()), jnp.ones((4, 4), jnp.float32)
      >>> _, profile = nnx.profile(model)(x)
      >>> [(row.path, row.calls, row.output_bytes) for row in profile.rows]
      [((), 1, 64), (('layers', 0), 1, 64), (('layers', 1), 1, 64)]
      >>> own = sum(row.own_seconds for row in profile.rows)
      >>> 0.0 < own <= profile.seconds
      True
    """

    rows: tuple[ModuleProfile, ...]
    seconds: float
    compiled: tuple[Path, ...]
    device: str
    reports_peak: bool

    def table(self) -> Table:
        """Returns the rows as a table of rich."""
        from rich import box
        from rich.table import Table

        table = Table(box=box.SIMPLE_HEAD, caption="\n".join(self._notes()), caption_justify="left")
        table.add_column("module", overflow="fold")
        table.add_column("class")
        headings = ["calls", "total ms", "own ms", "own", "output", "live"]
        for heading in [*headings, "peak"] if self.reports_peak else headings:
            table.add_column(heading, justify="right")
        for row in self.rows:
            share = row.own_seconds / self.seconds if self.seconds else 0.0
            cells = [
                path_text(row.path) or "(root)",
                row.module,
                f"{row.calls:,}",
                f"{1e3 * row.total_seconds:,.3f}",
                f"{1e3 * row.own_seconds:,.3f}",
                f"{share:.0%}",
                _bytes_text(row.output_bytes),
                _bytes_text(row.live_bytes, sign="+"),
            ]
            if self.reports_peak:
                cells.append("" if row.peak_bytes is None else _bytes_text(row.peak_bytes))
            table.add_row(*cells)
        return table

    def _notes(self) -> Iterator[str]:
        inside = sum(row.own_seconds for row in self.rows)
        yield (
            f"One eager run on {self.device}: {1e3 * self.seconds:,.3f} ms, of these "
            f"{1e3 * max(self.seconds - inside, 0.0):,.3f} ms outside of modules."
        )
        yield (
            "Python dispatches each operation; a compiled program takes less. "
            "live: growth of all live arrays."
        )
        if not self.reports_peak:
            yield "This device does not report the peak of its memory."
        if self.compiled:
            tops = [path for path in self.compiled if not _has_outer(path, self.compiled)]
            shown = ", ".join(path_text(path) or "(root)" for path in tops[:4])
            more = f" and {len(tops) - 4} more" if len(tops) > 4 else ""
            yield f"Inside of a transform, and in the time of its caller: {shown}{more}."

    def __rich__(self) -> Table:
        return self.table()

    def __str__(self) -> str:
        from io import StringIO

        from rich.console import Console

        text = StringIO()
        Console(file=text, width=120, color_system=None).print(self.table())
        return "\n".join(line.rstrip() for line in text.getvalue().splitlines())


def _has_outer(path: Path, paths: tuple[Path, ...]) -> bool:
    """Returns whether a module that holds the one at a path is among others."""
    return any(path[:stop] in paths for stop in range(len(path)))


def _bytes_text(count: int, sign: str = "") -> str:
    """Formats a number of bytes with a binary unit."""
    size, unit = float(count), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if abs(size) < 1024:
            break
        size, unit = size / 1024, larger
    return f"{size:{sign}.0f} B" if unit == "B" else f"{size:{sign}.1f} {unit}"


@dataclasses.dataclass
class _Frame:
    """A call that is running."""

    path: Path
    module: str
    start: float
    live: int
    memory: dict[str, int] | None
    inner: float = 0.0  # seconds of the calls inside


@dataclasses.dataclass
class _Session:
    """A run that is measured."""

    frames: list[_Frame] = dataclasses.field(default_factory=list)
    called: dict[Path, None] = dataclasses.field(default_factory=dict)
    rows: dict[Path, ModuleProfile] = dataclasses.field(default_factory=dict)
    traced: set[Path] = dataclasses.field(default_factory=set)
    written: list[Any] = dataclasses.field(default_factory=list)
    overhead: float = 0.0

    def now(self) -> float:
        """The time in seconds, without what the profiler did itself."""
        return _clock() - self.overhead

    @contextlib.contextmanager
    def uncounted(self) -> Iterator[None]:
        """Takes what happens in a block off the clock."""
        start = _clock()
        try:
            yield
        finally:
            self.overhead += _clock() - start

    def begin(self, path: Path, module: moduli.Module) -> None:
        with self.uncounted():
            frame = _Frame(path, type(module).__name__, 0.0, _live_bytes(), _memory())
            self.frames.append(frame)
            self.called.setdefault(path)
        frame.start = self.now()

    def wait(self, value: Any) -> None:
        """Waits for arrays, and for what was written into Variables."""
        jax.block_until_ready([*_arrays(value), *self.written])
        self.written.clear()

    def end(self, output: Any) -> None:
        """Ends the innermost call and adds it to the row of its module."""
        now = self.now()
        with self.uncounted():
            frame = self.frames.pop()
            seconds = now - frame.start
            if self.frames:
                self.frames[-1].inner += seconds
            old = self.rows.get(frame.path) or ModuleProfile(
                frame.path, frame.module, 0, 0.0, 0.0, 0, 0, None
            )
            within_itself = any(outer.path == frame.path for outer in self.frames)
            self.rows[frame.path] = dataclasses.replace(
                old,
                calls=old.calls + 1,
                total_seconds=old.total_seconds + (0.0 if within_itself else seconds),
                own_seconds=old.own_seconds + seconds - frame.inner,
                output_bytes=old.output_bytes + sum(array.nbytes for array in _arrays(output)),
                live_bytes=old.live_bytes + _live_bytes() - frame.live,
                peak_bytes=_largest(old.peak_bytes, _new_peak(frame.memory, _memory())),
            )

    def skip(self) -> None:
        """Ends the innermost call, which was traced: its time is part of the call around it."""
        self.traced.add(self.frames.pop().path)


_running: contextvars.ContextVar[_Session | None] = contextvars.ContextVar(
    "moduli_debug_profile", default=None
)


class _Profiler:
    """The plugin of one profile: its programs are its own, so what they hold is traced and seen."""

    # What other plugins do at a call is not part of the module's time: last before, first after.

    @moduli.hookimpl(trylast=True)
    def moduli_before_call(self, args: Any, kwargs: Any) -> None:
        session = _running.get()
        if session is not None:
            session.wait((args, kwargs))

    @moduli.hookimpl(trylast=True)
    def moduli_call_context(self, module: moduli.Module, path: Path) -> Any:
        session = _running.get()
        if session is None:
            return None
        for recording in plugins.recordings():
            if recording.owner is self:
                path = recording.path_of(module) or ()
        return _call(session, path, module)

    @moduli.hookimpl(tryfirst=True)
    def moduli_after_call(self, args: Any, kwargs: Any, output: Any) -> None:
        session = _running.get()
        if session is None:
            return
        if any(isinstance(leaf, Tracer) for leaf in _leaves((args, kwargs, output))):
            session.skip()
            return
        session.wait(output)
        session.end(output)

    @moduli.hookimpl
    def moduli_value_written(self, value: Any) -> None:
        session = _running.get()
        if session is not None:
            session.written.extend(_arrays(value))


@contextlib.contextmanager
def _call(session: _Session, path: Path, module: moduli.Module) -> Iterator[None]:
    depth = len(session.frames)
    session.begin(path, module)
    try:
        yield
    except BaseException:
        del session.frames[depth + 1 :]
        session.end(None)
        raise
    del session.frames[depth + 1 :]  # of calls that another plugin's hook cut short


def profile(fn: Callable[..., Any], *, warmup: int = 1) -> Callable[..., tuple[Any, Profile]]:
    """Wraps a model or function so that it also returns what each module cost.

    It measures *eager* runs: wall time, own and with the modules inside, bytes of outputs, and
    memory. The clock of a call stops when its output is there. A transform that the model calls
    (``jit``, ``scan``, :class:`moduli.Stack`) is one operation of the module that calls it; the
    modules inside of it are listed in ``Profile.compiled``. The own time of small modules is mostly
    Python's; for compiled programs there is :func:`moduli.named_scopes` with ``jax.profiler``.

    Before the run that counts, the function is called ``warmup`` times, because the first run
    compiles each operation. These calls get copies of the model and of the Modules among the
    arguments, so that statistics and random streams move on once. What ``fn`` changes beside these
    is changed by every call.

    Args:
      fn: a Module, a method of one, or a function. Paths begin at the Module (or at that of the
        method), otherwise at the first argument that is a Module.
      warmup: how many calls come before the one that is measured; with 0 the times include
        compilation.

    Returns:
      A function with the arguments of ``fn``, which returns ``(result, profile)``.

    Raises:
      VariableError: if ``fn`` cannot be called, or ``warmup`` is not a count.
      TraceError: (in the call) if every call of a module was traced: inside of a jitted function,
        or if ``fn`` is one.
      StructureError: (in the call) if no module was called.

    Example:
      >>> import jax.numpy as jnp, moduli as nnx
      >>> model = nnx.Sequential(nnx.Linear(2, 8, rngs=nnx.Rngs(0)), nnx.relu)
      >>> y, profile = nnx.profile(model)(jnp.ones((4, 2), jnp.float32))
      >>> [row.module for row in profile.rows], profile.rows[1].output_bytes
      (['Sequential', 'Linear'], 128)
      >>> nnx.profile(nnx.jit(lambda model, x: model(x)))(model, jnp.ones((4, 2)))
      Traceback (most recent call last):
      moduli.errors.TraceError: profile measures eager runs, and every call of a module ...
    """
    check_function(fn, "profile")
    if isinstance(warmup, bool) or not isinstance(warmup, int) or warmup < 0:
        raise errors.VariableError(
            f"profile: warmup is a number of calls, 0 or more; got {warmup!r}"
        )

    def profiled(*args: Any, **kwargs: Any) -> tuple[Any, Profile]:
        plugin, traced = _Profiler(), dict[Path, None]()
        for _ in range(warmup):
            _run(*_copied(fn, args, kwargs), plugin, traced)
        return _measured(fn, args, kwargs, plugin, traced)

    return profiled


def _copied(
    fn: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    """Copies the Modules in a function and its arguments, with what they share."""
    owner = owner_of(fn)
    copy, args, kwargs = moduli.clone((owner, args, kwargs))
    if owner is None:
        return fn, args, kwargs
    return copy if fn is owner else getattr(copy, fn.__name__), args, kwargs


def _run(
    fn: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    plugin: _Profiler,
    traced: dict[Path, None],
) -> tuple[Any, _Session, float]:
    """Calls a function once; returns its result, what was seen, and the seconds.

    Args:
      fn: the function.
      args: its positional arguments.
      kwargs: its keyword arguments.
      plugin: of this profile.
      traced: collects the paths of modules that were traced: a program that is kept from an
        earlier call does not call them again.
    """
    session = _Session()
    modules = (value for value in (*args, *kwargs.values()) if isinstance(value, moduli.Module))
    root = owner_of(fn) or next(modules, None)
    session.wait((args, kwargs))
    token = _running.set(session)
    try:
        with moduli.using(plugin), plugins.recording(plugin, root):
            start = session.now()
            result = fn(*args, **kwargs)
            session.wait(result)
            seconds = session.now() - start
    finally:
        _running.reset(token)
    traced.update(dict.fromkeys(path for path in session.called if path in session.traced))
    return result, session, seconds


def _measured(
    fn: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    plugin: _Profiler,
    traced: dict[Path, None],
) -> tuple[Any, Profile]:
    """Calls a function once and measures."""
    result, session, seconds = _run(fn, args, kwargs, plugin, traced)
    if not session.rows:
        raise _nothing_measured(fn, traced)
    rows = tuple(session.rows[path] for path in session.called if path in session.rows)
    compiled = tuple(path for path in traced if path not in session.rows)
    return result, Profile(rows, seconds, compiled, _device_text(), _memory() is not None)


def _nothing_measured(fn: Any, traced: dict[Path, None]) -> errors.ModuliError:
    name = getattr(fn, "__qualname__", type(fn).__name__)
    if not traced:
        return errors.StructureError(
            f"profile: {name} called no module, so there is nothing to measure by module"
        )
    shown = ", ".join(repr(path_text(path)) for path in list(traced)[:4])
    return errors.TraceError(
        f"profile measures eager runs, and every call of a module in {name} ({shown}, ...) was "
        "traced by a transform, such as jit. Profile the model itself, "
        "`moduli.profile(model)(x)`, outside of transforms; or look at the compiled program with "
        "`with moduli.named_scopes(), jax.profiler.trace(folder): ...`"
    )


def _leaves(value: Any) -> list[Any]:
    """Returns the leaves of a pytree; Modules, which may be cyclic, are leaves."""
    return jax.tree.leaves(value, is_leaf=lambda leaf: isinstance(leaf, moduli.Pytree))


def _arrays(value: Any) -> list[Any]:
    return [
        leaf
        for leaf in _leaves(value)
        if isinstance(leaf, (jax.Array, np.ndarray)) and not isinstance(leaf, Tracer)
    ]


def _live_bytes() -> int:
    return sum(array.nbytes for array in jax.live_arrays())


def _memory() -> dict[str, int] | None:
    """Returns what the first device says of its memory; None if it does not say what we need."""
    stats = jax.local_devices()[0].memory_stats()
    needed = {"bytes_in_use", "peak_bytes_in_use"}
    return stats if stats is not None and needed <= stats.keys() else None


def _new_peak(before: dict[str, int] | None, after: dict[str, int] | None) -> int | None:
    """Returns what a call needed at its peak; the device's peak only ever grows."""
    if before is None or after is None or after["peak_bytes_in_use"] <= before["peak_bytes_in_use"]:
        return None
    return after["peak_bytes_in_use"] - before["bytes_in_use"]


def _largest(first: int | None, second: int | None) -> int | None:
    known = [value for value in (first, second) if value is not None]
    return max(known, default=None)


def _device_text() -> str:
    device = jax.local_devices()[0]
    return f"{device.platform}:{device.id} ({device.device_kind})"


for _public in (ModuleProfile, Profile, profile):
    _public.__module__ = "moduli_debug"
