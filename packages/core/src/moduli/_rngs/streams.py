"""Rngs: named streams of random keys that a model draws from.

A stream is a key and a counter; each draw folds the counter into the key and counts up, so equal
seeds give equal keys, in the same order as in flax.nnx.
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from moduli import errors
from moduli._base.compat import is_key_array
from moduli._base.positions import as_positions
from moduli._module.pytree import Pytree
from moduli._rngs.draws import FLAT, flat_draw
from moduli._variable.box import Variable
from moduli._variable.filters import to_predicate
from moduli._variable.kinds import RngCount, RngKey

if TYPE_CHECKING:
    from moduli._rngs.draw_types import Draws
else:
    Draws = object

__all__ = ["RngStream", "Rngs"]

_RANDOM = (
    "ball",
    "bernoulli",
    "beta",
    "binomial",
    "bits",
    "categorical",
    "cauchy",
    "chisquare",
    "choice",
    "dirichlet",
    "double_sided_maxwell",
    "exponential",
    "f",
    "gamma",
    "generalized_normal",
    "geometric",
    "gumbel",
    "laplace",
    "loggamma",
    "logistic",
    "lognormal",
    "maxwell",
    "multinomial",
    "multivariate_normal",
    "normal",
    "orthogonal",
    "pareto",
    "permutation",
    "poisson",
    "rademacher",
    "randint",
    "rayleigh",
    "t",
    "triangular",
    "truncated_normal",
    "uniform",
    "wald",
    "weibull_min",
)
_INITIALIZERS = (  # those of jax.nn.initializers whose names are not functions of jax.random too
    "delta_orthogonal",
    "glorot_normal",
    "glorot_uniform",
    "he_normal",
    "he_uniform",
    "kaiming_normal",
    "kaiming_uniform",
    "lecun_normal",
    "lecun_uniform",
    "variance_scaling",
    "xavier_normal",
    "xavier_uniform",
)
_Shapes = Mapping[Any, int | tuple[int, ...] | None] | int | tuple[int, ...] | None


def _as_key(seed: Any, name: str) -> jax.Array:
    """Returns the key that a seed stands for: that of ``jax.random.key``, or the key itself.

    Args:
      seed: a key, the data of keys (as of ``jax.random.PRNGKey``), or any integer that
        ``jax.random.key`` takes, handed to it as it is: how wide it may be is for JAX to say.
      name: the stream's name, for messages.

    Raises:
      RngError: if it is none of these.
    """
    if isinstance(seed, Variable):
        seed = seed.value
    if is_key_array(seed):
        return seed
    cause: Exception | None = None
    if not isinstance(seed, (bool, np.bool_, str, bytes, float)):
        try:
            dtype: Any = getattr(seed, "dtype", None)
            ndim = getattr(seed, "ndim", None)
            # JAX checks the dtype as well, but not inside of a trace.
            if isinstance(seed, int) or (ndim == 0 and jnp.issubdtype(dtype, jnp.integer)):
                return jax.random.key(seed)
            if ndim and dtype == jnp.uint32:
                return jax.random.wrap_key_data(jnp.asarray(seed))
        except (TypeError, ValueError, OverflowError) as error:
            cause = error
    dtype, shape = getattr(seed, "dtype", None), list(getattr(seed, "shape", ()))
    got = repr(seed) if dtype is None else f"{dtype}{shape}"
    raise errors.RngError(
        f"the stream {name!r} got {got if len(got) < 80 else got[:80] + '...'} of type "
        f"{type(seed).__name__}; a seed is an int or a key from jax.random.key(...)"
        + (f". JAX says: {str(cause).splitlines()[0]}" if isinstance(cause, OverflowError) else "")
    ) from cause


@functools.partial(jax.jit, inline=True)
def _draw(key: jax.Array, count: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The next key of a stream and its new count, in one dispatch when called eagerly."""
    return jax.random.fold_in(key, count), count + 1


class RngStream(Pytree, Draws):
    """One stream of random keys; call it to draw the next key.

    Args:
      key: an integer that ``jax.random.key`` takes, or a key from there.
      tag: the name of the stream, kept as the ``tag`` of its Variables.

    Example:
      >>> import moduli as nnx, jax
      >>> stream = nnx.RngStream(0, tag="dropout")
      >>> a, b = stream(), stream()
      >>> bool(jax.random.key_data(a).tolist() != jax.random.key_data(b).tolist())
      True
      >>> stream.count.value.item()
      2
    """

    def __init__(self, key: Any, *, tag: str):
        self.tag = tag
        self.key = RngKey(_as_key(key, tag), tag=tag)
        self.count = RngCount(jnp.zeros(self.key.shape, jnp.uint32), tag=tag)

    def __call__(self) -> jax.Array:
        """Draws the next key."""
        self.count._check_trace()
        key, self.count.value = _draw(self.key.value, self.count.value)
        return key

    def fork(self, *, split: int | tuple[int, ...] | None = None) -> RngStream:
        """Returns a new stream that starts from a fresh key of this one.

        Args:
          split: shape of an array of keys to start from, as for ``vmap``; one key by default.
        """
        key = self()
        return RngStream(key if split is None else jax.random.split(key, split), tag=self.tag)

    def split(self, k: int | tuple[int, ...]) -> RngStream:
        """Returns a new stream of an array of fresh keys; the same as ``fork(split=k)``."""
        return self.fork(split=k)

    def broadcast(self, k: int | tuple[int, ...], /) -> RngStream:
        """Returns a new stream with one fresh key of this one in all places of an array of keys.

        Args:
          k: shape of the array, in front of the key's own.
        """
        key = self()
        shape = as_positions(k)
        return RngStream(jnp.broadcast_to(key, shape + key.shape), tag=self.tag)

    def last(self) -> jax.Array:
        """Returns the key that the latest draw gave, without drawing."""
        return jax.random.fold_in(self.key.value, self.count.value - 1)


class Rngs(Pytree, Draws):
    """Named random streams, with an optional default for the names that are not given.

    Args:
      default: seed or key of the default stream; or a mapping of stream names to seeds.
      **streams: seed or key of each named stream.

    Raises:
      RngError: if a seed is neither an integer that ``jax.random.key`` takes nor a key.

    Example:
      >>> import moduli as nnx
      >>> rngs = nnx.Rngs(0, params=1)
      >>> key = rngs.params()      # from the stream "params"
      >>> key = rngs.dropout()     # no such stream: from the default stream
      >>> key = rngs()             # from the default stream
      >>> rngs.default.count.value.item()
      2
      >>> rngs.normal((2, 3)).shape
      (2, 3)
    """

    def __init__(self, default: Any = None, /, **streams: Any):
        if isinstance(default, Rngs):
            default = dict(default.items())
        if isinstance(default, Mapping):
            streams = {**default, **streams}
        elif "default" in streams and streams["default"] is None:  # as if it were not given
            del streams["default"]
        elif default is not None:
            streams["default"] = default
        for name, seed in streams.items():
            stream = seed if isinstance(seed, RngStream) else RngStream(seed, tag=name)
            setattr(self, name, stream)

    def _stream(self, name: str) -> RngStream | None:
        return self.__dict__.get(name) or self.__dict__.get("default")

    def __getattr__(self, name: str) -> RngStream:
        if name.startswith("_"):
            raise AttributeError(name)
        stream = self._stream(name)
        if stream is None:
            raise errors.MissingStreamError(self._missing(name))
        return stream

    def __getitem__(self, name: str) -> RngStream:
        stream = self._stream(name)
        if stream is None:
            raise errors.PathError(self._missing(name))
        return stream

    def _missing(self, name: str) -> str:
        names = [key for key, _ in self.items()]
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        return (
            f"these Rngs have no stream {name!r} and no default stream (streams: {names}); {hint}"
            f"write `Rngs({name}=seed)`, or `Rngs(seed)` for a default stream"
        )

    def __call__(self) -> jax.Array:
        """Draws the next key of the default stream."""
        return self["default"]()

    def __iter__(self) -> Iterator[str]:
        return iter([name for name, _ in self.items()])

    def __len__(self) -> int:
        return len(self._items())

    def __contains__(self, name: str) -> bool:
        return name in self.__dict__ and name != "_moduli"

    def items(self) -> Iterator[tuple[str, RngStream]]:
        """Yields (name, stream) in the order in which the streams were given."""
        return iter(self._items_in_order())

    def fork(
        self, /, *, split: Mapping[Any, int | tuple[int, ...]] | int | tuple[int, ...] | None = None
    ) -> Rngs:
        """Returns new Rngs with fresh keys; both go on independently.

        Args:
          split: shape of an array of keys for each stream, as for ``vmap``; or a mapping of
            filters (on stream names, as in ``"dropout"``) to shapes, other streams keep one key.

        Example:
          >>> import moduli as nnx
          >>> nnx.Rngs(params=0, dropout=1).fork(split={"dropout": 4}).dropout.key.shape
          (4,)
        """
        shapes = self._shapes(split)
        return Rngs({name: self.__dict__[name].fork(split=shapes[name]) for name in shapes})

    def _shapes(self, given: _Shapes) -> dict[str, int | tuple[int, ...] | None]:
        """The shape for each stream, in order; a mapping is of filters, the first that selects."""
        if not isinstance(given, Mapping):
            return {name: given for name, _ in self.items()}
        pairs = [(to_predicate(filter), shape) for filter, shape in given.items()]
        chosen = {
            name: next(((shape,) for test, shape in pairs if test((name,), stream)), None)
            for name, stream in self.items()
        }
        names = [filter for filter in given if isinstance(filter, str)]
        if names and chosen and not any(chosen.values()):
            raise errors.RngError(
                f"no stream of these Rngs is selected by {' or '.join(map(repr, names))}; there "
                f"are {', '.join(map(repr, chosen))}"
            )
        return {name: found[0] if found else None for name, found in chosen.items()}

    def split(self, k: Mapping[Any, int | tuple[int, ...]] | int | tuple[int, ...]) -> Rngs:
        """Returns new Rngs whose streams hold arrays of keys; the same as ``fork(split=k)``."""
        return self.fork(split=k)

    def broadcast(self, k: _Shapes, /) -> Rngs:
        """Returns new Rngs whose streams hold one fresh key in all places of an array of keys.

        For a mapped axis along which all elements draw the same numbers, as :meth:`split` is for
        one along which they draw different ones.

        Args:
          k: shape of the array for each stream; or a mapping of filters to shapes. Streams that
            no filter selects, or that one selects with None, are shared with these Rngs.

        Example:
          >>> import moduli as nnx
          >>> rngs = nnx.Rngs(params=0, dropout=1).broadcast({"dropout": 4})
          >>> rngs.dropout.key.shape, rngs.params.key.shape
          ((4,), ())
          >>> bool(rngs.dropout.key.value[0] == rngs.dropout.key.value[3])
          True
        """
        streams = {
            name: self.__dict__[name] if shape is None else self.__dict__[name].broadcast(shape)
            for name, shape in self._shapes(k).items()
        }
        return Rngs(streams)


def _drawn_flat(
    name: str, key: jax.Array, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> jax.Array | None:
    """Draws with few programs where the arguments are a shape, a dtype and bounds."""
    names: tuple[str, ...] = ("shape", "dtype")
    if name == "truncated_normal":
        names = ("lower", "upper", *names)
    elif name == "uniform":
        names = (*names, "minval", "maxval")
    given: dict[str, Any] = dict(zip(names, args, strict=False))
    if len(args) > len(names) or not given.keys().isdisjoint(kwargs):
        return None
    given.update(kwargs)
    if not given.keys() <= set(names):
        return None
    bounds: tuple[Any, ...] = ()
    if name == "truncated_normal":
        if "lower" not in given or "upper" not in given:
            return None
        bounds = (given["lower"], given["upper"])
    elif name == "uniform":
        bounds = (given.get("minval", 0.0), given.get("maxval", 1.0))
    dtype = given.get("dtype") or jax.dtypes.canonicalize_dtype(float)
    return flat_draw(name, key, given.get("shape", ()), dtype, bounds)


def _random_method(name: str) -> Callable[..., Any]:
    function = getattr(jax.random, name)
    flat = name in FLAT

    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        key = self()
        values = _drawn_flat(name, key, args, kwargs) if flat else None
        return function(key, *args, **kwargs) if values is None else values

    method.__name__ = name
    method.__doc__ = f"``jax.random.{name}`` with the next key in place of its first argument."
    return method


for _name in _RANDOM:
    if hasattr(jax.random, _name):
        setattr(Rngs, _name, _random_method(_name))
        setattr(RngStream, _name, _random_method(_name))


def _initializer_method(name: str) -> Callable[..., Any]:
    factory = getattr(jax.nn.initializers, name)

    def method(self: Any, *args: Any, **kwargs: Any) -> Callable[..., jax.Array]:
        initializer = factory(*args, **kwargs)
        return lambda *shape, **options: initializer(self(), *shape, **options)

    method.__name__ = name
    method.__doc__ = (
        f"``jax.nn.initializers.{name}(...)``, whose result draws its key itself: "
        f"``rngs.{name}()((3, 4))``."
    )
    return method


for _name in _INITIALIZERS:
    setattr(Rngs, _name, _initializer_method(_name))
    setattr(RngStream, _name, _initializer_method(_name))
