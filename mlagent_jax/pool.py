"""`python -m mlagent_jax.pool WORKDIR`: what the state pool of a run holds now, of its newest checkpoint.

Prints a table by task and depth, and a list of states; `--state` shows one of them whole, its history and its code.
Works while the run goes on, and before its rl begins.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

import jax
from absl import app, flags, logging

from mlagent_jax.reporting.pool import pool_text, read_pool, state_text

_STATE = flags.DEFINE_string("state", None, "Show the state whose id begins so.")
_COUNT = flags.DEFINE_integer("count", 20, "States listed one by one; 0: all.", lower_bound=0)
_JSON = flags.DEFINE_boolean("json", False, "Print all of it, or the one state, as JSON instead.")


def main(argv: Sequence[str]) -> None:
    logging.set_verbosity(logging.ERROR)  # of the libraries: Orbax tells each of its steps
    jax.config.update("jax_platforms", "cpu")  # the accelerators are the run's
    if len(argv) != 2:
        raise app.UsageError("name the workdir of one run")
    try:
        pool = read_pool(argv[1])
        if _STATE.value is None:
            print(json.dumps(pool.to_dict()) if _JSON.value else pool_text(pool, _COUNT.value))
        else:
            held = pool.find(_STATE.value)
            print(json.dumps(held.state.to_dict() | held.to_dict()) if _JSON.value else state_text(held))
    except (OSError, ValueError) as error:
        sys.exit(f"pool: {error}")


if __name__ == "__main__":
    app.run(main)
