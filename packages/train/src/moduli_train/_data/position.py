"""Where the data stands: every batch through all epochs, and how to come back to one of them."""

from __future__ import annotations

import inspect
import itertools
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from moduli.plugins import collect
from moduli_train._data.batches import Batches
from moduli_train._data.encoding import decoded, encoded
from moduli_train._errors import DataEndedError, DataPositionWarning, RunError

__all__ = ["Source"]

_PROTOCOLS = (("get_state", "set_state"), ("state_dict", "load_state_dict"))
_CURES = (
    "data with get_state/set_state (grain) or state_dict/load_state_dict (torchdata), nnx.Batches "
    "or a callable `epoch -> iterable`"
)


class Source:
    """Gives batch after batch, epoch after epoch, and says where it stands."""

    def __init__(self, data: Any) -> None:
        answers = collect("moduli_data_state", data=data)
        self._data, self._plugin = data, answers[0][1] if answers else None
        self._by_epoch = callable(data) and not hasattr(data, "__iter__")
        if isinstance(data, (Mapping, str)) or not (self._by_epoch or hasattr(data, "__iter__")):
            raise RunError(
                f"data= is a {type(data).__name__}; it takes an iterable of batches, or {_CURES}. "
                "Arrays become batches by `nnx.Batches(arrays, size)`"
            )
        if self._by_epoch and not _takes_an_epoch(data):
            raise RunError(
                "data= is a function that does not take one argument. It is called for each epoch "
                "with its number, from 0: `data=lambda epoch: batches(seed=epoch)`"
            )
        indexed = isinstance(data, (list, tuple, np.ndarray, jax.Array))
        self._indexed = indexed and self._plugin is None
        self.epoch = self.index = self.total = 0
        self._stream: Iterator[Any] | None = None
        self._saved: Any = None

    def __next__(self) -> Any:
        while True:
            fresh = self._stream is None
            if self._stream is None:
                self._stream = self._open()
            try:
                batch = next(self._stream)
            except StopIteration:
                if self._stream is self._data or (fresh and self.index == 0):
                    raise self._ended() from None
                self.epoch, self.index, self._stream = self.epoch + 1, 0, None
                continue
            self.index, self.total = self.index + 1, self.total + 1
            return batch

    def _ended(self) -> DataEndedError:
        kind = type(self._data).__name__
        return DataEndedError(
            f"the data (a {kind}) ended after {self.total} batches, before the last step. An "
            f"iterator can be read once only: give a list or another iterable that can be read "
            f"again for each epoch, or {_CURES}; or run fewer steps"
            if self._stream is self._data
            else f"epoch {self.epoch} of the data (a {kind}) has no batch, after {self.total} "
            "batches: each epoch has to give batches anew, as a list does and a used-up iterator "
            "does not"
        )

    def _open(self) -> Iterator[Any]:
        data = self._data
        if isinstance(data, Batches):
            return data.epoch(self.epoch, start=self.index)
        if self._indexed:
            return itertools.islice(data, self.index, None)
        holder = self._holder(data)
        if self._saved is not None and holder is not None:
            holder[1](decoded(self._saved))
        stream = iter(data(self.epoch)) if self._by_epoch else iter(data)
        if self._saved is not None and holder is None:
            inner = self._holder(stream)
            if inner is None:
                raise RunError(
                    f"the checkpoint has a state of the data, and a {type(data).__name__} takes "
                    "none: give the kind of data with which the run began"
                )
            inner[1](decoded(self._saved))
        self._saved = None
        return stream

    def _holder(self, thing: Any) -> tuple[Callable[[], Any], Callable[[Any], Any]] | None:
        """Returns the functions that get and set a state, of the first protocol that is there."""
        for owner in (self._plugin, thing):
            for get, put in _PROTOCOLS:
                if callable(getattr(owner, get, None)) and callable(getattr(owner, put, None)):
                    return getattr(owner, get), getattr(owner, put)
        return None

    def _facts(self) -> dict[str, Any] | None:
        """Returns what has to be the same when a run resumes, of data that any index reaches."""
        if isinstance(self._data, Batches):
            return self._data.facts()
        return {"batches": len(self._data)} if self._indexed else None

    def position(self) -> dict[str, Any]:
        """Returns where it stands after the last batch that it gave, as JSON."""
        found: dict[str, Any] = {"epoch": self.epoch, "index": self.index, "total": self.total}
        if (facts := self._facts()) is not None:
            found["batches"] = facts
        elif self._stream is not None:
            holder = self._holder(self._data) or self._holder(self._stream)
            if holder is not None:
                found["state"] = encoded(holder[0]())
        return found

    def restore(
        self, position: dict[str, Any], counting: Callable[[Iterable[int]], Iterable[int]]
    ) -> None:
        """Goes to where an earlier run stood; reads and drops batches if nothing else helps.

        Args:
          position: what :meth:`position` returned.
          counting: shows a bar over the batches that are read and dropped.
        """
        facts = self._facts()
        if position.get("batches") != facts:
            before, now = (given or "another kind" for given in (position.get("batches"), facts))
            raise RunError(
                f"the run began with data of {before}, and is to go on with {now}: the batches "
                "would be others. Give the same data, or another folder"
            )
        total, self._saved = position["total"], position.get("state")
        known = facts is not None
        if known or self._saved is not None or self._by_epoch or total == 0:
            self.epoch, self.total, self.index = position["epoch"], total, position["index"]
            if self._saved is None and not known and self.index:
                self._stream = self._open()
                for _ in counting(range(self.index)):
                    next(self._stream, None)
            return
        warnings.warn(
            f"the data (a {type(self._data).__name__}) cannot say where it stands, so its first "
            f"{total} batches are read and dropped. A resume costs nothing with {_CURES}",
            DataPositionWarning,
            stacklevel=5,
        )
        for _ in counting(range(total)):
            next(self)


def _takes_an_epoch(function: Callable[..., Any]) -> bool:
    try:
        inspect.signature(function).bind(0)
    except TypeError:
        return False
    except ValueError:  # it has no signature
        return True
    return True
