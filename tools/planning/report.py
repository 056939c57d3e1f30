"""A plan as one value, and as Markdown."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import jax

from mlagent_jax.parallelism import abstract_mesh
from mlagent_jax.parallelism.slices import GIB, Slice
from mlagent_jax.runtime.errors import ConfigError
from mlagent_jax.settings.schema import Config
from tools.planning import memory, programs
from tools.planning.blueprint import Blueprint, bytes_a_device, draw, read_model
from tools.planning.compiled import Compiled, compile_program, devices_of, place
from tools.planning.memory import Phase
from tools.planning.speed import Speed, Work, predict


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a config takes of a slice."""

    blueprint: Blueprint
    slice: Slice
    phases: tuple[Phase, ...]
    compiled: tuple[Compiled, ...]
    simulated: bool
    speed: Speed | None
    """At the slice's published rates; None where they are not known."""
    faults: tuple[str, ...]
    """What does not fit, with the remedy, and what a program must not do; empty: all is well."""


def make(config: Config, slice_: Slice, compile_: Sequence[str] = (), *, simulate: bool = False) -> Plan:
    """The plan; with the names of programs, those compiled.

    Raises:
      ConfigError: the mesh does not fit the slice or the model, or a program cannot be compiled here.
    """
    model = read_model(config)

    def redraw(config: Config) -> Blueprint:
        try:
            mesh = abstract_mesh(config.mesh.shape, slice_.devices)
        except ValueError as error:
            raise ConfigError(f"config.mesh: {error}") from error
        return draw(config, model, mesh, slice_.platform)

    blueprint = redraw(config)
    found = memory.phases(blueprint)
    faults = []
    for phase in memory.misfits(found, config, slice_):
        faults.append(memory.explain(phase, slice_))
    if faults:
        settings = memory.remedy(config, redraw, slice_)
        advice = f"it would fit with {' '.join(settings)}" if settings else "take a larger slice"
        faults = [f"{fault}; {advice}" for fault in faults]
    records = []
    if compile_:
        there = place(blueprint, slice_, devices_of(slice_, simulate), simulate)
        for name in compile_:
            record = compile_program(name, there, slice_)
            records.append(record)
            faults += [f"{record.program} {fault}" for fault in record.faults]
            # The CPU's compiler widens bfloat16 products and frees less: its figures are not the slice's.
            if not record.fits and not simulate and _needed(record, config):
                total = (record.peak_bytes + record.beside_bytes) / GIB
                faults.append(f"{record.program} takes {total:.1f} GiB a device, {slice_.usable_gib:.1f} are usable")
    speed = predict(model, slice_, work_of(blueprint)) if slice_.memory_bandwidth else None
    return Plan(blueprint, slice_, tuple(found), tuple(records), simulate, speed, tuple(faults))


def work_of(blueprint: Blueprint) -> Work:
    """What an iteration of rl does."""
    config = blueprint.config
    rows = config.rl.states * config.rl.samples // config.rl.minibatches
    micro = programs.rl_config(blueprint, rows).micro_batch or rows
    return Work(
        config.rl.states,
        config.rl.samples,
        config.prompt.max_prompt_tokens,
        config.prompt.max_action_tokens,
        config.rl.epochs,
        config.rl.minibatches * -(-rows // micro),
        programs.sampler_config(blueprint),
        programs.sampling_parts(blueprint, "kv_heads"),
        config.policy.remat == "full",
    )


def _needed(record: Compiled, config: Config) -> bool:
    """Whether a stage of the config runs the program."""
    users = {"sft_step": {"sft"}, "ppo_step": {"rl"}}.get(record.program, {"rl", "evaluate"})
    return bool(users & set(config.stages))


def markdown(plan: Plan) -> str:
    """All of it as tables."""
    return "\n".join(_lines(plan)) + "\n"


def _lines(plan: Plan) -> Iterator[str]:
    config, slice_, mesh = plan.blueprint.config, plan.slice, plan.blueprint.mesh.shape
    count = sum(leaf.size for leaf in jax.tree.leaves(plan.blueprint.base))
    trained = sum(leaf.size for leaf in jax.tree.leaves(plan.blueprint.trained))
    where = " in the host's memory" if config.optimizer.placement == "host" else ""
    yield f"# {config.policy.checkpoint or 'A policy from scratch'} on {slice_.name}"
    yield ""
    yield (
        f"{count / 1e9:.3f}e9 parameters in {config.policy.param_dtype}, {trained / 1e9:.3f}e9 trained; computed in "
        f"{config.policy.compute_dtype}, remat {config.policy.remat}, attention {plan.blueprint.graph.attention}, "
        f"moments {config.optimizer.moments}{where}. {slice_.devices} devices of {slice_.usable_gib:.2f} usable GiB, "
        f"mesh data={mesh['data']} fsdp={mesh['fsdp']} tensor={mesh['tensor']}"
        f"{f', rules {config.mesh.rules}' if config.mesh.rules else ''}."
    )
    yield ""
    yield "## Memory, GiB a device"
    yield ""
    names = list(dict.fromkeys(name for phase in plan.phases for name in phase.parts))
    yield f"| phase | {' | '.join(names)} | total | of {slice_.usable_gib:.2f} |"
    yield "|---|" + "---:|" * (len(names) + 2)
    for phase in plan.phases:
        cells = " | ".join(f"{phase.parts[name] / GIB:.2f}" if name in phase.parts else "" for name in names)
        used = "" if set(phase.stages) & set(config.stages) else " (no stage of this config)"
        share = phase.total / slice_.usable_bytes
        yield f"| {phase.name}{used} | {cells} | {phase.total / GIB:.2f} | {share:.0%} |"
    yield ""
    yield "Activations are estimated, all else follows from shapes and layouts."
    if most := max(phase.host for phase in plan.phases):
        there, of_all = most * slice_.devices_a_host / GIB, f" of {slice_.host_gib:.0f}" if slice_.host_gib else ""
        yield (
            f"The host keeps {most / GIB:.2f} GiB of the optimizer for each device: {there:.1f}{of_all} GiB for the "
            f"{slice_.devices_a_host} of a host."
        )
    if plan.speed is not None:
        yield ""
        yield from _speed_lines(plan, plan.speed)
    if plan.compiled:
        yield ""
        yield from _compiled_lines(plan)
    yield ""
    yield "## Parameters"
    yield ""
    yield "| parameter | shape | dtype | layout | MiB a device |"
    yield "|---|---|---|---|---:|"
    for path, leaf in jax.tree_util.tree_flatten_with_path(plan.blueprint.whole)[0]:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        shape = " x ".join(map(str, leaf.shape))
        layout = ", ".join("-" if part is None else str(part) for part in leaf.sharding.spec) or "-"
        yield f"| {name} | {shape} | {leaf.dtype} | {layout} | {bytes_a_device(leaf) / 2**20:.2f} |"


def _speed_lines(plan: Plan, speed: Speed) -> Iterator[str]:
    slice_ = plan.slice
    yield "## Speed at the published rates"
    yield ""
    yield (
        f"A device reads {slice_.memory_bandwidth / 1e9:.0f} GB/s, multiplies at {slice_.peak_flops / 1e12:.0f} "
        f"TFLOP/s and sends {slice_.link_bandwidth / 1e9:.0f} GB/s. Seconds of an iteration of rl, prompts and actions "
        "at their longest, where nothing else takes time. Roofline: reading or multiplying, whichever takes longer, "
        "as a share of the seconds; sampling waits for its exchanges."
    )
    yield ""
    yield "| part | reading | multiplying | exchanging | seconds | roofline |"
    yield "|---|---:|---:|---:|---:|---:|"
    for part in (*speed.parts, speed.token):
        cells = " | ".join(f"{size:.3g}" for size in (part.reading, part.multiplying, part.exchanging, part.seconds))
        name = "a token of all slots" if part is speed.token else part.name
        yield f"| {name} | {cells} | {part.roofline / part.seconds:.0%} |"
    yield ""
    yield f"Decoding makes {speed.tokens_a_second:.0f} tokens/s, sampling takes {speed.sampling_seconds:.3g} s."
    if plan.blueprint.config.rl.samples > 1:
        settings, parts = programs.sampler_config(plan.blueprint), programs.sampling_parts(plan.blueprint, "slots")
        room, own = programs.prompt_room(plan.blueprint), settings.max_new_tokens
        shared = settings.prompt_rows(parts) * room + settings.slots * own
        alone = settings.slots * (room + own)
        yield (
            f"The {settings.slots} slots share {settings.prompt_rows(parts)} prompts: {shared} positions of cache, "
            f"where a prompt a slot would take {alone}, {alone / shared:.1f} times as many."
        )


def _compiled_lines(plan: Plan) -> Iterator[str]:
    where = f"{plan.slice.devices} simulated CPU devices" if plan.simulated else plan.slice.topology
    yield f"## Programs, compiled for {where} by jax {jax.__version__}"
    yield ""
    yield (
        "GiB a device: of the program at its peak, and of what the stage holds beside it. FLOPs: products of all "
        "devices together, loops counted as often as they run."
    )
    if plan.simulated:
        yield ""
        yield (
            "The CPU's compiler widens bfloat16 products to float32 and fuses less: its memory and bytes are upper "
            "bounds at best, and nothing is refused by them."
        )
    yield ""
    yield "| program | works on | peak | beside | arguments | temporaries | TFLOP | at peak rate | largest array |"
    yield "|---|---|---:|---:|---:|---:|---:|---:|---|"
    for each in plan.compiled:
        seconds = each.flops / (plan.slice.peak_flops * plan.slice.devices)
        figures = [each.peak_bytes, each.beside_bytes, each.argument_bytes, each.temporary_bytes]
        cells = " | ".join(f"{size / GIB:.2f}" for size in figures)
        largest = f"{each.largest}, {each.largest_bytes / 2**20:.0f} MiB" if each.largest else "does not fit"
        yield (f"| {each.program} | {each.shape} | {cells} | {each.flops / 1e12:.1f} | {seconds:.3g} s | {largest} |")
    yield ""
    if any(each.host_bytes for each in plan.compiled):
        shares = ", ".join(f"{each.program} {each.host_bytes / GIB:.2f}" for each in plan.compiled if each.host_bytes)
        yield f"Arguments and temporaries in the host's memory, GiB a device: {shares}."
        yield ""
    yield "| program | collective | runs | GiB a device |"
    yield "|---|---|---:|---:|"
    for each in plan.compiled:
        for collective in each.collectives:
            yield f"| {each.program} | {collective.kind} | {collective.count} | {collective.bytes / GIB:.2f} |"
    yield ""
    yield (
        "No program gathers all layers of a parameter at once, or makes logits of a whole batch."
        if not any(each.faults for each in plan.compiled)
        else "; ".join(fault for each in plan.compiled for fault in each.faults)
    )
