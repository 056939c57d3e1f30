"""What a test needs of its machine. Where that is not there a person's test is skipped; in CI it fails, because there
tests/run.sh installs and starts all of it: no test is left out without being seen."""

import importlib
import os
from typing import Any, NoReturn

import pytest

from environments.sandbox import Sandbox, SandboxUnavailableError, open_sandbox


def missing(reason: str) -> NoReturn:
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason, allow_module_level=True)


def need(there: Any, reason: str) -> None:
    if not there:
        missing(reason)


def sandbox(name: str) -> Sandbox:
    """Opened; the caller closes it."""
    try:
        return open_sandbox(name)
    except SandboxUnavailableError as error:
        missing(str(error))


def package(name: str) -> Any:
    """Of the extra `test`, imported."""
    try:
        return importlib.import_module(name)
    except ImportError:
        missing(f"no {name}: pip install '.[test]'")
