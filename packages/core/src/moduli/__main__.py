"""``python -m moduli``: what is installed, and whether it fits together."""

import sys

from moduli._facade.command_line import main

if __name__ == "__main__":
    sys.exit(main())
