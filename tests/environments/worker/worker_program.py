"""`python -m environments.worker` with steps of three kinds, in place of real ones.

`die` kills the worker; `sleep SECONDS` is cut short when the sandbox is closed; `environment` observes what a process
that the worker starts finds in its environment.
"""

import os
import signal
import subprocess
import sys
import threading
import types

from environments.protocol import Outcome, OutcomeKind, Scale
from environments.sandbox.base import SandboxError
from environments.worker import __main__ as worker


class SleepingSandbox:
    name = "sleeping"
    environment_digest = "digest"
    guarantees = frozenset({"network"})
    gpus = 0

    def __init__(self, name):
        if name == "docker":
            raise SandboxError("no Docker engine here")
        self.closed = threading.Event()

    def close(self):
        self.closed.set()


class SleepingEnvironment:
    def __init__(self, tasks, sandbox, store, editor, speed):
        self._sandbox = sandbox

    def take(self, job):
        if job.action == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if job.action == "environment":
            observation = subprocess.run(["env"], capture_output=True, text=True, check=True).stdout
        else:
            observation = "slept"
            if self._sandbox.closed.wait(float(job.action.removeprefix("sleep "))):
                raise SandboxError("closed")
        state, scale = job.state, Scale(0.0, 1.0, True)
        return Outcome(
            OutcomeKind.NO_EDIT, observation, state.snapshot, state.script, state.metric, None, scale, reward=0.5
        )

    def interrupt(self):
        self._sandbox.close()

    def close(self):
        pass


if __name__ == "__main__":
    # In place of the real ones, which import half of scientific Python.
    sandbox, environment = types.ModuleType("environments.sandbox"), types.ModuleType("environments.step")
    sandbox.open_sandbox, environment.Environment = SleepingSandbox, SleepingEnvironment
    sandbox.base = sys.modules["environments.sandbox.base"]
    speed = types.ModuleType("environments.sandbox.speed")
    speed.HostSpeed, speed.work_seconds = lambda measure: types.SimpleNamespace(is_slow=False), None
    sys.modules |= {module.__name__: module for module in (sandbox, environment, speed)}
    sys.exit(worker.main())
