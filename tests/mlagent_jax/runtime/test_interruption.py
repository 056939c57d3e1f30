"""Signals: once saves and stops, twice stops at once, and nothing breaks into an update."""

import gc
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mlagent_jax.runtime import processes
from mlagent_jax.runtime.interruption import INTERRUPTED, PREEMPTED, Interruption, Stopped

TERM, INT = signal.SIGTERM, signal.SIGINT


def tell(signum):
    os.kill(os.getpid(), signum)


@pytest.mark.parametrize(("signum", "status"), [(TERM, PREEMPTED), (INT, INTERRUPTED)])
def test_a_signal_stops_at_once_where_nothing_is_held(signum, status):
    with Interruption() as interruption, pytest.raises(Stopped) as stopped:
        tell(signum)
    assert stopped.value.status == status
    assert interruption.requested


def test_a_held_section_is_finished_and_can_save_before_it_leaves():
    done = []
    with Interruption() as interruption, pytest.raises(Stopped):
        for step in range(3):
            with interruption.held(), interruption.held():
                tell(TERM) if step == 1 else None
                done.append(step)
                if interruption.requested:
                    done.append("saved")
    assert done == [0, 1, "saved"]


def test_a_held_section_that_fails_says_why():
    with Interruption() as interruption, pytest.raises(ValueError, match="the reason"), interruption.held():
        tell(TERM)
        raise ValueError("the reason")


def test_a_signal_in_a_callback_of_the_garbage_collector_is_not_lost():
    def tell_once(phase, info):
        gc.callbacks.remove(tell_once)
        tell(INT)
        time.sleep(0)  # here the handler's exception is raised, and dropped by the collector

    gc.callbacks.append(tell_once)
    with Interruption() as interruption, pytest.raises(Stopped):
        gc.collect()
        assert interruption.requested  # and the program goes on, for a moment
        time.sleep(30)


def test_of_several_processes_none_leaves_alone(monkeypatch):
    said = []
    monkeypatch.setattr(processes, "count", lambda: 2)
    monkeypatch.setattr(processes, "exchange", lambda data: said.append(data) or [data, b'{"result": 1}'])
    with Interruption() as interruption:
        interruption.defer()
        tell(TERM)
        time.sleep(0.01)
        with pytest.raises(Stopped):
            processes.gather(interruption.check)
    monkeypatch.setattr(processes, "exchange", lambda data: [said[0], data])
    with pytest.raises(Stopped) as stopped:
        processes.gather(lambda: 2)
    assert stopped.value.status == PREEMPTED


def test_handlers_are_as_before_afterwards():
    before, hook = signal.getsignal(INT), sys.unraisablehook
    with Interruption():
        assert signal.getsignal(INT) != before
    assert signal.getsignal(INT) is before
    assert sys.unraisablehook is hook


@pytest.mark.parametrize(("first", "second"), [(INT, INT), (TERM, INT)])
def test_the_second_signal_kills_what_does_not_stop(first, second):
    program = (
        "import sys, time\n"
        "from mlagent_jax.runtime.interruption import Interruption\n"
        "with Interruption() as interruption, interruption.held():\n"
        "    print('held', flush=True)\n"
        "    while not interruption.requested: time.sleep(0.01)\n"
        "    print('told', flush=True)\n"
        "    time.sleep(60)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], cwd=Path(__file__).parents[3], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    process.send_signal(first)
    assert process.stdout.readline() == "told\n"
    process.send_signal(second)
    assert process.wait(30) == -second
