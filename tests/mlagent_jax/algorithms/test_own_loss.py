"""A policy loss of a user's own, as docs/algorithms.md writes it, from its file."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs" / "algorithms.md"
PROGRAM = """
import jax, jax.numpy as jnp
from mlagent_jax.algorithms.policy_losses import POLICY_LOSSES, policy_loss
from mlagent_jax.settings.schema import default_config, freeze

config = default_config()
config.plugins, config.rl.loss = ("my_losses.py",), "reinforce"
loss = POLICY_LOSSES.choose(freeze(config).rl.loss)
old, advantages = jnp.full((2, 2), -1.0), jnp.asarray([[2.0, 2.0], [-3.0, -3.0]])
print(jax.grad(lambda lp: policy_loss(loss, lp, old, advantages, old < 0)[0].total)(old).tolist())
"""


def test_the_loss_of_the_page(tmp_path):
    """In a process of its own: what it registers stays."""
    (block,) = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    (tmp_path / "my_losses.py").write_text(block)
    program = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{PROGRAM}"]
    done = subprocess.run(program, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[0] == "[[-2.0, -2.0], [3.0, 3.0]]"
