"""`python -m environments.worker` with steps that only sleep: `sleep SECONDS`, cut short when the sandbox is closed."""

import sys
import threading
import types

from environments import worker
from environments.protocol import Outcome, OutcomeKind, Scale
from environments.sandbox.base import SandboxError


class SleepingSandbox:
    name = "sleeping"
    environment_digest = "digest"
    guarantees = frozenset({"network"})

    def __init__(self, name):
        if name == "docker":
            raise SandboxError("no Docker engine here")
        self.closed = threading.Event()

    def close(self):
        self.closed.set()


class SleepingEnvironment:
    def __init__(self, tasks, sandbox, store, editor):
        self._sandbox = sandbox

    def take(self, job):
        if self._sandbox.closed.wait(float(job.action.removeprefix("sleep "))):
            raise SandboxError("closed")
        state, scale = job.state, Scale(0.0, 1.0, True)
        return Outcome(
            OutcomeKind.NO_EDIT, "slept", state.snapshot, state.script, state.metric, None, scale, reward=0.5
        )

    def close(self):
        pass


if __name__ == "__main__":
    # In place of the real ones, which import half of scientific Python.
    sandbox, environment = types.ModuleType("environments.sandbox"), types.ModuleType("environments.environment")
    sandbox.open_sandbox, environment.Environment = SleepingSandbox, SleepingEnvironment
    sandbox.base = sys.modules["environments.sandbox.base"]
    sys.modules |= {sandbox.__name__: sandbox, environment.__name__: environment}
    sys.exit(worker.main())
