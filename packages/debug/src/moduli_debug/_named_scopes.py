"""named_scopes: XLA's programs and profiles say which module an operation belongs to.

The plugin runs each module's call in a ``jax.named_scope``. Scopes nest as calls do, so that one
names only what its path adds to that of the module around it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Iterator
from typing import Any

import jax

import moduli
from moduli import errors, plugins
from moduli_debug._module_filter import path_text

__all__ = ["named_scopes"]

Path = tuple[Any, ...]
_here = threading.local()


@dataclasses.dataclass(frozen=True)
class _Root:
    """Owns a recording whose paths begin at a model that the caller named.

    Attributes:
      name: the class of the model.
    """

    name: str


class _NamedScopes:
    """The plugin; one object, because compiled programs are kept for each plugin object."""

    @moduli.hookimpl
    def moduli_call_context(self, module: moduli.Module, path: Path) -> _Scope:
        root = None
        for recording in plugins.recordings():
            if isinstance(recording.owner, _Root):
                root, path = recording.owner.name, recording.path_of(module) or ()
                break
        return _Scope(path, root or type(module).__name__)


class _Scope:
    """The scope of one call.

    Args:
      path: the module's path.
      root: what stands for the root, whose path is empty.
    """

    def __init__(self, path: Path, root: str):
        self.path, self.root = path, root

    def __enter__(self) -> None:
        callers: list[Path] = _here.__dict__.setdefault("paths", [])
        names = [] if callers else [self.root]
        added = _added(callers[-1], self.path) if callers else self.path
        if added:
            names.append(path_text(added))
        callers.append(self.path)
        # The root has a scope of its own: JAX writes what a transform does around the first scope,
        # `jvp(CNN)/blocks/3/attention`, so that paths stay in one piece.
        self.scopes = contextlib.ExitStack()
        for name in names:
            self.scopes.enter_context(jax.named_scope(name))

    def __exit__(self, *error: Any) -> None:
        _here.paths.pop()
        self.scopes.close()


def _added(caller: Path, path: Path) -> Path:
    """Returns what a path adds to the caller's: all of it for a module that stands elsewhere."""
    return path[len(caller) :] if path[: len(caller)] == caller else path


_PLUGIN = _NamedScopes()


class _Switch(contextlib.AbstractContextManager[None]):
    """Makes names part of the keys of JAX's persistent compilation cache while a block is open.

    Without that, the cache takes programs that differ in their names alone for one program, and
    gives back the one that was compiled first. The option is the process's, so blocks are counted.
    """

    _option = "jax_compilation_cache_include_metadata_in_key"

    def __init__(self) -> None:
        self._lock, self._open, self._before = threading.Lock(), 0, False

    def __enter__(self) -> None:
        with self._lock:
            if not self._open:
                self._before = getattr(jax.config, self._option)
                jax.config.update(self._option, True)
            self._open += 1

    def __exit__(self, *error: Any) -> None:
        with self._lock:
            self._open -= 1
            if not self._open:
                jax.config.update(self._option, self._before)


_names_in_cache_keys = _Switch()


@contextlib.contextmanager
def named_scopes(model: moduli.Module | None = None) -> Iterator[None]:
    """Names the operations of compiled programs after the modules that they come from.

    Inside of the block, moduli's transforms trace every module's call in a ``jax.named_scope``: the
    class of the outermost module that is called, then the path from it. XLA's metadata, and with it
    the profiles of ``jax.profiler``, show ``jit(step)/jvp(Model)/blocks/3/attention/dot_general``
    where they showed ``jit(step)/jvp()/dot_general``. A module that is called by one that does not
    hold it is shown by its whole path, after that of the caller.

    Programs with scopes are compiled for themselves, once: a function that was compiled before is
    compiled again in the block, and after the block the earlier program is found. JAX's persistent
    cache keeps them apart, too. Scopes cost a compiled program nothing when it runs. Functions
    under a raw ``jax.jit`` get them only if they are traced in the block. They name what XLA
    compiles; to time the modules of a model that runs eagerly there is :func:`moduli.profile`.

    Args:
      model: the model at whose root paths begin, in functions that are called in the block.
        Without it, and in what is lowered ahead of time, they begin at the outermost module that is
        called. Give it if methods of the model call its parts, ``model.encode(x)``.

    Yields:
      None.

    Raises:
      VariableError: if ``model`` is not a Module.

    Example:
      >>> import jax.numpy as jnp, moduli as nnx
      >>> class Block(nnx.Module):
      ...     def __call__(self, x):
      ...         return jnp.sin(x)
      >>> class Model(nnx.Module):
      ...     def __init__(self):
      ...         self.blocks = [Block(), Block()]
      ...     def __call__(self, x):
      ...         for block in self.blocks:
      ...             x = block(x)
      ...         return x
      >>> step = nnx.jit(lambda model, x: model(x))
      >>> with nnx.named_scopes():
      ...     text = step.lower(Model(), jnp.ones(3)).as_text(debug_info=True)
      >>> "Model/blocks/1/sin" in text
      True

    Reference:
      https://docs.jax.dev/en/latest/_autosummary/jax.named_scope.html
    """
    if model is None:
        with _names_in_cache_keys, moduli.using(_PLUGIN):
            yield
        return
    if not isinstance(model, moduli.Module):
        raise errors.VariableError(
            f"named_scopes: got a {type(model).__name__}; give it the Module at which paths begin, "
            "or nothing: `with moduli.named_scopes(): ...`"
        )
    root = _Root(type(model).__name__)
    with _names_in_cache_keys, moduli.using(_PLUGIN), plugins.recording(root, model):
        yield


named_scopes.__module__ = "moduli_debug"
