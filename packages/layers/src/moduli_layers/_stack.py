"""Stack: N equal blocks as one, looped over or scanned."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, SupportsIndex, overload

import jax
import jax.numpy as jnp

import moduli
from moduli.errors import PathError, StructureError
from moduli.lowlevel import add_axis_name, remove_axis_name
from moduli_layers._arguments import checked
from moduli_layers._checks import check_rngs
from moduli_layers.counterparts import TensorNames

if TYPE_CHECKING:
    from typing_extensions import TypeVar

    M = TypeVar("M", bound=moduli.Module, default=Any)
    M_co = TypeVar("M_co", covariant=True)
    X = TypeVar("X")
else:
    from typing import TypeVar

    M = TypeVar("M", bound=moduli.Module)
    M_co = TypeVar("M_co", covariant=True)
    X = TypeVar("X")

__all__ = ["Stack"]


class _MakesBlock(Protocol[M_co]):
    """A function or class that takes ``rngs``."""

    def __call__(self, *, rngs: moduli.Rngs) -> M_co: ...


class Stack(moduli.Module, Generic[M]):
    """Calls ``n`` blocks of equal structure one after the other, each with its own parameters.

    The blocks are one module whose every value has a first axis of size ``n``. So tracing and
    compiling take the same time for 4 blocks and for 400, and paths, checkpoints and captured
    values are the same whether the blocks are scanned (the default) or written out one by one.

    Attributes:
      block: the blocks as one module: ``stack.block.linear.kernel`` has shape ``(n, ...)``.
      n: how many there are.
      scan: whether they run in a compiled loop; may be switched at any time. False writes the
        blocks out one by one: the compiled program grows with ``n`` and may run faster.
      remat: whether the backward pass computes the inside of each block again.
      policy: which values ``remat`` stores all the same, one of ``jax.checkpoint_policies``.
      unroll: how many blocks to write out in one round of the compiled loop.

    Args:
      block: makes one block: a function (or class) that takes ``rngs=``, or no argument if ``rngs``
        is not given.
      n: how many blocks, at least 1.
      rngs: random streams; every block gets streams of its own.
      scan: see the attributes.
      remat: see the attributes.
      policy: see the attributes.
      unroll: see the attributes.
      transform_metadata: ``{moduli.PARTITION_NAME: name}`` names the axis of the blocks in the
        parameters' partition names; else it is None there. See :func:`moduli.vmap`.

    Raises:
      StructureError: ``block`` cannot be called or returns no Module, or ``n`` is no positive int.
      RngError: ``rngs`` is no :class:`moduli.Rngs`.

    Example:
      >>> import jax.numpy as jnp, moduli
      >>> from moduli_layers import Linear, Stack
      >>> stack = Stack(lambda rngs: Linear(8, 8, rngs=rngs), 12, rngs=moduli.Rngs(0))
      >>> stack.block.kernel.shape
      (12, 8, 8)
      >>> x = jnp.ones((5, 8))
      >>> scanned = stack(x)
      >>> stack.scan = False
      >>> bool(jnp.allclose(stack(x), scanned, rtol=1e-5))
      True
      >>> stack[3].kernel.shape
      (8, 8)
    """

    __module__ = "moduli_layers"

    torch_names: ClassVar[tuple[TensorNames, ...]] = (TensorNames(stacked=("block",)),)

    @overload
    def __init__(
        self,
        block: _MakesBlock[M],
        n: SupportsIndex,
        *,
        rngs: moduli.Rngs,
        scan: bool = True,
        remat: bool = False,
        policy: Callable[..., bool] | None = None,
        unroll: int | bool = 1,
        transform_metadata: Mapping[str, Any] | None = None,
    ) -> None: ...
    @overload
    def __init__(
        self,
        block: Callable[[], M],
        n: SupportsIndex,
        *,
        rngs: None = None,
        scan: bool = True,
        remat: bool = False,
        policy: Callable[..., bool] | None = None,
        unroll: int | bool = 1,
        transform_metadata: Mapping[str, Any] | None = None,
    ) -> None: ...
    @checked
    def __init__(
        self,
        block: Callable[..., M],
        n: SupportsIndex,
        *,
        rngs: moduli.Rngs | None = None,
        scan: bool = True,
        remat: bool = False,
        policy: Callable[..., bool] | None = None,
        unroll: int | bool = 1,
        transform_metadata: Mapping[str, Any] | None = None,
    ) -> None:
        if isinstance(block, moduli.Module) or not callable(block):
            raise StructureError(
                f"Stack needs a function that makes one block, got a {type(block).__name__}; write "
                "`Stack(lambda rngs: Block(..., rngs=rngs), n, rngs=rngs)`, or "
                "`Stack.of([block, block, ...])` for blocks that exist"
            )
        n = self._number(n)

        def make(rngs: moduli.Rngs | None) -> Any:
            made = block() if rngs is None else block(rngs=rngs)
            if not isinstance(made, moduli.Module):
                raise StructureError(
                    f"Stack: {getattr(block, '__qualname__', block)} must return a Module, it "
                    f"returned a {type(made).__name__}"
                )
            return made

        streams = None if rngs is None else _split(check_rngs(self, rngs), n)
        axes = (0,) if rngs is not None else (None,)
        self.block: M = moduli.vmap(
            make, in_axes=axes, axis_size=n, transform_metadata=transform_metadata
        )(streams)
        self._set(n, scan, remat, policy, unroll)

    def _number(self, n: Any) -> int:
        try:
            number = 0 if isinstance(n, bool) else operator.index(n)
        except TypeError:
            number = 0
        if number < 1:
            raise StructureError(f"Stack needs a number of blocks of at least 1, got n={n!r}")
        return number

    def _set(self, n: int, scan: bool, remat: bool, policy: Any, unroll: int) -> None:
        self.n, self.scan, self.remat, self.policy, self.unroll = n, scan, remat, policy, unroll

    @classmethod
    def of(
        cls,
        blocks: Sequence[M],
        *,
        scan: bool = True,
        remat: bool = False,
        policy: Callable[..., bool] | None = None,
        unroll: int | bool = 1,
        transform_metadata: Mapping[str, Any] | None = None,
    ) -> Stack[M]:
        """Makes a Stack of blocks that exist, by stacking copies of their values.

        Args:
          blocks: Modules of equal structure, shapes and dtypes.
          scan: see the class.
          remat: see the class.
          policy: see the class.
          unroll: see the class.
          transform_metadata: see the class.

        Raises:
          StructureError: there is no block, one is no Module, or two differ.
        """
        blocks = list(blocks)
        if not blocks:
            raise StructureError("Stack.of needs at least one block, got none")
        for number, block in enumerate(blocks):
            if not isinstance(block, moduli.Module):
                raise StructureError(
                    f"Stack.of needs Modules, got a {type(block).__name__} as block {number}"
                )
        parts = [moduli.split(block) for block in blocks]
        graphdef, first = parts[0]
        for number, (other, state) in enumerate(parts):
            if other is not graphdef:
                raise StructureError(
                    f"Stack.of: block {number} ({type(blocks[number]).__name__}) has another "
                    f"structure than block 0 ({type(blocks[0]).__name__}); stacked blocks have "
                    f"the same classes, attributes and settings:\n{other}\nis not\n{graphdef}"
                )
            _check_shapes(number, first, state)
        stacked = jax.tree.map(lambda *values: jnp.stack(values), *[state for _, state in parts])
        stack: Stack[M] = cls.__new__(cls)
        stack.block = moduli.merge(graphdef, stacked)
        add_axis_name(stack.block, 0, transform_metadata)
        stack._set(len(blocks), scan, remat, policy, unroll)
        return stack

    def __call__(self, x: X, *args: Any, **kwargs: Any) -> X:
        """Runs the blocks.

        Args:
          x: the input of the first block; each block returns the input of the next, of the same
            structure, shapes and dtypes.
          *args: further arguments, the same for every block; what a block writes to modules among
            them, the next one sees, and streams among them go on from block to block.
          **kwargs: keyword arguments, likewise.

        Returns:
          What the last block returns.
        """
        # in a loop nothing can be merged with the forward pass, so nothing has to prevent it
        again = (not self.scan, self.policy) if self.remat else None
        step = _step(f"Stack of {type(self.block).__name__}", again)
        run = moduli.scan(
            step,
            in_axes=(moduli.Carry, 0, _axes_of(args), _axes_of(kwargs)),
            out_axes=moduli.Carry,
            length=self.n,  # blocks may hold no value at all
            unroll=self.unroll if self.scan else True,
        )
        first: Any = x.value if isinstance(x, moduli.Variable) else x  # blocks return arrays
        return run(first, self.block, args, kwargs)

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> M:
        """Returns a copy of one block; writing it does not change the stack."""
        number = operator.index(index)
        if not -self.n <= number < self.n:
            raise PathError(f"Stack has {self.n} blocks, got the index {number}")
        graphdef, state = moduli.split(self.block)
        block = moduli.merge(graphdef, jax.tree.map(lambda value: value[number], state))
        remove_axis_name(block)
        return block

    def __iter__(self) -> Iterator[M]:
        """Yields a copy of each block."""
        return (self[number] for number in range(self.n))


@functools.lru_cache(maxsize=128)
def _step(name: str, again: tuple[bool, Any] | None) -> Callable[..., Any]:
    """Returns the function that runs one block: the same one each time, as JAX compiles for it.

    Args:
      name: its name, for messages.
      again: for ``remat``, its ``prevent_cse`` and its ``policy``; None without.
    """

    def step(x: Any, block: Any, args: Any, kwargs: Any) -> Any:
        return block(x, *args, **kwargs)

    step.__qualname__ = name
    if again is None:
        return step
    return moduli.remat(step, prevent_cse=again[0], policy=again[1])


_ONWARD = moduli.StateAxes({...: moduli.Carry})


def _axes_of(arguments: Any) -> Any:
    """Returns the axes of arguments for all blocks: streams go on from block to block."""

    def stop(leaf: Any) -> bool:
        return isinstance(leaf, (moduli.Pytree, moduli.Variable))

    streams = (moduli.Rngs, moduli.RngStream)
    if not any(isinstance(leaf, streams) for leaf in jax.tree.leaves(arguments, is_leaf=stop)):
        return None
    return jax.tree.map(
        lambda leaf: _ONWARD if isinstance(leaf, streams) else None, arguments, is_leaf=stop
    )


def _split(rngs: moduli.Rngs, n: int) -> moduli.Rngs:
    """Returns streams of ``n`` keys, so that blocks may keep them; those split before are left."""
    return moduli.Rngs({name: s if s.key.shape else s.fork(split=n) for name, s in rngs.items()})


def _check_shapes(number: int, first: moduli.State, state: moduli.State) -> None:
    pairs = zip(
        moduli.to_flat_state(first).items(), moduli.to_flat_state(state).items(), strict=True
    )
    for (path, one), (_, other) in pairs:
        shapes = [jax.tree.map(jax.typeof, getattr(v, "value", v)) for v in (one, other)]
        if shapes[0] != shapes[1]:
            raise StructureError(
                f"Stack.of: `{moduli.errors.format_path(path)}` is {shapes[1]} in block {number}, "
                f"but {shapes[0]} in block 0; stacked blocks have equal shapes and dtypes"
            )
