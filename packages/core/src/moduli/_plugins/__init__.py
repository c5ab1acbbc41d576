"""The plugin system: finding plugins, choosing them, calling their hooks, reporting failures.

It reads from the bottom up: ``records`` (what is known of a plugin, quarantine), ``inspection``
(what an object implements), ``specs`` (which hooks there are), ``plugin_set`` (the plugins in
force), ``discovery`` (the installed ones), ``dispatch`` (calling hooks).

- Everything about plugins as such lives here; this room knows no Variable, module or transform.
- A hook is called through ``dispatch``, by whoever has something to tell.
"""

from moduli._base.hook_markers import hookimpl as hookimpl
from moduli._base.hook_markers import hookspec as hookspec
from moduli._plugins.contributions import Contributions as Contributions
from moduli._plugins.contributions import by_attribute as by_attribute
from moduli._plugins.contributions import contributions as contributions
from moduli._plugins.discovery import NAMES as NAMES
from moduli._plugins.discovery import allowed as allowed
from moduli._plugins.discovery import discover as discover
from moduli._plugins.discovery import records as records
from moduli._plugins.discovery import rediscover as rediscover
from moduli._plugins.discovery import select as select
from moduli._plugins.dispatch import active as active
from moduli._plugins.dispatch import call_first as call_first
from moduli._plugins.dispatch import call_implementation as call_implementation
from moduli._plugins.dispatch import collect as collect
from moduli._plugins.dispatch import instrumented as instrumented
from moduli._plugins.dispatch import module_created as module_created
from moduli._plugins.dispatch import only as only
from moduli._plugins.dispatch import plugin_block as plugin_block
from moduli._plugins.dispatch import using as using
from moduli._plugins.dispatch import value_written as value_written
from moduli._plugins.dispatch import watches_creation as watches_creation
from moduli._plugins.dispatch import watches_methods as watches_methods
from moduli._plugins.dispatch import watches_writes as watches_writes
from moduli._plugins.entry_points import OURS as OURS
from moduli._plugins.entry_points import Point as Point
from moduli._plugins.entry_points import canonical as canonical
from moduli._plugins.entry_points import installed as installed
from moduli._plugins.inspection import Plugin as Plugin
from moduli._plugins.plugin_set import PluginSet as PluginSet
from moduli._plugins.plugin_set import add_hookspecs as add_hookspecs
from moduli._plugins.records import PluginRecord as PluginRecord
from moduli._plugins.records import PluginWarning as PluginWarning
from moduli._plugins.records import notice as notice
from moduli._plugins.records import report as report
from moduli._plugins.records import reporting_only as reporting_only
from moduli._plugins.replace import Replace as Replace
from moduli._plugins.requirements import unmet as unmet
from moduli._plugins.specs import declare_all as declare_all
from moduli._plugins.specs import hook_names as hook_names
from moduli._plugins.specs import named_hooks as named_hooks
from moduli._plugins.specs import version as version
from moduli._plugins.trace import TraceLine as TraceLine
from moduli._plugins.trace import tracing as tracing
