"""Command lines with `--config=FILE --config.FIELD=VALUE`, with errors in one line.

FILE is a config in Python, or the `config.json` of a workdir, to run again with a run's own settings.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import get_origin

from absl import app, flags
from ml_collections import config_flags

from mlagent_jax.runtime.errors import ConfigError
from mlagent_jax.settings import stored
from mlagent_jax.settings.schema import FIELDS, Config, check_field, freeze


def run_program(work: Callable[[], None]) -> None:
    """Run `work` as a program whose settings are all flags; a ConfigError ends it with one line."""

    def main(argv: list[str]) -> None:
        if len(argv) > 1:
            raise app.UsageError(f"unexpected argument {argv[1]!r}: settings are flags, --config.FIELD=VALUE")
        try:
            work()
        except ConfigError as error:
            sys.exit(f"error: {error}")

    app.run(main, flags_parser=parse_flags)


def parse_flags(argv: list[str], known: flags.FlagValues = flags.FLAGS) -> list[str]:
    """Parse the `known` flags with absl, but report errors in one line instead of a usage page or a traceback."""
    try:
        return _parse(known, argv)
    except ConfigError as error:
        sys.exit(f"error: {error}")


def read_config(arguments: Sequence[str]) -> Config:
    """Return the checked settings of a command line, without any effect on this process's own flags.

    Args:
      arguments: `--config=FILE` and overrides, as for the trainer.

    Raises:
      ConfigError: With the trainer's message.
    """
    argv = ["", *arguments]
    values = flags.FlagValues()
    file = config_flags.DEFINE_config_file("config", None, flag_values=values, sys_argv=argv)
    _parse(values, argv)
    return freeze(file.value)


def _parse(values: flags.FlagValues, argv: list[str]) -> list[str]:
    check_arguments(argv[1:])
    try:
        return values([argv[0], *map(_plain, _joined(argv[1:]))])
    except flags.IllegalFlagValueError as error:
        if "Error whilst parsing config file" in str(error):  # followed by a whole traceback
            last = str(error).strip().splitlines()[-1].removeprefix(f"{ConfigError.__module__}.ConfigError: ")
            raise ConfigError(last if last.startswith("--config") else f"--config: {last}") from error
        # absl: "flag --config.rl.states=many: invalid literal for int() with base 10: 'many'"
        text = str(error).removeprefix("flag ")
        types = "; docs/config_reference.md has every field with its type" if text.startswith("--config.") else ""
        raise ConfigError(f"{text}{types}") from error
    except flags.UnrecognizedFlagError as error:
        raise ConfigError(_hint(error.flagname) or str(error)) from error
    except flags.Error as error:
        raise ConfigError(str(error)) from error
    except (AttributeError, KeyError, NameError, SyntaxError, TypeError, ValueError, OSError) as error:
        text = str(error.args[0]) if error.args else str(error)
        raise ConfigError(f"--config: {text}") from error


def check_arguments(arguments: list[str]) -> None:
    """Check for errors that absl reports in words only its authors understand.

    Raises:
      ConfigError: The config file or a field does not exist, or a list is given in two flags.
    """
    lists: set[str] = set()
    for argument in arguments:
        name, _, value = argument.lstrip("-").partition("=")
        path = Path(value.partition(":")[0])
        if name == "config" and value and not path.is_file() and not (path / "config.json").is_file():
            others = sorted(str(other) for other in path.parent.glob("*.py") if other.name != "__init__.py")
            raise ConfigError(f"--config is {value!r}; there is no such file: choose {', '.join(others) or 'another'}")
        if _is_list(name):
            # ml_collections would concatenate the lists.
            if name in lists:
                raise ConfigError(f"--{name} is given twice: give all its names at once, --{name}=a,b")
            lists.add(name)


def _joined(arguments: list[str]) -> Iterator[str]:
    """Yield arguments with `--config VALUE` as `--config=VALUE`, and lists of names likewise."""
    rest = iter(arguments)
    for argument in rest:
        name = argument.lstrip("-")
        alone = argument.startswith("-") and "=" not in argument and (name == "config" or _is_list(name))
        value = next(rest, None) if alone else None
        yield argument if value is None else f"{argument}={value}"


def _is_list(name: str) -> bool:
    """Return whether a flag sets a list of names. Raises ConfigError if it would set a field that is none."""
    return name.startswith("config.") and get_origin(check_field(name.removeprefix("config."))) is tuple


def _plain(argument: str) -> str:
    """Return an argument as absl and ml_collections parse it: names of a list quoted, stored settings as a config."""
    name, equals, value = argument.lstrip("-").partition("=")
    if not argument.startswith("-") or not equals:
        return argument
    if name == "config":
        path = Path(value)
        path = path / "config.json" if path.is_dir() else path
        return f"--config={stored.__file__}:{path}" if path.suffix == ".json" else argument
    if not _is_list(name):
        return argument
    try:
        names = ast.literal_eval(value)
    except (SyntaxError, ValueError):
        names = None
    if not isinstance(names, (tuple, list)):
        # A folder or a name with a hyphen is no literal: `churn,./my-task`.
        names = [part.strip() for part in value.split(",") if part.strip()]
    return f"--{name}={tuple(map(str, names))!r}"


def _hint(flag: str) -> str | None:
    """Return what was probably meant by an unknown flag: a setting without `config.` before it."""
    name = flag.partition("=")[0]
    told = f"--{name} is no flag; settings begin with --config"
    try:
        check_field(name)
    except ConfigError as error:
        is_setting = name.split(".")[0] in FIELDS or name.rpartition(".")[2] in FIELDS
        return f"{told}: {error}" if is_setting else None
    return f"{told}: --config.{name}=VALUE"
