"""export: a model as a StableHLO program, with its weights inside or beside it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

import moduli
from moduli.errors import StructureError
from moduli_interop._atomic import atomic_write
from moduli_interop._bridges.errors import MissingFrameworkError
from moduli_interop._export.specs import input_specs
from moduli_interop._export.weights import write_weights

__all__ = ["ExportedModel", "export"]


def export(
    model: Any,
    *specs: Any,
    path: str | os.PathLike[str] | None = None,
    platforms: str | Sequence[str] = ("cpu", "cuda", "tpu"),
    vjp_order: int = 0,
    weights: Literal["inside", "beside"] = "inside",
    method: str = "__call__",
) -> ExportedModel:
    """Makes a program of a model's call, which runs without the model's code and without moduli.

    Args:
      model: the module. It is in the mode in which it is to run, ``model.eval()`` as a rule: a
        program changes no objects, so a model that writes into its Variables is an error.
      *specs: the positional inputs: arrays, ``jax.ShapeDtypeStruct``, or text such as
        ``"float32[batch, 28, 28, 1]"``, in which a name is a size that may change from call to
        call, the same wherever it stands; also pytrees of these.
      path: the file to write, or None; see :meth:`ExportedModel.save`.
      platforms: where the program is to run, all in one file: of ``"cpu"``, ``"cuda"``, ``"rocm"``
        and ``"tpu"`` one or several.
      vjp_order: how often the program can be differentiated.
      weights: ``"inside"`` the program, as constants, or ``"beside"`` it: the program takes them
        as its first argument, a dict, and they come in a file of their own.
      method: the method that is called.

    Returns:
      The program.

    Raises:
      StructureError: the call writes into the model, or draws from a stream of random keys; the
        model has no numbers yet; or there is no such platform.
      ShapeError: a spec is not understood.
      MissingFrameworkError: a file is to be written and flatbuffers is not installed.

    Example:
      >>> import jax.numpy as jnp, moduli as nnx
      >>> model = nnx.Linear(3, 4, rngs=nnx.Rngs(0))
      >>> program = nnx.export(model, "float32[batch, 3]")
      >>> program.call(jnp.ones((5, 3), jnp.float32)).shape
      (5, 4)
    """
    if weights not in ("inside", "beside"):
        raise StructureError(f'weights is {weights!r}; write weights="inside" or "beside"')
    wanted = _platforms(platforms)
    graphdef, state = moduli.split(model)
    paths, values = [], []
    for leaf_path, leaf in moduli.to_flat_state(state):
        paths.append(leaf_path)
        values.append(leaf.get_raw_value() if isinstance(leaf, moduli.Variable) else leaf)
    _check_numbers(paths, values)
    named, rebuild = _named(paths, values)

    def run(arrays: Mapping[str, Any], *args: Any) -> Any:
        given = rebuild(arrays)
        leaves = [
            leaf.replace(value) if isinstance(leaf, moduli.Variable) else value
            for (_, leaf), value in zip(moduli.to_flat_state(state), given, strict=True)
        ]
        copy = moduli.merge(graphdef, moduli.from_flat_state(zip(paths, leaves, strict=True)))
        out = getattr(copy, method)(*args)
        _check_unchanged(copy, graphdef, paths, given)
        return out

    def run_alone(*args: Any) -> Any:
        return run(named, *args)

    function: Callable[..., Any] = run_alone
    inputs = input_specs(specs)
    if weights == "beside":
        function = run
        inputs = (jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), named), *inputs)
    function.__name__ = function.__qualname__ = type(model).__name__
    exported = jax.export.export(jax.jit(function), platforms=wanted)(*inputs)
    program = ExportedModel(exported, vjp_order, None if weights == "inside" else named)
    if path is not None:
        program.save(path)
    return program


class ExportedModel:
    """A program that :func:`export` made.

    Attributes:
      exported: the ``jax.export.Exported``.
      vjp_order: how often the program can be differentiated once it is in a file.
      weights: the weights by name, where they stand beside the program; else None.
    """

    def __init__(
        self, exported: jax.export.Exported, vjp_order: int, weights: dict[str, Any] | None
    ) -> None:
        self.exported, self.vjp_order, self.weights = exported, vjp_order, weights

    def call(self, *inputs: Any) -> Any:
        """Runs the program.

        Args:
          *inputs: the model's inputs, without weights.

        Returns:
          The model's output.
        """
        return self.exported.call(*(() if self.weights is None else (self.weights,)), *inputs)

    def save(self, path: str | os.PathLike[str]) -> list[str]:
        """Writes the program, and what stands beside it.

        Args:
          path: the program's file, ``"digits.jax"``. Weights beside it are written first, to
            ``"digits.jax.safetensors"``.

        Returns:
          The files.

        Raises:
          MissingFrameworkError: flatbuffers is not installed.
          UnsupportedValueError: safetensors has no such dtype.
        """
        try:
            data = self.exported.serialize(vjp_order=self.vjp_order)
        except ImportError as error:
            raise MissingFrameworkError(
                'jax.export needs flatbuffers to write a program: pip install "moduli-interop'
                '[export]"'
            ) from error
        files = [os.fspath(path)]
        if self.weights is not None:
            files.append(files[0] + ".safetensors")
            write_weights(files[1], {name: np.asarray(x) for name, x in self.weights.items()})
        with atomic_write(files[0]) as file:
            file.write(data)
        return files

    def __repr__(self) -> str:
        where = "inside" if self.weights is None else "beside"
        return (
            f"<moduli export of {self.exported.fun_name} for {', '.join(self.exported.platforms)}"
            f", weights {where}: {', '.join(map(str, self.exported.in_avals[-1:]))}>"
        )


_PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


def _platforms(given: str | Sequence[str]) -> tuple[str, ...]:
    """Returns the names of platforms, of which one may be given as a text."""
    names = (given,) if isinstance(given, str) else tuple(given)
    wrong = [name for name in names if name not in _PLATFORMS]
    if wrong or not names:
        what = f"{wrong[0]!r} is none" if wrong else "it is empty"
        raise StructureError(
            f"platforms={given!r} is to name where the program runs, and {what}; write one or "
            f'several of {", ".join(map(repr, _PLATFORMS))} (a GPU is "cuda" or "rocm")'
        )
    return names


def _check_numbers(paths: list[Any], values: list[Any]) -> None:
    """Raises if a model of ``eval_shape`` has not been filled."""
    for path, value in zip(paths, values, strict=True):
        if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(value)):
            raise StructureError(
                f"{moduli.errors.format_path(path)} is a shape without numbers; fill the model "
                "first, by load_weights or load, and its streams by moduli.reseed"
            )


def _named(paths: list[Any], values: list[Any]) -> tuple[dict[str, Any], Callable[..., list[Any]]]:
    """Returns the arrays by name, and what makes the values of such a dict again."""
    names: list[list[str]] = []
    treedefs, keys = [], []
    named: dict[str, Any] = {}
    for path, value in zip(paths, values, strict=True):
        leaves, treedef = jax.tree_util.tree_flatten(value)
        text = ".".join(map(str, path))
        own = [text if len(leaves) == 1 else f"{text}.{n}" for n in range(len(leaves))]
        impls = []
        for name, leaf in zip(own, leaves, strict=True):
            is_key = hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
            impls.append(jax.random.key_impl(leaf) if is_key else None)
            if name in named:
                raise StructureError(
                    f"two weights are named {name!r}; rename the attribute of one of them"
                )
            named[name] = jax.random.key_data(leaf) if is_key else jnp.asarray(leaf)
        names.append(own)
        treedefs.append(treedef)
        keys.append(impls)

    def rebuild(arrays: Mapping[str, Any]) -> list[Any]:
        return [
            jax.tree_util.tree_unflatten(
                treedef,
                [_as_key(arrays[name], impl) for name, impl in zip(own, impls, strict=True)],
            )
            for own, treedef, impls in zip(names, treedefs, keys, strict=True)
        ]

    return named, rebuild


def _as_key(array: Any, impl: Any) -> Any:
    """Returns the keys whose data an array is; an array of another kind has no ``impl``."""
    return array if impl is None else jax.random.wrap_key_data(array, impl=impl)


def _check_unchanged(model: Any, graphdef: Any, paths: list[Any], given: list[Any]) -> None:
    """Raises if the call wrote into the model, as a program cannot."""
    after, state = moduli.split(model)
    written: list[str] = []
    kinds = set[type]()
    if after is graphdef:
        for path, (_, leaf), value in zip(paths, moduli.to_flat_state(state), given, strict=True):
            now = leaf.get_raw_value() if isinstance(leaf, moduli.Variable) else leaf
            if now is not value:
                written.append(f"`{moduli.errors.format_path(path)}`")
                kinds.add(type(leaf))
    if not written and after is graphdef:
        return
    what = f"writes {', '.join(written[:4])}" if written else "changes its attributes"
    advice = "write `model.eval()` first"
    if kinds and all(issubclass(kind, moduli.RngState) for kind in kinds):
        advice += ", or let the call take a key and draw from that, if it is to draw"
    elif any(issubclass(kind, moduli.Cache) for kind in kinds):  # which evaluation writes too
        advice = (
            "what changes comes in and goes out: export a module that takes the cache, gives it to "
            "a `moduli.clone` of this one, calls that, and returns its cache with the output"
        )
    raise StructureError(
        f"the call of {type(model).__name__} {what}, and an exported program changes no objects; "
        f"{advice}"
    )
