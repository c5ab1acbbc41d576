"""moduli_interop: checkpoints, and doors to other frameworks and file formats."""

from moduli_interop._atomic import atomic_write as atomic_write
from moduli_interop._checkpoint import load as load
from moduli_interop._checkpoint import load_state as load_state
from moduli_interop._checkpoint import save as save
from moduli_interop._errors import CheckpointError as CheckpointError
from moduli_interop._errors import CheckpointFormatError as CheckpointFormatError
from moduli_interop._errors import CheckpointMismatchError as CheckpointMismatchError
from moduli_interop._errors import CheckpointVersionError as CheckpointVersionError
from moduli_interop._errors import CorruptCheckpointError as CorruptCheckpointError
from moduli_interop._errors import NotACheckpointError as NotACheckpointError
from moduli_interop._errors import TruncatedCheckpointError as TruncatedCheckpointError
from moduli_interop._errors import UnsupportedValueError as UnsupportedValueError
from moduli_interop._format import Format as Format
from moduli_interop._inspect import CheckpointInfo as CheckpointInfo
from moduli_interop._inspect import LeafInfo as LeafInfo
from moduli_interop._inspect import inspect_checkpoint as inspect_checkpoint
from moduli_interop._manifest import decode_manifest as decode_manifest
from moduli_interop._manifest import encode_manifest as encode_manifest
from moduli_interop._stored import Checkpoint as Checkpoint
from moduli_interop._stored import Leaf as Leaf
from moduli_interop._stored import StoredArray as StoredArray
from moduli_interop._stored import StoredNamedTuple as StoredNamedTuple

__version__ = "0.1.0"
