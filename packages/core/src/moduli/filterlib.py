"""The public home of filters, under flax's name: ``moduli.filterlib.to_predicate`` and the rest."""

from moduli._filters import All as All
from moduli._filters import Any as Any
from moduli._filters import Everything as Everything
from moduli._filters import Filter as Filter
from moduli._filters import Not as Not
from moduli._filters import Nothing as Nothing
from moduli._filters import OfType as OfType
from moduli._filters import PathContains as PathContains
from moduli._filters import PathIn as PathIn
from moduli._filters import Predicate as Predicate
from moduli._filters import WithTag as WithTag
from moduli._filters import to_predicate as to_predicate
