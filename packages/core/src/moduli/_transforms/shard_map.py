"""shard_map: run a function of modules on each shard of a mesh of devices."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, Unpack, overload

import jax
from jax.sharding import PartitionSpec

from moduli import errors
from moduli._call.again import options_key_or_none, remember, shared
from moduli._call.call import Call, Labels
from moduli._call.device_streams import DeviceStreams
from moduli._call.frame import Frame
from moduli._call.function import Function, Modes, check_callable, folded, options_of, wraps
from moduli._call.misfit_texts import check_inputs, check_names, shared_axes
from moduli._call.naming import explain, named
from moduli._call.prefixes import after_bound, labels_in
from moduli._call.programs import LabelledProgram, Programs, program_key
from moduli._call.writeback import Packed

__all__ = ["shard_map"]

P = ParamSpec("P")
R = TypeVar("R")


@overload
def shard_map(
    f: Callable[P, R],
    *,
    mesh: Any = None,
    in_specs: Any = None,
    out_specs: Any = None,
    axis_names: Any = frozenset(),
    check_vma: bool = True,
    **_modes: Unpack[Modes],
) -> Callable[P, R]: ...
@overload
def shard_map(
    f: None = None,
    *,
    mesh: Any = None,
    in_specs: Any = None,
    out_specs: Any = None,
    axis_names: Any = frozenset(),
    check_vma: bool = True,
    **_modes: Unpack[Modes],
) -> Callable[[Callable[P, R]], Callable[P, R]]: ...
def shard_map(
    f: Callable[..., Any] | None = None,
    *,
    mesh: Any = None,
    in_specs: Any = None,
    out_specs: Any = None,
    axis_names: Any = frozenset(),
    check_vma: bool = True,
    **_modes: Unpack[Modes],
) -> Any:
    """``jax.shard_map`` for functions that take modules, with all their updates.

    Random streams of a module give each device numbers of its own along the axes over which the
    data differ, those in the specs of arguments that are arrays: the index of the device is folded
    into their keys. Our layers that draw for their inputs (Dropout) look at these instead: devices
    with equal inputs draw the same mask. To give all devices the same numbers, pass the Rngs
    themselves under ``P()``, or name the streams: ``StateSharding({moduli.RngState: P(), ...})``.
    Streams that hold arrays of keys, as :func:`split_rngs` leaves them, stay as they are.

    Args:
      f: a function, a method, or a module. Without it a decorator is returned.
      mesh: the ``jax.sharding.Mesh``.
      in_specs: a prefix of the positional arguments: ``jax.sharding.PartitionSpec``; for modules
        also :class:`StateSharding` and what :func:`prefix` returns. None means ``P()``.
      out_specs: a prefix of the result, likewise. What is written to a Variable is put together
        by the spec under which it was passed.
      axis_names: as of ``jax.shard_map``: the axes over which ``f`` is manual; all by default.
      check_vma: as of ``jax.shard_map``.

    Returns:
      The mapped function, compiled once for each structure. Variables with a spec that shards come
      back sharded, written or not.

    Raises:
      StructureError: if specs do not fit the arguments, name an axis that the mesh does not have,
        or one Variable gets two; or if a value differs between devices that its spec says share it.
      ShapeError: if the mesh does not divide a value as its spec says.

    Example:
      >>> import moduli as nnx, jax, jax.numpy as jnp
      >>> mesh = jax.sharding.Mesh(jax.devices()[:1], ("data",))
      >>> model = nnx.Dict({"w": nnx.Param(jnp.ones((3, 2)))})
      >>> @nnx.shard_map(mesh=mesh, in_specs=(jax.P(), jax.P("data")), out_specs=jax.P("data"))
      ... def forward(model, x):
      ...     return x @ model["w"]
      >>> forward(model, jnp.ones((4, 3))).shape
      (4, 2)
    """
    options = options_of(locals())
    if f is None:
        return functools.partial(shard_map, **options)
    check_callable(f, "shard_map", "mesh=..., in_specs=..., out_specs=...")
    function = Function(f)
    key_of_options = options_key_or_none("shard_map", options, len(function.bound))
    programs, function.call = shared(function.call, key_of_options, Programs)
    inner, name, parameters = (
        function.call,
        function.name,
        function.signature,
    )  # (programs keep these, but no module)

    def over_mesh(pure: Callable[..., Any], in_specs: Any, out_specs: Any) -> Callable[..., Any]:
        return jax.shard_map(
            pure,
            **({} if mesh is None else {"mesh": mesh}),
            in_specs=in_specs,
            out_specs=out_specs,
            axis_names=set(axis_names),
            check_vma=check_vma,
        )

    def check(program: LabelledProgram, call: Call) -> None:
        """Raises for the value that JAX meant when it refused a call."""
        check_inputs(call, call.every(), mesh, axis_names)
        for label in call.prefix_labels():
            check_names("shard_map: in_specs has", label, mesh, axis_names)
        for label in map(_spec, labels_in(out_specs)):
            check_names("shard_map: out_specs has", label, mesh, axis_names)
        if program.outputs is not None:
            shared = functools.partial(shared_axes, mesh=mesh, manual=axis_names)
            remedy = DeviceStreams(call, unseen=False).remedy
            _check_outputs(program, over_mesh, program.dynamic(call), shared, remedy)

    def compile(call: Call) -> LabelledProgram:
        every = [*call.all_labels(), *call.prefix_labels(), *labels_in(out_specs)]
        labels = list(dict.fromkeys(map(_spec, every)))
        streams = DeviceStreams(call, unseen=not check_vma)

        def run(frame: Frame) -> Any:
            with streams.inside(frame):
                return frame.run("shard_map", name, inner)

        program = LabelledProgram(
            call,
            inner,
            run,
            out_specs,
            "shard_map: out_specs",
            labels,
            keep=lambda leaf: any(program.call.label_of(leaf)),
        )

        def pairs(values: list[Any]) -> Any:
            return program.pairs(values, parameters)

        pure = named(lambda values: program.pure(values), inner, pairs)

        def whole(values: list[Any]) -> Packed:
            groups = over_mesh(pure, (program.in_labels,), labels)(values)
            return Packed(program.outputs, groups)

        whole.__name__ = whole.__qualname__ = name
        program.compiled = jax.jit(named(whole, inner, pairs))
        return program

    @wraps(f)
    @folded
    def mapped(*args: Any, **kwargs: Any) -> Any:
        given, keywords = function.complete(*function.positional(args, kwargs))
        specs = after_bound(in_specs, len(function.bound), len(given), PartitionSpec())
        labels = Labels(
            "in_specs",
            specs,
            lambda label: label is None or isinstance(label, PartitionSpec),
            "a jax.sharding.PartitionSpec or None",
            keyword=PartitionSpec(),
            convert=_spec,
            recorded=PartitionSpec(),
        )
        call = Call("shard_map", given, keywords, function=function.name, labels=labels)
        key = program_key(call)
        program = programs.find(key)
        if program is None:
            program = compile(call)
            programs.keep(key, program)
        try:
            packed = program.compiled(program.dynamic(call))
        except ValueError as error:
            if not isinstance(error, errors.ModuliError):
                check(program, call)
            explain(error, "shard_map", function.call)
            raise
        except Exception as error:
            explain(error, "shard_map", function.call)
            raise
        return program.apply(call, packed.effects, packed.parts)

    return remember(mapped, f, shard_map, options)


def _check_outputs(
    program: LabelledProgram,
    over_mesh: Callable[..., Any],
    values: list[Any],
    shared: Callable[[Any], list[Any]],
    more: str,
) -> None:
    """Raises for the first output that JAX refuses: it traces each of them alone."""
    outputs = program.outputs
    counts = dict.fromkeys(program.labels, 0)
    for spot, spec in zip(outputs.names, outputs.labels, strict=True):
        place, number = program.labels.index(spec), counts[spec]
        counts[spec] += 1
        shapes: list[Any] = []

        def one(
            values: list[Any], place: int = place, number: int = number, shapes: Any = shapes
        ) -> Any:
            value = program.pure(values)[place][number]
            shapes.extend(leaf.shape for leaf in jax.tree.leaves(value))
            return value

        try:
            jax.eval_shape(over_mesh(one, (program.in_labels,), spec), values)
        except ValueError:
            for shape in shapes:
                if len(spec) > len(shape):
                    raise errors.ShapeError(
                        f"shard_map: {spot} is under {spec!r}, but it has shape {shape} on each "
                        f"device, {len(shape)} dimensions for {len(spec)} entries; leave out the "
                        "last ones"
                    ) from None
            if not shapes:
                raise
            raise errors.StructureError(
                f"shard_map: {spot} is under {spec!r}, the same for all devices along "
                f"{' and '.join(map(repr, shared(spec)))}, but got a value that may differ between "
                "them; name the axis in its spec (a part of a module's by `moduli.StateSharding`), "
                f"or reduce the value, as with `jax.lax.pmean(value, axis_name)`{more}"
            ) from None


def _spec(label: Any) -> PartitionSpec:
    return PartitionSpec() if label is None else label
