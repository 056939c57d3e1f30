"""A bucket on this machine: a server that speaks Google Cloud Storage's protocol, and what makes `gs://` go to it."""

import contextlib
import importlib.util
import socket
import subprocess
import sys
import time
from pathlib import Path

import needs

NAME = "bucket"


@contextlib.contextmanager
def server():
    """Its environment variables, for gcsfs, google-cloud-storage and tensorstore; the bucket's URL is `gs://{NAME}`."""
    for name in ("gcsfs", "gcp_storage_emulator"):  # not imported here: gcsfs reads variables when it is
        needs.need(importlib.util.find_spec(name), f"no {name}: pip install '.[test]'")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, Path(__file__).with_name("bucket_server.py"), str(port), NAME],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,  # each reader that breaks off is a traceback
    )
    try:
        _wait(port, process)
        url = f"http://127.0.0.1:{port}"
        # The last two: no search for credentials, with which to ask whether the bucket has real folders.
        yield {
            "STORAGE_EMULATOR_HOST": url,
            "TENSORSTORE_GCS_HTTP_URL": url,
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
            "NO_GCE_CHECK": "true",
        }
    finally:
        process.kill()
        process.wait()


def _wait(port, process, seconds=60):
    deadline = time.monotonic() + seconds
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        assert process.poll() is None and time.monotonic() < deadline, "the server of the bucket did not start"
        time.sleep(0.1)
