"""What really runs, and whether it is what was asked for: a program, and a plugin of pytest.

The file is copied into the environment under test. It imports nothing of this package, and JAX only
when it looks.
"""

from __future__ import annotations

import json
import os
import platform
import sys
from typing import Any

ASKED = "MODULI_MATRIX_ASKED"
found_in_workers: list[dict[str, Any]] = []


def facts() -> dict[str, Any]:
    """Returns Python, JAX, the devices and the width of numbers of this process."""
    from importlib import metadata

    import jax

    return {
        "python": platform.python_version(),
        "jax": jax.__version__,
        "jaxlib": metadata.version("jaxlib"),
        "platform": jax.default_backend(),
        "kind": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "x64": bool(jax.config.read("jax_enable_x64")),
    }


def line(found: dict[str, Any]) -> str:
    """Returns the facts as one line."""
    return (
        f"ran on Python {found['python']}, jax {found['jax']}, jaxlib {found['jaxlib']}, "
        f"{found['devices']} x {found['platform']} ({found['kind']}), "
        f"x64 {'on' if found['x64'] else 'off'}"
    )


def fits(name: str, asked: Any, found: Any) -> bool:
    """Returns whether what was found is what was asked for; None asks for nothing."""
    if asked is None:
        return True
    if name == "python":
        return found == asked or found.startswith(asked + ".")
    if name == "jax" and asked in ("newest", "nightly"):
        return ("dev" in found) == (asked == "nightly")
    return bool(found == asked)


def differences(asked: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """Returns a sentence for each thing that is not as asked."""
    return [
        f"{name}: asked for {wanted}, got {found[name]}"
        for name, wanted in asked.items()
        if not fits(name, wanted, found[name])
    ]


def asked_for() -> dict[str, Any]:
    """Returns what the matrix asked this process for."""
    return json.loads(os.environ.get(ASKED, "{}"))


def pytest_runtestloop(session: Any) -> None:
    """Looks once everything is collected, when no conftest can change devices any more."""
    config = session.config
    if hasattr(config, "workerinput"):
        config.workeroutput["moduli_matrix"] = facts()
        return
    if getattr(config.option, "dist", "no") != "no":
        return  # the workers run the tests; here JAX would take a GPU's memory from them
    found_in_workers.append(facts())
    wrong = differences(asked_for(), found_in_workers[-1])
    if wrong:
        import pytest

        pytest.exit(f"not the cell that was asked for: {'; '.join(wrong)}", returncode=1)


pytest_runtestloop.pytest_impl = {"tryfirst": True}  # type: ignore[attr-defined]


class WithWorkers:
    """What needs pytest-xdist: the facts of each worker."""

    def pytest_testnodedown(self, node: Any, error: Any) -> None:
        """Takes a worker's facts."""
        found = getattr(node, "workeroutput", {}).get("moduli_matrix")
        if found:
            found_in_workers.append(found)


def pytest_configure(config: Any) -> None:
    """Listens to workers where there are any."""
    if config.pluginmanager.hasplugin("dsession") or config.pluginmanager.hasplugin("xdist"):
        config.pluginmanager.register(WithWorkers(), "moduli-matrix-workers")


def wrong_somewhere() -> list[str]:
    """Returns the differences that any process found, each once."""
    found = [text for facts in found_in_workers for text in differences(asked_for(), facts)]
    return list(dict.fromkeys(found))


def pytest_sessionfinish(session: Any) -> None:
    """Fails a run whose workers were something else."""
    if wrong_somewhere() and not session.exitstatus:
        session.exitstatus = 1


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Prints what ran."""
    for text in dict.fromkeys(line(found) for found in found_in_workers):
        terminalreporter.write_line(text)
    for text in wrong_somewhere():
        terminalreporter.write_line(f"not the cell that was asked for: {text}", red=True)


def main() -> int:
    """Prints what runs in this process; returns 1 if it is not what was asked for."""
    found = facts()
    print(line(found).replace("ran on", "runs on"), flush=True)
    wrong = differences(asked_for(), found)
    for text in wrong:
        print(f"not the cell that was asked for: {text}", file=sys.stderr)
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
