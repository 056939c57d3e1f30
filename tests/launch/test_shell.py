"""Every shell program of the project passes shellcheck."""

import shutil
import subprocess
from pathlib import Path

import needs

ROOT = Path(__file__).parents[2]


def test_shellcheck_finds_nothing():
    needs.need(shutil.which("shellcheck"), "no shellcheck: install it (Debian: apt-get install shellcheck)")
    programs = [
        *sorted(
            str(path.relative_to(ROOT)) for path in ROOT.glob("launch/**/*.s*") if path.suffix in (".sh", ".sbatch")
        ),
        "tests/run.sh",
        ".ci/run",
    ]
    result = subprocess.run(["shellcheck", "-x", *programs], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout
