"""Where a call stands in a model, and what tools record on the way.

A :class:`Recording` knows the paths of a model's modules, counts their calls, and keeps values that
tools record. It changes nothing in the model. Inside of a transform it is another object: one that
knows the fresh copies of the modules by the paths of the caller's, and whose values are outputs of
the transform, stacked by ``scan``, batched by ``vmap``, and so on. Every lifted call takes one more
argument for that while a recording is running, so that no transform has code of its own for it (see
``_call.recorded_values``).

Tools find the running recordings with :func:`recordings` and start one with :func:`recording`.
"""

from __future__ import annotations

import contextlib
import contextvars
import math
from collections.abc import Hashable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol

from moduli import errors
from moduli._base.compat import trace_state
from moduli._base.current_transform import describe_running
from moduli._base.node import Node
from moduli._base.type_variables import Path
from moduli._graph.walk import iter_nodes, node_children
from moduli._variable.box import Variable

__all__ = [
    "Crossings",
    "Entry",
    "Place",
    "Recording",
    "RecordingKey",
    "Records",
    "around",
    "inside",
    "recording",
    "recordings",
]

Crossings = tuple[tuple[str, int], ...]
"""The axes that were added around a value: (transform, size) of each, the outermost first."""

_here: contextvars.ContextVar[tuple[Recording, ...]] = contextvars.ContextVar(
    "moduli_recordings", default=()
)
recordings = _here.get
"""Returns the recordings that are running here, the outermost first."""


class Place(NamedTuple):
    """What a recorded value is: static, and part of compiled programs.

    Attributes:
      path: the path of the module.
      number: in which of the module's calls, counted from 0; None if that does not matter.
      name: what the tool calls it; anything that can be hashed.
    """

    path: Path
    number: int | None
    name: Hashable


class Entry(NamedTuple):
    """A recorded value.

    Attributes:
      place: what it is.
      value: an array or a pytree of arrays, with one more axis in front for each crossing.
      crossings: (transform, size) of each ``vmap``, ``pmap`` and ``scan`` around it.
      absent: what stands for it where a branch of ``cond`` or ``switch`` was taken that did not
        record it.
    """

    place: Place
    value: Any
    crossings: Crossings = ()
    absent: float = math.nan


class Records(Protocol):
    """What a lifted call brings back."""

    def entries(self) -> list[Entry]:
        """Returns what was recorded, in order."""
        ...

    def calls(self) -> Iterable[tuple[Path, int]]:
        """Returns how often modules were called, by path."""
        ...


class RecordingKey(NamedTuple):
    """What a compiled program has to know of a recording.

    Attributes:
      owner: whose recording it is.
      paths: for each graph of the call, the path of each object, None if it has none.
      caller: the path of the module whose call is running.
      crossings: the axes around the call.
      keeps: whether values are kept.
      has_root: whether paths begin at one module.
    """

    owner: Hashable
    paths: tuple[tuple[Path | None, ...], ...]
    caller: Path | None
    crossings: Crossings
    keeps: bool
    has_root: bool

    def open(
        self, objects: Iterable[Iterable[Any]], given: Mapping[Place, tuple[Any, Crossings]]
    ) -> Recording:
        """Makes the recording of a transformed function.

        Args:
          objects: the fresh objects of each graph.
          given: the values that the recording is given, with the axes around them.
        """
        known = [
            (item, path)
            for group, paths in zip(objects, self.paths, strict=True)
            for item, path in zip(group, paths, strict=True)
            if path is not None
        ]
        modules = [(item, path) for item, path in known if not isinstance(item, Variable)]
        opened = Recording(self.owner, modules, given, self.crossings, has_root=self.has_root)
        opened._loose = [(item, path) for item, path in known if isinstance(item, Variable)]
        if not self.keeps:
            opened.mute()
        if self.caller is not None:
            opened._calls.append((self.caller, 0))
        return opened


class Recording:
    """A running recording, as seen from the function that is running.

    Attributes:
      owner: the tool whose recording it is; part of the key of compiled programs.
      crossings: (transform, size) of each ``vmap``, ``pmap`` and ``scan`` around here.
    """

    def __init__(
        self,
        owner: Hashable,
        known: list[tuple[Any, Path]],
        given: Mapping[Place, tuple[Any, Crossings]],
        crossings: Crossings = (),
        *,
        has_root: bool = True,
    ):
        self.owner, self.crossings, self._has_root = owner, crossings, has_root
        self._known = known  # keeps the objects alive, so that their ids stay theirs
        self._loose: list[tuple[Any, Path]] = []  # Variables that a call got without their module
        self._tops = _tops(known)
        self._paths = {id(item): path for item, path in known}
        self._trace = trace_state()
        self._entries: list[Entry] | None = []  # None: values are not kept
        self._given = dict(given)
        self._counts: dict[Path, int] = {}
        self._calls: list[tuple[Path, int]] = []
        self._children: list[Records] = []

    # -- paths and calls -------------------------------------------------------------------------

    def path_of(self, module: Any) -> Path | None:
        """Returns the path of a module from the root of the recording, None if it stands nowhere.

        Args:
          module: a module; inside of a transform the copy that the function got.
        """
        path = self._paths.get(id(module))
        if path is None:
            self._look_again()
            path = self._paths.get(id(module))
        if path is None:
            path = self._path_of_merged(module)
            if path is not None:
                self._learn(module, path)
        return path

    def _path_of_merged(self, module: Any) -> Path | None:
        """Returns the path of the module whose Variables this one holds; None if there is none.

        One that was split off and merged again holds them. It has the same class.
        """
        held = _variables(module, ())
        if not held:
            return None
        modules: dict[Path, Any] = {}
        for known, path in self._known:
            if isinstance(known, Node):
                modules.setdefault(path, known)
        places = self._places_of_variables()
        bases: set[Path] | None = None
        for variable, relative in held:
            found = {
                path[: -len(relative)]
                for path in places.get(id(variable), ())
                if path[-len(relative) :] == relative
            }
            bases = found if bases is None else bases & found
            if not bases:
                return None
        kind = type(module)  # a call that got Variables alone does not know the module there
        fitting = sorted(
            (base for base in bases or () if type(modules.get(base, module)) is kind), key=len
        )
        return fitting[0] if fitting else None

    def _places_of_variables(self) -> dict[int, list[Path]]:
        """Returns the paths of all Variables, by identity."""
        places: dict[int, list[Path]] = {}
        for variable, path in self._loose:
            places.setdefault(id(variable), []).append(path)
        for known, path in self._known:
            if isinstance(known, Node):
                for relative, child in node_children(known):
                    if not isinstance(child, Node):
                        places.setdefault(id(child), []).append(path + relative)
        return places

    def path_of_variable(self, variable: Any) -> Path | None:
        """Returns the path of a Variable from the root of the recording; it looks everywhere."""
        for module, path in self._known:
            for relative, child in node_children(module):
                if child is variable:
                    return path + relative
        return None

    def call(self) -> tuple[Path, int]:
        """Returns path and number of the call that is running, of which a hook is told.

        Raises:
          LookupError: if no call of a module is running.
        """
        if not self._calls:
            raise LookupError("no call of a module is running")
        return self._calls[-1]

    def _learn(self, root: Any, base: Path) -> None:
        """Notes the paths of a module and of all below it."""
        self._tops.append((root, base))
        self._walk(root, base)

    def _walk(self, root: Any, base: Path) -> None:
        for path, node in iter_nodes(root, Node):
            if id(node) not in self._paths:
                self._known.append((node, base + path))
                self._paths[id(node)] = base + path

    def _look_again(self) -> None:
        """Finds modules that were added since."""
        for item, path in self._tops:
            self._walk(item, path)

    def enter(self, module: Any) -> tuple[Path, int]:
        """Notes that a module's call begins; returns its path and number."""
        self.settle()
        path = self.path_of(module)
        if path is None:  # made by the call that is running, or another model
            caller = self._calls[-1][0] if self._calls else ()
            is_root = not (self._calls or self._has_root)
            self._learn(module, () if is_root else (*caller, f"<{type(module).__name__}>"))
            path = self._paths[id(module)]
        number = self._counts.get(path, 0)
        self._counts[path] = number + 1
        self._calls.append((path, number))
        return path, number

    def leave(self) -> None:
        """Notes that the innermost call ends."""
        self._calls.pop()

    # -- values ----------------------------------------------------------------------------------

    @property
    def keeps(self) -> bool:
        """Whether values are kept."""
        return self._entries is not None

    def record(self, name: Hashable, value: Any, *, absent: float = math.nan) -> bool:
        """Keeps a value of the module's call that is running; for hooks around calls.

        It is carried out of all of moduli's transforms around here.

        Args:
          name: what the tool calls it; anything that can be hashed.
          value: an array or a pytree of arrays.
          absent: see :meth:`record_at`.

        Returns:
          Whether it is kept: not if nobody collects.

        Raises:
          TraceError: under a transform of JAX's own, through which nothing can be carried out.
          LookupError: if no call of a module is running.
        """
        return self.record_at(Place(*self.call(), name), value, absent=absent)

    def record_at(self, place: Place, value: Any, *, absent: float = math.nan) -> bool:
        """Like :meth:`record`, for any module, called or not.

        Args:
          place: path of the module (see :meth:`path_of`), number of its call or None, and name.
          value: an array or a pytree of arrays.
          absent: what stands for it where a branch of ``cond`` or ``switch`` was taken that did not
            record it; 0 for values that are not floating point.

        Returns:
          Whether it is kept: not if nobody collects.

        Raises:
          TraceError: under a transform of JAX's own, through which nothing can be carried out.
        """
        if self._entries is None:
            return False
        self.settle()
        if self._trace != trace_state():
            raise errors.TraceError(
                f"cannot record {place.name!r} of `{errors.format_path(place.path)}` here: the "
                f"value belongs to the trace of {describe_running()}, which does not hand it "
                "out. Use moduli's transform (`moduli.jit`, `moduli.vmap`, ...) instead of JAX's "
                "own"
            )
        self._entries.append(Entry(place, value, self.crossings, absent))
        return True

    def given(self, name: Hashable) -> Any:
        """Returns the value that the recording was given for the module's call that is running.

        A value that was recorded under ``vmap`` or ``scan`` is sliced by the same transform.

        Args:
          name: of the value.

        Returns:
          The value, or None.

        Raises:
          LookupError: if no call of a module is running.
        """
        return self.given_at(Place(*self.call(), name))

    def given_at(self, place: Place) -> Any:
        """Like :meth:`given`, for any place."""
        found = self._given.get(place)
        return None if found is None else found[0]

    def entries(self) -> list[Entry]:
        """Returns what was recorded so far, in order."""
        self.settle()
        return list(self._entries or ())

    # -- for the transforms ----------------------------------------------------------------------

    def key(self, objects: Iterable[Iterable[Any]]) -> RecordingKey:
        """What a program has to know, for the objects of each graph of a call."""
        self._look_again()
        paths = tuple([self._paths_in(list(group)) for group in objects])
        caller = self._calls[-1][0] if self._calls else None
        return RecordingKey(
            self.owner, paths, caller, self.crossings, self._entries is not None, self._has_root
        )

    def _paths_in(self, group: list[Any]) -> tuple[Path | None, ...]:
        """Returns the paths of the objects of a graph; of Variables if there is no module."""
        paths = tuple([self._paths.get(id(item)) for item in group])
        loose = any(isinstance(item, Variable) for item in group)
        if not loose or any(path is not None for path in paths):
            return paths
        places = self._places_of_variables()
        return tuple([next(iter(places.get(id(item), ())), None) for item in group])

    def given_inside(self) -> dict[Place, tuple[Any, Crossings]]:
        """Returns what the recording inside of a lifted call is given: numbers count from there."""
        self.settle()
        inside = {}
        for place, (value, crossings) in self._given.items():
            if place.number is not None:
                place = place._replace(number=place.number - self._counts.get(place.path, 0))
                if place.number < 0:  # type: ignore[operator]
                    continue
            inside[place] = (value, crossings)
        return inside

    def await_records(self, records: Records) -> None:
        """Notes a lifted call: what its records hold when it has ended is recorded here."""
        self._children.append(records)

    def settle(self) -> None:
        """Takes over what the lifted calls that have ended recorded."""
        if self._entries is None or not self._children:
            return
        children, self._children = self._children, []
        for child in children:
            for entry in child.entries():
                place = entry.place
                if place.number is not None:
                    number = place.number + self._counts.get(place.path, 0)
                    entry = entry._replace(place=place._replace(number=number))
                self._entries.append(entry)
            for path, calls in child.calls():
                self._counts[path] = self._counts.get(path, 0) + calls

    def cross(self, transform: str, size: int) -> None:
        """Notes an axis around the function that runs; values given for it were sliced."""
        self.crossings = (*self.crossings, (transform, size))
        self._given = {
            place: (value, crossings[1:])
            if crossings and crossings[0] == (transform, size)
            else (value, crossings)
            for place, (value, crossings) in self._given.items()
        }

    def mute(self) -> None:
        """Keeps nothing from here on."""
        self._entries, self._children = None, []

    def counts(self) -> dict[Path, int]:
        """How often modules were called, by path."""
        self.settle()
        return dict(self._counts)

    def replace(self, entries: Iterable[Entry], counts: Mapping[Path, int]) -> None:
        """Records these instead of what was recorded."""
        self.settle()
        self._entries, self._counts = list(entries), dict(counts)


def _tops(known: list[tuple[Any, Path]]) -> list[tuple[Any, Path]]:
    """Those from which all others can be reached: no other stands above them."""
    paths = {path for _, path in known}
    return [
        (item, path)
        for item, path in known
        if not any(path[:stop] in paths for stop in range(len(path)))
    ]


@contextlib.contextmanager
def inside(running: tuple[Recording, ...]) -> Iterator[None]:
    """Makes these the running recordings for a block."""
    token = _here.set(running)
    try:
        yield
    finally:
        _here.reset(token)


@contextlib.contextmanager
def recording(
    owner: Hashable, root: Any = None, given: Mapping[Place, Any] | Iterable[Entry] = ()
) -> Iterator[Recording]:
    """Records values from inside a model for a block, in this thread (and context) only.

    Inside, also inside of moduli's transforms, :func:`recordings` has it (or its counterpart
    there); a plugin whose hooks are called finds it by its owner. The model is not changed.

    Args:
      owner: the tool that records, as part of the key of compiled programs: make it once and use it
        often, or give it an equality.
      root: the module where paths begin; without it, the outermost module of each call.
      given: values to hand to :meth:`Recording.given`: by place, or entries of an earlier
        recording, which transforms slice as they stacked them.

    Yields:
      The Recording.

    Example:
      >>> import moduli as nnx, jax.numpy as jnp
      >>> from moduli import plugins
      >>> class Norms:
      ...     @nnx.hookimpl
      ...     def moduli_after_call(self, output):
      ...         for recording in plugins.recordings():
      ...             if recording.owner is self:
      ...                 recording.record("norm", jnp.linalg.norm(output))
      >>> class Double(nnx.Module):
      ...     def __call__(self, x):
      ...         return 2 * x
      >>> model, norms = Double(), Norms()
      >>> step = nnx.jit(nnx.vmap(lambda model, x: model(x), in_axes=(None, 0)))
      >>> with nnx.using(norms), plugins.recording(norms, model) as recording:
      ...     _ = step(model, jnp.ones((3, 4)))
      >>> [(e.place.path, e.place.name, e.value.shape) for e in recording.entries()]
      [((), 'norm', (3,))]
    """
    _check_owner(owner)
    known: dict[Place, tuple[Any, Crossings]]
    if isinstance(given, Mapping):
        known = {place: (value, ()) for place, value in given.items()}  # type: ignore[misc]
    else:
        known = {entry.place: (entry.value, entry.crossings) for entry in given}
    started = Recording(owner, [], known, has_root=root is not None)
    if root is not None:
        started._learn(root, ())
    with inside((*_here.get(), started)):
        yield started


def _variables(module: Any, base: Path) -> list[tuple[Any, Path]]:
    """Lists the Variables below a module with their paths in it."""
    return [
        (child, base + path + relative)
        for path, node in iter_nodes(module, Node)
        for relative, child in node_children(node)
        if not isinstance(child, Node)
    ]


def around(module: Any) -> Recording:
    """A recording that keeps nothing: of a call that no other recording knows."""
    opened = Recording(None, [], {})
    opened.mute()
    opened._learn(module, ())
    return opened


def _check_owner(owner: Any) -> None:
    """Raises if an owner cannot be part of a key."""
    try:
        hash(owner)
    except TypeError:
        raise errors.PluginError(
            f"recording: the owner is a {type(owner).__name__}, which cannot be hashed; it is part "
            "of the key of compiled programs, so use the plugin object or a frozen dataclass"
        ) from None
