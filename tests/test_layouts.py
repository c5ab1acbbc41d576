"""Layouts over eight devices: losses, memory, programs, communication; in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import layout_programs
import pytest


@pytest.mark.slow
def test_char_gpt_memory_and_communication_on_eight_devices():
    flags = [flag for flag in os.environ.get("XLA_FLAGS", "").split() if "device_count" not in flag]
    done = subprocess.run(
        [sys.executable, str(Path(layout_programs.__file__))],
        env={**os.environ, "XLA_FLAGS": " ".join(flags)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
