"""Check a config with its overrides, and print fields of it: what the launchers read before they rent anything.

    python launch/settings.py --config=configs/rl_7b_v5e_16.py --config.seed=1 workers.queue plan.slice

One line a field, in that order. An unknown field or an impossible value is an error, in the words of the trainer.
Needs neither JAX nor an accelerator (`pip install '.[launch]'`).
"""

from __future__ import annotations

import sys
from functools import reduce
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from absl import app

from mlagent_jax import train
from mlagent_jax.runtime.errors import ConfigError
from mlagent_jax.settings.flags import parse_flags
from mlagent_jax.settings.schema import freeze


def main(argv: list[str]) -> None:
    try:
        if train.CONFIG.value is None:
            raise ConfigError("--config is missing: name a config file, for example --config=configs/rl.py")
        config = freeze(train.CONFIG.value)
        for field in argv[1:]:
            print(reduce(getattr, field.split("."), config))
    except ConfigError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
