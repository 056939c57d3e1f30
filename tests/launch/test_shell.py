"""Every shell program of the project passes shellcheck."""

import shutil
import subprocess
import sys
from pathlib import Path

import needs
import pytest

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


def sourced(tmp_path, text, **programs):
    """What a shell that sources launch/environment.sh says, with stand-ins of programs before those that are here."""
    for name, body in programs.items():
        path = tmp_path / name.replace("_", "-")
        path.write_text(f"#!/bin/bash\n{body}\n")
        path.chmod(0o755)
    command = f"set -euo pipefail; PATH={tmp_path}:$PATH; . launch/environment.sh; {text}"
    return subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, check=False)


def test_another_system_is_told_at_once_what_works_there(tmp_path):
    done = sourced(tmp_path, "check_host; echo on", uname="echo Darwin")
    assert done.returncode == 1 and "on" not in done.stdout.split()
    assert "Darwin has no sandbox" in done.stderr and "Here work: sampling, serving" in done.stderr


def test_a_missing_package_is_named_with_the_command_of_the_package_manager_here(tmp_path):
    only = 'command() { [ "$2" = dnf ] && builtin command "$@"; }; how_to_install bubblewrap'
    assert sourced(tmp_path, only, dnf="", id="echo 1000").stdout == "sudo dnf install bubblewrap"


def test_a_step_of_minutes_keeps_its_exit_status(tmp_path):
    done = sourced(tmp_path, "with_progress installing . bash -c 'exit 3' || echo status $?")
    assert done.stdout == "status 3\n" and not done.stderr


def test_the_quickstart_says_what_it_does_before_it_does_anything(tmp_path):
    text = (ROOT / "launch" / "quickstart.sh").read_text()
    assert text.index('say "ML-Agent JAX') < text.index("check_host") < text.index("make_environment")


@pytest.mark.parametrize("name", ["quickstart", "pretrained"])
def test_a_host_without_a_sandbox_is_told_before_anything_is_installed(name):
    text = (ROOT / "launch" / f"{name}.sh").read_text()
    assert text.index("check_host") < text.index("provide_sandbox") < text.index("make_environment")


def test_an_interpreter_may_lie_under_a_path_with_spaces(tmp_path):
    folder = tmp_path / "my programs"
    folder.mkdir()
    (folder / "python").symlink_to(sys.executable)
    assert sourced(tmp_path, f"PYTHON='{folder}/python'; find_python").stdout == f"{folder}/python\n"
