"""What a sandbox claims, and what it says where it cannot start; how scripts end is in the self-check."""

import threading

import pytest

from environments.cancellation import cancellable
from environments.protocol import Limits
from environments.sandbox import GUARANTEES, SandboxError, open_sandbox


@pytest.mark.slow
def test_required_guarantees_hold_or_the_start_fails(sandbox):
    again = open_sandbox(sandbox.name, required=sandbox.guarantees)
    assert again.environment_digest == sandbox.environment_digest
    again.close()
    again.close()


def test_every_guarantee_that_needs_no_privilege_holds(sandbox):
    assert sandbox.guarantees >= set(GUARANTEES) - {"cpu_time", "memory"}


def test_gpus_that_are_not_there_are_our_failure(sandbox, tmp_path):
    with pytest.raises(SandboxError, match=rf"asks for {sandbox.gpus + 1} GPUs"):
        sandbox.run(tmp_path, "train.py", Limits(), gpus=sandbox.gpus + 1)


def test_an_unknown_guarantee_or_sandbox_is_named():
    with pytest.raises(ValueError, match="'privacy'"):
        open_sandbox("bubblewrap", required=["privacy"])
    with pytest.raises(ValueError, match="'chroot'"):
        open_sandbox("chroot")


def test_a_cancelled_execution_ends_and_is_nobodys_result(sandbox, tmp_path):
    """Without the cancellation it would reach its limit of ten minutes, which is an ending and no error."""
    (tmp_path / "train.py").write_text("import time\ntime.sleep(5000)\n")
    cancelled = threading.Event()
    threading.Timer(1.0, cancelled.set).start()
    with cancellable(cancelled), pytest.raises(SandboxError, match="cancelled"):
        sandbox.run(tmp_path, "train.py", Limits(wall_seconds=600.0))
