"""Every test here that takes `sandbox` or `execute` runs once for each provider."""

import dataclasses
import itertools
from pathlib import Path

import needs
import pytest

from environments.protocol import Limits

LIMITS = Limits(cpu_seconds=20.0, wall_seconds=60.0, memory_mb=512, processes=32, file_mb=8, disk_mb=16, output_kb=64)


@pytest.fixture(
    scope="session", params=["bubblewrap", pytest.param("docker", marks=[pytest.mark.docker, pytest.mark.slow])]
)
def sandbox(request):
    sandbox = needs.sandbox(request.param)
    yield sandbox
    sandbox.close()


@dataclasses.dataclass
class Ran:
    """An execution and the workspace it left."""

    execution: object
    workspace: Path

    def __getattr__(self, name):
        return getattr(self.execution, name)

    @property
    def files(self):
        return sorted(str(path.relative_to(self.workspace)) for path in self.workspace.rglob("*"))


@pytest.fixture
def execute(sandbox, tmp_path):
    """`execute(text, files={...}, data={...}, seed=0, workspace=None, **limits)` runs `text` as train.py."""
    serial = itertools.count()

    def write(folder, files):
        folder.mkdir(exist_ok=True)
        for name, content in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(content)
        return folder

    def run(text, files=None, data=None, seed=0, workspace=None, script="train.py", **limits):
        number = next(serial)
        workspace = workspace or tmp_path / f"workspace{number}"
        write(workspace, {"train.py": text, **(files or {})})
        public = write(tmp_path / f"data{number}", data) if data is not None else None
        bounds = dataclasses.replace(LIMITS, **limits)
        return Ran(sandbox.run(workspace, script, bounds, data=public, seed=seed), workspace)

    return run
