"""Sample from a checkpoint: prompts in a file, completions on standard output.

    python -m mlagent_jax.sample --checkpoint DIR --prompts FILE.jsonl --max_new_tokens 64 --temperature 0.7 --json

DIR is a Hugging Face folder, or a run's workdir, stage (WORKDIR/checkpoints/rl) or step. Each line of FILE is
`{"prompt": TEXT}` or `{"prompt": [ID, ...]}`. With `--json` the output has a line for every sample, in the order of the
prompts: `token_ids`, `text`, `logprobs`, `finish_reason`, `index` (of the prompt) and `sample`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

import jax
from absl import app, flags, logging

from environments.interfaces.terminal import printable
from mlagent_jax.parallelism import make_mesh
from mlagent_jax.sampling.checkpoint import load
from mlagent_jax.sampling.lines import Conversation, as_json, in_order, read_conversations, read_prompts
from mlagent_jax.sampling.sampler import Prompt, Sampler

CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Hugging Face folder, or a run's workdir, stage or step.")
PROMPTS = flags.DEFINE_string("prompts", None, 'File of JSON lines, {"prompt": TEXT} each.')
MAX_NEW_TOKENS = flags.DEFINE_integer("max_new_tokens", 256, "Maximum tokens per completion.")
TEMPERATURE = flags.DEFINE_float("temperature", 1.0, "Sampling temperature; 0: the most probable token.")
TOP_K = flags.DEFINE_integer("top_k", 0, "Number of most probable tokens to sample from; 0: all.")
TOP_P = flags.DEFINE_float("top_p", 1.0, "Total probability of the most probable tokens to sample from; 1: all tokens.")
MIN_P = flags.DEFINE_float(
    "min_p", 0.0, "Minimum probability of a token, relative to the most probable one; 0: all tokens."
)
N = flags.DEFINE_integer("n", 1, "Number of samples per prompt.")
STOP = flags.DEFINE_multi_string("stop", [], "String that ends a completion and is not part of it; may be repeated.")
SEED = flags.DEFINE_integer("seed", 0, "Seed of every prompt: equal prompts get equal samples.")
CHAT = flags.DEFINE_boolean(
    "chat",
    False,
    'Whether to apply the chat template: lines are conversations, {"messages": [...]}, or a user message.',
)
PARSE_SPECIAL = flags.DEFINE_boolean(
    "parse_special",
    False,
    "Whether names of special tokens in prompts become those tokens, and the tokenizer's own are added.",
)
JSON = flags.DEFINE_boolean("json", False, "Whether to print JSON lines.")
SLOTS = flags.DEFINE_integer(
    "slots", None, "Number of sequences decoded concurrently; default: as many as fit.", lower_bound=1
)
DTYPE = flags.DEFINE_enum(
    "dtype", None, ["float32", "bfloat16"], "Dtype of weights and arithmetic; default: as stored."
)
TENSOR = flags.DEFINE_integer("tensor", 1, "Number of devices to shard each layer over.", lower_bound=1)


def _prompts(sampler: Sampler, read: Sequence[Prompt | Conversation]) -> Sequence[Prompt]:
    """Return the prompts, tokenised if the flags say how."""
    if CHAT.value:
        return [sampler.tokenizer.apply_chat_template(each) for each in read]
    if PARSE_SPECIAL.value:
        return [sampler.encode(each, parse_special=True, add_special=True) for each in read]
    return read


def main(argv: Sequence[str]) -> None:
    logging.set_verbosity(logging.ERROR)  # The libraries' only; Orbax logs each of its steps.
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}: every setting is a flag")
    try:
        read = read_conversations(PROMPTS.value) if CHAT.value else read_prompts(PROMPTS.value)
        mesh = make_mesh({"tensor": TENSOR.value}, jax.devices()[: TENSOR.value])
        jax.set_mesh(mesh)
        model, tokenizer = load(CHECKPOINT.value, dtype=DTYPE.value, mesh=mesh)
        sampler = Sampler(model, tokenizer, slots=SLOTS.value)
        deltas = sampler.stream(
            _prompts(sampler, read),
            n=N.value,
            max_new_tokens=MAX_NEW_TOKENS.value,
            temperature=TEMPERATURE.value,
            top_k=TOP_K.value,
            top_p=TOP_P.value,
            min_p=MIN_P.value,
            stop=STOP.value,
            seed=SEED.value,
        )
    except (OSError, ValueError) as error:
        sys.exit(printable(f"error: {error}"))
    for prompt, sample, generation in in_order(deltas, N.value):
        if JSON.value:
            print(json.dumps(as_json(prompt, sample, generation)), flush=True)
        else:
            told = f"--- prompt {prompt}, sample {sample} ({generation.finish_reason})\n{generation.text}"
            print(printable(told), flush=True)


if __name__ == "__main__":
    flags.mark_flags_as_required(["checkpoint", "prompts"])
    app.run(main)
