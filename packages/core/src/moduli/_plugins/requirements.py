"""Whether what a distribution requires is what is installed.

Core has no dependency that reads versions, so this reads those that releases have, with their
pre-, post- and development marks. What it cannot read counts as met.
"""

from __future__ import annotations

import re
import sys

__all__ = ["meets", "unmet"]

_REQUIREMENT = re.compile(r"\s*([A-Za-z0-9][A-Za-z0-9._-]*)\s*(\[[^\]]*\])?\s*\(?([^;()]*)\)?\s*$")
_CLAUSE = re.compile(r"\s*(===|==|!=|~=|<=|>=|<|>)\s*(\S+?)\s*$")
_VERSION = re.compile(
    r"v?(?:(\d+)!)?(\d+(?:\.\d+)*)"
    r"(?:[-_.]?(a|b|rc|c|alpha|beta|pre|preview)[-_.]?(\d*))?"
    r"(?:[-_.]?(post|rev|r)[-_.]?(\d*)|-(\d+))?"
    r"(?:[-_.]?(dev)[-_.]?(\d*))?(?:\+[a-z0-9._-]+)?$"
)
_Key = tuple[int, tuple[int, ...], tuple[int, int], int, float]


def unmet(distribution: str) -> str:
    """Returns what of a distribution's requirements is not met, as a sentence; empty if all is.

    Requirements under a condition (an extra, a platform) are left to the installer, and so is one
    that is missing, unless it is a package of moduli's: another installer may name it otherwise.

    Args:
      distribution: its name.
    """
    import importlib.metadata

    try:
        requires = importlib.metadata.distribution(distribution).requires or []
    except KeyboardInterrupt:
        raise
    except BaseException:  # a damaged one is reported where it is read
        return ""
    for text in requires:
        match = None if ";" in text else _REQUIREMENT.match(text)
        if match is None:
            continue
        name, _, clauses = match.groups()
        version = _installed_version(name)
        if not version:
            if name.startswith("moduli"):
                return f"it requires {text.strip()}, which is not installed"
        elif not meets(version, clauses):
            return f"it requires {text.strip()}, and {name} {version} is installed"
    return ""


def meets(version: str, clauses: str) -> bool:
    """Returns whether a version satisfies all of some clauses.

    Args:
      version: such as ``"0.1.0"``.
      clauses: such as ``">=0.1,<2"``.

    Example:
      >>> from moduli._plugins.requirements import meets
      >>> meets("0.10.2", ">=0.9,<1"), meets("0.1.0", ">=2"), meets("1.4", "~=1.2")
      (True, False, True)
    """
    return all(_meets(version.strip(), clause) for clause in clauses.split(",") if clause.strip())


def _meets(version: str, clause: str) -> bool:
    match = _CLAUSE.match(clause)
    have = _key(version)
    if match is None or have is None:
        return True
    operator, wanted = match.groups()
    prefix = wanted.removesuffix(".*")
    want = _key(prefix)
    if want is None:
        return True
    if prefix != wanted:
        return _starts(have, want, prefix.count(".") + 1) is (operator != "!=")
    if operator == "~=":
        return have >= want and _starts(have, want, prefix.count("."))
    if operator in ("<", ">") and have[:2] == want[:2] and want[2:] == _key("0")[2:]:  # type: ignore[index]
        return False  # 2.0rc1 is not < 2.0, and 2.0.post1 is not > 2.0
    return {
        "===": version == wanted,
        "==": have == want,
        "!=": have != want,
        "<=": have <= want,
        ">=": have >= want,
        "<": have < want,
        ">": have > want,
    }[operator]


def _key(version: str) -> _Key | None:
    match = _VERSION.match(version.lower())
    if match is None:
        return None
    epoch, release, pre, pre_number, post, post_number, post_dash, dev, dev_number = match.groups()
    numbers = tuple(map(int, release.split(".")))
    while len(numbers) > 1 and numbers[-1] == 0:
        numbers = numbers[:-1]
    if pre:
        stage = ({"a": 0, "b": 1}.get(pre[0], 2), int(pre_number or 0))
    elif dev and not post and not post_dash:
        stage = (-1, 0)  # before every pre-release
    else:
        stage = (3, 0)
    after = int(post_number or post_dash or 0) if post or post_dash else -1
    return (int(epoch or 0), numbers, stage, after, int(dev_number or 0) if dev else float("inf"))


def _starts(have: _Key, want: _Key, length: int) -> bool:
    """Returns whether two versions agree in their epochs and first numbers."""
    first, second = ((*key[1], *([0] * length))[:length] for key in (have, want))
    return have[0] == want[0] and first == second


def _installed_version(name: str) -> str:
    import importlib.metadata

    if name == "moduli":  # the one that runs, whatever metadata says
        return getattr(sys.modules.get("moduli"), "__version__", "")
    try:
        return importlib.metadata.version(name) or ""
    except KeyboardInterrupt:
        raise
    except BaseException:
        return ""
