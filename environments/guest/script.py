"""Execution of a script as `python <script>` would, in a warm interpreter.

This is the last step of an execution, inside the isolated process.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import io
import os
import random
import signal
import sys
import threading
import traceback
import types
from typing import Any, NoReturn

WORKSPACE = "/workspace"
UID = 1000
"""User id that every script in the warm sandbox sees."""
MAX_PENDING_SIGNALS = 1024
"""Maximum pending signals and timers of one execution."""


def environment(seed: int) -> dict[str, str]:
    """Return the environment variables of every script, in every sandbox; none come from the host."""
    one_thread = ("OMP", "OPENBLAS", "MKL", "NUMEXPR", "VECLIB_MAXIMUM")
    return {
        "HOME": "/tmp",  # noqa: S108 - private to the execution
        "TMPDIR": "/tmp",  # noqa: S108
        "USER": "agent",  # an execution's user id has no name
        "LANG": "C.UTF-8",
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONHASHSEED": str(seed % 2**32),
        "PYTHONUTF8": "1",
        "MLAGENT_SEED": str(seed),
        # Threads and processes for one core, whatever the host has.
        **{f"{library}_NUM_THREADS": "1" for library in one_thread},
        "LOKY_MAX_CPU_COUNT": "1",
    }


def run_script(script: str, seed: int) -> NoReturn:
    """Execute `script` in the current directory as `__main__`, then exit with its exit code.

    The global generators of `random` and numpy start from `seed`. Otherwise all executions forked from one warm
    interpreter would see the same numbers, and executions from two warm interpreters different ones. Descriptors 0, 1
    and 2 are standard input, output and error.
    """
    _forget_this_package()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a worker in the background of a shell ignores it
    os.environ.clear()
    os.environ.update(environment(seed))
    random.seed(seed)
    with contextlib.suppress(ImportError):
        importlib.import_module("numpy").random.seed(seed % 2**32)
    sys.argv = [script]
    # Last, unlike in the interpreter: no file of the workspace shadows an installed module that read-only files import.
    sys.path.append(os.path.dirname(os.path.abspath(script)))
    # As the interpreter opens them. Line buffering, so that a killed script leaves what it printed.
    sys.stdin = io.open(0, encoding="utf-8", closefd=False)  # noqa: SIM115, UP020
    sys.stdout = io.open(1, "w", encoding="utf-8", errors="replace", buffering=1, closefd=False)  # noqa: SIM115, UP020
    sys.stderr = io.open(2, "w", encoding="utf-8", errors="replace", buffering=1, closefd=False)  # noqa: SIM115, UP020
    sys.__stdin__, sys.__stdout__, sys.__stderr__ = sys.stdin, sys.stdout, sys.stderr
    code = _exit_code(script)
    for last in (threading._shutdown, atexit._run_exitfuncs, sys.stdout.flush, sys.stderr.flush):
        try:
            last()
        except BaseException:
            code = code or 120
    os._exit(code)


def _forget_this_package() -> None:
    """Unload this package, so that a script's own module of the same name is found instead."""
    package = __name__.rpartition(".")[0]
    for name in [name for name in sys.modules if name == package or name.startswith(f"{package}.")]:
        del sys.modules[name]
    sys.path[:] = [path for path in sys.path if not path.startswith("/opt/mlagent")]


def _exit_code(script: str) -> int:
    try:
        with open(script, "rb") as file:
            source = file.read()
    except (OSError, ValueError) as error:
        print(f"python: can't open file {script!r}: {error}", file=sys.stderr)
        return 2
    main = types.ModuleType("__main__")
    main.__dict__.update(__file__=os.path.abspath(script), __builtins__=__builtins__, __cached__=None)
    sys.modules["__main__"] = main
    try:
        exec(compile(source, main.__file__, "exec"), main.__dict__)  # noqa: S102 - what this module is for
    except SystemExit as stop:
        return _code_of(stop.code)
    except BaseException as error:
        _report(error)
        return 1
    return 0


def _code_of(code: Any) -> int:
    if code is None:
        return 0
    if isinstance(code, int):
        return code & 0xFF
    print(code, file=sys.stderr)
    return 1


def _report(error: BaseException) -> None:
    """Print the traceback as the interpreter does, without the frames of this module."""
    trace = error.__traceback__.tb_next if error.__traceback__ else None
    error = error.with_traceback(trace)
    hook = sys.excepthook
    try:
        if hook is not sys.__excepthook__:
            hook(type(error), error, trace)
        else:
            traceback.print_exception(error)
    except BaseException:
        return
