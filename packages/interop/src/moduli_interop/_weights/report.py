"""What a load did, or would do."""

from __future__ import annotations

import dataclasses

from moduli_interop._weights.groups import cut, grouped

__all__ = ["LoadReport", "Loaded"]


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A tensor that was loaded.

    Attributes:
      name: its name in the source.
      ours: the path of the Variable that it fills, or of several.
      shape: its shape in the source.
      dtype: its dtype in the source.
      cast: the dtype of the Variable, if that is another one.
      exact: whether that holds every number of its dtype.
    """

    name: str
    ours: str
    shape: tuple[int, ...]
    dtype: str
    cast: str | None = None
    exact: bool = True


@dataclasses.dataclass(frozen=True)
class LoadReport:
    """What :func:`load_weights` did; print it for a table, or test what it says.

    Attributes:
      source: what was loaded.
      loaded: the tensors that were loaded.
      missing: paths of Variables for which there was no tensor, and which kept their values.
      unexpected: names of tensors for which there was no Variable.
      ignored: names of tensors that were passed over, as declared or as asked for.
      left: names of tensors that ``prefix`` or ``only`` left out.
      abstract: paths of other Variables of an abstract model, which have no values yet: streams of
        random numbers, caches.
      idle: what ``ignore`` and ``names`` say of tensors and modules that are not there: a typing
        error, or a part that this model or source lacks.
      kept: how many numbers the Variables of ``missing`` have.
      problems: what is wrong, one line each; empty unless it was a dry run.
      dry_run: whether nothing was loaded.
    """

    source: str
    loaded: tuple[Loaded, ...] = ()
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    left: tuple[str, ...] = ()
    abstract: tuple[str, ...] = ()
    idle: tuple[str, ...] = ()
    kept: int = 0
    problems: tuple[str, ...] = ()
    dry_run: bool = False

    @property
    def widened(self) -> tuple[Loaded, ...]:
        """The tensors whose dtype was widened, which changes no number."""
        return tuple(row for row in self.loaded if row.cast is not None and row.exact)

    @property
    def narrowed(self) -> tuple[Loaded, ...]:
        """The tensors whose numbers were rounded, as ``cast=True`` allows."""
        return tuple(row for row in self.loaded if not row.exact)

    def __repr__(self) -> str:
        return str(self)

    def __str__(self) -> str:
        verb = "would load" if self.dry_run else "loaded"
        lines = [f"{verb} {len(self.loaded)} tensors of {self.source}"]
        rows = [
            ((row.name, row.ours), (f"{row.dtype}{list(row.shape)}", _cast(row)))
            for row in self.loaded
        ]
        table = []
        for (name, ours), (what, cast), count in grouped(rows):
            arrow = "" if name == ours else f" -> {ours}"
            times = f" ({count} tensors)" if count > 1 else ""
            table.append(f"  {name}{arrow}: {what}{cast}{times}")
        lines += cut(table)
        if self.missing:
            lines.append(
                f"{len(self.missing)} Variables ({self.kept} numbers) kept their first values:"
            )
            lines += _listed(self.missing)
        if self.abstract:
            count = len(self.abstract)
            lines.append(
                f"{count} Variables have no values yet; streams get them by moduli.reseed:"
            )
            lines += _listed(self.abstract)
        for names, text in (
            (self.unexpected, "tensors have no Variable:"),
            (self.ignored, "tensors were ignored:"),
            (self.left, "tensors were left out:"),
        ):
            if names:
                lines += [f"{len(names)} {text}", *_listed(names)]
        if self.idle:
            lines.append(f"{len(self.idle)} of ignore= and names= had no effect:")
            lines += cut([f"  {text}" for text in self.idle])
        if self.problems:
            lines += [f"{len(self.problems)} problems:", *cut([f"  {p}" for p in self.problems])]
        return "\n".join(lines)


def _cast(row: Loaded) -> str:
    if row.cast is None:
        return ""
    return f", {'widened' if row.exact else 'narrowed'} to {row.cast}"


def _listed(names: tuple[str, ...]) -> list[str]:
    return cut([f"  {names[0]}" for names, _, _ in grouped(((name,), ()) for name in names)])
