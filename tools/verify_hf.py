"""Compares our model with transformers' on any checkpoint: the log-probability of each token of some text.

    python tools/verify_hf.py DIR [--text_file=FILE] [--dtype=float32] [--tolerance=1e-3]

DIR is a folder or a hub id, OWNER/NAME[@REVISION]. Needs PyTorch. In float32 both must agree up to rounding: exit
status 1 where they do not. In bfloat16, where they cannot, the share of positions with the same most likely next token
says more.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import numpy as np
from absl import app, flags, logging

TEXT_FILE = flags.DEFINE_string("text_file", None, "Text to compare on; default this program's own source.")
TOKENS = flags.DEFINE_integer("tokens", 256, "How many tokens of the text to use, at most.", lower_bound=2)
DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "In which both compute.")
TOLERANCE = flags.DEFINE_float("tolerance", 1e-3, "Largest difference of a log-probability that passes, in nats.")


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Ours against theirs over the tokens of one text."""

    tokens: int
    log_prob_error: float
    """Largest absolute difference of a log-probability, in nats."""
    mean_log_probs: tuple[float, float]
    """Ours and theirs; far below -10, and the text or the tokenizer is not the checkpoint's."""
    same_next_token: float
    """Share of positions where both find the same token most likely."""


def compare(checkpoint: str, text: str, tokens: int, dtype: str) -> Comparison:
    """Runs both models on the first tokens of `text`; `checkpoint` is a folder or a hub id."""
    import jax
    import jax.numpy as jnp
    import torch
    import transformers

    from mlagent_jax import models
    from mlagent_jax.checkpoints import hub, hugging_face
    from mlagent_jax.models.tokenizer import Tokenizer

    folder = hub.fetch(checkpoint)
    ids = np.array([Tokenizer.load(folder).encode(text)[:tokens]])
    if ids.shape[1] < 2:
        raise ValueError(f"the text has {ids.shape[1]} tokens: at least 2 are needed")
    _, graph, params = hugging_face.load(folder, dtype=jnp.dtype(dtype))
    # Accelerators multiply float32 at a lower precision unless told otherwise.
    with jax.default_matmul_precision("highest"):
        logits = models.logits(graph, params, models.hidden_states(graph, params, jnp.asarray(ids)))
    ours = np.asarray(jax.nn.log_softmax(logits.astype(jnp.float32)), np.float64)[0, :-1]
    del params, logits  # before the other copy of the weights is read
    reference = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
    with torch.no_grad():
        theirs = reference(torch.tensor(ids)).logits.float().log_softmax(-1)[0, :-1].double().numpy()

    def chosen(log_probs: np.ndarray) -> np.ndarray:
        return np.take_along_axis(log_probs, ids[0, 1:, None], axis=-1)

    return Comparison(
        tokens=ids.shape[1],
        log_prob_error=float(np.max(np.abs(chosen(ours) - chosen(theirs)))),
        mean_log_probs=(float(chosen(ours).mean()), float(chosen(theirs).mean())),
        same_next_token=float(np.mean(ours.argmax(-1) == theirs.argmax(-1))),
    )


def main(argv: list[str]) -> None:
    logging.set_verbosity(logging.ERROR)  # of the libraries: Orbax tells each of its steps
    if len(argv) != 2:
        raise app.UsageError("give one checkpoint: a folder or a hub id")
    text = Path(TEXT_FILE.value or __file__).read_text(encoding="utf-8")
    try:
        result = compare(argv[1], text, TOKENS.value, DTYPE.value)
    except ModuleNotFoundError as error:
        sys.exit(f"error: {error.name} is not installed: pip install {error.name}, which this comparison alone needs")
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    ours, theirs = result.mean_log_probs
    print(
        f"{result.tokens} tokens in {DTYPE.value}: log-probabilities differ by at most {result.log_prob_error:.2e}, "
        f"mean {ours:.4f} (ours) and {theirs:.4f} (transformers), same next token {result.same_next_token:.1%}"
    )
    if DTYPE.value == "float32" and not result.log_prob_error <= TOLERANCE.value:
        sys.exit(f"error: the difference is over --tolerance={TOLERANCE.value}")


if __name__ == "__main__":
    app.run(main)
