"""The whole suite: in which order its files run, where what XLA compiled is kept, and what programs it starts find."""

import os
from pathlib import Path

import needs
import pytest

LONGEST = (
    "test_pipeline",
    "test_docs_run",
    "test_several_processes",
    "test_bucket",
    "test_self_check",
    "test_postgres",
    "test_rehearsal",
    "test_eight_devices",
    "test_compose",
    "test_packaging",
    "test_token_sampler",
    "test_orbax",
    "test_sft_stage",
    "test_rl_stage",
    "test_export_tools",
    "test_two_processes",
    "test_host_memory",
    "test_study",
    "test_train",
    "test_commands",
    "test_solve",
)


def pytest_configure(config):
    """Programs compiled once serve every process of the tests, and the next run."""
    if hasattr(config, "cache"):
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(config.cache.mkdir("xla")))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")


def pytest_collection_modifyitems(items):
    """A file runs in one process, so the longest go first: no process is left alone with one at the end."""
    order = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))


@pytest.fixture(scope="session", autouse=True)
def programs_find_no_torch():
    """Not set before there are tests: pytest's own processes have it."""
    places = (str(Path(__file__).with_name("without_torch")), os.environ.get("PYTHONPATH"))
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, places))


@pytest.fixture(scope="session")
def bubblewrap():
    sandbox = needs.sandbox("bubblewrap")
    yield sandbox
    sandbox.close()
