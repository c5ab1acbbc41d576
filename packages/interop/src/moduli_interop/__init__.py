"""moduli_interop: checkpoints, and doors to other frameworks and file formats."""

from typing import TYPE_CHECKING

from moduli.plugins import lazy_names as _lazy_names

__version__ = "0.1.0"

if TYPE_CHECKING:
    from moduli_interop import bridge as bridge
    from moduli_interop._atomic import atomic_folder as atomic_folder
    from moduli_interop._atomic import atomic_write as atomic_write
    from moduli_interop._bridges.equinox import from_equinox as from_equinox
    from moduli_interop._bridges.equinox import to_equinox as to_equinox
    from moduli_interop._bridges.errors import BridgeError as BridgeError
    from moduli_interop._bridges.errors import MissingFrameworkError as MissingFrameworkError
    from moduli_interop._bridges.flax_nnx import from_flax as from_flax
    from moduli_interop._bridges.flax_nnx import to_flax as to_flax
    from moduli_interop._bridges.haiku import from_haiku as from_haiku
    from moduli_interop._bridges.haiku import to_haiku as to_haiku
    from moduli_interop._bridges.torch import from_torch as from_torch
    from moduli_interop._bridges.torch import to_torch as to_torch
    from moduli_interop._checkpoint import load as load
    from moduli_interop._checkpoint import load_state as load_state
    from moduli_interop._checkpoint import save as save
    from moduli_interop._errors import AsFlaxError as AsFlaxError
    from moduli_interop._errors import CheckpointError as CheckpointError
    from moduli_interop._errors import CheckpointFormatError as CheckpointFormatError
    from moduli_interop._errors import CheckpointMismatchError as CheckpointMismatchError
    from moduli_interop._errors import CheckpointNotFoundError as CheckpointNotFoundError
    from moduli_interop._errors import CheckpointVersionError as CheckpointVersionError
    from moduli_interop._errors import CorruptCheckpointError as CorruptCheckpointError
    from moduli_interop._errors import DamagedCheckpointWarning as DamagedCheckpointWarning
    from moduli_interop._errors import MissingExtraError as MissingExtraError
    from moduli_interop._errors import NotACheckpointError as NotACheckpointError
    from moduli_interop._errors import TruncatedCheckpointError as TruncatedCheckpointError
    from moduli_interop._errors import UnsupportedValueError as UnsupportedValueError
    from moduli_interop._export.export import ExportedModel as ExportedModel
    from moduli_interop._export.export import export as export
    from moduli_interop._flax.as_flax import as_flax as as_flax
    from moduli_interop._format import Format as Format
    from moduli_interop._inspect import CheckpointInfo as CheckpointInfo
    from moduli_interop._inspect import LeafInfo as LeafInfo
    from moduli_interop._inspect import inspect_checkpoint as inspect_checkpoint
    from moduli_interop._inspect import verify_checkpoint as verify_checkpoint
    from moduli_interop._manager import CheckpointManager as CheckpointManager
    from moduli_interop._manifest import decode_manifest as decode_manifest
    from moduli_interop._manifest import encode_manifest as encode_manifest
    from moduli_interop._markers import StepInfo as StepInfo
    from moduli_interop._stored import Checkpoint as Checkpoint
    from moduli_interop._stored import Leaf as Leaf
    from moduli_interop._stored import StoredArray as StoredArray
    from moduli_interop._stored import StoredNamedTuple as StoredNamedTuple
    from moduli_interop._tensors.errors import TensorFileError as TensorFileError
    from moduli_interop._tensors.read import read_tensors as read_tensors
    from moduli_interop._tensors.source import Opened as Opened
    from moduli_interop._tensors.source import TensorSource as TensorSource
    from moduli_interop._tensors.stored import StoredTensor as StoredTensor
    from moduli_interop._tensors.stored import Tensors as Tensors
    from moduli_interop._weights.errors import NameMapError as NameMapError
    from moduli_interop._weights.errors import WeightsMismatchError as WeightsMismatchError
    from moduli_interop._weights.load import load_weights as load_weights
    from moduli_interop._weights.name_map import NameMap as NameMap
    from moduli_interop._weights.report import Loaded as Loaded
    from moduli_interop._weights.report import LoadReport as LoadReport
    from moduli_interop._weights.save import save_weights as save_weights
    from moduli_interop._weights.suggest import suggest_names as suggest_names
else:  # the same names; tests/test_package_maps.py compares the two
    __getattr__, __dir__, __all__ = _lazy_names(
        __name__,
        {
            "_atomic": ["atomic_folder", "atomic_write"],
            "_bridges.equinox": ["from_equinox", "to_equinox"],
            "_bridges.errors": ["BridgeError", "MissingFrameworkError"],
            "_bridges.flax_nnx": ["from_flax", "to_flax"],
            "_bridges.haiku": ["from_haiku", "to_haiku"],
            "_bridges.torch": ["from_torch", "to_torch"],
            "_checkpoint": ["load", "load_state", "save"],
            "_errors": [
                "AsFlaxError",
                "CheckpointError",
                "CheckpointFormatError",
                "CheckpointMismatchError",
                "CheckpointNotFoundError",
                "CheckpointVersionError",
                "CorruptCheckpointError",
                "DamagedCheckpointWarning",
                "MissingExtraError",
                "NotACheckpointError",
                "TruncatedCheckpointError",
                "UnsupportedValueError",
            ],
            "_flax.as_flax": ["as_flax"],
            "_export.export": ["ExportedModel", "export"],
            "_format": ["Format"],
            "_inspect": [
                "CheckpointInfo",
                "LeafInfo",
                "inspect_checkpoint",
                "verify_checkpoint",
            ],
            "_manager": ["CheckpointManager"],
            "_markers": ["StepInfo"],
            "_manifest": ["decode_manifest", "encode_manifest"],
            "_stored": ["Checkpoint", "Leaf", "StoredArray", "StoredNamedTuple"],
            "_tensors.errors": ["TensorFileError"],
            "_tensors.read": ["read_tensors"],
            "_tensors.source": ["Opened", "TensorSource"],
            "_tensors.stored": ["StoredTensor", "Tensors"],
            "_weights.errors": ["NameMapError", "WeightsMismatchError"],
            "_weights.load": ["load_weights"],
            "_weights.name_map": ["NameMap"],
            "_weights.report": ["LoadReport", "Loaded"],
            "_weights.save": ["save_weights"],
            "_weights.suggest": ["suggest_names"],
        },
        submodules=["bridge"],
    )
