"""`python -m mlagent_jax.pool WORKDIR`: print the state pool of a run, from its newest checkpoint.

Prints a table by task and depth, and a list of states; `--state` shows one state with its history and its code. Works
during the run, and before rl starts.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

import jax
from absl import app, flags, logging

from mlagent_jax.reporting.pool import pool_text, read_pool, state_text

_STATE = flags.DEFINE_string("state", None, "Prefix of the id of a state to show.")
_COUNT = flags.DEFINE_integer("count", 20, "Number of states to list; 0: all.", lower_bound=0)
_JSON = flags.DEFINE_boolean("json", False, "Whether to print the pool, or the state, as JSON.")


def main(argv: Sequence[str]) -> None:
    logging.set_verbosity(logging.ERROR)  # The libraries' only; Orbax logs each of its steps.
    jax.config.update("jax_platforms", "cpu")  # The run uses the accelerators.
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
