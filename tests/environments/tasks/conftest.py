"""A task folder to change, and a sandbox to run it in."""

import shutil
from pathlib import Path

import needs
import pytest

RENTS = Path(__file__).parents[3] / "docs" / "examples" / "rents"


@pytest.fixture
def rents(tmp_path):
    """A copy of the example folder."""
    return Path(shutil.copytree(RENTS, tmp_path / "rents"))


@pytest.fixture(scope="session")
def bubblewrap():
    sandbox = needs.sandbox("bubblewrap")
    yield sandbox
    sandbox.close()
