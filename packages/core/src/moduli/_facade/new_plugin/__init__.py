"""``python -m moduli new-plugin``: writes a package that is a tested plugin from the start.

``names`` says what a name may be and what follows from it, ``generate`` writes the files of
``templates``. Nothing here is imported but by that command.
"""

from moduli._facade.new_plugin.generate import PARTS as PARTS
from moduli._facade.new_plugin.generate import generate as generate
