"""How many workers a slice needs, and what a run takes: docs/sizing.md has the calculation.

    python tools/sizing.py --slice v6e-8 --execution_seconds=200 --slice_price=21.6 --worker_price=0.38 \
        --prices_of=2026-11

Sampling and update are predicted from the model's shape and the slice's published rates, at stated shares of them; a
measured sampling time goes before. Prices are yours to state, an hour: none is built in. Of several slices each has its
own price and sampling time, written NAME=NUMBER; without --slice every configured one is listed. Evaluation,
compilation and start-up are not in it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mlagent_jax.models import ModelConfig
from mlagent_jax.parallelism import slices
from mlagent_jax.sampling.config import SamplerConfig
from tools.planning.speed import Speed, Work, predict


@dataclasses.dataclass(frozen=True)
class Size:
    """Of one run."""

    device_seconds: float
    """An iteration's sampling and update."""
    slots: int
    """Executions at once, so that they take no longer than the devices."""
    iteration_seconds: float
    hours: float
    cost: float | None
    """None where the slice has no price."""


def iteration(model: ModelConfig, slice_: slices.Slice, args: argparse.Namespace) -> Speed:
    """What an iteration takes at the slice's published rates; attention heads over as many devices as divide them."""
    heads = math.gcd(model.num_kv_heads, slice_.devices)
    slots = -(-args.sequences // (slice_.devices // heads)) * (slice_.devices // heads)
    settings = SamplerConfig(args.action_tokens, slots=slots, samples=args.samples)
    tokens = args.prompt_tokens, args.action_tokens
    work = Work(args.states, args.samples, *tokens, args.epochs, args.passes, settings, heads)
    return predict(model, slice_, work)


def size(
    *, actions: int, execution_seconds: float, device_seconds: float, iterations: int, overlap: bool,
    slots: int, slots_a_worker: int, slice_price: float | None, worker_price: float,
) -> Size:  # fmt: skip
    """The run's size; `slots` 0 chooses them, `overlap` says that executions run while the devices work."""
    # So many rounds of executions fit in the devices' time; where not even one does, all run at once.
    slots = slots or math.ceil(actions / max(1, math.floor(device_seconds / execution_seconds)))
    executing = math.ceil(actions / slots) * execution_seconds
    seconds = max(device_seconds, executing) if overlap else device_seconds + executing
    hours = iterations * seconds / 3600
    workers = math.ceil(slots / slots_a_worker) * worker_price
    return Size(device_seconds, slots, seconds, hours, None if slice_price is None else hours * (slice_price + workers))


def by_slice(flag: str, texts: Sequence[str], names: Sequence[str], *, one_for_all: bool) -> dict[str, float]:
    """Numbers by slice from NAME=NUMBER, and from a bare number for those that are not named.

    Raises:
      ValueError: no number, a slice that is not listed, or a bare number for several slices where each has its own.
    """
    found: dict[str, float] = {}
    for text in sorted(texts, key=lambda text: "=" in text):
        name, equals, number = text.rpartition("=")
        try:
            value = float(number)
        except ValueError:
            raise ValueError(f"--{flag} {text!r}: write a number, or NAME=NUMBER") from None
        if equals and name not in names:
            raise ValueError(f"--{flag} {text!r}: the slices are {', '.join(names)}")
        if not equals and len(names) > 1 and not one_for_all:
            raise ValueError(
                f"--{flag} {text}: {len(names)} slices are listed, name each, for example {names[0]}={text}"
            )
        found.update({name: value} if equals else dict.fromkeys(names, value))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--slice", nargs="*", default=list(slices.SLICES), help="default: all that are configured")
    add("--execution_seconds", type=float, required=True, help="mean of one execution")
    add(
        "--sampling_seconds",
        nargs="+",
        default=[],
        metavar="S",
        help="to sample an iteration's actions, where you measured it; default: predicted",
    )
    add("--states", type=int, default=64, help="an iteration: rl.states")
    add("--samples", type=int, default=4, help="actions a state: rl.samples")
    add("--prompt_tokens", type=int, default=14_000)
    add("--action_tokens", type=int, default=1000)
    add("--sequences", type=int, default=64, help="decoded at once: sampling.slots")
    add("--passes", type=int, default=32, help="that an epoch's rows are cut into, each gathers the weights")
    add("--epochs", type=int, default=1)
    add("--iterations", type=int, default=40)
    add("--model", default="configs/models/qwen2.5-7b.json", help="config.json of the policy")
    add("--utilisation", type=float, default=0.4, help="share of the published rates that the update reaches")
    add("--sampling_share", type=float, default=0.7, help="share of them that sampling reaches")
    add("--slots", type=int, default=0, help="executions at once; default: as many as keep up with the devices")
    add("--slots_a_worker", type=int, default=8)
    add("--synchronous", action="store_true", help="max_staleness 0: nothing overlaps")
    add(
        "--slice_price",
        nargs="+",
        default=[],
        metavar="PRICE",
        help="an hour of the whole slice; default: no cost told",
    )
    add("--worker_price", type=float, default=0.0, help="an hour of one worker host")
    add("--prices_of", default="", help="when the prices were looked up")
    args = parser.parse_args()
    try:
        listed = [slices.find(name) for name in args.slice]
        sampling = by_slice("sampling_seconds", args.sampling_seconds, args.slice, one_for_all=True)
        prices = by_slice("slice_price", args.slice_price, args.slice, one_for_all=False)
        if unknown := [each.name for each in listed if not each.memory_bandwidth and each.name not in sampling]:
            raise ValueError(f"the rates of {', '.join(unknown)} are not known: measure --sampling_seconds there")
        model = ModelConfig.from_hf(json.loads(Path(args.model).read_text()))
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    print(f"prices an hour, of {args.prices_of or 'no date'}; a worker host {args.worker_price:g}")
    print("\n| slice | price | sampling s | device s | slots | worker hosts | s an iteration | hours | cost |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|---:|")
    for found in listed:
        name, price = found.name, prices.get(found.name)
        speed = iteration(model, found, args)
        sampled = sampling.get(name, speed.sampling_seconds / args.sampling_share)
        run = size(
            actions=args.states * args.samples, execution_seconds=args.execution_seconds,
            device_seconds=sampled + speed.update_seconds / args.utilisation, iterations=args.iterations,
            overlap=not args.synchronous,
            slots=args.slots, slots_a_worker=args.slots_a_worker,
            slice_price=price, worker_price=args.worker_price,
        )  # fmt: skip
        hosts = math.ceil(run.slots / args.slots_a_worker)
        stated = "" if price is None else f"{price:g}"
        cost = "" if run.cost is None else f"{run.cost:.0f}"
        print(
            f"| {name} | {stated} | {sampled:.0f} | {run.device_seconds:.0f} | {run.slots} | {hosts} "
            f"| {run.iteration_seconds:.0f} | {run.hours:.1f} | {cost} |"
        )


if __name__ == "__main__":
    main()
