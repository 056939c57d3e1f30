"""`python -m environments`: see `environments.interfaces.command_line`."""

import sys

from environments.interfaces.command_line import main

if __name__ == "__main__":
    sys.exit(main())
