"""One statement about dtypes for a whole model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

import moduli
from moduli.errors import StructureError, format_path
from moduli_layers.errors import DtypeError

__all__ = ["DtypePolicy", "set_dtypes"]

_Path = tuple[Any, ...]
_Chosen = dict[_Path, tuple[moduli.Module, "DtypePolicy"]]


@dataclasses.dataclass(frozen=True)
class DtypePolicy:
    """Which dtype a model stores, computes and sums in. None leaves a thing as it is.

    Attributes:
      param: dtype of the parameters: every floating Param is cast, and ``param_dtype`` is set.
      compute: dtype to which layers bring their inputs and parameters, and of what they return
        (their ``dtype``).
      accumulate: dtype in which matrix products and convolutions sum; the result is brought back to
        ``compute``. (A layer's own ``preferred_element_type`` goes first.)
      norm: dtype of the parameters of normalisations, in the place of ``param``. Their statistics
        are float32 or wider whatever the policy; what they return has the dtype ``compute``.

    Raises:
      DtypeError: one of them is no floating dtype.

    Example:
      >>> import jax.numpy as jnp
      >>> from moduli_layers import DtypePolicy
      >>> DtypePolicy(param=jnp.float32, compute=jnp.bfloat16)
      DtypePolicy(param=float32, compute=bfloat16)
    """

    param: DTypeLike | None = None
    compute: DTypeLike | None = None
    accumulate: DTypeLike | None = None
    norm: DTypeLike | None = None

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            given = getattr(self, field.name)
            if given is None:
                continue
            try:
                name, is_floating = jnp.dtype(given).name, jnp.issubdtype(given, jnp.inexact)
            except TypeError:  # "float33"
                name, is_floating = repr(given), False
            if not is_floating:
                raise DtypeError(
                    f"DtypePolicy got {field.name}={name}; write a "
                    f"floating dtype, as {field.name}=jnp.bfloat16"
                )
            object.__setattr__(self, field.name, jnp.dtype(given))

    def __repr__(self) -> str:
        said = [
            f"{field.name}={getattr(self, field.name).name}"
            for field in dataclasses.fields(self)
            if getattr(self, field.name) is not None
        ]
        return f"DtypePolicy({', '.join(said)})"


def set_dtypes(
    model: moduli.Module,
    policy: DtypePolicy,
    overrides: Mapping[Any, DtypePolicy] | None = None,
) -> None:
    """Applies a policy to a model and everything below it.

    Parameters are cast where they stand, in the model's own Variables; running statistics, random
    streams, caches and integers are left alone. Modules that follow: those with a ``dtype`` (and
    ``param_dtype``, ``accumulate_dtype``), a third party's too; ``is_norm = True`` in a class makes
    it a normalisation.

    Args:
      model: the model.
      policy: what holds where no override says otherwise.
      overrides: policies by filter over (path, module), such as a class of layers or
        ``moduli.PathContains("head")``; the filter holds for everything below what it selects. The
        first that fits is taken, and where it says None the model's policy holds.

    Raises:
      StructureError: an override selects nothing, or one Param is shared by two modules whose
        policies disagree. Nothing is changed then.

    Example:
      >>> import jax.numpy as jnp, moduli
      >>> from moduli_layers import DtypePolicy, Linear, Sequential, set_dtypes
      >>> rngs = moduli.Rngs(0)
      >>> model = Sequential(Linear(2, 8, rngs=rngs), Linear(8, 3, rngs=rngs))
      >>> half = DtypePolicy(param=jnp.float32, compute=jnp.bfloat16)
      >>> set_dtypes(model, half, {moduli.PathContains(1): DtypePolicy(compute=jnp.float32)})
      >>> model.layers[0](jnp.ones(2)).dtype, model(jnp.ones(2)).dtype
      (dtype(bfloat16), dtype('float32'))
    """
    chosen = dict(_policies(model, policy, overrides or {}))
    attributes = [
        (module, name, value)
        for module, own in chosen.values()
        for name, value in (
            ("dtype", own.compute),
            ("param_dtype", _stored(module, own)),
            ("accumulate_dtype", own.accumulate),
        )
        if value is not None and hasattr(module, name)
    ]
    _write(attributes, list(_casts(model, chosen)))


def _policies(
    model: moduli.Module, policy: DtypePolicy, overrides: Mapping[Any, DtypePolicy]
) -> Iterator[tuple[_Path, tuple[moduli.Module, DtypePolicy]]]:
    """Yields every module with its path and the policy that holds for it."""
    predicates = [(moduli.filterlib.to_predicate(f), own) for f, own in overrides.items()]
    modules = list(moduli.iter_modules(model))
    places = {paths[0]: paths for paths in moduli.find_duplicates(model, only=moduli.Module)}
    selected: dict[_Path, DtypePolicy] = {}
    used: set[int] = set()
    for first, module in modules:
        for path in places.get(first, [first]):
            for number, (predicate, own) in enumerate(predicates):
                if predicate(path, module):
                    selected.setdefault(path, own)
                    used.add(number)
    for number, filter_ in enumerate(overrides):
        if number not in used:
            there = [format_path(path) for path, _ in modules]
            raise StructureError(
                f"set_dtypes: the override {filter_!r} selects no module of "
                f"{type(model).__name__}; its modules are {', '.join(there[:8])}"
                + (f" and {len(there) - 8} more" if len(there) > 8 else "")
            )

    def policy_at(path: _Path) -> DtypePolicy:
        above = [selected[path[:n]] for n in range(len(path), -1, -1) if path[:n] in selected]
        own = above[0] if above else policy
        names = [field.name for field in dataclasses.fields(policy)]
        return DtypePolicy(*(getattr(own, name) or getattr(policy, name) for name in names))

    for first, module in modules:
        paths = places.get(first, [first])
        own = policy_at(first)
        for path in paths:
            if policy_at(path) != own:
                raise StructureError(
                    f"set_dtypes: `{format_path(first)}` and `{format_path(path)}` are one "
                    f"{type(module).__name__}, but the policies say {own} and {policy_at(path)}; "
                    "give both places the same policy"
                )
        yield first, (module, own)


def _stored(module: moduli.Module, policy: DtypePolicy) -> Any:
    """Returns the dtype of a module's own parameters; None leaves them as they are."""
    is_norm = getattr(type(module), "is_norm", False)
    return policy.norm if is_norm and policy.norm is not None else policy.param


def _casts(model: moduli.Module, chosen: _Chosen) -> Iterator[tuple[moduli.Param[Any], Any]]:
    """Yields the floating Params and their dtypes; one that two modules share has to get one."""
    places = {paths[0]: paths for paths in moduli.find_duplicates(model)}
    for first, param in moduli.iter_graph(model):
        if not isinstance(param, moduli.Param) or not jnp.issubdtype(param.dtype, jnp.floating):
            continue
        wanted = {}
        for path in places.get(first, [first]):
            above = [chosen[path[:n]] for n in range(len(path) - 1, -1, -1) if path[:n] in chosen]
            holders = [m for m, _ in above if not isinstance(m, (moduli.List, moduli.Dict))]
            owner = holders[0] if holders else above[0][0]  # a norm may keep a dict of parameters
            wanted.setdefault(_stored(owner, above[0][1]), path)
        if len(wanted) > 1:
            (one, here), (other, there) = list(wanted.items())[:2]
            raise StructureError(
                f"set_dtypes: `{format_path(here)}` and `{format_path(there)}` are one Param, but "
                f"the policies say {one} and {other}; give both modules the same dtype"
            )
        yield param, next(iter(wanted))


def _write(attributes: list[tuple[Any, str, Any]], casts: list[tuple[Any, Any]]) -> None:
    """Sets attributes and casts Params; on an error everything is as before."""
    undo: list[Callable[[], None]] = []
    try:
        for module, name, value in attributes:
            own = name in vars(module)
            before = getattr(module, name)
            setattr(module, name, value)
            undo.append(_setter(module, name, before) if own else _deleter(module, name))
        for param, dtype in casts:
            if dtype is None or param.dtype == dtype:
                continue
            before = param.value
            param.value = _cast(before, dtype)
            undo.append(_setter(param, "value", before))
    except BaseException:
        for step in reversed(undo):
            step()
        raise


def _setter(owner: Any, name: str, value: Any) -> Callable[[], None]:
    return lambda: setattr(owner, name, value)


def _deleter(owner: Any, name: str) -> Callable[[], None]:
    return lambda: delattr(owner, name)


def _cast(value: Any, dtype: Any) -> Any:
    if isinstance(value, jax.ShapeDtypeStruct):
        return value.update(dtype=dtype)
    return jnp.asarray(value).astype(dtype)
