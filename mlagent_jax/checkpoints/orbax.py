"""Checkpoints of a run: all arrays that a resume needs, and JSON for everything else, in one atomic step.

`save` copies the arrays to the host and returns; Orbax writes them in the background while training continues. A step
becomes visible only when it is complete, so a killed process leaves the previous step. A checkpoint can be restored
onto another mesh: the caller gives the sharding of each array.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from typing import Any, Self

import fsspec.config
import jax
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, EveryNSteps, LatestN

from mlagent_jax.runtime.interruption import Stopped

ARRAYS, EXTRA = "arrays", "extra"
_DELETED = "deleted"
_MARK = "_CHECKPOINT_METADATA"
_WHOLE = "commit_success.txt"
"""File that Orbax writes last into a step in a bucket; a step without it is incomplete."""

# Otherwise gcsfs caches listings, and a reader never sees the steps that another process saves.
fsspec.config.conf.setdefault("gcs", {}).setdefault("use_listings_cache", False)


class CheckpointError(ValueError):
    """A checkpoint cannot be saved or restored as requested; the message names the step or the array."""


class _RecordingPolicy:
    """An Orbax policy that preserves all steps, and records those that the wrapped policy would delete."""

    def __init__(self, policy: Any) -> None:
        self._policy = policy
        self.steps: list[int] = []

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:
        kept = self._policy.should_preserve(checkpoints, context=context)
        self.steps = [info.step for info, keep in zip(checkpoints, kept, strict=True) if not keep]
        return [True] * len(checkpoints)


def keep_beside_steps(folder: epath.Path) -> None:
    """Make a folder that is not a step next to the steps of a `Checkpointer`.

    In a bucket, Orbax deletes a folder without the mark of completion as an unfinished step.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if "://" in os.fspath(folder):
        (folder / _WHOLE).write_text("")


class Checkpointer:
    """Checkpoints in one directory, one per step. Close it, or use it in a `with`.

    In a multi-host run every process calls `save` and `restore` for the same steps; Orbax synchronises them.
    """

    def __init__(
        self,
        directory: epath.PathLike,
        keep: int | None = 3,
        *,
        keep_best: int = 0,
        keep_every: int = 0,
        read_only: bool = False,
    ) -> None:
        """Open the directory.

        Args:
          directory: local or remote folder (`gs://`); made if it does not exist.
          keep: number of the latest steps to keep, at least 1; None: all.
          keep_best: number of further steps to keep, those with the highest metric. 0: metrics are not stored.
          keep_every: interval of further steps to keep, those that it divides; 0: none.
          read_only: whether only to read, as programs do that look at a running run: nothing is made or deleted.
        """
        if keep is not None and keep < 1:
            raise CheckpointError(f"keep is {keep}: at least the latest checkpoint must stay (None keeps all)")
        # Orbax requires absolute paths; remote paths are.
        path = epath.Path(directory)
        self.directory = path if "://" in str(directory) else path.absolute()
        self._read_only = read_only
        policies = [LatestN(n=keep)]
        if keep_best:
            policies.append(BestN(get_metric_fn=_metric, n=keep_best, keep_checkpoints_without_metrics=False))
        if keep_every:
            policies.append(EveryNSteps(interval_steps=keep_every))
        policy = policies[0] if len(policies) == 1 else AnyPreservationPolicy(policies)
        # A bucket cannot rename, and an interrupted removal leaves parts of a step: see `_remove`.
        self._removals = _RecordingPolicy(policy) if str(directory).startswith("gs://") else None
        options = ocp.CheckpointManagerOptions(
            preservation_policy=self._removals or policy,
            best_fn=_metric if keep_best else None,  # Without it Orbax stores no metrics; the policy decides.
            # Orbax removes a step by renaming it, and we delete it: an interrupted deletion would leave half a step.
            todelete_subdir=None if read_only else _DELETED,
            # Steps that a killed process left half-written are deleted by the first save.
            cleanup_tmp_directories=not read_only,
            create=not read_only,
            save_interval_steps=0 if read_only else 1,
            read_only=read_only,
        )
        self._manager = ocp.CheckpointManager(
            self.directory,
            options=options,
            item_handlers={ARRAYS: ocp.PyTreeCheckpointHandler(), EXTRA: ocp.JsonCheckpointHandler()},
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        together = kind is None or issubclass(kind, Stopped)  # A signal stops all processes at the same point.
        if not together and jax.process_count() > 1:
            return  # A save would wait for processes that may have ended. Interrupted, it leaves the previous step.
        self.close()

    def save(self, step: int, arrays: Any, extra: Mapping[str, Any], metric: float | None = None) -> None:
        """Save asynchronously; the arguments may be donated or changed as soon as this returns.

        Waits for the previous save, so that the host holds at most one copy of the arrays.

        Args:
          step: number of the step, larger than all saved before.
          arrays: pytree of arrays. Pass random keys as `jax.random.key_data`.
          extra: JSON-serialisable state: data positions, controllers, consumed results.
          metric: metric for `keep_best`, higher is better; a step without one is kept by age alone.

        Raises:
          CheckpointError: the step is not after the latest, or a value cannot be saved. If a save fails in the
            background, the next `save`, `wait` or `close` raises.
        """
        leaves = _leaves(arrays)
        if not leaves:
            raise CheckpointError(f"arrays of step {step} has no array in it")
        for path, leaf in leaves.items():
            if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
                raise CheckpointError(f"array {path!r} is a typed random key: save jax.random.key_data of it")
        if metric is not None and not math.isfinite(metric):
            raise CheckpointError(f"metric of step {step} is {metric}: give a finite number or None")
        items = ocp.args.Composite(
            # Through text: the caller cannot change this copy during the write, and what is not JSON is refused here.
            **{ARRAYS: ocp.args.PyTreeSave(arrays), EXTRA: ocp.args.JsonSave(json.loads(json.dumps(dict(extra))))}
        )
        self.wait()
        metrics = None if metric is None else {"metric": float(metric)}
        if not self._manager.save(step, args=items, metrics=metrics):
            raise CheckpointError(
                f"step {step} was not saved in {self.directory}: the latest there is {self.latest()}, and steps must"
                " grow (a run that goes back to an earlier step needs a directory of its own)"
            )

    def steps(self) -> list[int]:
        """Return the complete steps in order."""
        self._manager.reload()
        return sorted(step for step in self._manager.all_steps() if self._is_whole(step))

    def _is_whole(self, step: int) -> bool:
        """Return whether a step has all files that Orbax writes; a partly copied folder has not."""
        folder = self.directory / str(step)
        needed = (_MARK, f"{ARRAYS}/_METADATA", f"{EXTRA}/metadata")
        return all((folder / name).exists() for name in needed)

    def latest(self) -> int | None:
        """Return the last complete step, or None."""
        return max(self.steps(), default=None)

    def best(self) -> int | None:
        """Return the remaining step with the highest metric, or None if no step has one."""
        metrics = {step: self._manager.metrics(step) for step in self.steps()}
        measured = {step: _metric(each) for step, each in metrics.items() if each}
        return max(measured, key=lambda step: (measured[step], step), default=None)

    def extra(self, step: int) -> dict[str, Any]:
        """Return the JSON of a step, without its arrays."""
        self._require(step)
        return self._manager.restore(step, args=ocp.args.Composite(**{EXTRA: ocp.args.JsonRestore()}))[EXTRA]

    def restore(self, step: int, abstract_arrays: Any, *, partial: bool = False) -> tuple[Any, dict[str, Any]]:
        """Return the arrays of `step`, bit for bit, and its JSON.

        Args:
          step: one of `steps()`.
          abstract_arrays: pytree like the saved one, of arrays or `jax.ShapeDtypeStruct`. Each array is read straight
            onto its `sharding`, whatever the saved one was; without a sharding, onto this process's first device.
          partial: whether `abstract_arrays` may omit saved arrays, such as the optimizer's state.

        Raises:
          CheckpointError: there is no such step, or an array is missing, left over, or of another shape or dtype; the
            message names it.
        """
        self._require(step)
        wanted = jax.tree.map(_placed, abstract_arrays)
        self._check(step, wanted, partial)
        arrays = ocp.args.PyTreeRestore(
            item=wanted,
            restore_args=ocp.checkpoint_utils.construct_restore_args(wanted),
            partial_restore=partial,
        )
        restored = self._manager.restore(
            step, args=ocp.args.Composite(**{ARRAYS: arrays, EXTRA: ocp.args.JsonRestore()})
        )
        return restored[ARRAYS], restored[EXTRA]

    def shapes(self, step: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Return shape and dtype of each array of a step, by its path (`params/layers/mlp/up/kernel`)."""
        self._require(step)
        saved = _leaves(self._manager.item_metadata(step)[ARRAYS].tree)
        return {path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for path, leaf in saved.items()}

    def wait(self) -> None:
        """Wait until the background save is complete; raise its error if it failed."""
        self._manager.wait_until_finished()
        if self._removals is not None:
            while self._removals.steps:
                self._remove(self._removals.steps.pop())
        elif not self._read_only and jax.process_index() == 0:
            shutil.rmtree(self.directory / _DELETED, ignore_errors=True)

    def _remove(self, step: int) -> None:
        """Remove a step from a bucket. It loses its mark of completion first, so that an interrupted removal leaves an
        unfinished step."""
        if jax.process_index() == 0:
            (self.directory / str(step) / _WHOLE).unlink(missing_ok=True)
        self._manager.delete(step)

    def close(self) -> None:
        """Wait for the save, and end the background threads."""
        self.wait()
        self._manager.close()

    def _require(self, step: int) -> None:
        if step not in (steps := self.steps()):
            raise CheckpointError(f"no checkpoint of step {step} in {self.directory}: there are {steps or 'none'}")

    def _check(self, step: int, wanted: Any, partial: bool) -> None:
        saved, asked = self.shapes(step), _leaves(wanted)
        where = f"checkpoint {self.directory / str(step)}"
        if missing := sorted(asked.keys() - saved.keys()):
            raise CheckpointError(f"{where} lacks array {missing[0]!r} (and {len(missing) - 1} more)")
        if not partial and (left := sorted(saved.keys() - asked.keys())):
            raise CheckpointError(f"{where} has array {left[0]!r} (and {len(left) - 1} more) that was not asked for")
        for path, leaf in asked.items():
            if (saved[path].shape, saved[path].dtype) != (leaf.shape, leaf.dtype):
                raise CheckpointError(
                    f"{where}: array {path!r} is {saved[path].dtype}{list(saved[path].shape)}, "
                    f"asked for is {leaf.dtype}{list(leaf.shape)}: was it saved under another config?"
                )


def _metric(metrics: Mapping[str, float]) -> float:
    return metrics["metric"]


def _leaves(tree: Any) -> dict[str, Any]:
    """Return the leaves by path, as Orbax names them."""
    paths = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in paths}


def _placed(leaf: jax.Array | jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    sharding = getattr(leaf, "sharding", None) or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
