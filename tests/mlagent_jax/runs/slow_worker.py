"""`python -m environments.worker`, whose jobs take a moment more each: long enough for a test to kill it in one."""

import sys
import time

from environments.step import Environment
from environments.worker import __main__ as worker

take = Environment.take


def take_slowly(environment, job):
    time.sleep(0.4)
    return take(environment, job)


if __name__ == "__main__":
    Environment.take = take_slowly
    sys.exit(worker.main())
