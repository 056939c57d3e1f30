"""A task folder to change, and a sandbox to run it in."""

import shutil
from pathlib import Path

import pytest

from environments.sandbox import SandboxUnavailableError, open_sandbox

RENTS = Path(__file__).parents[3] / "docs" / "examples" / "rents"


@pytest.fixture
def rents(tmp_path):
    """A copy of the example folder."""
    return Path(shutil.copytree(RENTS, tmp_path / "rents"))


@pytest.fixture(scope="session")
def bubblewrap():
    try:
        sandbox = open_sandbox("bubblewrap")
    except SandboxUnavailableError as error:
        pytest.skip(str(error))
    yield sandbox
    sandbox.close()
