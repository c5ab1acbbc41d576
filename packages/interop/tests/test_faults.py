"""The short form of ``nox -s faults``: a little of every fault that checkpoints must survive."""

from __future__ import annotations

import os

import faults
import pytest


@pytest.mark.parametrize("format", faults.FORMATS)
def test_mutated_files_are_checkpoint_errors_with_little_memory(format: str) -> None:
    found = faults.mutations(format, 300, seed=1)
    assert found["CorruptCheckpointError"] > 50


def test_files_that_stay_well_formed_are_refused() -> None:
    assert faults.well_formed(12) == 12


@pytest.mark.parametrize("format", faults.FORMATS)
def test_flips_are_found_and_their_array_is_named(format: str) -> None:
    found, named = faults.flips(format, 40, seed=1)
    assert found == 40 and named > 10


def test_folders_that_orbax_wrote() -> None:
    pytest.importorskip("orbax.checkpoint")
    assert faults.folder_mutations(60, seed=1)["CorruptCheckpointError"] > 20
    assert faults.folder_flips(20, seed=1)[0] == 20


@pytest.mark.skipif(os.name != "posix", reason="fork and SIGKILL")
@pytest.mark.parametrize("what", [*faults.FORMATS, "manager"])
def test_killed_saves_leave_what_was_there(what: str) -> None:
    assert faults.kills_apart(what, 5, seed=1)[0] == 5
