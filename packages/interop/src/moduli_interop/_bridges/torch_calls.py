"""A module of PyTorch called from JAX, and one of ours called from PyTorch, with gradients."""

from __future__ import annotations

import functools
import threading
import weakref
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import moduli
from moduli_interop._bridges.errors import BridgeError
from moduli_interop._bridges.frameworks import import_framework
from moduli_interop._bridges.torch_arrays import as_array, as_numpy, as_tensor

__all__ = ["FunctionModule", "JaxModule", "TorchModule", "jax_module_class"]

_running = threading.RLock()  # a module's mode and PyTorch's random numbers are global
_shapes: weakref.WeakKeyDictionary[Any, dict[Any, Any]] = weakref.WeakKeyDictionary()


class TorchModule(moduli.Module):
    """A module of PyTorch as one of ours: its parameters are Params, its call runs in PyTorch.

    It works under every transform: compiled programs call back into PyTorch, and gradients are
    those of PyTorch's autograd. Derivatives of second order are an error. What the call writes into
    buffers (the statistics of a batch norm) is written here; the module itself stays as it is.

    Attributes:
      module: the module of PyTorch.
      params: Params by name.
      buffers: Variables by name; a BatchStat for floating-point numbers.
      deterministic: whether the module is called in evaluation; None leaves its own mode.
        ``model.train()`` and ``model.eval()`` set it.

    Args:
      module: the ``torch.nn.Module``; its values are copied.
      rngs: where random numbers of the call come from (stream ``dropout``); without it a module
        with dropout is called in evaluation only.

    Example:
      >>> import torch, jax, jax.numpy as jnp, moduli as nnx
      >>> model = nnx.bridge.TorchModule(torch.nn.Linear(3, 2))
      >>> x = jnp.ones((4, 3), jnp.float32)
      >>> model(x).shape
      (4, 2)
      >>> nnx.grad(lambda model: model(x).sum())(model).params["bias"].value
      Array([4., 4.], dtype=float32)
    """

    __module__ = "moduli_interop.bridge"

    def __init__(self, module: Any, *, rngs: moduli.Rngs | None = None) -> None:
        import_framework("torch", "torch")
        self.module = moduli.static(module)
        self.params = {
            name: moduli.Param(jnp.array(as_numpy(value)))
            for name, value in module.named_parameters()
        }
        self.buffers = {
            name: (moduli.BatchStat if value.is_floating_point() else moduli.Variable)(
                jnp.array(as_numpy(value))
            )
            for name, value in module.named_buffers()
        }
        self.deterministic: bool | None = None
        self.rngs = None if rngs is None else rngs.dropout.fork()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the module.

        Args:
          *args: arrays, or pytrees of arrays and of what PyTorch takes as it is.
          **kwargs: likewise.

        Returns:
          The module's output, with arrays in the place of tensors.

        Raises:
          BridgeError: the module draws random numbers, and there are no ``rngs``.
        """
        module: Any = self.module
        training = module.training if self.deterministic is None else not self.deterministic
        seed: Any = np.zeros(2, np.uint32)
        if training and _is_random(module):
            if self.rngs is None:
                raise BridgeError(
                    f"{type(module).__name__} draws random numbers in training; write "
                    "`TorchModule(module, rngs=nnx.Rngs(0))`, or call `model.eval()` first"
                )
            seed = jax.random.bits(self.rngs(), (2,), jnp.uint32)
        leaves, treedef = jax.tree.flatten((args, kwargs))
        is_array = [hasattr(x, "dtype") for x in leaves]  # numbers stay numbers
        arrays = [jnp.asarray(x) for x, yes in zip(leaves, is_array, strict=True) if yes]
        others = tuple(x for x, yes in zip(leaves, is_array, strict=True) if not yes)
        run = _Call(module, training, treedef, tuple(is_array), others)
        params = {name: variable.value for name, variable in self.params.items()}
        buffers = {name: variable.value for name, variable in self.buffers.items()}
        out, written = tuple(_called(run, params, buffers, jnp.asarray(seed), arrays))
        if training:
            for name, value in written.items():
                self.buffers[name].value = value
        return out


def _is_random(module: Any) -> bool:
    """Returns whether a module is known to draw random numbers in training."""
    import torch

    for part in module.modules():
        rate = getattr(part, "p", None) if "Drop" in type(part).__name__ else None
        if isinstance(part, (torch.nn.RNNBase, torch.nn.MultiheadAttention)):
            rate = part.dropout
        if "RReLU" in type(part).__name__ or (isinstance(rate, float) and rate > 0):
            return True
    return False


class _Call:
    """One way to call one module: what is static in it; equal ones are one key of JAX's caches."""

    def __init__(
        self, module: Any, training: bool, treedef: Any, marks: tuple[bool, ...], others: Any
    ) -> None:
        self.module, self.training, self.treedef = module, training, treedef
        self.marks, self.others = marks, others
        self.key = (id(module), training, treedef, marks, tuple(map(repr, others)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Call) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)

    def forward(self, params: Any, buffers: Any, seed: Any, arrays: Any) -> Any:
        """Calls the module on tensors; returns the output's tensors and the buffers."""
        import torch

        given, others = iter(arrays), iter(self.others)
        leaves = [next(given) if mark else next(others) for mark in self.marks]
        args, kwargs = jax.tree.unflatten(self.treedef, leaves)
        module = self.module
        modes = {part: part.training for part in module.modules()}
        seeds = np.asarray(seed, np.uint64)
        with _running, torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(seeds[0]) << 32 | int(seeds[1]))
            try:
                if module.training != self.training:
                    module.train(self.training)
                out = torch.func.functional_call(module, {**params, **buffers}, args, kwargs)
            finally:
                for part, mode in modes.items():
                    part.training = mode
        return out, buffers

    def outputs(self, params: Any, buffers: Any, seed: Any, arrays: Any) -> Any:
        """Returns shapes and dtypes of the output and the buffers; found by a call on zeros."""
        import torch

        given = (params, buffers, seed, arrays)
        shapes = jax.tree.map(lambda x: (tuple(x.shape), str(x.dtype)), given)
        key = (self.key, repr(shapes))
        known = _shapes.setdefault(self.module, {})
        if key not in known:
            zeros = jax.tree.map(lambda x: as_tensor(np.zeros(x.shape, x.dtype)), given)
            with torch.no_grad():
                out = self.forward(zeros[0], zeros[1], np.zeros(2), zeros[3])
            known[key] = jax.tree.map(_spec, out, is_leaf=lambda x: isinstance(x, torch.Tensor))
        return known[key]


def _spec(tensor: Any) -> jax.ShapeDtypeStruct:
    import torch

    if not isinstance(tensor, torch.Tensor):
        raise BridgeError(
            f"the module returned a {type(tensor).__name__}; a module that is called from JAX "
            "returns tensors, or lists, tuples and dicts of them"
        )
    dtype = as_numpy(torch.empty(0, dtype=tensor.dtype)).dtype
    return jax.ShapeDtypeStruct(tuple(tensor.shape), jax.dtypes.canonicalize_dtype(dtype))


def _tensors(tree: Any, copy: bool = False) -> Any:
    return jax.tree.map(lambda x: as_tensor(x).clone() if copy else as_tensor(x), tree)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _called(run: _Call, params: Any, buffers: Any, seed: Any, arrays: Any) -> Any:
    specs = run.outputs(params, buffers, seed, arrays)

    def call(params: Any, buffers: Any, seed: Any, arrays: Any) -> Any:
        import torch

        with torch.no_grad():  # a module may write into its inputs, which are JAX's
            out = run.forward(
                _tensors(params), _tensors(buffers, True), seed, _tensors(arrays, True)
            )
        return _results(out, specs)

    return jax.pure_callback(call, specs, params, buffers, seed, arrays, vmap_method="sequential")


def _results(tree: Any, specs: Any) -> Any:
    import torch

    arrays = jax.tree.map(as_numpy, tree, is_leaf=lambda x: isinstance(x, torch.Tensor))
    return jax.tree.map(lambda x, spec: np.array(x, spec.dtype), arrays, specs)


def _forward(run: _Call, params: Any, buffers: Any, seed: Any, arrays: Any) -> Any:
    return _called(run, params, buffers, seed, arrays), (params, buffers, seed, arrays)


def _backward(run: _Call, kept: Any, cotangents: Any) -> Any:
    params, buffers, seed, arrays = kept
    floats = [jnp.issubdtype(x.dtype, jnp.inexact) for x in arrays]
    wanted = {name: jnp.issubdtype(x.dtype, jnp.inexact) for name, x in params.items()}
    specs = (
        {n: jax.ShapeDtypeStruct(x.shape, x.dtype) for n, x in params.items() if wanted[n]},
        [
            jax.ShapeDtypeStruct(x.shape, x.dtype)
            for x, yes in zip(arrays, floats, strict=True)
            if yes
        ],
    )
    of_outputs = [x for x in jax.tree.leaves(cotangents[0]) if x.dtype != jax.dtypes.float0]

    def call(params: Any, buffers: Any, seed: Any, arrays: Any, cotangents: Any) -> Any:
        import torch

        with torch.enable_grad():
            leaves = {name: as_tensor(x).requires_grad_(wanted[name]) for name, x in params.items()}
            first = [
                as_tensor(x).requires_grad_(yes) for x, yes in zip(arrays, floats, strict=True)
            ]
            out, _ = run.forward(leaves, _tensors(buffers, True), seed, [x.clone() for x in first])
            outputs = [
                x
                for x in jax.tree.leaves(out, is_leaf=lambda x: isinstance(x, torch.Tensor))
                if x.is_floating_point() or x.is_complex()
            ]
            pairs = [
                (x, as_tensor(np.array(ct)).to(x.dtype))
                for x, ct in zip(outputs, cotangents, strict=True)
                if x.requires_grad
            ]
            sources = [leaves[n] for n in specs[0]] + [
                x for x, yes in zip(first, floats, strict=True) if yes
            ]
            grads: Any = [None] * len(sources)
            if pairs and sources:
                grads = torch.autograd.grad(
                    [x for x, _ in pairs], sources, [ct for _, ct in pairs], allow_unused=True
                )
            grads = [
                torch.zeros_like(x) if g is None else g for x, g in zip(sources, grads, strict=True)
            ]
        count = len(specs[0])
        return _results((dict(zip(specs[0], grads, strict=False)), grads[count:]), specs)

    of_params, of_arrays = jax.pure_callback(
        call, specs, params, buffers, seed, arrays, of_outputs, vmap_method="sequential"
    )
    given = iter(of_arrays)
    return (
        {name: of_params.get(name) for name in params},
        None,
        None,
        [next(given) if yes else None for yes in floats],
    )


_called.defvjp(_forward, _backward)


class FunctionModule(moduli.Module):
    """A function as a module, so that it can be called from PyTorch."""

    def __init__(self, function: Any) -> None:
        self.function = function

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the function."""
        return self.function(*args, **kwargs)


def JaxModule(model: moduli.Module) -> Any:
    """Makes a module of PyTorch whose call runs a model of ours, compiled by JAX.

    Params become parameters, other Variables buffers, under the names of their paths; the values
    are copied. Gradients go both ways: to the parameters and to the inputs. What the call writes
    (statistics, counters of random streams) is written into the buffers. ``train()`` and ``eval()``
    switch the model's mode.

    Args:
      model: the model.

    Returns:
      A ``torch.nn.Module``.

    Example:
      >>> import torch, moduli as nnx
      >>> module = nnx.bridge.JaxModule(nnx.Linear(3, 2, rngs=nnx.Rngs(0)))
      >>> module(torch.ones(4, 3)).sum().backward()
      >>> module.bias.grad
      tensor([4., 4.])
      >>> sorted(module.state_dict())
      ['bias', 'kernel']
    """
    return jax_module_class()(model)


@functools.cache
def jax_module_class() -> Any:
    torch: Any = import_framework("torch", "torch")

    class Apply(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, program: Any, treedef: Any, box: Any, *tensors: Any) -> Any:
            count = len(program.paths)
            stay = [n >= count or isinstance(t, torch.nn.Parameter) for n, t in enumerate(tensors)]
            arrays = [
                as_array(t) if stays else jnp.array(as_numpy(t))  # buffers are written below
                for t, stays in zip(tensors, stay, strict=True)
            ]
            out, box["written"] = jax.block_until_ready(program(arrays, treedef))
            leaves, box["structure"] = jax.tree.flatten(out)
            ctx.save_for_backward(*(t for t, stays in zip(tensors, stay, strict=True) if stays))
            ctx.program, ctx.treedef, ctx.arrays = program, treedef, arrays
            ctx.dtypes = [x.dtype for x in leaves]
            ctx.given = [t.dtype for t in tensors]
            result = [_own(x) for x in leaves]
            fixed = [t for t in result if not (t.is_floating_point() or t.is_complex())]
            ctx.mark_non_differentiable(*fixed)
            return tuple(result)

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx: Any, *cotangents: Any) -> Any:
            _ = ctx.saved_tensors  # raises if one of them was written since
            given = [
                jnp.asarray(as_numpy(ct), dtype) if jnp.issubdtype(dtype, jnp.inexact) else None
                for ct, dtype in zip(cotangents, ctx.dtypes, strict=True)
            ]
            given = [ct for ct in given if ct is not None]
            grads = jax.block_until_ready(ctx.program.backward(ctx.arrays, ctx.treedef, given))
            return (
                None,
                None,
                None,
                *(
                    None if g is None else _own(g).to(dtype)
                    for g, dtype in zip(grads, ctx.given, strict=True)
                ),
            )

    class Module(torch.nn.Module):
        def __init__(self, model: Any) -> None:
            super().__init__()
            self.__dict__["model"] = model = moduli.clone(model)
            self.__dict__["programs"] = {}
            self._names: list[tuple[str, ...]] = []
            for path, leaf in moduli.to_flat_state(moduli.state(model)):
                names = tuple(map(str, path)) or ("value",)
                value = leaf.get_raw_value() if isinstance(leaf, moduli.Variable) else leaf
                tensor = as_tensor(jnp.array(value) if _is_key(value) else np.array(value))
                holder = self
                for name in names[:-1]:
                    if name not in holder._modules:
                        holder.add_module(name, torch.nn.Module())
                    holder = holder._modules[name]
                trained = isinstance(leaf, moduli.Param) and tensor.is_floating_point()
                if trained:
                    holder.register_parameter(names[-1], torch.nn.Parameter(tensor.clone()))
                else:
                    holder.register_buffer(names[-1], tensor.clone())
                self._names.append(names)
            self.training = _mode(model)

        def train(self, mode: bool = True) -> Any:
            """Switches to training, of the model too."""
            super().train(mode)
            self.model.train() if mode else self.model.eval()
            return self

        def _tensor(self, names: tuple[str, ...]) -> Any:
            holder: Any = self
            for name in names[:-1]:
                holder = holder._modules[name]
            return holder._parameters.get(names[-1], holder._buffers.get(names[-1]))

        def to_model(self) -> Any:
            """Returns a model of ours with the values of the parameters and buffers."""
            model = moduli.clone(self.model)
            state = moduli.state(model)
            leaves = moduli.to_flat_state(state)
            for (_, leaf), names in zip(leaves, self._names, strict=True):
                if isinstance(leaf, moduli.Variable):
                    value, old = jnp.array(as_numpy(self._tensor(names))), leaf.get_raw_value()
                    if _is_key(old):
                        value = jax.random.wrap_key_data(value, impl=jax.random.key_impl(old))
                    leaf.set_raw_value(value)
            return model.function if isinstance(model, FunctionModule) else model

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            """Calls the model."""
            graphdef = moduli.graphdef(self.model)
            program = self.programs.get(graphdef)
            if program is None:
                program = self.programs[graphdef] = _Program(self.model)
            mine = [self._tensor(names) for names in self._names]
            leaves, treedef = jax.tree.flatten(
                (args, kwargs), is_leaf=lambda x: isinstance(x, torch.Tensor)
            )
            inputs = [x if isinstance(x, torch.Tensor) else torch.as_tensor(x) for x in leaves]
            box: dict[str, Any] = {}
            out = Apply.apply(program, treedef, box, *mine, *inputs)
            with torch.no_grad():
                for index, value in box["written"].items():
                    mine[index].copy_(as_tensor(value))
            return jax.tree.unflatten(box["structure"], out)

        def __repr__(self) -> str:
            return f"JaxModule({self.model!r})"

    return Module


def _own(array: Any) -> Any:
    """Returns a tensor that owns its memory, as PyTorch may write into it."""
    return as_tensor(array).clone()


def _is_key(value: Any) -> bool:
    return hasattr(value, "dtype") and jnp.issubdtype(value.dtype, jax.dtypes.prng_key)


def _mode(model: Any) -> bool:
    """Returns whether a model trains: no part of it says that it evaluates."""
    for _, part in moduli.iter_graph(model):
        for name in ("deterministic", "use_running_average"):
            if getattr(part, name, None) is True:
                return False
    return True


class _Program:
    """The pure function of a model in one mode, compiled for each shape of its inputs."""

    def __init__(self, model: Any) -> None:
        graphdef, state = moduli.split(model)
        flat = moduli.to_flat_state(state)
        paths = [path for path, _ in flat]
        kinds = [leaf for _, leaf in flat]
        keys = [
            jax.random.key_impl(leaf.get_raw_value())
            if isinstance(leaf, moduli.Variable) and _is_key(leaf.get_raw_value())
            else None
            for leaf in kinds
        ]
        self.paths = paths
        count = len(paths)

        def run(arrays: Any, treedef: Any) -> Any:
            values = [
                x if impl is None else jax.random.wrap_key_data(x, impl=impl)
                for x, impl in zip(arrays[:count], keys, strict=True)
            ]
            leaves = [
                kind.replace(value) if isinstance(kind, moduli.Variable) else value
                for kind, value in zip(kinds, values, strict=True)
            ]
            copy = moduli.merge(graphdef, moduli.from_flat_state(zip(paths, leaves, strict=True)))
            args, kwargs = jax.tree.unflatten(treedef, arrays[count:])
            out = copy(*args, **kwargs)
            after = dict(moduli.to_flat_state(moduli.state(copy)))
            written = {}
            for n, (path, before) in enumerate(zip(paths, values, strict=True)):
                leaf = after[path]
                now = leaf.get_raw_value() if isinstance(leaf, moduli.Variable) else leaf
                if now is not before:
                    written[n] = jax.random.key_data(now) if _is_key(now) else now
            return out, written

        def backward(arrays: Any, treedef: Any, cotangents: Any) -> Any:
            at = [n for n, x in enumerate(arrays) if jnp.issubdtype(x.dtype, jnp.inexact)]

            def outputs(floats: Any) -> Any:
                whole = list(arrays)
                for n, x in zip(at, floats, strict=True):
                    whole[n] = x
                return [
                    x
                    for x in jax.tree.leaves(run(whole, treedef)[0])
                    if jnp.issubdtype(x.dtype, jnp.inexact)
                ]

            _, pull = jax.vjp(outputs, [arrays[n] for n in at])
            (grads,) = pull(cotangents)
            found = dict(zip(at, grads, strict=True))
            return [found.get(n) for n in range(len(arrays))]

        self._run = jax.jit(run, static_argnums=1)
        self._backward = jax.jit(backward, static_argnums=1)

    def __call__(self, arrays: Any, treedef: Any) -> Any:
        """Runs the function."""
        return self._run(arrays, treedef)

    def backward(self, arrays: Any, treedef: Any, cotangents: Any) -> Any:
        """Returns the gradients of the float arrays; None for the others."""
        return self._backward(arrays, treedef, cotangents)
