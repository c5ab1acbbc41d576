"""The distributions as they would be uploaded: the same bytes each time, complete, in every subset.

``python tests/distributions.py`` (``nox -s packages``) does all of it and prints what it did;
``test_packaging.py`` has a short form. ``--into FOLDER`` keeps the distributions.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import pathlib
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from clean_environments import EXTENSIONS, PACKAGES, ROOT, SUBSET, Environment, build, run


def last_commits_time() -> str:
    """Returns the time of the last commit, which a release takes as SOURCE_DATE_EPOCH."""
    command = ["git", "log", "-1", "--format=%ct"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    return done.stdout.strip() or "1577836800"


def digests(folder: pathlib.Path) -> dict[str, str]:
    """Returns the SHA-256 of each distribution in a folder, by its name."""
    files = sorted([*folder.glob("*.whl"), *folder.glob("*.tar.gz")])
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def build_twice(first: pathlib.Path, again: pathlib.Path, *names: str) -> dict[str, str]:
    """Builds wheels and sdists twice, at two times; returns their digests, which are equal."""
    for target in (first, again):
        build(target, *names, SOURCE_DATE_EPOCH=last_commits_time())
        time.sleep(1.1)  # a time of now in an archive would differ by a second
    found, other = digests(first), digests(again)
    assert len(found) == 2 * len(names), sorted(found)
    assert found == other, {name for name in found if found[name] != other.get(name)}
    return found


def check_subset(subset: tuple[str, ...], wheels: pathlib.Path, folder: pathlib.Path) -> int:
    """Installs core with some of the packages; returns how many distributions that brings."""
    found = Environment(folder)
    extras = f"[{','.join(subset)}]" if subset else ""
    (core,) = wheels.glob("moduli-*.whl")
    found.install("packaging", "--find-links", str(wheels), f"moduli{extras} @ {core.as_uri()}")
    roots = ["moduli", *(f"moduli-{name}" for name in subset)]
    installed, needed = found.distributions(*roots)
    assert installed == needed, installed ^ needed
    assert found.run(SUBSET, *subset).strip() == str(len(subset))
    done = run([found.python, "-m", "moduli", "doctor"], check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return len(installed)


def check_all(wheels: pathlib.Path, folder: pathlib.Path) -> int:
    """Installs ``moduli[all]``: it brings what the four extras bring, no more and no less."""
    found = Environment(folder)
    (core,) = wheels.glob("moduli-*.whl")
    found.install("packaging", "--find-links", str(wheels), f"moduli[all] @ {core.as_uri()}")
    installed, needed = found.distributions("moduli", *(f"moduli-{name}" for name in EXTENSIONS))
    assert installed == needed, installed ^ needed
    return len(installed)


def main() -> None:
    """Builds, compares, checks metadata, and installs all sixteen subsets."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--into", type=pathlib.Path, help="where the distributions are kept")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        place = pathlib.Path(temporary)
        target = options.into.resolve() if options.into else place / "dist"
        target.mkdir(exist_ok=True, parents=True)
        assert not digests(target), f"{target} has distributions of another build: empty it"
        for name, digest in build_twice(target, place / "again", *PACKAGES, "matrix").items():
            print(f"{digest}  {name}")
        files = [str(target / name) for name in digests(target)]
        run([sys.executable, "-m", "twine", "check", "--strict", *files])
        print(f"built twice with equal bytes, twine check --strict is clean: {len(files)} files")
        subsets = [
            subset
            for count in range(len(EXTENSIONS) + 1)
            for subset in itertools.combinations(EXTENSIONS, count)
        ]
        for number, subset in enumerate(subsets):
            count = check_subset(subset, target, place / f"venv{number}")
            print(f"{' '.join(('core', *subset))}: {count} distributions", flush=True)
        together = check_all(target, place / "all")
        print(f"moduli[all]: {together} distributions; {len(subsets)} subsets in all")


if __name__ == "__main__":
    main()
