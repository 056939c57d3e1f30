"""Command lines with `--config=FILE --config.FIELD=VALUE`: what is wrong with one, in one line."""

from __future__ import annotations

import sys
from pathlib import Path

from absl import flags

from mlagent_jax.config import check_field
from mlagent_jax.errors import ConfigError


def parse_flags(argv: list[str], known: flags.FlagValues = flags.FLAGS) -> list[str]:
    """absl's parser of the `known` flags, with errors as one line instead of a usage page or a traceback."""
    try:
        check_arguments(argv[1:])
        return known(argv)
    except ConfigError as error:
        sys.exit(f"error: {error}")
    except flags.IllegalFlagValueError as error:
        # absl: "flag --config.rl.states=many: invalid literal for int() with base 10: 'many'"
        text = str(error).removeprefix("flag ")
        types = "; docs/config_reference.md has every field with its type" if text.startswith("--config.") else ""
        sys.exit(f"error: {text}{types}")
    except flags.Error as error:
        sys.exit(f"error: {error}")
    except (AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        text = str(error.args[0]) if error.args else str(error)
        sys.exit(f"error: --config: {text}")


def check_arguments(arguments: list[str]) -> None:
    """What absl would say in words that only its authors understand.

    Raises:
      ConfigError: the config file is not there, or has no such field.
    """
    for argument in arguments:
        name, _, value = argument.lstrip("-").partition("=")
        path = Path(value.partition(":")[0])
        if name == "config" and value and not path.is_file():
            others = sorted(str(other) for other in path.parent.glob("*.py") if other.name != "__init__.py")
            raise ConfigError(f"--config is {value!r}; there is no such file: choose {', '.join(others) or 'another'}")
        if name.startswith("config."):
            check_field(name.removeprefix("config."))
