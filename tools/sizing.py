"""How many workers a slice needs, and what a run takes: docs/sizing.md has the calculation.

    python tools/sizing.py --slice v6e-8 --execution_seconds=200 --sampling_seconds=120 \
        --slice_price=21.6 --worker_price=0.38 --prices_of=2026-11

Prices are yours to state, an hour: none is built in. Evaluation, compilation and start-up are not counted.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mlagent_jax.planning import slices


@dataclasses.dataclass(frozen=True)
class Size:
    """Of one run."""

    device_seconds: float
    """An iteration's sampling and update."""
    slots: int
    """Executions at once, so that they take no longer than the devices."""
    iteration_seconds: float
    hours: float
    cost: float


def update_seconds(
    parameters: float, actions: int, tokens: int, epochs: int, flops: float, utilisation: float
) -> float:
    """Of a PPO update of `actions` rows of `tokens`: two scorings (2 FLOPs a parameter and token each), and for each
    epoch forward, backward and the forward again of remat (8), at `utilisation` of the devices' peak `flops`."""
    return (2 * 2 + 8 * epochs) * parameters * actions * tokens / (flops * utilisation)


def size(
    *, actions: int, execution_seconds: float, device_seconds: float, iterations: int, overlap: bool,
    slots: int, slots_a_worker: int, slice_price: float, worker_price: float,
) -> Size:  # fmt: skip
    """The run's size; `slots` 0 chooses them, `overlap` says that executions run while the devices work."""
    # So many rounds of executions fit in the devices' time; where not even one does, all run at once.
    slots = slots or math.ceil(actions / max(1, math.floor(device_seconds / execution_seconds)))
    executing = math.ceil(actions / slots) * execution_seconds
    seconds = max(device_seconds, executing) if overlap else device_seconds + executing
    hours = iterations * seconds / 3600
    price = slice_price + math.ceil(slots / slots_a_worker) * worker_price
    return Size(device_seconds, slots, seconds, hours, hours * price)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--slice", nargs="*", default=list(slices.SLICES), help="default: all that are configured")
    add("--execution_seconds", type=float, required=True, help="mean of one execution")
    add("--sampling_seconds", type=float, required=True, help="to sample an iteration's actions (measure it)")
    add("--actions", type=int, default=256, help="an iteration: rl.states times rl.samples")
    add("--tokens", type=int, default=15_000, help="of a row: prompt and action")
    add("--epochs", type=int, default=1)
    add("--iterations", type=int, default=40)
    add("--parameters", type=float, default=7.6e9)
    add("--utilisation", type=float, default=0.4, help="share of the peak that the update reaches")
    add("--slots", type=int, default=0, help="executions at once; default: as many as keep up with the devices")
    add("--slots_a_worker", type=int, default=8)
    add("--synchronous", action="store_true", help="max_staleness 0: nothing overlaps")
    add("--slice_price", type=float, default=0.0, help="an hour of the whole slice")
    add("--worker_price", type=float, default=0.0, help="an hour of one worker host")
    add("--prices_of", default="", help="when the prices were looked up")
    args = parser.parse_args()
    prices = f"slice {args.slice_price:g}, worker host {args.worker_price:g} an hour"
    print(f"prices of {args.prices_of or 'no date'}: {prices}")
    print("\n| slice | device s | slots | worker hosts | s an iteration | hours | cost |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for name in args.slice:
        found = slices.find(name)
        update = update_seconds(
            args.parameters, args.actions, args.tokens, args.epochs, found.devices * found.peak_flops, args.utilisation
        )
        run = size(
            actions=args.actions, execution_seconds=args.execution_seconds,
            device_seconds=args.sampling_seconds + update, iterations=args.iterations, overlap=not args.synchronous,
            slots=args.slots, slots_a_worker=args.slots_a_worker,
            slice_price=args.slice_price, worker_price=args.worker_price,
        )  # fmt: skip
        hosts = math.ceil(run.slots / args.slots_a_worker)
        print(
            f"| {name} | {run.device_seconds:.0f} | {run.slots} | {hosts} | {run.iteration_seconds:.0f} "
            f"| {run.hours:.1f} | {run.cost:.0f} |"
        )


if __name__ == "__main__":
    main()
