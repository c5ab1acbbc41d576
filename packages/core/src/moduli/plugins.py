"""For authors of plugins: hooks of one's own, and calling them as core calls its own.

Declare hooks with :func:`add_hookspecs` (and name the module under the entry point group
``moduli.hookspecs``), call them with :func:`collect`, :func:`call_first` or, where plugins
contribute things by name, :func:`contributions`. Hand values out of a model, through every
transform, with :func:`recording` and :func:`recordings`. Make the map of a package with
:func:`lazy_names`, so that finding its plugin imports little.
"""

from moduli._base.lazy_names import lazy_names as lazy_names
from moduli._plugins import Contributions as Contributions
from moduli._plugins import PluginRecord as PluginRecord
from moduli._plugins import PluginSet as PluginSet
from moduli._plugins import PluginWarning as PluginWarning
from moduli._plugins import Replace as Replace
from moduli._plugins import active as active
from moduli._plugins import add_hookspecs as add_hookspecs
from moduli._plugins import by_attribute as by_attribute
from moduli._plugins import call_first as call_first
from moduli._plugins import collect as collect
from moduli._plugins import contributions as contributions
from moduli._plugins import hookimpl as hookimpl
from moduli._plugins import hookspec as hookspec
from moduli._plugins import records as records
from moduli._plugins import rediscover as rediscover
from moduli._plugins import using as using
from moduli._recording.recording import Entry as Entry
from moduli._recording.recording import Place as Place
from moduli._recording.recording import Recording as Recording
from moduli._recording.recording import recording as recording
from moduli._recording.recording import recordings as recordings
