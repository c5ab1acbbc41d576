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


@contextlib.contextmanager
def named_scopes(model: moduli.Module | None = None) -> Iterator[None]:
    """Names the operations of compiled programs after the modules that they come from.

    Inside of the block, moduli's transforms trace every module's call in a ``jax.named_scope``: the
    class of the outermost module that is called, then the path from it. XLA's metadata, and with it
    the profiles of ``jax.profiler``, show ``jit(step)/jvp(Model)/blocks/3/attention/dot_general``
    where they showed ``jit(step)/jvp()/dot_general``. A module that is called by one that does not
    hold it is shown by its whole path, after that of the caller.

    Programs with scopes are compiled for themselves, once: a function that was compiled before is
    compiled again in the block, and after the block the earlier program is found. Scopes cost a
    compiled program nothing when it runs. Functions under a raw ``jax.jit`` get them only if they
    are traced in the block. They name what XLA compiles; to time the modules of a model that runs
    eagerly there is :func:`moduli.profile`.

    Args:
      model: the model at whose root paths begin. Without it they begin at the outermost module that
        is called; give it if methods of the model call its parts, ``model.encode(x)``.

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
        with moduli.using(_PLUGIN):
            yield
        return
    if not isinstance(model, moduli.Module):
        raise errors.VariableError(
            f"named_scopes: got a {type(model).__name__}; give it the Module at which paths begin, "
            "or nothing: `with moduli.named_scopes(): ...`"
        )
    with moduli.using(_PLUGIN), plugins.recording(_Root(type(model).__name__), model):
        yield


named_scopes.__module__ = "moduli_debug"
