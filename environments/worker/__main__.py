"""`python -m environments.worker`: see `environments.worker.worker`."""

import sys

from environments.worker.worker import main

if __name__ == "__main__":
    sys.exit(main())
