"""The public home of filters, under flax's name: ``moduli.filterlib.to_predicate`` and the rest."""

from moduli._variable.filters import All as All
from moduli._variable.filters import Any as Any
from moduli._variable.filters import Everything as Everything
from moduli._variable.filters import Filter as Filter
from moduli._variable.filters import Not as Not
from moduli._variable.filters import Nothing as Nothing
from moduli._variable.filters import OfType as OfType
from moduli._variable.filters import PathContains as PathContains
from moduli._variable.filters import PathIn as PathIn
from moduli._variable.filters import Predicate as Predicate
from moduli._variable.filters import WithTag as WithTag
from moduli._variable.filters import to_predicate as to_predicate
