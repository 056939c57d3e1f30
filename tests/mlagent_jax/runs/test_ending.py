"""How a run ends: its own error is the one that is told, and a preempted run takes no time for a report."""

import contextlib
import signal
from types import SimpleNamespace

import pytest

from mlagent_jax import train
from mlagent_jax.runs.run import Run
from mlagent_jax.runtime.interruption import Interruption, Stopped
from mlagent_jax.settings.schema import default_config


class Standing:
    """A run whose only stage ends as it is told."""

    is_first = True

    def __init__(self):
        self.closed = False

    def stop_if_requested(self):
        pass

    def end(self, ending):
        pass

    def stage(self, name, occurrence):
        return contextlib.nullcontext(True)

    def close(self):
        self.closed = True


@pytest.fixture
def ended(monkeypatch):
    """Runs a stage that raises an error; returns (error that is told, reports written, whether the run was closed)."""

    def end(error, report_fails, signum=None):
        run, reports, interruption = Standing(), [], Interruption()
        if signum is not None:
            interruption.request(signum)

        def write(workdir):
            reports.append(workdir)
            if report_fails:
                raise OSError("no space left")

        def stage(run):
            if error is not None:
                raise error

        monkeypatch.setattr(Run, "open", lambda *_: run)
        monkeypatch.setattr("mlagent_jax.reporting.html.write_report", write)
        monkeypatch.setattr(train, "_stages", lambda: {"export": stage})
        config = default_config()
        config.stages = ("export",)
        told = None
        try:
            train.run_stages(config, "somewhere", interruption, False)
        except BaseException as raised:
            told = raised
        return told, reports, run.closed

    return end


def test_a_report_that_fails_does_not_hide_the_error_that_ended_the_run(ended):
    error = ValueError("the stage's own")
    assert ended(error, report_fails=True) == (error, ["somewhere"], True)
    assert ended(error, report_fails=False) == (error, ["somewhere"], True)


def test_a_report_that_fails_does_not_fail_a_run_that_is_finished(ended, caplog):
    assert ended(None, report_fails=True) == (None, ["somewhere"], True), "run.json says finished, and the status is 0"
    assert "python -m mlagent_jax.report somewhere" in caplog.text


def test_a_full_disk_does_not_keep_a_run_from_being_closed(monkeypatch, tmp_path):
    def write(*_):
        raise OSError("no space left")

    monkeypatch.setattr("mlagent_jax.runs.run.write_facts", write)
    run, closed = Run.__new__(Run), []
    run.is_first, run._bound, run.workdir, run._facts = True, True, tmp_path, {}
    run._memory, run._closing = SimpleNamespace(peak_gb=0.0), contextlib.ExitStack()
    run._closing.callback(closed.append, "workers")
    with pytest.raises(OSError, match="no space left"):
        run.close()
    assert closed == ["workers"]


def test_no_report_takes_the_grace_period_of_sigterm(ended):
    stopped = Stopped(signal.SIGTERM)
    assert ended(stopped, report_fails=False, signum=signal.SIGTERM) == (stopped, [], True)
    by_hand = Stopped(signal.SIGINT)
    assert ended(by_hand, report_fails=False, signum=signal.SIGINT) == (by_hand, ["somewhere"], True)
