"""Every test here that takes `sandbox` or `execute` runs once for each provider."""

import needs
import pytest

from environments.sandbox.self_check import Bench


@pytest.fixture(
    scope="session", params=["bubblewrap", pytest.param("docker", marks=[pytest.mark.docker, pytest.mark.slow])]
)
def sandbox(request):
    sandbox = needs.sandbox(request.param)
    yield sandbox
    sandbox.close()


@pytest.fixture
def execute(sandbox, tmp_path):
    """`execute(text, files={...}, data={...}, seed=0, workspace=None, **limits)` runs `text` as train.py."""
    return Bench(sandbox, tmp_path).execute
