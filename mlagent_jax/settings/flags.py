"""Command lines with `--config=FILE --config.FIELD=VALUE`, with errors in one line."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import get_origin

from absl import app, flags
from ml_collections import config_flags

from mlagent_jax.runtime.errors import ConfigError
from mlagent_jax.settings.schema import Config, check_field, freeze


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
        return values(argv)
    except flags.IllegalFlagValueError as error:
        # absl: "flag --config.rl.states=many: invalid literal for int() with base 10: 'many'"
        text = str(error).removeprefix("flag ")
        types = "; docs/config_reference.md has every field with its type" if text.startswith("--config.") else ""
        raise ConfigError(f"{text}{types}") from error
    except flags.Error as error:
        raise ConfigError(str(error)) from error
    except (AttributeError, KeyError, TypeError, ValueError, OSError) as error:
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
        if name == "config" and value and not path.is_file():
            others = sorted(str(other) for other in path.parent.glob("*.py") if other.name != "__init__.py")
            raise ConfigError(f"--config is {value!r}; there is no such file: choose {', '.join(others) or 'another'}")
        if name.startswith("config.") and get_origin(check_field(name.removeprefix("config."))) is tuple:
            # ml_collections would concatenate the lists.
            if name in lists:
                raise ConfigError(f"--{name} is given twice: give all its names at once, --{name}=a,b")
            lists.add(name)
