"""What moduli is tested on, as data; the table of the documentation is made from it."""

from __future__ import annotations

import dataclasses
import glob
import os
import shutil
import subprocess

PYTHONS = ("3.11", "3.12", "3.13")

#: The versions of JAX by their names. None: whatever the package index has that day.
JAX: dict[str, str | None] = {
    "lowest": "0.9.0",
    "middle": "0.10.2",
    "newest": None,
    "nightly": None,
}

#: The last JAX for a Python that JAX has since left behind. It has no nightly builds.
LAST_JAX = {"3.11": "0.10.2"}

#: Names the index of JAX's nightly builds, which JAX's page on installation gives.
NIGHTLY_INDEX = "JAX_NIGHTLY_INDEX"


@dataclasses.dataclass(frozen=True)
class Backend:
    """What a cell's tests compute on.

    Args:
        name: the word for it in the names of sessions.
        about: a phrase for it, in lists and tables.
        platform: what ``jax.default_backend()`` has to be.
        devices: how many devices JAX has to see; None for as many as the machine has.
        x64: whether JAX makes 64-bit arrays.
        extra: the extra of JAX that brings it.
    """

    name: str
    about: str
    platform: str = "cpu"
    devices: int | None = None
    x64: bool = False
    extra: str | None = None

    def absent(self) -> str | None:
        """Returns why this machine cannot run it; None if it can."""
        if self.platform == "gpu" and not nvidia_gpus():
            return "no NVIDIA GPU: `nvidia-smi -L` lists none"
        if self.platform == "tpu" and not tpu_chips():
            return "no TPU: there is neither /dev/accel* nor /dev/vfio/[0-9]*"
        return None

    def expected_devices(self) -> int | None:
        """Returns how many devices JAX has to see; None if that cannot be known beforehand."""
        if self.devices is None and self.platform == "gpu":
            return nvidia_gpus()
        return self.devices

    def environment(self) -> dict[str, str | None]:
        """Returns the variables that ask JAX for it; None removes one."""
        jaxs_names = {"cpu": "cpu", "gpu": "cuda,cpu", "tpu": "tpu,cpu"}
        flags = os.environ.get("XLA_FLAGS", "").split()
        kept = [flag for flag in flags if "xla_force_host_platform_device_count" not in flag]
        on_cpus = self.platform == "cpu" and self.devices is not None
        return {
            "JAX_PLATFORMS": jaxs_names[self.platform],
            "JAX_NUM_CPU_DEVICES": str(self.devices) if on_cpus else None,
            "XLA_FLAGS": " ".join(kept) or None,
            "JAX_ENABLE_X64": "1" if self.x64 else "0",
        }


BACKENDS = (
    Backend("cpu", "CPU", devices=1),
    Backend("cpu8", "CPU with 8 devices", devices=8),
    Backend("x64", "CPU with 64-bit arrays", devices=1, x64=True),
    Backend("gpu", "NVIDIA GPU", platform="gpu", extra="cuda12"),
    Backend("tpu", "TPU", platform="tpu", extra="tpu"),
)


def with_cpu_devices(count: int) -> tuple[Backend, ...]:
    """Returns the backends, with so many CPU devices where they have one.

    Example:
      >>> [backend.devices for backend in with_cpu_devices(4)]
      [4, 8, 4, None, None]
    """
    return tuple(
        dataclasses.replace(backend, devices=count) if backend.devices == 1 else backend
        for backend in BACKENDS
    )


def nvidia_gpus() -> int:
    """Returns how many NVIDIA GPUs a process here would see."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return 0
    done = subprocess.run([program, "-L"], capture_output=True, text=True, check=False)
    if done.returncode:
        return 0
    count = sum(line.startswith("GPU ") for line in done.stdout.splitlines())
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        count = min(count, len([name for name in chosen.split(",") if name.strip()]))
    return count


def tpu_chips() -> int:
    """Returns how many TPU chips this machine has."""
    return len(glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*"))


def table() -> str:
    """Returns the supported versions as a table in Markdown, one row a Python.

    Example:
      >>> print(table().splitlines()[0])
      | Python | lowest JAX | middle | newest | nightly |
    """
    lines = ["| Python | lowest JAX | middle | newest | nightly |", "|---|---|---|---|---|"]
    for python in PYTHONS:
        last = LAST_JAX.get(python)
        newest = f"{last}, the last for this Python" if last else "whatever is newest"
        nightly = "no builds for this Python" if last else "where its index is named"
        lines.append(f"| {python} | {JAX['lowest']} | {JAX['middle']} | {newest} | {nightly} |")
    lines += ["", "| backend | what it is | JAX has to see |", "|---|---|---|"]
    for backend in BACKENDS:
        count = backend.devices
        seen = "all that the machine has" if count is None else f"{count} device{'s'[: count > 1]}"
        lines.append(f"| `{backend.name}` | {backend.about} | {seen} |")
    return "\n".join(lines) + "\n"
