"""Launchers run as people run them, with stand-ins for the programs of a cloud or a cluster."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def programs(tmp_path):
    """A function that puts a program with this text first on the launchers' PATH, in $FAKE/bin."""

    def make(name, text):
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/bash\n{text}")
        path.chmod(0o755)
        return path

    return make


@pytest.fixture
def launch(tmp_path):
    """Runs a launcher; what stand-ins leave is in `tmp_path`, which they know as $FAKE."""

    def run(program, *arguments, **environment):
        return subprocess.run(
            [f"launch/{program}", *map(str, arguments)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=900,  # on a machine that is busy with much else
            check=False,
            env=os.environ
            | {
                "PATH": f"{tmp_path}/bin:{os.environ['PATH']}",
                "PYTHON": sys.executable,
                "FAKE": str(tmp_path),
                "MLAGENT_RETRY_SECONDS": "0",
            }
            | environment,
        )

    return run
