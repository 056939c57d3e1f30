"""Plans are right about what is known, refuse what cannot fit, and name what would."""

import dataclasses
import importlib
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from mlagent_jax.parallelism import slices
from mlagent_jax.parallelism.slices import GIB, Slice
from mlagent_jax.runtime.errors import ConfigError
from mlagent_jax.settings.schema import default_config, freeze
from tools.planning import compiled, memory, programs, report
from tools.planning.blueprint import read_model

SEVEN_BILLION = "configs/models/qwen2.5-7b.json"
BY_SLICE = sorted(path.stem for path in Path("configs").glob("rl_7b_*.py"))


def small(**changes):
    """A policy from scratch with the sizes of the default config, on one device."""
    config = default_config()
    for path, value in changes.items():
        section, field = path.split("__")
        config[section][field] = value
    return freeze(config)


def tiny_slice(gib, devices=1):
    return Slice("tiny", "gpu", devices, devices, gib, 1e12)


def parts(plan):
    return {phase.name: phase.parts for phase in plan.phases}


def test_bytes_of_parameters_optimizer_and_cache_are_those_of_the_arrays():
    config = small()
    plan = report.make(config, tiny_slice(4.0))
    shape = read_model(config)
    width, inner = shape.hidden_size, shape.intermediate_size
    kv = shape.num_kv_heads * shape.head_dim
    layer = 2 * width * width + 2 * width * kv + 3 * width * inner + width + 2 * kv + 2 * width
    count = shape.vocab_size * width + shape.num_layers * layer + width
    found = parts(plan)
    assert found["rl update"]["parameters"] == found["rl update"]["reference policy"] == 4 * count
    assert 0 <= found["sft step"]["optimizer"] - 8 * count < 64  # and a few scalars
    groups = -(-config.sampling.slots // config.rl.samples)
    tokens = config.sampling.slots * config.prompt.max_action_tokens + 384 * (groups + -(-groups // 8))
    assert found["rl sampling"]["KV cache"] == tokens * 2 * shape.num_layers * kv * 4


def test_speed_follows_from_bytes_operations_and_the_published_rates():
    """Of one device, by hand; 9 prompts of 14,000 tokens for 32 slots, each half way through 1,000."""
    plan = report.make(config_of("rl_7b_h200_1"), slices.find("h200-1"))
    weights = 28 * (2 * 3584 * 128 * (28 + 4) + 3 * 3584 * 18_944) + 152_064 * 3584
    position = 2 * 2 * 28 * 4 * 128
    token = plan.speed.token
    assert token.reading == pytest.approx((2 * weights + position * (9 * 14_000 + 32 * 500)) / 4.8e12)
    attention = 4 * 28 * 28 * 128 * (14_000 + 500)
    assert token.multiplying == pytest.approx(32 * (2 * weights + attention) / 989e12)
    assert token.exchanging == 0 and plan.speed.tokens_a_second == pytest.approx(32 / token.reading)
    assert plan.speed.parts[1].seconds == pytest.approx(8 * 1000 * token.seconds), "256 actions, 32 at once"


def test_with_a_kernel_without_segments_each_row_holds_one_sample():
    settings = {"policy__attention": "cudnn", "sft__packing": False}
    drawn = report.make(small(**settings), tiny_slice(4.0)).blueprint
    shared = report.make(small(), tiny_slice(4.0)).blueprint
    (rows, micro), rl, prompt = programs.ppo_rows(drawn), drawn.config.rl, drawn.config.prompt
    assert rows >= rl.states * rl.samples // rl.minibatches and rows % micro == 0
    longest = prompt.max_prompt_tokens + prompt.max_action_tokens
    assert longest <= programs.row_tokens(drawn) + 1 < programs.row_tokens(shared)
    passes = programs.make("ppo_step", drawn).arguments[4]
    assert passes.single and passes.tokens.shape == (rows // micro, micro, programs.row_tokens(drawn))
    assert prompt.max_action_tokens <= passes.at.shape[-1] <= programs.rows_decisions(shared)
    assert programs.make("sft_step", drawn).static["single"]
    packs = report.make(small(policy__attention="cudnn"), tiny_slice(4.0)).blueprint
    with pytest.raises(ConfigError, match=r"config\.sft\.packing=False"):
        programs.make("sft_step", packs)
    alone = dataclasses.replace(packs, config=dataclasses.replace(packs.config, stages=("rl",)))
    assert programs.make("sft_step", alone).static["single"], "no stage trains on packed rows"


def test_adapters_need_no_reference_and_little_optimizer():
    plain, adapted = (parts(report.make(small(lora__rank=rank), tiny_slice(4.0))) for rank in (0, 4))
    assert adapted["rl update"]["reference policy"] == 0
    assert adapted["rl update"]["optimizer"] < 0.2 * plain["rl update"]["optimizer"]


def test_a_reference_that_moves_is_a_copy_of_what_is_trained():
    still, moving = (parts(report.make(small(rl__reference_every=n), tiny_slice(4.0)))["rl update"] for n in (0, 4))
    assert moving["reference policy"] == still["reference policy"] == still["parameters"]
    half = parts(report.make(small(policy__compute_dtype="bfloat16"), tiny_slice(4.0)))["rl update"]
    assert half["reference policy"] == still["reference policy"] / 2, "kept as it computes"


def test_what_cannot_fit_is_named_with_settings_under_which_it_would():
    plan = report.make(small(policy__remat="none", sft__batch_size=64, sft__row_tokens=2048), tiny_slice(0.5))
    assert any("sft step takes" in fault and "tiny has 0.5" in fault for fault in plan.faults)
    assert "--config.policy.remat=full" in plan.faults[0]


def test_what_no_setting_helps_asks_for_a_larger_slice():
    assert "take a larger slice" in report.make(small(), tiny_slice(0.001)).faults[0]


def test_a_batch_that_the_mesh_does_not_divide_is_named():
    config = small(sft__batch_size=16, sft__micro_batch=2)
    with pytest.raises(ConfigError, match=r"config\.sft\.micro_batch a multiple of 4"):
        report.make(config, tiny_slice(4.0, devices=4))


def test_an_unknown_slice_or_model_is_named():
    with pytest.raises(ConfigError, match="'v9' is unknown; choose one of v5e-8"):
        slices.find("v9")
    with pytest.raises(ConfigError, match=r"--config\.plan\.model=FILE"):
        read_model(small(policy__checkpoint="nowhere/to-be-found"))


def test_devices_are_any_count_of_a_kind_or_given_by_hand():
    four = slices.find("4xH100")
    assert (four.devices, four.platform, four.usable_gib) == (4, "gpu", slices.find("h100-8").usable_gib)
    assert slices.find("2xv6e").usable_gib == slices.find("v6e-8").usable_gib
    assert slices.by_hand("2", 48, 155) == Slice("2 x 48 GiB", "gpu", 2, 2, 0.92 * 48, 155e12)
    for wrong in ("0", "4xH100", "two"):
        with pytest.raises(ConfigError, match="give a count of devices"):
            slices.by_hand(wrong, 48, 155)
    with pytest.raises(ConfigError, match=r"rtx4090, .*--memory_gib"):
        slices.find("2xtesla")


def test_an_8b_fits_four_gpus_of_one_host():
    config = importlib.import_module("configs.rl_one_host").get_config()
    config.plan.model = "configs/models/llama-3.1-8b.json"
    plan = report.make(freeze(config), slices.find("4xH100"))
    assert plan.faults == ()
    assert sum(leaf.size for leaf in jax.tree.leaves(plan.blueprint.base)) == 8_030_261_248


def config_of(name):
    return freeze(importlib.import_module(f"configs.{name}").get_config())


@pytest.mark.slow
@pytest.mark.parametrize("name", BY_SLICE)
def test_every_7b_config_fits_its_slice(name):
    config = config_of(name)
    plan = report.make(config, slices.find(config.plan.slice))
    assert plan.faults == ()
    assert sum(leaf.size for leaf in jax.tree.leaves(plan.blueprint.base)) == 7_615_616_512


@pytest.mark.slow
@pytest.mark.parametrize("name", BY_SLICE)
def test_the_plan_that_is_kept_of_a_7b_config_is_of_now(name):
    """All that needs no compiler, and what the programs work on."""
    config = config_of(name)
    plan = report.make(config, slices.find(config.plan.slice))
    kept = Path(f"configs/plans/{name}.md").read_text().splitlines()
    assert set(report.markdown(plan).splitlines()) <= set(kept)
    for program in ("sft_step", "ppo_step", "prefill", "decode_step"):
        works_on = programs.make(program, plan.blueprint).shape
        assert any(line.startswith(f"| {program} | {works_on} |") for line in kept), works_on


@pytest.mark.slow
def test_full_fine_tuning_at_these_lengths_is_refused_where_it_does_not_fit():
    config = importlib.import_module("configs.rl").get_config()
    config.plan.model, config.sft.micro_batch = SEVEN_BILLION, 16
    plan = report.make(freeze(config), slices.find("v5e-16"))
    assert any(fault.startswith("rl update takes") for fault in plan.faults)
    assert "--config.lora.rank=32" in plan.faults[0]


PROGRAM = """
import sys
from mlagent_jax.settings.schema import default_config, freeze
from tools.planning import report
from mlagent_jax.parallelism.slices import Slice

config = default_config()
config.policy.num_layers, config.policy.num_heads, config.policy.num_kv_heads = 10, 8, 4
config.policy.remat, config.tokenizer.vocab_size = "full", 65536
config.mesh.fsdp, config.mesh.tensor, config.mesh.data = 4, 2, 1
config.sft.batch_size, config.sft.row_tokens = 8, 1024
plan = report.make(freeze(config), Slice("tiny", "gpu", 8, 8, 4.0, 1e12), ("sft_step", "decode_step"), simulate=True)
print(report.markdown(plan))
assert plan.faults == (), plan.faults
sft, decode = plan.compiled
runs = {each.kind: each.count for each in sft.collectives}
assert runs["all-gather"] >= 7 * 10, runs  # each matrix of each of ten layers
# By hand: 8 operations a weight and token (2 forward, 2 made again, 4 backward); 5 products of scores and of values
# (attention's blocks are made again by themselves as well) over what lies below the diagonal of eight blocks. Remat
# leaves out what nothing needs.
weights = 10 * (2 * 192 * 192 + 2 * 192 * 96 + 3 * 192 * 512) + 192 * 65536
scores = 8 * 10 * 4 * 192 * 1024 * 1024 * 36 / 64
assert 0.9 < sft.flops / (8 * weights * 8 * 1024 + 5 * scores) <= 1.0, sft.flops
assert sft.largest and sft.peak_bytes > 0 and decode.flops > 0
"""


@pytest.mark.slow
def test_programs_compile_for_simulated_devices_and_are_counted():
    environment = {
        **os.environ,
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "| sft_step | all-gather |" in done.stdout


def test_what_a_compiler_had_no_room_for_is_a_record(monkeypatch):
    plan = report.make(small(), tiny_slice(4.0))
    message = "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (25.98G) " \
        "exceeds available HBM (15.75G)."  # fmt: skip

    def no_room(*arguments, **static):
        raise jax.errors.JaxRuntimeError(message)

    real = compiled.programs.sft_program(plan.blueprint)
    step = type("Step", (), {"lower": staticmethod(no_room), "trace": real.step.trace})
    monkeypatch.setattr(compiled.programs, "sft_program", lambda _: dataclasses.replace(real, step=step))
    mesh_of_here = compiled.place(plan.blueprint, plan.slice, jax.devices()[:1], simulated=True)
    record = compiled.compile_program("sft_step", mesh_of_here, plan.slice)
    assert not record.fits
    assert record.temporary_bytes == int(25.98 * GIB)
    assert memory.misfits(list(plan.phases), small(), plan.slice) == []


def test_moments_on_the_host_are_counted_there_and_come_for_the_update():
    plain, away = (report.make(small(optimizer__placement=place), tiny_slice(4.0)) for place in ("device", "host"))
    before, after = ({phase.name: phase for phase in plan.phases} for plan in (plain, away))
    for name in ("sft step", "rl update"):
        moved = before[name].parts["optimizer"] - after[name].parts["optimizer"]
        assert moved == after[name].host > 0
        assert before[name].host == 0
        visiting = after[name].parts["moments for the update"]
        assert 0 <= visiting <= max(0, 2 * moved - after[name].parts["activations"])
    assert after["rl sampling"].total == before["rl sampling"].total - after["rl sampling"].host
    gibibytes = after["rl update"].host / 2**30
    assert f"The host keeps {gibibytes:.2f} GiB of the optimizer" in report.markdown(away)
    assert "The host keeps" not in report.markdown(plain)


def test_a_host_with_too_little_memory_for_the_moments_is_named():
    slice_ = dataclasses.replace(tiny_slice(4.0), host_gib=0.001)
    plan = report.make(small(optimizer__placement="host"), slice_)
    assert any("GiB of the optimizer on a host, a host of tiny has 0" in fault for fault in plan.faults)
