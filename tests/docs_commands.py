"""Every command of README and docs, and how it is known to work: run here as it is written, run by another test, or
in need of what no test has.

A command is found by how it begins. One that nothing here begins fails `test_docs_commands.py`, as does an entry that
no page has any more.
"""

import ast
import dataclasses
import re
import shlex
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = {path: path.read_text(encoding="utf-8") for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))}
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
TYPED = re.compile(r"(?:[A-Z_]+=\S+ +)*(?:python|pip|export|docker|mlebench|\./|launch/|tests/|\. )")
"""How a line begins that people type; blocks without any are transcripts, drawings, protocols."""
INLINE = re.compile(r"python (?:-m (?P<module>[\w.]+)|(?P<tool>(?:tools|launch)/[\w/]+\.py))(?P<rest>[^`#\n]*)")


@dataclasses.dataclass(frozen=True)
class Run:
    """Run as it is written, in `test_docs_run.py`."""

    more: str = ""
    """Arguments that follow: the last one of a name wins, so they make it small."""
    serves: bool = False
    """It goes on until it is told to stop, once it has answered."""


@dataclasses.dataclass(frozen=True)
class Like:
    """That one, which is run, with other values."""

    command: str


@dataclasses.dataclass(frozen=True)
class Elsewhere:
    """That test runs it, or the function that it is the command of."""

    test: str


@dataclasses.dataclass(frozen=True)
class Needs:
    """No test has this; its arguments are still taken by its program (`test_docs_commands.py`)."""

    what: str


TINY = (
    "--config.tasks.train=iris --config.tasks.held_out= --config.tasks.micro_train=0 --config.tasks.micro_held_out=0"
    " --config.collect.trajectories=1 --config.collect.steps=2 --config.evaluate.states_held_in=1"
    " --config.evaluate.states_held_out=0 --config.evaluate.samples=1 --config.evaluate.episode_tasks_held_in=1"
    " --config.evaluate.episode_tasks_held_out=0 --config.evaluate.trajectories=1 --config.evaluate.best_of=1"
    " --config.evaluate.steps=1 --config.prompt.max_action_tokens=8 --config.workers.sandbox=bubblewrap"
    " --config.workers.slots=2 --config.sft.optimizer=adamw --config.sft.epochs=1 --config.sft.renderings=1"
    " --config.rl.iterations=1 --config.rl.states=1 --config.rl.samples=2 --config.rl.best_of=2"
    " --config.rl.minibatches=1 --config.rl.epochs=1 --config.sampling.slots=4"
)
SMALL_POLICY = (
    "--config.policy.hidden_size=16 --config.policy.num_layers=1 --config.policy.num_heads=2"
    " --config.policy.num_kv_heads=1 --config.policy.intermediate_size=16 --config.tokenizer.vocab_size=512"
)
COLLECT = Run(f"{TINY} --config.stages=collect --config.collect.steps=1")
THE_7B = Elsewhere(
    "tests/mlagent_jax/runs/test_pipeline.py::test_the_configs_for_7b_run_in_turn_on_a_tiny_checkpoint_and_two_devices"
)
EXPORTED = "tests/tools/test_export_tools.py::test_a_run_is_exported_and_verified_from_the_command_line"
MLE_BENCH = "tests/environments/tasks/adapters/test_other_benchmarks.py::test_a_competition_is_played_and_reported"
REHEARSAL = (
    "tests/launch/test_rehearsal.py::test_a_run_loses_two_of_three_workers_and_a_trainer_and_goes_on_on_another_slice"
)
SLEEPING = (
    "tests/mlagent_jax/studies/test_study.py::"
    "test_a_study_of_time_says_where_it_went_and_its_runs_are_not_taken_for_real_ones"
)
NEW_TASK = (
    "tests/environments/factory/test_factory_commands.py::test_a_table_becomes_a_task_that_a_suite_checks_and_reports"
)
OWN_TASK = "python -m mlagent_jax.train --config=configs/quickstart.py --workdir=runs/mine --config.tasks"
CLOUD = Needs("a cloud or a cluster: tests/launch runs it against stand-ins, and here it prints what it would do")
INSTALLS = Needs("packages: tests/test_packaging.py installs the workers' half")

COMMANDS: dict[str, Run | Like | Elsewhere | Needs] = {
    # Those that are run here, in this order. The first makes the run that others look at: runs/quickstart leads to it.
    "python -m mlagent_jax.train --config=configs/smoke.py --workdir=runs/smoke": Run(f"{TINY} {SMALL_POLICY}"),
    "python -m mlagent_jax.train --config=configs/smoke.py --workdir=runs/smoke --config.tracking": Run(
        f"{TINY} {SMALL_POLICY}"
    ),
    "python -m mlagent_jax.train --config=configs/smoke.py --workdir=runs/new --check": Elsewhere(
        "tests/mlagent_jax/test_train.py::test_a_check_looks_at_everything_and_writes_nothing"
    ),
    "python -m mlagent_jax.train --config=runs/mine/config.json": Elsewhere(
        "tests/mlagent_jax/test_train.py::test_a_run_s_own_settings_are_a_config"
    ),
    OWN_TASK: COLLECT,
    "python -m mlagent_jax.train --config=configs/quickstart.py --workdir=runs/mine --config.rl": Like(OWN_TASK),
    "python -m mlagent_jax.train --config=configs/quickstart.py --workdir=runs/own": COLLECT,
    "python -m mlagent_jax.train --config=configs/quickstart.py --workdir=runs/s0": Like(OWN_TASK),
    "python -m mlagent_jax.train --config=configs/quickstart.py --workdir=runs/gspo": Like(OWN_TASK),
    "python -m mlagent_jax.train --config=configs/quickstart.py --workdir=runs/noise": Run(
        f"{TINY} --config.stages=rl --config.policy.checkpoint=runs/smoke/export --config.pool.trajectories=runs/smoke"
        " --config.workers.store=runs/smoke/store"
    ),
    "python tools/permute_labels.py --tasks runs/s0/tasks --output runs/permuted-tasks": Run(),
    "python -m mlagent_jax.train --config=configs/quickstart.py --workdir=runs/permuted": COLLECT,
    "python -m mlagent_jax.train --config=configs/evaluate_embedded.py": Run(
        f"{TINY} --config.evaluate.states_held_in=0"
    ),
    "python tools/compare_runs.py runs/board runs/other_board": Run("--agent base"),
    "python -m mlagent_jax.report runs/mine runs/other": Run(),
    "python -m mlagent_jax.report runs/s0 runs/s1 runs/s2": Like("python -m mlagent_jax.report runs/mine runs/other"),
    "python -m mlagent_jax.report runs/quickstart": Run(),
    "python -m mlagent_jax.pool runs/quickstart": Run(),
    "python -m mlagent_jax.report runs/quickstart --serve": Like(
        "python -m mlagent_jax.report runs/seed0 runs/seed1 --serve"
    ),
    "python -m mlagent_jax.report runs/seed0 runs/seed1 --serve": Run("--port=0", serves=True),
    "python launch/sweep.py --config=configs/smoke.py --workdir=runs/list --file=members.jsonl": COLLECT,
    "python tools/trajectories.py card runs/collect": Run(),
    "python tools/trajectories.py add runs/all": Run(),
    "python tools/trajectories.py export runs/all exports/parquet": Run(),
    "python tools/trajectories.py export runs/all exports/sharegpt": Run("--filter min_gain=-9"),
    "python -m environments list --paper": Run(),
    "MLAGENT_PLUGINS=my_rewards.py python -m environments rewards": Run(),
    "python -m mlagent_jax.algorithms": Run(),
    "python -m environments check my-task": Run("--sandbox bubblewrap"),
    "python -m environments show my-task": Run(),
    "python -m environments.queue grant postgresql://": Run(),
    "python -m environments.queue status postgresql://": Run(),
    "python -m environments.queue retry postgresql://": Run(),
    "python -m environments.queue cancel postgresql://": Run(),
    "python -m environments.queue purge postgresql://": Run(),
    "python tools/sizing.py": Run(),
    "python tools/bench/bench_executions.py": Run("--count=1"),
    "python tools/bench/bench_search.py": Run("--tasks=iris --executions=2 --seeds=1 --sandbox=bubblewrap"),
    "python tools/bench/bench_workspace.py": Run("--count=1 --data_mb=1"),
    "python tools/bench/bench_queue.py": Run("--depths 2000 --workers 1 --seconds 0.1 --no-references"),
    "python tools/bench/simulate_workers.py": Run("--workers 8 --simulated_seconds=1"),
    "GLIBC_TUNABLES=glibc.malloc.hugetlb=1 python tools/bench/bench_train_step.py": Run(
        f"{SMALL_POLICY} --config.sft.batch_size=2 --steps=1 --against=none --peak_tflops=1"
    ),
    "GLIBC_TUNABLES=glibc.malloc.hugetlb=1 python tools/bench/bench_train_step.py --config=configs/smollm2.py": Like(
        "GLIBC_TUNABLES=glibc.malloc.hugetlb=1 python tools/bench/bench_train_step.py"
    ),
    "python tools/bench/bench_sft.py": Run(f"{SMALL_POLICY} --rows=1 --steps=1 --sides=packed"),
    "python tools/bench/bench_sampler.py": Run("--prompts=2 --n=1 --slots=2 --repeats=1 --longest=4 --noreference"),
    "python tools/bench/bench_sampler.py --prompt_tokens": Like("python tools/bench/bench_sampler.py"),
    # Those that other tests run.
    "python tools/qualify.py": Elsewhere(
        "tests/tools/test_qualify.py::test_every_part_is_measured_with_its_bound_and_a_verdict"
    ),
    "python -m mlagent_jax.train --config=configs/collect.py --workdir=runs/collect": THE_7B,
    "python -m mlagent_jax.train --config=configs/sft.py": THE_7B,
    "python -m mlagent_jax.train --config=configs/rl.py": THE_7B,
    "python -m mlagent_jax.train --config=configs/evaluate.py --workdir=runs/evaluate": THE_7B,
    "JAX_COORDINATOR_ADDRESS=HOST0:8476": Elsewhere(REHEARSAL),
    "python -m environments.worker": Elsewhere(REHEARSAL),
    "python tools/export_hf.py": Elsewhere(EXPORTED),
    "python tools/verify_hf.py": Elsewhere(EXPORTED),
    "python -m mlagent_jax.sample": Elsewhere(
        "tests/mlagent_jax/sampling/test_commands.py::test_the_sample_command_prints_what_the_library_makes"
    ),
    "python -m mlagent_jax.serve": Elsewhere(
        "tests/mlagent_jax/sampling/test_commands.py::test_the_server_command_answers_the_page_s_client"
    ),
    "python -m mlagent_jax.solve": Elsewhere(
        "tests/mlagent_jax/test_solve.py::test_a_tiny_checkpoint_works_on_a_folder"
    ),
    **{
        f"python -m mlagent_jax.study configs/studies/{name}.py": Elsewhere(
            "tests/mlagent_jax/studies/test_study.py::test_a_study_is_run_reported_and_not_run_again"
        )
        for name in ("exploration", "episodes", "rewards", "refresh", "duration")
    },
    "python -m mlagent_jax.study configs/studies/asynchronous.py": Elsewhere(SLEEPING),
    "python launch/sweep.py --config=configs/smoke.py --workdir=runs/clip": Elsewhere(
        "tests/launch/test_sweep.py::test_a_failed_member_stops_nothing_and_the_same_command_goes_on"
    ),
    "python launch/sweep.py --config=configs/smoke.py --workdir=runs/lr": Elsewhere(
        "tests/launch/test_sweep.py::test_draws_are_in_range_reproducible_and_can_be_added_to"
    ),
    "launch/compose.sh": Elsewhere(
        "tests/launch/test_compose.py::test_a_run_is_stopped_once_and_goes_on_to_its_end_through_postgresql_and_a_worker"
    ),
    "python -m environments serve": Elsewhere(
        "tests/environments/interfaces/test_json_lines.py::test_a_scaffold_takes_real_steps_in_another_process"
    ),
    "python -m environments fetch spooky-author-identification": Elsewhere(
        "tests/environments/tasks/paper/test_paper.py::test_fetch_gets_an_archive_through_the_kaggle_client"
    ),
    "python -m environments prepare spooky-author-identification": Elsewhere(
        "tests/environments/tasks/paper/test_paper.py::test_its_starting_script_runs_and_leaves_headroom"
    ),
    "python -m environments prepare path/to/MLAgentBench": Elsewhere(
        "tests/environments/tasks/adapters/test_other_benchmarks.py::test_a_benchmark_is_prepared_played_and_graded_by_its_eval"
    ),
    "MLEBENCH_DATA_DIR=~/.cache/mle-bench/data python -m environments prepare": Elsewhere(MLE_BENCH),
    "python -m environments grade mlebench-spooky-author-identification": Elsewhere(MLE_BENCH),
    "python tools/clean_store.py": Elsewhere(
        "tests/tools/test_clean_store.py::test_what_a_live_state_needs_stays_and_the_rest_goes"
    ),
    "python tools/trajectories.py export runs/all exports/tfds": Elsewhere(
        "tests/mlagent_jax/trajectories/test_exchange.py::test_tensorflow_datasets_reads_it_by_index_without_tensorflow"
    ),
    "MLAGENT_TEST_EXECUTIONS=1000 python -m pytest": Elsewhere(
        "tests/environments/sandbox/test_left_behind.py::test_many_executions_a_third_of_them_hostile_leave_nothing"
    ),
    # Those that need more than a test has.
    "MLAGENT_ENDPOINT_KEY=... python -m mlagent_jax.train": Needs("a language model served elsewhere, and money"),
    "python -m mlagent_jax.train --config=configs/evaluate.py --workdir=runs/paper": Needs("data of Kaggle"),
    "python -m environments new sales": Elsewhere(NEW_TASK),
    "python -m environments show ./sales": Like("python -m environments show my-task"),
    "python -m mlagent_jax.train --config=configs/quickstart.py --workdir=runs/sales": Like(OWN_TASK),
    "python -m mlagent_jax.train --config=configs/quickstart.py --workdir=runs/suite": Elsewhere(
        "tests/mlagent_jax/runs/test_run_tasks.py::test_ten_thousand_references_prepare_only_what_is_needed"
    ),
    "pip install --no-deps --target=suite-packages": Needs("packages of the index"),
    "MLAGENT_SUITE_PATH=suite-packages python -m environments build-suite": Elsewhere(
        "tests/environments/factory/test_suite.py::test_a_build_leaves_out_copies_and_unlicensed_tables_and_resumes"
    ),
    "python -m environments check suite": Elsewhere(NEW_TASK),
    "python -m environments report suite": Elsewhere(NEW_TASK),
    "python -m environments check spooky-author-identification": Needs("data of Kaggle"),
    "mlebench prepare": Needs("another project's program and data of Kaggle"),
    "python -u -m MLAgentBench.prepare_task": Needs("another project's program and data of Kaggle"),
    "python -c import tensorflow_datasets": Needs("TensorFlow and a network"),
    "python launch/sweep.py --config=configs/rl_7b_h100_8.py": CLOUD,
    "launch/tpu_pod.sh": CLOUD,
    "launch/gke.sh": CLOUD,
    "launch/slurm.sh": CLOUD,
    "launch/workers.sh": Needs("systemd: tests/launch/test_workers.py has the unit checked where it is"),
    "launch/image.sh": Needs("a base image and minutes: tests/launch/test_compose.py runs it with stand-ins"),
    "docker push": Needs("a registry"),
    "python tools/edit_quality.py": Elsewhere("tests/tools/test_edit_quality.py::test_shares_are_of_what_they_say"),
    "./launch/pretrained.sh": Needs("four hours: tests/launch/test_pretrained.py runs its config made small"),
    "./launch/quickstart.sh": Needs("a quarter of an hour: runs/s0, above, is the same with less of everything"),
    "./tests/run.sh": Needs("itself: it runs this test"),
    ". .venv/bin/activate": INSTALLS,
    "pip install": INSTALLS,
    "export": Needs("nothing: it sets variables"),
}

IN_THE_TEXT: dict[str, str | Elsewhere | Needs] = {
    "python tools/plan.py": "python tools/plan.py --config=configs/rl_7b_h100_8.py --devices=h100-8",
    "python tools/degenerate_policies.py": Elsewhere(
        "tests/tools/test_degenerate_policies.py::test_ours_pays_none_of_them_more_than_an_honest_attempt_that_fails_to_gain"
    ),
    "python tools/import_gguf.py": Elsewhere(
        "tests/mlagent_jax/checkpoints/test_gguf.py::test_the_command_writes_a_folder_or_says_why_not"
    ),
    "python tools/headroom.py": "python tools/headroom.py iris --ideas 1",
    "python tools/bench/bench_rl_iteration.py": Needs("a minute to compile four loops; the study of time runs one"),
    "python tools/bench/mesh_differences.py": "python tools/bench/mesh_differences.py --checkpoint=runs/quickstart"
    " --meshes=8,1,1 --prompts=1 --n=1 --max_new_tokens=2",
    "python tools/bench/bench_sampler_host.py": "python tools/bench/bench_sampler_host.py --prompts=2 --tokens=100"
    " --completion=4",
    "python -m environments actions": Elsewhere(
        "tests/environments/interfaces/test_command_line.py::test_actions_prints_what_a_reply_may_hold"
    ),
    "python -m environments doctor": Elsewhere(
        "tests/environments/interfaces/test_doctor.py::test_a_host_with_one_sandbox_is_ready_and_all_is_told_as_json_too"
    ),
    "python -m environments self-check": Elsewhere(
        "tests/environments/sandbox/self_check/test_self_check.py::test_a_sandbox_of_an_installed_package_is_checked_by_name"
    ),
    "python tools/config_reference.py": Elsewhere("tests/test_docs.py::test_the_config_reference_is_current"),
    "python -m mlagent_jax.studies.sleeping": Elsewhere(SLEEPING),
    "python -m environments fetch": COMMANDS["python -m environments fetch spooky-author-identification"],
}
"""Programs that stand in the text alone, where commands are shortened: what is run of them."""


SNIPPETS: dict[str, Run | Elsewhere] = {
    "import environments": Run(),
    "import gymnasium": Run(),
    **{
        start: Elsewhere("tests/mlagent_jax/test_library_page.py::test_the_blocks_of_the_page_run_in_order")
        for start in (
            'import environments\n\nenv = environments.make("micro-rings-0"',
            "from environments.protocol import Job, State",
            "from mlagent_jax.trajectories.store import TrajectoryStore",
            "from mlagent_jax.checkpoints import hugging_face, policies",
            "import jax.numpy as jnp\n\nfrom mlagent_jax.models.packing import Sample",
            "from mlagent_jax.agents.episodes import",
        )
    },
    "def prepare(raw, public, private, seed): ...": Run(),
    "def grade(submission, answers):": Run(),
    "from environments.tasks.folders import archives": Run(),
    "from environments.tasks.folders import tfds_source": Elsewhere(
        "tests/environments/tasks/folders/test_tfds_source.py::test_a_folder_makes_its_task_of_such_data"
    ),
    "from pathlib import Path\n\nfrom environments.tasks.generated.scripts import write_cells": Elsewhere(
        "tests/environments/tasks/generated/test_own_cells.py::"
        "test_a_table_in_the_documented_files_is_worked_on_by_the_starting_script"
    ),
    "from mlagent_jax.search.strategies import STRATEGIES": Run(),
    "import jax.numpy as jnp": Elsewhere("tests/mlagent_jax/algorithms/test_own_loss.py::test_the_loss_of_the_page"),
    "from typing import Annotated": Elsewhere("tests/environments/test_own_reward.py::test_a_worker_process_pays_it"),
    'setup(..., entry_points={"mlagent_jax.rewards"': Elsewhere(
        "tests/environments/test_own_reward.py::test_an_installed_package_brings_one"
    ),
    "setup(...": Elsewhere(
        "tests/environments/tasks/folders/test_folder.py::test_an_installed_entry_point_is_a_recipe_by_its_name"
    ),
    "from mlagent_jax.sampling import Sampler": Elsewhere(
        "tests/mlagent_jax/sampling/test_commands.py::test_the_page_s_library_snippet_runs"
    ),
    "import openai": Elsewhere(
        "tests/mlagent_jax/sampling/test_commands.py::test_the_server_command_answers_the_page_s_client"
    ),
}
"""Python in blocks, by how it begins."""


def blocks(*languages):
    for page, text in PAGES.items():
        for found in BLOCK.finditer(text):
            if found[1] in languages:
                yield page.name, found[2]


def typed():
    """Pages and their commands, each as its words: of fenced blocks and of indented ones."""
    for page, text in PAGES.items():
        indented = re.findall(r"^ {4}(\S.*(?:\n {5,}\S.*)*)$", BLOCK.sub("", text), re.MULTILINE)
        for block in [*(block for name, block in blocks("", "bash", "sh") if name == page.name), *indented]:
            lines = block.replace("\\\n", " ").splitlines()
            if not any(map(TYPED.match, lines)):
                continue
            for line in lines:
                words = shlex.split(line, comments=True)
                while words:
                    end = words.index("&&") if "&&" in words else len(words)
                    command, words = words[:end], words[end + 1 :]
                    yield page.name, command


def inline():
    for page, text in PAGES.items():
        for found in INLINE.finditer(BLOCK.sub("", text)):
            module = found["module"]
            if module is None or module.startswith(("mlagent_jax", "environments")):
                yield page.name, found


def key_of(command: str, table) -> str | None:
    """The longest entry that `command` begins with."""
    return max((key for key in table if command.startswith(key)), key=len, default=None)


def is_there(test: str) -> bool:
    """Whether FILE::NAME is a test."""
    path, _, name = test.partition("::")
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    return any(isinstance(node, ast.FunctionDef) and node.name == name for node in tree.body)
