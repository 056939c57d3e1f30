"""What a state costs to bring back: 50 files of 1.6 MB in all, restored from the store and kept again.

    python tools/bench/bench_workspace.py [--files=50] [--mb=1.6] [--data_mb=60] [--count=100]

The read-only data of a task lies beside them and is not copied again: a sandbox looks whether its copy is still that of
the task, and mounts it. Wall time and CPU time are printed side by side, since on a busy host the first is the host's.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from environments.files.blobs import open_store
from environments.files.snapshots import Snapshots
from environments.sandbox.data import DataStore
from environments.workspaces import default_scratch


def timed(action: Callable[[], object]) -> tuple[float, float]:
    """Wall and CPU milliseconds of a call."""
    wall, cpu = time.perf_counter(), time.process_time()
    action()
    return 1000 * (time.perf_counter() - wall), 1000 * (time.process_time() - cpu)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=50)
    parser.add_argument("--mb", type=float, default=1.6, help="of all files together")
    parser.add_argument("--data_mb", type=float, default=60, help="of read-only data, in ten files")
    parser.add_argument("--count", type=int, default=100, help="times each is measured")
    arguments = parser.parse_args()
    if min(arguments.files, arguments.count) < 1 or min(arguments.mb, arguments.data_mb) < 0:
        parser.error("--files and --count are at least 1, --mb and --data_mb at least 0")
    with (
        tempfile.TemporaryDirectory(prefix="bench-store-") as stored,
        tempfile.TemporaryDirectory(prefix="bench-workspace-", dir=default_scratch()) as scratch,
    ):
        original, copy = Path(scratch, "original"), Path(scratch, "copy")
        original.mkdir()
        for number in range(arguments.files):
            (original / f"file{number}.py").write_bytes(os.urandom(int(arguments.mb * 1e6 / arguments.files)))
        data, copies = Path(stored, "data"), Path(stored, "copies")
        data.mkdir()
        copies.mkdir()
        for number in range(10):
            (data / f"part{number}.npy").write_bytes(os.urandom(int(arguments.data_mb * 1e5)))
        data_store = DataStore(copies)
        snapshots = Snapshots(open_store(str(Path(stored, "store"))))
        identity = snapshots.snapshot(original)
        taken: dict[str, list[tuple[float, float]]] = {"restore": [], "snapshot": []}

        def restore() -> None:
            snapshots.restore(identity, copy)
            with data_store.lease(data):
                pass

        first = timed(lambda: data_store.lease(data).__enter__())[0]
        for _ in range(arguments.count):
            taken["restore"].append(timed(restore))
            taken["snapshot"].append(timed(lambda: snapshots.snapshot(copy)))
            shutil.rmtree(copy)
        print(
            f"{arguments.files} files, {arguments.mb} MB, {arguments.count} times, beside {arguments.data_mb} MB of "
            f"read-only data (copied once, {first:.0f} ms)"
        )
        for name, times in taken.items():
            walls, cpus = ([pair[index] for pair in times] for index in (0, 1))
            figures = statistics.median(walls), sorted(walls)[int(0.9 * len(walls))], statistics.median(cpus)
            print(f"{name:>9}: median {figures[0]:.1f} ms, p90 {figures[1]:.1f} ms, CPU {figures[2]:.1f} ms")


if __name__ == "__main__":
    main()
