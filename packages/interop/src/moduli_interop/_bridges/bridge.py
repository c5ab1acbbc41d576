"""What a plugin contributes for another framework, and how a model is walked with it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NoReturn

from moduli import errors
from moduli_interop._bridges.errors import BridgeError

__all__ = ["Bridge", "Conversion", "LayerRule"]

Convert = Callable[..., Any]


@dataclasses.dataclass(frozen=True)
class LayerRule:
    """How one class of layers is converted; part of a :class:`Bridge`.

    Attributes:
      ours: the class of moduli; subclasses are other classes.
      theirs: the class of the other framework, likewise.
      from_theirs: ``from_theirs(layer, conversion)`` makes our layer; None if that way is not
        possible. ``conversion(part, name)`` converts a part of the layer.
      to_theirs: ``to_theirs(layer, conversion)`` makes theirs, likewise.
    """

    ours: type
    theirs: type
    from_theirs: Callable[[Any, Conversion], Any] | None = None
    to_theirs: Callable[[Any, Conversion], Any] | None = None


@dataclasses.dataclass(frozen=True)
class Bridge:
    """The layers of another framework; return it from the hook ``moduli_bridges``.

    Several bridges may be of one framework: their rules are taken together, so that a plugin adds
    its own layers to a framework that moduli knows.

    Attributes:
      framework: its name, ``"torch"``.
      package: what is imported for it, ``"torch"``.
      install: what pip installs for it.
      rules: makes the rules; called when a model of the framework is first converted, so that it
        may import the framework.

    Example:
      A framework with one layer, in one file:

      >>> import dataclasses, moduli as nnx
      >>> from moduli_interop.bridge import Bridge, LayerRule
      >>> @dataclasses.dataclass
      ... class Scale:  # the other framework's
      ...     factor: float
      >>> class Scaled(nnx.Module):
      ...     def __init__(self, factor):
      ...         self.factor = nnx.Param(factor)
      >>> class Plugin:
      ...     @nnx.hookimpl
      ...     def moduli_bridges(self):
      ...         return [Bridge("scales", "dataclasses", "scales", lambda: [LayerRule(
      ...             Scaled, Scale,
      ...             lambda theirs, convert: Scaled(theirs.factor),
      ...             lambda ours, convert: Scale(ours.factor.value),
      ...         )])]
      >>> with nnx.using(Plugin()):
      ...     model = nnx.bridge.from_framework("scales", [Scale(2.0), Scale(3.0)])
      ...     print(model[1].factor.value, nnx.bridge.to_framework("scales", model))
      3.0 [Scale(factor=2.0), Scale(factor=3.0)]
    """

    framework: str
    package: str
    install: str
    rules: Callable[[], Iterable[LayerRule]]


class Conversion:
    """One walk over a model: it knows where it is, and what it has converted.

    Args:
      framework: the other framework's name.
      makers: what converts an object of a class: ``maker(object, conversion)``.
      wanted: what the classes without a maker lack, for the message: ``"layer of moduli"``.
      advice: what to write instead, for the message.
      fallback: converts what has no maker, or returns ``NotImplemented``.
      shares: whether an object that stands in two places is converted once.

    Attributes:
      path: names and indices of the part that is being converted.
      kept: room for a bridge's own notes of this walk.
    """

    def __init__(
        self,
        framework: str,
        makers: Mapping[type, Callable[[Any, Conversion], Any]],
        *,
        wanted: str,
        advice: str,
        fallback: Callable[[Any, Conversion], Any] | None = None,
        shares: bool = True,
    ) -> None:
        self.framework = framework
        self.path: tuple[str | int, ...] = ()
        self.kept: dict[Any, Any] = {}
        self._makers, self._wanted, self._advice = makers, wanted, advice
        self._fallback, self._shares = fallback, shares
        self._done: dict[int, tuple[Any, Any]] = {}

    def __call__(self, part: Any, *names: str | int) -> Any:
        """Converts a part of the model.

        Args:
          part: an object of the one framework, or a list, tuple or dict of these.
          *names: names of attributes and indices from the object that is being converted to it.

        Returns:
          The object of the other framework; the same one for an object that was met before.

        Raises:
          BridgeError: it has no counterpart.
        """
        if self._shares and id(part) in self._done:
            return self._done[id(part)][1]
        before = self.path
        self.path = (*before, *names)
        try:
            made = self._made(part)
        finally:
            self.path = before
        if self._shares:
            self._done[id(part)] = (part, made)  # the part is kept, so that its id stays its own
        return made

    def _made(self, part: Any) -> Any:
        maker = self._makers.get(type(part))
        if maker is not None:
            return maker(part, self)
        if type(part) in (list, tuple):
            return type(part)(self(item, number) for number, item in enumerate(part))
        if type(part) is dict:
            return {key: self(item, key) for key, item in part.items()}
        made = NotImplemented if self._fallback is None else self._fallback(part, self)
        if made is NotImplemented:
            self.refuse(part)
        return made

    def refuse(self, part: Any, reason: str | None = None) -> NoReturn:
        """Raises a BridgeError about a part: where it stands, its class, and what to write.

        Args:
          part: the object, or its class.
          reason: why it has no counterpart; by default that its class has none.
        """
        kind = part if isinstance(part, type) else type(part)
        spot = errors.format_path(self.path) if self.path else "the root"
        reason = reason or f"for which {self.framework}'s bridge has no {self._wanted}"
        where = f"at `{spot}`" if self.path else f"at {spot}"
        raise BridgeError(
            f"{where} of the model stands a {kind.__module__}.{kind.__qualname__}, {reason}; "
            f"{self._advice}"
        )
