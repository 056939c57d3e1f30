"""evaluate.py on one host, without PostgreSQL: workers, a SQLite queue and the store are this host's.

    python -m mlagent_jax.train --config=configs/evaluate_one_host.py --workdir=runs/evaluate \
        --config.policy.checkpoint=runs/rl/export
"""

import os

from ml_collections import ConfigDict

from configs import evaluate


def get_config() -> ConfigDict:
    config = evaluate.get_config()
    config.workers.queue = ""
    config.workers.store = ""
    config.workers.slots = max(2, os.cpu_count() or 2)
    config.workers.sandbox = "auto"
    return config
