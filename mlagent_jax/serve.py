"""Serve a checkpoint with OpenAI's HTTP interface.

    python -m mlagent_jax.serve --checkpoint DIR --port 8000

DIR is as for `mlagent_jax.sample`. Without an API key the server listens on the loopback interface only. For any other
`--host` set the environment variable MLAGENT_API_KEY to the key that clients send. Needs the extra `serve`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import jax
from absl import app, flags, logging

from mlagent_jax.parallelism import make_mesh
from mlagent_jax.sampling.checkpoint import load
from mlagent_jax.sampling.sampler import Sampler
from mlagent_jax.serving.access import KEY_VARIABLE, check_host

CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Hugging Face folder, or a run's workdir, stage or step.")
HOST = flags.DEFINE_string("host", "127.0.0.1", "Address to listen on.")
PORT = flags.DEFINE_integer("port", 8000, "Port to listen on.", lower_bound=1, upper_bound=65535)
NAME = flags.DEFINE_string("name", "policy", "Name of the model for clients.")
SLOTS = flags.DEFINE_integer(
    "slots", None, "Number of sequences decoded concurrently; default: as many as fit.", lower_bound=1
)
WAITING = flags.DEFINE_integer("waiting", 256, "Maximum samples that wait for a slot.", lower_bound=0)
PROMPT_TOKENS = flags.DEFINE_integer("max_prompt_tokens", 2048, "Maximum tokens per prompt.", lower_bound=1)
NEW_TOKENS = flags.DEFINE_integer("max_new_tokens", 1024, "Maximum tokens per completion.", lower_bound=1)
SECONDS = flags.DEFINE_float(
    "request_seconds", 600.0, "Maximum seconds per request, waiting included.", lower_bound=1.0
)
PARSE_SPECIAL = flags.DEFINE_boolean(
    "parse_special", True, "Whether names of special tokens in the prompts of /v1/completions become those tokens."
)
DTYPE = flags.DEFINE_enum(
    "dtype", None, ["float32", "bfloat16"], "Dtype of weights and arithmetic; default: as stored."
)
TENSOR = flags.DEFINE_integer("tensor", 1, "Number of devices to shard each layer over.", lower_bound=1)


def main(argv: Sequence[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}: every setting is a flag")
    try:
        import uvicorn

        from mlagent_jax.serving.app import make_app
        from mlagent_jax.serving.connections import TimedProtocol
        from mlagent_jax.serving.service import Limits, Service
    except ModuleNotFoundError as error:
        sys.exit(f"error: {error.name} is not installed: pip install -c constraints.txt -e '.[serve]'")
    api_key = os.environ.get(KEY_VARIABLE) or None
    told = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)  # The libraries' only; Orbax logs each of its steps.
    try:
        check_host(HOST.value, api_key)
        mesh = make_mesh({"tensor": TENSOR.value}, jax.devices()[: TENSOR.value])
        jax.set_mesh(mesh)
        model, tokenizer = load(CHECKPOINT.value, dtype=DTYPE.value, mesh=mesh)
        sampler = Sampler(model, tokenizer, slots=SLOTS.value)
        prompt_tokens = min(PROMPT_TOKENS.value, sampler.max_length - 1)
        new_tokens = min(NEW_TOKENS.value, sampler.max_length - 1)
        slots = sampler.plan_slots(prompt_tokens, new_tokens)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    logging.set_verbosity(told)
    logging.info("at http://%s:%d/v1: %d slots, %d samples may wait", HOST.value, PORT.value, slots, WAITING.value)
    service = Service(sampler, Limits(prompt_tokens, new_tokens, slots, WAITING.value, SECONDS.value), mesh)
    served = make_app(service, NAME.value, api_key, parse_special=PARSE_SPECIAL.value)
    uvicorn.run(served, host=HOST.value, port=PORT.value, log_level="warning", http=TimedProtocol)


if __name__ == "__main__":
    flags.mark_flags_as_required(["checkpoint"])
    app.run(main)
