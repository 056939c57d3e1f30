"""Weights & Biases and MLflow, in addition to `metrics.jsonl`.

    MetricsLog.write -> the record is on the disk -> Follower: a thread sends it, and retries on failure

The file is the source of truth. A tracker that cannot be reached, or a library that loses its last records with the
process (W&B does), neither delays the run nor loses data: the next process that opens the run sends the missing records
(W&B's offline mode: all records, into a new folder). A tracker cannot delete, so steps repeated after a crash keep
their first values in it; `metrics.jsonl` and TensorBoard have the last.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from mlagent_jax.runtime.errors import ConfigError

RETRY_SECONDS = 30.0
CLOSE_SECONDS = 10.0
"""Time that the end of a run waits for unsent records."""
_BATCH = 500

log = logging.getLogger(__name__)

Record = Mapping[str, Any]
"""Record of `runtime.metrics`: stage, step, seconds, and scalars by name."""


class Tracker(Protocol):
    """Destination of records, sent in order."""

    def last_steps(self) -> dict[str, int]:
        """Return the last step of each stage that the tracker has."""
        ...

    def send(self, records: Sequence[Record]) -> None:
        """Send records; an exception means that some may not have arrived."""
        ...

    def close(self) -> None:
        """Close the tracker; nothing more will be sent."""
        ...


class WandbTracker:
    """Weights & Biases run with the run's name as id; $WANDB_API_KEY, $WANDB_ENTITY and $WANDB_MODE apply."""

    def __init__(self, project: str, name: str, config: Mapping[str, Any], folder: str) -> None:
        import wandb

        self._folder = folder
        os.makedirs(folder, exist_ok=True)
        self._run = wandb.init(
            project=project,
            id=name,
            name=name,
            resume="allow",
            dir=folder,
            config=dict(config),
            settings=wandb.Settings(console="off", silent=True),
        )

    def last_steps(self) -> dict[str, int]:
        steps = {}
        for name, value in dict(self._run.summary).items():
            stage, _, kind = name.rpartition("/")
            if kind == "step" and isinstance(value, int):
                steps[stage] = value
        return steps

    def send(self, records: Sequence[Record]) -> None:
        for record in records:
            stage = record["stage"]
            self._run.define_metric(f"{stage}/*", step_metric=f"{stage}/step")
            self._run.log({f"{stage}/{name}": value for name, value in record.items() if name != "stage"})

    def close(self) -> None:
        self._run.finish()


class MlflowTracker:
    """MLflow run in the experiment `project` of the server in $MLFLOW_TRACKING_URI, identified by a tag."""

    _TAG = "mlagent.run"

    def __init__(self, project: str, name: str, config: Mapping[str, Any]) -> None:
        from mlflow.tracking import MlflowClient

        self._client = MlflowClient()
        experiment = self._client.get_experiment_by_name(project)
        identity = experiment.experiment_id if experiment else self._client.create_experiment(project)
        known = self._client.search_runs([identity], f"tags.`{self._TAG}` = '{name}'", max_results=1)
        if known:
            self._run = known[0].info.run_id
            self._client.update_run(self._run, status="RUNNING")
            return
        self._run = self._client.create_run(identity, run_name=name, tags={self._TAG: name}).info.run_id
        for field, value in config.items():
            self._client.log_param(self._run, field, str(value)[:500], synchronous=True)

    def last_steps(self) -> dict[str, int]:
        steps = {}
        for name in self._client.get_run(self._run).data.metrics:
            stage, _, kind = name.rpartition("/")
            if kind == "seconds":
                history = self._client.get_metric_history(self._run, name)
                steps[stage] = max((metric.step for metric in history), default=0)
        return steps

    def send(self, records: Sequence[Record]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        for record in records:
            values = {name: value for name, value in record.items() if name not in ("stage", "step")}
            metrics = [Metric(f"{record['stage']}/{k}", float(v), now, record["step"]) for k, v in values.items()]
            # One request per record; `seconds` comes last and marks the record as complete.
            metrics.sort(key=lambda metric: metric.key.endswith("/seconds"))
            self._client.log_batch(self._run, metrics, synchronous=True)

    def close(self) -> None:
        self._client.set_terminated(self._run)


MODULES = {"wandb": "wandb", "mlflow": "mlflow"}
"""Required module of each name in `config.tracking.trackers`."""


def check_installed(names: Sequence[str]) -> None:
    """Check that the trackers' libraries are installed.

    Raises:
      ConfigError: One is not installed.
    """
    for name in names:
        if importlib.util.find_spec(MODULES[name]) is None:
            raise ConfigError(
                f"config.tracking.trackers names {name!r}, which is not installed: pip install '.[{name}]', or leave "
                "it out"
            )


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return settings by their dotted names."""
    settings: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            settings |= flat(value, f"{prefix}{name}.")
        else:
            settings[f"{prefix}{name}"] = value
    return settings


class Follower:
    """Thread that sends records to one tracker.

    Args:
      name: Name of the tracker, for messages.
      connect: Opens the tracker; called in the thread, and again after a failure.
      records: Records of the run so far; missing ones are sent first.
    """

    def __init__(
        self,
        name: str,
        connect: Callable[[], Tracker],
        records: Sequence[Record],
        retry_seconds: float = RETRY_SECONDS,
    ) -> None:
        self._name, self._connect, self._retry = name, connect, retry_seconds
        self._waiting: queue.SimpleQueue[Record | None] = queue.SimpleQueue()
        self._closing = threading.Event()
        self._warned = False
        for record in records:
            self._waiting.put(record)
        self._thread = threading.Thread(target=self._follow, name=f"tracker-{name}", daemon=True)
        self._thread.start()

    def add(self, record: Record) -> None:
        """Queue a record for sending."""
        self._waiting.put(record)

    def close(self, seconds: float = CLOSE_SECONDS) -> None:
        """Send the remaining records, for at most `seconds`; the rest is sent when the run is opened again."""
        self._closing.set()
        self._waiting.put(None)
        self._thread.join(seconds)
        if self._thread.is_alive():
            log.warning("%s did not receive all metrics in time; metrics.jsonl has them", self._name)

    def _follow(self) -> None:
        tracker, last, pending = None, {}, []
        while True:
            pending += self._next(wait=not pending)
            try:
                if tracker is None:
                    tracker = self._connect()
                    last = tracker.last_steps()
                ended = None in pending
                new = [r for r in pending if r is not None and r["step"] > last.get(r["stage"], -1)]
                for start in range(0, len(new), _BATCH):
                    tracker.send(new[start : start + _BATCH])
                    last |= {record["stage"]: record["step"] for record in new[start : start + _BATCH]}
                pending = []
                if ended:
                    tracker.close()
                    return
            except Exception as error:  # a failure of library, network or server never stops the run
                self._warn(error)
                tracker = None
                if self._closing.is_set():
                    return
                self._closing.wait(self._retry)  # then retry, also at the end of the run

    def _next(self, wait: bool) -> list[Record | None]:
        records = [self._waiting.get()] if wait else []
        with contextlib.suppress(queue.Empty):
            while True:
                records.append(self._waiting.get_nowait())
        return records

    def _warn(self, error: Exception) -> None:
        if not self._warned:
            log.warning(
                "%s does not accept metrics (%s: %s); metrics.jsonl has them, and they are sent once it does",
                *(self._name, type(error).__name__, str(error).strip()[:500]),
            )
        self._warned = True


def follow(
    names: Sequence[str], project: str, run: str, config: Mapping[str, Any], folder: str, records: Sequence[Record]
) -> list[Follower]:
    """Return the run's followers, one per tracker name.

    Args:
      run: Name of the run, the same after a restart.
      config: Its settings, nested.
      folder: Local folder for files of trackers.
      records: Records of the run so far.
    """
    settings = flat(config)
    connects: dict[str, Callable[[], Tracker]] = {
        "wandb": lambda: WandbTracker(project, run, settings, folder),
        "mlflow": lambda: MlflowTracker(project, run, settings),
    }
    return [Follower(name, connects[name], records) for name in names]
