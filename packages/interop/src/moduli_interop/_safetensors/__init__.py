"""The safetensors format: eight bytes, a JSON header, the arrays' bytes.

Everything that knows this layout stands here; this room knows no model, no checkpoint and no name
map. ``header`` checks what a file says of itself before anything is believed, ``read`` gives one
tensor or a part of it, ``write`` writes a file from arrays that it asks for one by one.
"""

from moduli_interop._safetensors.header import Entry as Entry
from moduli_interop._safetensors.header import Header as Header
from moduli_interop._safetensors.header import read_header as read_header
from moduli_interop._safetensors.read import SafetensorsFile as SafetensorsFile
from moduli_interop._safetensors.write import Spec as Spec
from moduli_interop._safetensors.write import layout as layout
from moduli_interop._safetensors.write import write as write
