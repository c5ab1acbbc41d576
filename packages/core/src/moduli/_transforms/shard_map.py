"""shard_map: run a function of modules on each shard of a mesh of devices."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import PartitionSpec

from moduli._running import running
from moduli._transforms.arguments import Function, check_callable, wraps
from moduli._transforms.effects import Packed
from moduli._transforms.labelled import LabelledCall
from moduli._transforms.lift import Frame
from moduli._transforms.prefixes import labels_in
from moduli._transforms.programs import LabelledProgram, program_key

__all__ = ["shard_map"]


def shard_map(
    f: Callable[..., Any] | None = None,
    *,
    mesh: Any = None,
    in_specs: Any = None,
    out_specs: Any = None,
    axis_names: Any = frozenset(),
    check_vma: bool = True,
) -> Any:
    """``jax.shard_map`` for functions that take modules, with all their updates.

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
      StructureError: if specs do not fit the arguments, or one Variable gets two.

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
    if f is None:
        return functools.partial(
            shard_map,
            mesh=mesh,
            in_specs=in_specs,
            out_specs=out_specs,
            axis_names=axis_names,
            check_vma=check_vma,
        )
    check_callable(f, "shard_map", "mesh=..., in_specs=..., out_specs=...")
    function = Function(f)
    programs: dict[Any, Any] = {}

    def run(frame: Frame) -> Any:
        with running("shard_map", function.name):
            return function.call(*frame.args, **frame.kwargs)

    def compile(call: LabelledCall) -> tuple[LabelledProgram, Callable[..., Any]]:
        every = [*call.all_labels(), *labels_in(out_specs)]
        labels = list(dict.fromkeys(map(_spec, every)))
        program = LabelledProgram(
            call,
            run,
            out_specs,
            "shard_map: out_specs",
            labels,
            keep=lambda leaf: any(program.call.label_of(leaf)),
        )

        def whole(values: list[Any]) -> Packed:
            groups = jax.shard_map(
                program.pure,
                **({} if mesh is None else {"mesh": mesh}),
                in_specs=(program.in_labels,),
                out_specs=labels,
                axis_names=set(axis_names),
                check_vma=check_vma,
            )(values)
            return Packed(program.outputs, groups)

        whole.__name__ = whole.__qualname__ = function.name
        return program, jax.jit(whole)

    @wraps(f)
    def mapped(*args: Any, **kwargs: Any) -> Any:
        given, keywords = function.complete(*function.positional(args, kwargs))
        specs = in_specs
        if function.bound:
            rest = specs if _is_sequence(specs) else [specs] * (len(given) - 1)
            specs = (PartitionSpec(), *rest)
        call = LabelledCall(
            ("shard_map", "in_specs"),
            function.name,
            given,
            keywords,
            specs,
            keyword_label=PartitionSpec(),
            valid=lambda label: label is None or isinstance(label, PartitionSpec),
            expected="a jax.sharding.PartitionSpec or None",
            convert=_spec,
        )
        key = program_key(call)
        found = programs.get(key) if key is not None else None
        if found is None:
            found = compile(call)
            if key is not None:
                programs[key] = found
        program, jitted = found
        packed = jitted(program.dynamic(call))
        return program.apply(call, packed.effects, packed.parts)

    return mapped


def _is_sequence(specs: Any) -> bool:
    return isinstance(specs, (tuple, list)) and not isinstance(specs, PartitionSpec)


def _spec(label: Any) -> PartitionSpec:
    return PartitionSpec() if label is None else label
