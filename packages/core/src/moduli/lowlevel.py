"""What our own packages are made of, for third parties that need the same.

The door between graphs of modules and JAX, with which every transform is written; the page
``docs/lowlevel.md`` adds one:

- Arguments taken apart: :class:`Function`, :func:`bind` and :class:`Binding`; on top of them
  :class:`Call`, whose values may have :class:`Labels`, and :class:`Outputs` (`PlainCall` is the
  name that :class:`Call` had).
- What programs keep of a call: :class:`Signature`; inside of them the arguments are rebuilt by a
  :class:`Frame`.
- What a function did to its arguments: :class:`Effects`; a :class:`Packed` carries them out.
- Values that users give or return: :func:`match_tangents`, :func:`arrays_and_aux`,
  :func:`scalar_and_aux`, :func:`holds_modules`, :func:`is_array_like`, :func:`is_plain`.
- What a value has of the parameter that it belongs to: :func:`fitted_metadata`.
- Graphs made again out of objects that exist: :func:`rebuild`.
- Which JAX trace is running: :func:`trace_state`.
- Paths that users write, in either notation: :class:`PathText`, :class:`PathPart`,
  :func:`parse_path`; :func:`moduli.errors.format_path` writes them.
- Messages: :func:`check_callable`, :func:`folded`, :func:`naming`, :func:`named`, :func:`wraps`.

For values that get or lose an axis outside of a transform:

- :func:`add_axis_name`, :func:`remove_axis_name`: the names of axes in the metadata of Variables.

For layers that draw at random:

- :func:`draw_for`, :func:`key_for`: keys that differ between the devices of a ``shard_map`` where
  the data differ; :func:`varying_axes` tells over which axes they do.

For initializers:

- :func:`flat_draw`, :func:`flat_full`: eager random draws and constants of many shapes with few
  compiled programs.
"""

from moduli._base.compat import trace_state as trace_state
from moduli._base.compat import varying_axes as varying_axes
from moduli._base.path_text import PathPart as PathPart
from moduli._base.path_text import PathText as PathText
from moduli._base.path_text import parse_path as parse_path
from moduli._call.bind import Binding as Binding
from moduli._call.bind import bind as bind
from moduli._call.bind import is_plain as is_plain
from moduli._call.call import Call as Call
from moduli._call.call import Labels as Labels
from moduli._call.carried import is_array_like as is_array_like
from moduli._call.frame import Frame as Frame
from moduli._call.function import Function as Function
from moduli._call.function import check_callable as check_callable
from moduli._call.function import folded as folded
from moduli._call.function import holds_modules as holds_modules
from moduli._call.function import wraps as wraps
from moduli._call.naming import named as named
from moduli._call.naming import naming as naming
from moduli._call.outputs import Outputs as Outputs
from moduli._call.partition_names import add_axis_name as add_axis_name
from moduli._call.partition_names import remove_axis_name as remove_axis_name
from moduli._call.results import arrays_and_aux as arrays_and_aux
from moduli._call.results import scalar_and_aux as scalar_and_aux
from moduli._call.signature import Leaf as Leaf
from moduli._call.signature import Signature as Signature
from moduli._call.tangents import match_tangents as match_tangents
from moduli._call.writeback import Effects as Effects
from moduli._call.writeback import Packed as Packed
from moduli._graph.rebuild import rebuild as rebuild
from moduli._layout.fitted_names import fitted_metadata as fitted_metadata
from moduli._rngs.device_keys import draw_for as draw_for
from moduli._rngs.device_keys import key_for as key_for
from moduli._rngs.draws import flat_draw as flat_draw
from moduli._rngs.draws import flat_full as flat_full

PlainCall = Call
