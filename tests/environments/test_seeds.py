"""The seed of the data stays on the host: scripts see another number, from which it cannot be told."""

from __future__ import annotations

import json
import types

import needs
import pytest

from environments.actions import Action
from environments.episode import make
from environments.interfaces.command_line import main
from environments.seeds import execution_seed

TASK = "micro-rings-0"
SEED = 8_123_456_789_012_345
LOOK = """\
import os, re, sys
seen = [os.environ, sys.argv, open("/proc/self/environ").read(), open("/proc/self/cmdline").read()]
frame = sys._getframe()
while frame:
    seen.append(dict(frame.f_locals))
    frame = frame.f_back
seen += [open("data/" + name).read() for name in ("about.json", "description.md")]
print(*sorted(set(re.findall("[0-9]{9,}", repr(seen)))), file=sys.stderr)
raise SystemExit(3)
"""
EDIT = Action("Edit Script (Cell)", {"script_name": "train.py", "cell": "model"}, LOOK).render()


def test_the_two_seeds_differ_and_the_second_is_short():
    seeds = [execution_seed(seed) for seed in (0, 1, 2, SEED)]
    assert len({0, 1, 2, SEED, *seeds}) == 8 and all(0 <= seed < 2**32 for seed in seeds)
    assert seeds == [execution_seed(seed) for seed in (0, 1, 2, SEED)]


@pytest.mark.slow
def test_nothing_in_a_sandbox_tells_the_seed_of_the_data(tmp_path, capfd):
    """Environment, interpreter frames and public files of an episode from the command line."""
    needs.sandbox("bubblewrap").close()
    actions = tmp_path / "actions.jsonl"
    actions.write_text(json.dumps({"action": EDIT}) + "\n")
    main(["run", TASK, "--actions", str(actions), "--seed", str(SEED), "--cache-dir", str(tmp_path), "--json"])
    observation = json.loads(capfd.readouterr().out)["observation"]
    assert str(execution_seed(SEED)) in observation, "the script finds its own seed"
    assert str(SEED) not in observation


@pytest.mark.slow
def test_an_episode_and_a_reset_give_scripts_the_second_seed(tmp_path):
    sandbox = needs.sandbox("bubblewrap")
    try:
        with make(TASK, sandbox=sandbox, seed=SEED, cache_dir=tmp_path) as episode:
            assert episode.job(episode.state, EDIT).seed == execution_seed(SEED)
            episode.reset(seed=0)
            assert episode.job(episode.state, EDIT).seed == execution_seed(0)
    finally:
        sandbox.close()


def test_a_run_with_one_number_for_both_seeds_hands_out_the_second():
    from mlagent_jax.runs import run as run_module

    limits = types.SimpleNamespace(memory_mb=1)
    spec = types.SimpleNamespace(limits=limits, gpus=0)
    config = types.SimpleNamespace(
        seed=0,
        tasks=types.SimpleNamespace(seed=0),
        prompt=types.SimpleNamespace(profile="compact"),
        workers=types.SimpleNamespace(guarantees=()),
        editor=types.SimpleNamespace(model=""),
    )
    run = types.SimpleNamespace(name="run", config=config, tasks={"guess": types.SimpleNamespace(spec=spec)}, _image="")
    state = types.SimpleNamespace(task_name="guess")
    action = types.SimpleNamespace(text="", truncated=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_module, "editor_required", lambda config: ())
        job = run_module.Run.job(run, state, action, version=0, sample=0, reward="improvement")
    assert job.seed == execution_seed(0) != config.tasks.seed
