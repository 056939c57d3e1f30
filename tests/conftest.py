"""The whole suite: in which order its files run, and where what XLA compiled is kept."""

import os

LONGEST = (
    "test_pipeline",
    "test_docs_run",
    "test_abuse",
    "test_postgres",
    "test_eight_devices",
    "test_packaging",
    "test_commands",
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
