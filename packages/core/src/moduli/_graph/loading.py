"""Values on their way into a model or a State: where they belong, and whether they fit there.

What comes from a file says ``"0"`` for the key 0 and a list for an array. And it may come from
another model: a kernel of another shape is an error before anything is written.
"""

from __future__ import annotations

import collections
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from moduli import errors
from moduli._base.compat import is_eager
from moduli._base.type_variables import Path
from moduli._graph.data import is_array
from moduli._graph.graphdef import NODE, OBJECT, STATIC, VARIABLE, GraphDef
from moduli._variable.box import Variable
from moduli._variable.kinds import Cache, Intermediate, Perturbation, RngState

__all__ = ["check_declared", "fitted", "int_keys", "placed"]

_SIZED_BY_THE_RUN = (Cache, Intermediate, Perturbation, RngState)
_KINDS = (np.bool_, np.integer, np.floating, np.complexfloating)


# -- where they belong --------------------------------------------------------------------------


def placed(
    items: Iterable[tuple[Path, Any]], known: Collection[Path], caller: str
) -> list[tuple[Path, Any]]:
    """Gives each value the path at which it belongs.

    Args:
      items: paths and values.
      known: the paths that there are.
      caller: the function, for messages.

    Returns:
      Paths and values. A path that is not known as it stands, but with the number 0 for the text
      ``"0"`` or the text for the number, is the known one. Values below the path of one value,
      which is a dict, come together as a dict. Other unknown paths stay as they are.

    Raises:
      StructureError: if two paths are the same one, or one could be several.
    """
    found: dict[Path, Any] = {}
    origins: dict[Path, Path] = {}
    names: dict[Path, list[Path]] | None = None
    for path, value in items:
        place = path
        if path not in known:
            if names is None:
                names = _by_text(known)
            place, inner = _find(path, names, caller)
            if inner:
                _insert(found.setdefault(place, {}), inner, value)
                continue
        if place in origins and origins[place] != path:
            one, other = map(_spelled, (origins[place], path))
            raise errors.StructureError(
                f"{caller}: `{one}` and `{other}` are both for the place "
                f"`{errors.format_path(place)}`; give one value for it"
            )
        found[place], origins[place] = value, path
    return list(found.items())


def _spelled(path: Path) -> str:
    return "".join(f"[{part!r}]" for part in path)


def _text(path: Path) -> Path:
    return tuple([str(part) if type(part) is int else part for part in path])


def _by_text(known: Collection[Path]) -> dict[Path, list[Path]]:
    names: dict[Path, list[Path]] = collections.defaultdict(list)
    for path in known:
        names[_text(path)].append(path)
    return names


def _find(path: Path, names: Mapping[Path, list[Path]], caller: str) -> tuple[Path, Path]:
    """Returns the known path that is meant, and what of the path stands below it."""
    text = _text(path)
    for length in range(len(path), 0, -1):
        candidates = names.get(text[:length], ())
        if len(candidates) > 1:
            raise errors.StructureError(
                f"{caller}: `{_spelled(path)}` may be "
                + " or ".join(f"`{_spelled(candidate)}`" for candidate in candidates)
                + "; write the numbers and the texts of the path as they are there"
            )
        if candidates:
            return candidates[0], path[length:]
    return path, ()


def _insert(target: dict[Any, Any], path: Path, value: Any) -> None:
    *above, last = path
    for part in above:
        target = target.setdefault(part, {})
    target[last] = value


def int_keys(path: Path) -> Path:
    """Returns a path with numbers in the place of their texts."""
    return tuple([int(part) if is_number(part) else part for part in path])


def is_number(part: Any) -> bool:
    """Returns whether a part of a path is the text of a whole number."""
    return isinstance(part, str) and part.isascii() and part.removeprefix("-").isdigit()


# -- whether they fit ---------------------------------------------------------------------------


def fitted(items: Sequence[tuple[Path, Any, Any]], caller: str, *, resize: bool) -> list[Any]:
    """Checks new values against those that they replace.

    Args:
      items: path, what stands there (a Variable or a value), and what shall stand there.
      caller: the function, for messages.
      resize: take other shapes and dtypes.

    Returns:
      The new values, with arrays in the place of lists of numbers.

    Raises:
      StructureError: if one has another shape, or numbers of another kind. Leading axes that all
        values of a kind of Variable have gained or lost together are those of mapped models.
    """
    new_values: list[Any] = []
    misfits: list[tuple[Any, Path, Any, Any]] = []
    fits: collections.Counter[Any] = collections.Counter()
    casts: list[tuple[Path, Any, Any]] = []
    for path, place, new in items:
        kind = type(place) if isinstance(place, Variable) else None
        old = place._value if isinstance(place, Variable) else place
        value = new._value if isinstance(new, Variable) else new
        if is_array(old) and isinstance(value, (list, tuple)):
            value = _from_list(path, old, value, caller)
            new = new.replace(value) if isinstance(new, Variable) else value
        new_values.append(new)
        if resize or (kind is not None and issubclass(kind, _SIZED_BY_THE_RUN)):
            continue
        for inner, was, now in _leaves(old, value):
            if np.shape(was) != np.shape(now):
                misfits.append((kind, path + inner, was, now))
                continue
            fits[kind] += 1
            change = _change_of_dtype(was, now)
            if change == "kind":
                misfits.append((kind, path + inner, was, now))
            elif change:
                casts.append((path + inner, was, now))
    wrong = [misfit for misfit in misfits if not _is_stacked(misfit, misfits, fits)]
    if wrong:
        listed = [
            f"`{errors.format_path(path)}` is {_describe(now)} where {_describe(was)} stands"
            for _, path, was, now in wrong[:6]
        ]
        more = f"; and {len(wrong) - 6} more" if len(wrong) > 6 else ""
        raise errors.StructureError(
            f"{caller}: values do not fit, and nothing was written: {'; '.join(listed)}{more}. Are "
            f"they of another model? `{caller}(..., resize=True)` takes them nevertheless"
        )
    if casts:
        path, was, now = casts[0]
        more = f" and {len(casts) - 1} more" if len(casts) > 1 else ""
        warnings.warn(
            f"{caller}: `{errors.format_path(path)}`{more} took {_describe(now)} where "
            f"{_describe(was)} stood. Write `{caller}(..., resize=True)` if the model shall have "
            "another dtype; otherwise cast the values before",
            errors.DtypeChangeWarning,
            stacklevel=3,
        )
    return new_values


def check_declared(graphdef: GraphDef, values: Sequence[Any], caller: str) -> None:
    """Raises if a value has another shape than its module's static attributes say.

    A class says so itself: ``__value_shapes__ = {"kernel": ("in_features", "out_features")}`` names
    the attributes (ints, or tuples of ints) that make up the shape. More leading axes are those of
    mapped models. Inside a trace nothing is checked: there a value may be one device's part.

    Args:
      graphdef: the structure.
      values: a value (or Variable) for each leaf.
      caller: the function, for messages.

    Raises:
      StructureError: with the paths and both shapes.
    """
    if not is_eager():
        return
    wrong = []
    for index, entry in enumerate(graphdef.objects):
        declared = getattr(entry[1], "__value_shapes__", None) if entry[0] == NODE else None
        if not declared:
            continue
        nothing: tuple[Any, Any] = (None, None)
        items = {key: (kind, value) for key, kind, value in graphdef.templates[index] or ()}
        for name, attributes in declared.items():
            kind, number = items.get(name, nothing)
            wanted = _shape_of([items.get(attribute, nothing) for attribute in attributes])
            if kind != OBJECT or wanted is None or graphdef.objects[number][0] != VARIABLE:
                continue
            value = values[graphdef.objects[number][3]]
            value = value._value if isinstance(value, Variable) else value
            shape = getattr(value, "shape", None)
            if is_array(value) and shape is not None and shape[-len(wanted) :] != wanted:
                path = errors.format_path((*graphdef.object_paths[index], name))
                wrong.append(f"`{path}` is {_describe(value)} where its module says {wanted}")
    if wrong:
        more = f"; and {len(wrong) - 6} more" if len(wrong) > 6 else ""
        raise errors.StructureError(
            f"{caller}: values do not fit: {'; '.join(wrong[:6])}{more}. Are they of another "
            f"model? `{caller}(..., resize=True)` takes them nevertheless"
        )


def _shape_of(attributes: Iterable[tuple[Any, Any]]) -> tuple[int, ...] | None:
    """Joins static attributes to a shape; None if one of them is no size."""
    shape: list[int] = []
    for kind, value in attributes:
        sizes = value if isinstance(value, tuple) else (value,)
        if kind != STATIC or not all(type(size) is int for size in sizes):
            return None
        shape.extend(sizes)
    return tuple(shape) or None


def _leaves(old: Any, new: Any) -> Iterator[tuple[Path, Any, Any]]:
    """Pairs the arrays and numbers of two values of the same form."""
    if _is_numeric(old) and _is_numeric(new):
        yield (), old, new
        return
    if _is_numeric(old) or _is_numeric(new):
        return
    was, now = jax.tree.flatten(old), jax.tree.flatten(new)
    if was[1] == now[1]:
        for number, (a, b) in enumerate(zip(was[0], now[0], strict=True)):
            if _is_numeric(a) and _is_numeric(b):
                yield (number,), a, b


def _is_numeric(value: Any) -> bool:
    return is_array(value) or isinstance(value, (bool, int, float, complex, np.generic))


def _is_stacked(misfit: tuple[Any, ...], misfits: Iterable[Any], fits: Mapping[Any, int]) -> bool:
    """Returns whether all values of this kind have gained, or lost, the same leading axes."""
    kind, _, was, now = misfit
    axes = _axes(was, now)
    if axes is None or fits[kind]:
        return False
    return all(_axes(a, b) == axes for other, _, a, b in misfits if other is kind)


def _axes(was: Any, now: Any) -> tuple[bool, tuple[int, ...]] | None:
    if not (is_array(was) and is_array(now)) or _change_of_dtype(was, now) == "kind":
        return None
    a, b = was.shape, now.shape
    longer, shorter = (b, a) if len(b) > len(a) else (a, b)
    count = len(longer) - len(shorter)
    return (len(b) > len(a), longer[:count]) if count and longer[count:] == shorter else None


def _change_of_dtype(was: Any, now: Any) -> str:
    """Returns "kind" for numbers of another kind, "width" for a cast, and "" for no change."""
    if not (hasattr(was, "dtype") and hasattr(now, "dtype")):
        return ""  # a Python number has none
    a, b = _dtype(was), _dtype(now)
    if a == b:
        return ""
    return "width" if _kind_of(a) == _kind_of(b) is not None else "kind"


def _dtype(value: Any) -> Any:
    if jnp.issubdtype(value.dtype, jax.dtypes.extended):
        return value.dtype
    return jax.dtypes.canonicalize_dtype(value.dtype)


def _kind_of(dtype: Any) -> Any:
    return next((kind for kind in _KINDS if jnp.issubdtype(dtype, kind)), None)


def _describe(value: Any) -> str:
    return f"{getattr(value, 'dtype', type(value).__name__)} {np.shape(value)}"


def _from_list(path: Path, old: Any, value: Any, caller: str) -> Any:
    """Makes an array like the old one of nested lists of numbers, as JSON has them."""
    where = errors.format_path(path)
    try:
        numbers = np.asarray(value)
    except ValueError:
        numbers = np.asarray(None)
    if numbers.dtype.kind not in "biufc" or jnp.issubdtype(old.dtype, jax.dtypes.extended):
        raise errors.StructureError(
            f"{caller}: the value for `{where}` is a {type(value).__name__} that is no array of "
            f"numbers, but {_describe(old)} stands there. Nothing was written"
        )
    kinds = [kind for kind in map(_kind_of, (numbers.dtype, old.dtype)) if kind is not None]
    exact = _KINDS.index(kinds[0]) <= _KINDS.index(kinds[-1])
    real = np.real(numbers) if kinds[-1] is not np.complexfloating else numbers
    array = real.astype(_dtype(old))
    if not exact and not np.array_equal(array, numbers):
        raise errors.StructureError(
            f"{caller}: the numbers for `{where}` cannot be written as {old.dtype}, which stands "
            "there. Nothing was written"
        )
    return jnp.asarray(array)
