"""Progress on a terminal and in a log."""

import io
import math
import re
import threading

import pytest
from rich.console import Console

from mlagent_jax.runtime.progress import Progress, duration


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def log_console() -> tuple[Console, io.StringIO]:
    file = io.StringIO()
    return Console(file=file, width=60), file


def test_a_log_gets_a_plain_line_every_few_seconds_with_rate_eta_and_running_values():
    console, file = log_console()
    clock = Clock()
    with Progress("rl", 16, console=console, interval_seconds=5.0, clock=clock) as progress:
        for _ in range(4):
            clock.now += 2.0
            progress.update(reward=0.25, kl=0.5)
    lines = file.getvalue().splitlines()
    assert lines[0] == "[rl] 0/16 (0%)  ? step/s  ETA ?"
    assert lines[1] == "[rl] 3/16 (19%)  2 s/step  ETA 26s  reward 0.25  kl 0.5"
    assert lines[2] == "[rl] 4/16 (25%)  done in 8s  reward 0.25  kl 0.5  (running means)"
    assert len(lines) == 3
    assert "\x1b" not in file.getvalue()


def test_a_log_has_no_line_twice_while_nothing_is_completed():
    console, file = log_console()
    clock = Clock()
    with Progress("rl", 16, console=console, interval_seconds=5.0, clock=clock) as progress:
        for _ in range(14):
            clock.now += 5.0
            progress.update(0)
    lines = file.getvalue().splitlines()
    assert len(lines) == 3, "the first, one after a minute that says it is alive, the last"


def test_an_evaluations_last_line_is_the_mean_of_the_report():
    console, file = log_console()
    rewards = [1.0, 0.0, 0.0, 0.0, 0.6]
    with Progress("evaluate rl", 5, console=console, clock=Clock(), smoothing=1.0) as progress:
        for reward in rewards:
            progress.update(reward=reward)
    assert file.getvalue().splitlines()[-1].endswith(f"reward {sum(rewards) / 5:.4g}")


def test_steps_of_an_earlier_process_count_as_progress_but_not_towards_the_rate():
    clock = Clock()
    progress = Progress("sft", 100, done=90, console=log_console()[0], clock=clock)
    assert progress.rate is None
    clock.now = 4.0
    progress.update(2)
    assert progress.done == 92
    assert progress.rate == pytest.approx(0.5)
    assert progress.eta_seconds == pytest.approx(16.0)


def test_the_rate_follows_when_steps_become_slower():
    clock = Clock()
    progress = Progress("sft", 10_000, console=log_console()[0], clock=clock)
    for seconds, steps in ((1.0, 300), (10.0, 30)):
        for _ in range(steps):
            clock.now += seconds
            progress.update()
    assert progress.rate == pytest.approx(0.1)


def test_running_values_are_unbiased_from_the_start_and_skip_nan():
    progress = Progress("rl", 3, console=log_console()[0], clock=Clock())
    progress.update(reward=1.0)
    assert progress.values["reward"] == pytest.approx(1.0)
    progress.update(reward=math.nan)
    progress.update(reward=0.0)
    assert progress.values["reward"] == pytest.approx(0.8 / 1.8)


def test_an_unknown_total_shows_no_eta():
    console, file = log_console()
    with Progress("collect", None, console=console, clock=Clock()) as progress:
        progress.update(5)
    assert "ETA" not in file.getvalue()
    assert "[collect] 5 steps" in file.getvalue()


def test_a_failure_is_shown_as_such_and_passes_through():
    console, file = log_console()
    with pytest.raises(KeyboardInterrupt), Progress("rl", 2, console=console, clock=Clock()):
        raise KeyboardInterrupt
    assert "stopped (KeyboardInterrupt) after" in file.getvalue()


def test_names_are_never_interpreted_as_markup():
    console, file = log_console()
    with Progress("[red]x", 1, console=console, clock=Clock()):
        pass
    assert "[[red]x]" in file.getvalue()


def test_a_terminal_gets_one_live_line_no_threads_and_its_cursor_back():
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=120, color_system="standard")
    clock = Clock()
    before = threading.active_count()
    with Progress("rl", 2, console=console, clock=clock) as progress:
        clock.now = 1.0
        progress.update(reward=0.5)
        assert threading.active_count() == before
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", file.getvalue())
    assert "[rl] 1/2 (50%)" in text
    assert "reward 0.5" in text
    assert file.getvalue().rindex("\x1b[?25h") > file.getvalue().rindex("\x1b[?25l")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0s"), (59.6, "1m00s"), (187, "3m07s"), (7500, "2h05m"), (273_600, "3d04h"), (math.inf, "?")],
)
def test_durations_read_well(seconds, text):
    assert duration(seconds) == text


def test_a_negative_total_is_refused():
    with pytest.raises(ValueError, match="total of stage 'rl' is -1"):
        Progress("rl", -1)
