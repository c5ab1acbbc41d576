"""What our own packages are made of, for third parties that need the same.

- :func:`flat_draw`, :func:`flat_full`: eager random draws and constants of many shapes with few
  compiled programs, for initializers.
"""

from moduli._rngs.draws import flat_draw as flat_draw
from moduli._rngs.draws import flat_full as flat_full
