"""Functions on the random streams inside a model: split, fork, restore, replace and reseed them.

A model's streams may stand anywhere: in Rngs, as the fork that a Dropout keeps, in a list of
layers. Each function here finds all of them, works out every new key, checks that every Variable
may be written, and only then writes, so an error leaves the model as it was.
"""

from __future__ import annotations

import difflib
import functools
import operator
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, TypeVar, Unpack, overload

import jax
import jax.numpy as jnp

from moduli import errors
from moduli._base.compat import is_key_array
from moduli._base.modes import Modes
from moduli._base.positions import is_several
from moduli._graph.cache import flat_of
from moduli._graph.data import is_graph_leaf
from moduli._graph.flatten import flatten_roots
from moduli._graph.unflatten import build
from moduli._rngs.search import Change, Path, Rule, Streams
from moduli._rngs.streams import RngStream, _as_key
from moduli._variable.box import _MISSING, Variable
from moduli._variable.filters import Any as AnyOf
from moduli._variable.filters import Filter, to_predicate

__all__ = [
    "SplitBackups",
    "fork_rngs",
    "reseed",
    "restore_rngs",
    "split_rngs",
    "with_rngs",
]

A = TypeVar("A")
F = TypeVar("F", bound=Callable[..., Any])
Shape = tuple[int, ...]
Backup = tuple[RngStream, jax.Array, jax.Array]


class SplitBackups(Iterable[Backup]):
    """What streams were before :func:`split_rngs` or :func:`fork_rngs` changed them.

    Iterating gives ``(stream, key, count)`` of each stream, with the key and the count that
    :func:`restore_rngs` writes back. As a context manager it restores them on exit, also when the
    block raises.

    Args:
      backups: the triples.

    Example:
      >>> import moduli as nnx
      >>> rngs = nnx.Rngs(params=0)
      >>> with nnx.split_rngs(rngs, splits=5) as backups:
      ...     print(rngs.params.key.shape, len(backups))
      (5,) 1
      >>> rngs.params.key.shape
      ()
    """

    def __init__(self, backups: Iterable[Backup]):
        self.backups = tuple(backups)

    def __iter__(self) -> Iterator[Backup]:
        return iter(self.backups)

    def __len__(self) -> int:
        return len(self.backups)

    def __enter__(self) -> SplitBackups:
        return self

    def __exit__(self, *error: object) -> None:
        restore_rngs(self)

    def __repr__(self) -> str:
        tags = [stream.tag for stream, _, _ in self.backups]
        return f"SplitBackups({len(tags)} streams: {tags})"


@overload
def split_rngs(
    node: Any,
    /,
    *,
    splits: int | Shape,
    only: Filter = ...,
    squeeze: bool = False,
    **_modes: Unpack[Modes],
) -> SplitBackups: ...
@overload
def split_rngs(
    *, splits: int | Shape, only: Filter = ..., squeeze: bool = False, **_modes: Unpack[Modes]
) -> Callable[[F], F]: ...
def split_rngs(
    node: Any = _MISSING,
    /,
    *,
    splits: int | tuple[int, ...],
    only: Filter = ...,
    squeeze: bool = False,
    **_modes: Unpack[Modes],
) -> SplitBackups | Callable[[F], F]:
    """Gives streams an array of keys each, in place, as ``vmap`` and ``scan`` over layers need.

    Each stream draws one key and splits it; its new count is an array of zeros. A stream that
    several modules share is split once.

    Args:
      node: a Module, Rngs, or any pytree that holds some. Without it a decorator is returned: it
        splits the streams in the arguments of the function, calls it, and restores them.
      splits: the shape of the array of keys; an int ``n`` is ``(n,)``.
      only: a filter on the streams. It has to select both Variables of a stream, its RngKey and
        its RngCount: a tag (``"dropout"``), a path, or a callable. All streams by default.
      squeeze: with ``splits=1``, drop the axis of length 1: the streams keep one key, a new one.

    Returns:
      SplitBackups, for :func:`restore_rngs` or a ``with`` statement; or the decorator. Restored
      streams go on behind the key that they drew.

    Raises:
      RngError: if ``splits`` is not made of positive ints, ``squeeze`` is given with another
        number than 1, a stream holds an array of keys already, or ``only`` selects none of the
        streams. No stream is changed then.
      StructureError: if ``node`` holds no graph.
      TraceError: if a stream belongs to another JAX trace.

    Example:
      >>> import moduli as nnx
      >>> rngs = nnx.Rngs(params=0, dropout=1)
      >>> backups = nnx.split_rngs(rngs, splits=(2, 5), only="dropout")
      >>> rngs.params.key.shape, rngs.dropout.key.shape, rngs.dropout.count.shape
      ((), (2, 5), (2, 5))
      >>> nnx.restore_rngs(backups)
      >>> rngs.dropout.key.shape, rngs.dropout.count.value.item()
      ((), 1)

      As a decorator:

      >>> @nnx.split_rngs(splits=3)
      ... def shape_of_keys(rngs):
      ...     return rngs.params.key.shape
      >>> shape_of_keys(rngs), rngs.params.key.shape
      ((3,), ())
    """
    if squeeze and (isinstance(splits, (bool, tuple)) or splits != 1):
        raise errors.RngError(
            f"split_rngs: squeeze=True drops an axis of length 1, so it needs splits=1; got "
            f"splits={splits!r}"
        )
    shape = _shape(splits, "split_rngs: splits")
    change = _take_one if squeeze else _split_into(shape)
    rules = [(to_predicate(only), change)]

    def run(streams: Streams) -> SplitBackups:
        return _change_in_place(streams, streams.select_by_variables(rules))

    return _now_or_during_calls(run, node, "split_rngs", "(splits=...)")


@overload
def fork_rngs(
    node: Any,
    /,
    *,
    split: Mapping[Any, int | Shape | None] | int | Shape | None = None,
    **_modes: Unpack[Modes],
) -> SplitBackups: ...
@overload
def fork_rngs(
    *, split: Mapping[Any, int | Shape | None] | int | Shape | None = None, **_modes: Unpack[Modes]
) -> Callable[[F], F]: ...
def fork_rngs(
    node: Any = _MISSING,
    /,
    *,
    split: Mapping[Any, int | tuple[int, ...] | None] | int | tuple[int, ...] | None = None,
    **_modes: Unpack[Modes],
) -> SplitBackups | Callable[[F], F]:
    """Starts streams anew from a key that each draws, in place.

    Args:
      node: a Module, Rngs, or any pytree that holds some. Without it a decorator is returned: it
        forks the streams in the arguments of the function, calls it, and restores them.
      split: None for one key each; a shape for an array of keys each, as in :func:`split_rngs`;
        or a mapping of filters to either. The first filter that selects a stream decides; a
        stream that none selects stays as it is.

    Returns:
      SplitBackups, for :func:`restore_rngs` or a ``with`` statement; or the decorator. Restored
      streams go on behind the key that they drew.

    Raises:
      RngError: if a shape is not made of positive ints, a stream holds an array of keys already,
        or the filters select none of the streams. No stream is changed then.
      StructureError: if ``node`` holds no graph.
      TraceError: if a stream belongs to another JAX trace.

    Example:
      >>> import moduli as nnx
      >>> rngs = nnx.Rngs(params=0, dropout=1)
      >>> rngs.params().shape
      ()
      >>> with nnx.fork_rngs(rngs, split={"dropout": 4, ...: None}):
      ...     print(rngs.params.count.value, rngs.dropout.key.shape)
      0 (4,)
      >>> rngs.params.count.value.item(), rngs.dropout.key.shape
      (2, ())
    """
    given = split if isinstance(split, Mapping) else {...: split}
    rules = [
        (
            to_predicate(filter),
            _take if shape is None else _split_into(_shape(shape, "fork_rngs: split")),
        )
        for filter, shape in given.items()
    ]

    def run(streams: Streams) -> SplitBackups:
        return _change_in_place(streams, streams.select_by_variables(rules))

    return _now_or_during_calls(run, node, "fork_rngs", "()")


def restore_rngs(backups: Iterable[Backup], /) -> None:
    """Writes back what streams were before they were split or forked.

    Args:
      backups: what :func:`split_rngs` or :func:`fork_rngs` returned; or pairs (stream, key), which
        leave the counts as they are.

    The streams go on behind the key that was drawn from them, so a split and restored stream never
    gives the same key twice. Restoring again gives the same state again.

    Raises:
      RngError: if ``backups`` is something else. No stream is changed then.
      TraceError: if a stream belongs to another JAX trace.

    Example:
      >>> import moduli as nnx
      >>> rngs = nnx.Rngs(0)
      >>> nnx.restore_rngs(nnx.split_rngs(rngs, splits=2))
      >>> rngs.default.key.shape, rngs.default.count.value.item()
      ((), 1)
    """
    items: list[Any] = list(backups) if isinstance(backups, Iterable) else [backups]
    for item in items:
        is_backup = isinstance(item, tuple) and len(item) in (2, 3)
        if not (is_backup and isinstance(item[0], RngStream)):
            raise errors.RngError(
                "restore_rngs takes what split_rngs or fork_rngs returned, with triples (stream, "
                f"key, count); got {type(backups).__name__} with {type(item).__name__}"
            )
    writes = [
        write
        for stream, *values in items
        for write in zip((stream.key, stream.count), values, strict=False)
    ]
    for variable, _ in writes:
        variable._check_trace()
    for variable, value in writes:
        variable.set_raw_value(value)


@overload
def with_rngs(
    node: A,
    /,
    *,
    split: Mapping[Any, int | tuple[int, ...]] | int | tuple[int, ...] | None = None,
    fork: Filter | Sequence[Filter] = None,
    broadcast: Mapping[Any, int | tuple[int, ...]] | int | tuple[int, ...] | None = None,
    only: Filter = True,
    **_modes: Unpack[Modes],
) -> A: ...
@overload
def with_rngs(
    *,
    split: Mapping[Any, int | tuple[int, ...]] | int | tuple[int, ...] | None = None,
    fork: Filter | Sequence[Filter] = None,
    broadcast: Mapping[Any, int | tuple[int, ...]] | int | tuple[int, ...] | None = None,
    only: Filter = True,
    **_modes: Unpack[Modes],
) -> Callable[[F], F]: ...
def with_rngs(
    node: Any = _MISSING,
    /,
    *,
    split: Mapping[Any, int | tuple[int, ...]] | int | tuple[int, ...] | None = None,
    fork: Filter | Sequence[Filter] = None,
    broadcast: Mapping[Any, int | tuple[int, ...]] | int | tuple[int, ...] | None = None,
    only: Filter = True,
    **_modes: Unpack[Modes],
) -> Any:
    """Returns a copy of a model with other streams; the model itself keeps its own.

    A chosen stream draws one key, which its replacement starts from; that one draw is all that
    changes in ``node``. The other Variables, those of other streams included, are shared with the
    copy: what is written to a parameter in one is seen in both.

    Args:
      node: a Module, Rngs, or any pytree that holds some. Without it a decorator is returned,
        which calls the function with copies of its arguments.
      split: streams that get an array of keys, split from the drawn one: a shape for all of them
        (an int ``n`` is ``(n,)``), or a mapping of filters to shapes, of which the first that
        selects a stream decides.
      fork: a filter, or a sequence of filters, of the streams that get the drawn key.
      broadcast: as ``split``, for streams that get an array of copies of the drawn key.
      only: a filter on the streams that the rules are for.

    Filters get the path of a stream and the RngStream. A stream that two rules select is an error,
    unless one of the filters is ``...`` or ``True``: then split goes before broadcast, and
    broadcast before fork.

    Returns:
      The copy, or the decorator.

    Raises:
      RngError: if a shape is not made of positive ints, a chosen stream holds an array of keys
        already, two rules select one stream, or the rules select none of the streams. No stream
        is changed then.
      StructureError: if ``node`` holds no graph.
      TraceError: if a stream belongs to another JAX trace.

    Example:
      >>> import moduli as nnx
      >>> rngs = nnx.Rngs(params=0, dropout=1, noise=2)
      >>> new = nnx.with_rngs(rngs, split={"params": 4}, broadcast={"noise": (2, 3)}, fork=...)
      >>> new.params.key.shape, new.noise.key.shape, new.dropout.key.shape
      ((4,), (2, 3), ())
      >>> rngs.params.key.shape, rngs.params.count.value.item()
      ((), 1)
    """
    if fork is not None and not isinstance(fork, (str, type)) and isinstance(fork, Sequence):
        fork = AnyOf(*fork)
    rules: list[Rule] = [
        *_shaped_rules("split", split, _split_into),
        *_shaped_rules("broadcast", broadcast, _broadcast_to),
        *([] if fork is None else [Rule("fork", fork, _take)]),
    ]
    allowed = to_predicate(only)

    def run(tree: Any, streams: Streams) -> Any:
        chosen = streams.select_by_rules(rules, allowed)
        return _copy_with(tree, streams, chosen)

    if node is not _MISSING:
        return run(node, Streams(node, "with_rngs"))

    def decorate(function: F) -> F:
        _check_function(function, "with_rngs", "(split=...)")

        @functools.wraps(function, updated=())
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            call = (args, kwargs)
            new_args, new_kwargs = run(call, Streams(call, "with_rngs", is_call=True))
            return function(*new_args, **new_kwargs)

        return wrapper  # type: ignore[return-value]

    return decorate


def reseed(
    node: Any,
    /,
    *,
    policy: (
        Literal["scalars_only", "match_shape"] | Callable[[Path, jax.Array, Shape], jax.Array]
    ) = "scalars_only",
    **stream_keys: Any,
) -> None:
    """Starts the streams of some names anew from given seeds, in place.

    All streams whose ``tag`` is the name are meant, wherever they stand. They get the keys that a
    stream with this seed would draw one after the other, and count from 0.

    Args:
      node: a Module, Rngs, or any pytree that holds some.
      policy: what to do with the new key of a stream that holds an array of keys:
        ``"scalars_only"`` raises; ``"match_shape"`` splits it into the shape that the stream has; a
        callable ``(path, key, shape) -> key`` returns the key to write, for every stream.
      **stream_keys: for each name a seed: an int, a key of shape (), or an RngStream, of which the
        key is taken. A name that no stream has is a :class:`moduli.errors.MissingStreamWarning`.

    Raises:
      RngError: if a seed is not one, the policy is unknown, or does not fit a stream. No stream is
        changed then.
      StructureError: if ``node`` holds no graph.
      TraceError: if a stream belongs to another JAX trace.

    Example:
      >>> import moduli as nnx
      >>> rngs = nnx.Rngs(params=0, dropout=1)
      >>> first = nnx.reseed(rngs, dropout=5), rngs.dropout.uniform()
      >>> again = nnx.reseed(rngs, dropout=5), rngs.dropout.uniform()
      >>> bool(first[1] == again[1]), rngs.params.count.value.item()
      (True, 0)
    """
    if not (
        policy in ("scalars_only", "match_shape") if isinstance(policy, str) else callable(policy)
    ):
        raise errors.RngError(
            f"reseed: policy is 'scalars_only', 'match_shape' or a callable (path, key, shape) -> "
            f"key; got {policy!r}"
        )
    streams = Streams(node, "reseed")
    tags = sorted({stream.tag for _, stream in streams.items})
    seeds: dict[str, jax.Array] = {}
    for name, seed in stream_keys.items():
        seeds[name] = _seed(name, seed)
        if name not in tags:
            near = difflib.get_close_matches(name, tags, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"its streams are {tags or 'none'}"
            warnings.warn(
                f"reseed: {type(node).__name__} has no stream {name!r}, so that seed changes "
                f"nothing; {hint}",
                errors.MissingStreamWarning,
                stacklevel=2,
            )
    drawn = dict.fromkeys(seeds, 0)
    writes: list[tuple[Variable[Any], Any]] = []
    for path, stream in streams.items:
        if stream.tag in seeds:
            key = jax.random.fold_in(seeds[stream.tag], drawn[stream.tag])
            drawn[stream.tag] += 1
            new = _by_policy(policy, path, key, stream, streams)
            writes.append((stream.key, new))
            writes.append((stream.count, jnp.zeros(new.shape, jnp.uint32)))
    _write(writes)


def _seed(name: str, seed: Any) -> jax.Array:
    key = _as_key(seed.key if isinstance(seed, RngStream) else seed, name)
    if key.shape != ():
        raise errors.RngError(
            f"reseed: the stream {name!r} got an array of keys of shape {key.shape}; pass one key "
            "or an int, and say with `policy=` how streams that hold arrays of keys take it"
        )
    return key


def _by_policy(policy: Any, path: Path, key: Any, stream: RngStream, streams: Streams) -> Any:
    shape: Shape = tuple(jnp.shape(stream.key.value))
    if callable(policy):
        new = policy(path, key, shape)
        if not is_key_array(new):
            raise errors.RngError(
                f"reseed: the policy has to return a key; for {streams.name(path, stream)} it "
                f"returned {new!r} of type {type(new).__name__}"
            )
        return new
    if policy == "match_shape":
        return jax.random.split(key, shape)
    if shape != ():
        raise errors.RngError(
            f"reseed: {streams.name(path, stream)} holds an array of keys of shape {shape}. Write "
            "`policy='match_shape'` to split the new key into this shape (each key another one), "
            "or a callable (path, key, shape) -> key"
        )
    return key


# -- checking arguments ---------------------------------------------------------------------------


def _shaped_rules(kind: str, given: Any, change: Callable[[Shape], Change]) -> list[Rule]:
    if given is None:
        return []
    items = given.items() if isinstance(given, Mapping) else [(..., given)]
    return [
        Rule(kind, filter, change(_shape(shape, f"with_rngs: {kind}"))) for filter, shape in items
    ]


def _shape(splits: Any, what: str) -> Shape:
    """Checks an int or a tuple of ints."""
    try:
        items = tuple(splits) if is_several(splits) else (splits,)
        if any(isinstance(item, bool) for item in items):
            raise TypeError
        shape = tuple([operator.index(item) for item in items])
    except TypeError:
        raise errors.RngError(
            f"{what} is an int or a tuple of ints, the shape of the array of keys; got {splits!r} "
            f"of type {type(splits).__name__}"
        ) from None
    if any(size < 1 for size in shape):
        raise errors.RngError(
            f"{what} has to be positive, since a stream needs a key; got {splits!r}"
        )
    return shape


# -- changing streams ----------------------------------------------------------------------------


def _take(key: jax.Array) -> jax.Array:
    return key


def _take_one(key: jax.Array) -> jax.Array:
    return jax.random.split(key, 1)[0]


def _split_into(shape: Shape) -> Change:
    return lambda key: jax.random.split(key, shape)


def _broadcast_to(shape: Shape) -> Change:
    return lambda key: jnp.broadcast_to(key, shape)


def _drawn(streams: Streams, path: Path, stream: RngStream) -> tuple[jax.Array, jax.Array]:
    """Returns the key that a stream gives next, and its count after that; draws nothing."""
    key, count = stream.key.value, stream.count.value
    if not is_key_array(key) or key.shape != ():
        got = f"{getattr(key, 'dtype', type(key).__name__)}{list(jnp.shape(key))}"
        raise errors.RngError(
            f"{streams.caller}: {streams.name(path, stream)} holds {got}, but only one key can be "
            "drawn from. If it has been split already, restore it first (`restore_rngs(backups)`, "
            "or a `with` block), use it under `vmap`, or leave it out with a filter"
        )
    return jax.random.fold_in(key, count), count + 1


def _change_in_place(streams: Streams, chosen: list[Any]) -> SplitBackups:
    backups: list[Backup] = []
    writes: list[tuple[Variable[Any], Any]] = []
    for path, stream, change in chosen:
        key, count = _drawn(streams, path, stream)
        new = change(key)
        backups.append((stream, stream.key.get_raw_value(), count))
        writes += [(stream.key, new), (stream.count, jnp.zeros(new.shape, jnp.uint32))]
    _write(writes)
    return SplitBackups(backups)


def _copy_with(tree: Any, streams: Streams, chosen: list[Any]) -> Any:
    """Rebuilds the nodes of a pytree around the same Variables, but new ones for the streams."""
    replaced: dict[int, Variable[Any]] = {}
    writes: list[tuple[Variable[Any], Any]] = []
    for path, stream, change in chosen:
        key, count = _drawn(streams, path, stream)
        new = change(key)
        replaced[id(stream.key)] = stream.key.copy(new)
        replaced[id(stream.count)] = stream.count.copy(jnp.zeros(new.shape, jnp.uint32))
        writes.append((stream.count, count))
    leaves, treedef = jax.tree.flatten(tree, is_leaf=is_graph_leaf)
    roots = [leaf for leaf in leaves if is_graph_leaf(leaf)]
    flat = flat_of(roots[0]) if len(roots) == 1 else flatten_roots(roots)
    variables = {
        index: replaced.get(id(item), item)
        for index, item in enumerate(flat.objects)
        if isinstance(item, Variable)
    }
    objects = build(flat.graphdef, flat.values(), variables)
    copies = iter([objects[code[1]] for code in flat.graphdef.roots])
    new_leaves = [next(copies) if is_graph_leaf(leaf) else leaf for leaf in leaves]
    _write(writes)
    return jax.tree.unflatten(treedef, new_leaves)


def _write(writes: Sequence[tuple[Variable[Any], Any]]) -> None:
    """Writes all the values or, if a trace or an ``on_set_value`` hook forbids it, none."""
    for variable, _ in writes:
        variable._check_trace()
    before = [(variable, variable.get_raw_value()) for variable, _ in writes]
    try:
        for variable, value in writes:
            variable.value = value
    except BaseException:
        for variable, value in before:
            variable.set_raw_value(value)
        raise


def _now_or_during_calls(
    run: Callable[[Streams], SplitBackups], node: Any, caller: str, parentheses: str
) -> Any:
    """Runs on a node, or returns a decorator that runs on the arguments of each call."""
    if node is not _MISSING:
        return run(Streams(node, caller))

    def decorate(function: F) -> F:
        _check_function(function, caller, parentheses)

        @functools.wraps(function, updated=())
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            with run(Streams((args, kwargs), caller, is_call=True)):
                return function(*args, **kwargs)

        return wrapper  # type: ignore[return-value]

    return decorate


def _check_function(function: Any, caller: str, parentheses: str) -> None:
    if not callable(function):
        raise errors.StructureError(
            f"`@moduli.{caller}{parentheses}` decorates a function; got a "
            f"{type(function).__name__}. To change the streams of an object write "
            f"`moduli.{caller}(object, ...)`"
        )
