"""What a run is asked to do: sizes, rounds, which peers. One object that every section reads."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Settings:
    """Sizes and rounds of a run; the defaults are those of the README.

    Attributes:
      depths: numbers of blocks of the models.
      rounds: how often every peer has its turn; slow measurements take a part of it.
      budget_s: about how long a turn takes, in seconds.
      repeats: calls in a turn, in place of what the budget allows.
      only: names of peers; all by default. Raw JAX always takes part.
      detail_depth: number of blocks where one depth is enough: memory, building, stress.
      stack_depths: numbers of blocks of the looped and scanned models.
      layers: names of single layers (``layer_cases.CASES``); all by default.
      layer_batch: first axis of the inputs of single layers; None is a realistic size.
      many_modules: how many modules the model of many modules has.
      many_variables: how many Variables the model of many Variables has.
      run_width: width of the one layer that training runs have; 1280 and Adam make 20 MB.
      run_steps: steps of training runs: what a run begins and ends with weighs less in a long one.
      tiny_training: whether the models of the section of training are tiny.
      first_models: names of the models of first use (``first_models.MODELS``); all by default.
      checkpoint_bytes: size of the large checkpoint.
      checkpoint_arrays: how many arrays the checkpoint of many small ones has.
    """

    depths: tuple[int, ...] = (3, 20, 100)
    rounds: int = 41
    budget_s: float = 0.015
    repeats: int | None = None
    only: tuple[str, ...] = ()
    detail_depth: int = 20
    stack_depths: tuple[int, ...] = (4, 16, 64)
    layers: tuple[str, ...] = ()
    layer_batch: int | None = None
    many_modules: int = 1000
    many_variables: int = 5000
    run_width: int = 1280
    run_steps: tuple[int, ...] = (100, 1000)
    tiny_training: bool = False
    first_models: tuple[str, ...] = ()
    checkpoint_bytes: int = 1 << 30
    checkpoint_arrays: int = 5000

    @property
    def some_rounds(self) -> int:
        """Rounds of what takes much longer than a call, or needs less precision."""
        return max(1, self.rounds // 3)

    @property
    def few_rounds(self) -> int:
        """Rounds of what takes seconds: tracing and compiling."""
        return max(1, self.rounds // 5)


QUICK = Settings(
    depths=(1,),
    rounds=2,
    repeats=1,
    detail_depth=1,
    stack_depths=(1, 2),
    layers=("Linear 512 to 512, 1024 rows", "Dropout, 16 x 512 x 256"),
    layer_batch=1,
    many_modules=4,
    many_variables=6,
    run_width=8,
    run_steps=(50,),
    tiny_training=True,
    first_models=("tiny LSTM",),
    checkpoint_bytes=1 << 16,
    checkpoint_arrays=6,
)
"""Tiny sizes, two layers and two rounds: to see that everything runs. Its numbers mean nothing."""
