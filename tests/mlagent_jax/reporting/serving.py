"""A report server in this process, and a run that goes on beside it."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import uvicorn

from environments.protocol import OutcomeKind
from mlagent_jax.reporting.server import Report, make_app
from mlagent_jax.runtime import jsonl

from .conftest import make_outcome


def add_step(workdir: Path, step: int, depth: int = 0, metric: float = 0.71) -> None:
    """One more step of rl in the task `wine`, rewarded 0.5."""
    outcome = {**make_outcome(OutcomeKind.SCORED).to_dict(), "reward": 0.5}
    history = [{"action": "look", "observation": "seen"}] * depth
    state = {"task": "wine@1", "history": history, "snapshot": "s", "script": "x", "metric": metric, "ideas": []}
    record = {"task": "wine", "split": "train", "prompt": "p", "action": f"act {step}", "step": step, "trajectory": 0}
    with jsonl.Appender(workdir / "trajectories" / "rl.jsonl") as file:
        file.append({**record, "state": state, "outcome": outcome})


@contextlib.contextmanager
def served(*workdirs: Path) -> Iterator[str]:
    """The address of a server of the report, which looks five times a second."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = uvicorn.Server(uvicorn.Config(make_app(Report(workdirs, 0.2)), log_level="error"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}/"
        finally:
            server.should_exit = True
            thread.join()


def waiting_for(condition: str) -> str:
    """A promise that is kept when `condition` holds, and broken after 20 seconds."""
    return (
        "new Promise((resolve, reject) => { const look = setInterval(() => { if ("
        + condition
        + ") { clearInterval(look); resolve(true); } }, 50); setTimeout(() => reject(new Error('in vain')), 20000); })"
    )
