"""Chooses the format of a checkpoint among those that plugins contribute."""

from __future__ import annotations

import difflib
import os

from moduli import plugins
from moduli_interop._errors import CheckpointFormatError, NotACheckpointError
from moduli_interop._format import Format

__all__ = ["choose_format", "formats", "recognize_format"]

BUILT_IN = "safetensors"
OURS = ("safetensors", "npz", "orbax")

_FOREIGN = {
    **dict.fromkeys((".pth", ".pt", ".ckpt", ".bin"), "torch"),
    **dict.fromkeys((".msgpack",), "flax"),
    **dict.fromkeys((".h5", ".hdf5", ".keras"), "Keras"),
    **dict.fromkeys((".eqx",), "equinox"),
    **dict.fromkeys((".pkl", ".pickle", ".joblib", ".dill"), "pickle"),
    **dict.fromkeys((".onnx",), "ONNX"),
    **dict.fromkeys((".gguf", ".ggml"), "llama.cpp"),
    **dict.fromkeys((".pb", ".tflite", ".index"), "TensorFlow"),
    **dict.fromkeys((".npy", ".mat", ".csv", ".json", ".txt", ".zip", ".tar", ".gz"), "others"),
}


def formats() -> dict[str, Format]:
    """Returns every format by its name; the names of ours are reserved.

    Raises:
      CheckpointFormatError: if plugins that the program turned on contribute formats of one name.
    """
    made = _contributions()
    for name in made.clashes:
        if not made.is_installed(name):
            raise _clash(made, name)
    return {name: format for name, format in made.values.items() if name not in made.clashes}


def _contributions() -> plugins.Contributions:
    return plugins.contributions(
        "checkpoint format", "moduli_checkpoint_formats", plugins.by_attribute
    )


def _clash(made: plugins.Contributions, name: str) -> CheckpointFormatError:
    owners = " and ".join(
        f"the {record.title}" for record in (made.owners[name], *made.clashes[name])
    )
    return CheckpointFormatError(
        f"{owners} both have a checkpoint format named {name!r}; switch one of them off with "
        f"MODULI_PLUGINS=-{made.clashes[name][0].name}"
    )


def choose_format(path: str, name: str | None) -> Format:
    """Returns the format in which to write a file.

    Args:
      path: the file; its suffix chooses the format unless a name is given.
      name: the name of a format.

    Raises:
      CheckpointFormatError: if there is no such format, several claim the suffix, or the suffix is
        that of another library's files.
    """
    known = formats()
    if name is None:
        claim = _claim(path, known)
        name = claim.name if claim else BUILT_IN
    if name in known:
        return known[name]
    made = _contributions()
    if name in made.clashes:
        raise _clash(made, name)
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known are {sorted(known)}."
    if name in OURS:
        hint += (
            " It comes with moduli-interop, whose plugin `interop` is switched off (see "
            "MODULI_PLUGINS and `python -m moduli plugins`)"
        )
    raise CheckpointFormatError(f"there is no checkpoint format {name!r}; {hint}")


def recognize_format(path: str, name: str | None) -> Format:
    """Returns the format of a file that exists: by its content where that tells.

    Args:
      path: the file or folder.
      name: the name of a format, if the user gave it.

    Raises:
      CheckpointFormatError: as :func:`choose_format` does.
      NotACheckpointError: if it is a folder that no format recognizes, or no file at all.
    """
    if name is not None:
        return choose_format(path, name)
    if os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path):
        raise NotACheckpointError(f"{path} is a pipe or a device, no file")
    known = formats()
    claim = _claim(path, known)
    if os.path.exists(path) and (claim is None or claim.recognizes is not None):
        for format in sorted(known.values(), key=lambda format: format is not claim):
            if format.recognizes is not None and format.recognizes(path):
                return format
    if os.path.isdir(path) and claim is None:
        raise NotACheckpointError(
            f"{path} is a folder, and no format recognizes it. The steps of a CheckpointManager "
            "are loaded with `manager.load(model)`; `manager.info(step).path` is the file of one"
        )
    return choose_format(path, claim.name if claim else BUILT_IN)


def _claim(path: str, known: dict[str, Format]) -> Format | None:
    lower = path.lower().rstrip("/")
    claims = [format for format in known.values() if lower.endswith(tuple(format.suffixes))]
    if len(claims) > 1:
        made = _contributions()
        ours = [format for format in claims if made.is_ours(format.name)]
        if len(ours) == 1 and all(made.is_installed(format.name) for format in claims):
            return ours[0]  # an installed plugin does not take files of ours
        names = sorted(format.name for format in claims)
        raise CheckpointFormatError(
            f"the formats {names} all claim files like {path}; say which one you mean: "
            f"format={names[0]!r}"
        )
    suffix = os.path.splitext(lower)[1]
    if not claims and suffix in _FOREIGN:
        raise CheckpointFormatError(
            f"{path} has the suffix of files of other programs ({_FOREIGN[suffix]}), and a "
            f"checkpoint is none of these. Use .safetensors or .npz, or say which of ours it is: "
            f"format={BUILT_IN!r}. For the weights of other libraries see moduli.load_weights and "
            "moduli.save_weights"
        )
    return claims[0] if claims else None
