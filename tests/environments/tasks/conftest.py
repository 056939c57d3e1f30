"""A task folder to change."""

import shutil
from pathlib import Path

import pytest

RENTS = Path(__file__).parents[3] / "docs" / "examples" / "rents"


@pytest.fixture
def rents(tmp_path):
    """A copy of the example folder."""
    return Path(shutil.copytree(RENTS, tmp_path / "rents"))
