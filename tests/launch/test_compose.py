"""launch/compose.sh and launch/image.sh: a run through the real services to its end, and what is missing is named."""

import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tarfile
import threading
from pathlib import Path

import needs
import pytest
from tiny_run import SETTINGS

from environments.files.file_systems import cache_directory
from environments.protocol import OutcomeKind
from environments.sandbox.rootfs import ensure_rootfs
from mlagent_jax.trajectories.store import TrajectoryStore

ROOT = Path(__file__).parents[2]
PROGRAMS = ("debootstrap", "docker", "python")
TRAINER = "label=com.docker.compose.service=trainer"
WITH_MOUNTS = """
for argument in "$@"; do
  arguments+=("$argument")
  [ "$argument" != --file=launch/compose.yaml ] || arguments+=("--file=$FAKE/mounts.json")
done
exec PROGRAM "${arguments[@]}"
"""
GOOD = ("--config=configs/smoke.py", "--name=run-1", "--workers=3", "--config.seed=1")


@pytest.mark.slow
def test_a_dry_run_shows_the_commands_and_the_trainers_settings(launch, programs, tmp_path):
    programs("docker", '[ "$1" != image ]')
    result = launch("compose.sh", *GOOD, f"--runs={tmp_path}/runs", "--dry_run")
    assert result.returncode == 0, result.stderr
    assert "missing here: the engine has no image mlagent-jax:local: launch/image.sh builds it" in result.stderr
    assert "--scale=worker=3" in result.stdout
    assert "--config.seed=1 --workdir=/runs/run-1 --config.workers.slots=0" in result.stdout
    assert result.stdout.rstrip().endswith("--file=launch/compose.yaml down")
    assert not (tmp_path / "runs").exists()
    result = launch("compose.sh", *GOOD)
    assert result.returncode == 1
    assert "the engine has no image" in result.stderr


@pytest.mark.slow
def test_the_image_is_built_as_the_dry_run_says_without_a_network_in_the_build(launch, programs, tmp_path):
    # Stand-ins note what they are called with; the stream that the build gets is read by nobody.
    note = 'printf "%s\\n" "$(basename "$0") $*" >>"$FAKE/calls"'
    programs(
        "docker",
        f"""
        case "$1 $2" in
          "info "*) exit 0 ;;
          "image inspect") exit 1 ;;
          "import -" | "build --quiet") tar -t >"$FAKE/$1" || exit 1 ;;
        esac
        {note}
    """,
    )
    programs("debootstrap", f'{note}; mkdir -p "$4/etc" "$4/dev"; touch "$4/etc/hostname" "$4/dev/null"')
    python = programs(
        "python",
        f"""
        [ "$*" != "-m pip --version" ] || exit 0
        [ "$1" = -m ] || exec {sys.executable} "$@"
        {note}
    """,
    )
    arguments = ("--base=debootstrap", "--extras=tpu,postgres", f"--wheels={tmp_path}/wheels")
    dry = launch("image.sh", *arguments, "--dry_run", PYTHON=str(python))
    assert dry.returncode == 0, dry.stderr
    assert not (tmp_path / "calls").exists()
    assert not (tmp_path / "wheels").exists()
    done = launch("image.sh", *arguments, PYTHON=str(python))
    assert done.returncode == 0, done.stderr

    def told(text):
        """Commands of the stand-ins, without the folder that is made anew each time."""
        words = [line.split(" | ")[-1].replace(str(python), "python") for line in text.splitlines()]
        return [re.sub(r"/\S*/tmp\.\w+", "CONTEXT", w).replace("'", "") for w in words if w.split()[0] in PROGRAMS]

    assert told((tmp_path / "calls").read_text()) == told(dry.stdout)
    assert len(told(dry.stdout)) == 6
    assert "--network=none" in dry.stdout
    assert "--build-arg=EXTRAS=tpu,postgres" in dry.stdout
    assert {"Dockerfile", "source/launch/image.sh", "wheels/"} <= set((tmp_path / "build").read_text().splitlines())
    root = (tmp_path / "import").read_text().splitlines()
    assert "./etc/hostname" in root
    assert "./dev/" not in root
    result = launch("image.sh", "--name=x", "--dry_run")
    assert "unknown option --name=x" in result.stderr


def need_compose():
    """The command, as launch/compose.sh finds it."""
    plugin = shutil.which("docker") and subprocess.run(["docker", "compose", "version"], capture_output=True).returncode
    if plugin == 0:
        return ["docker", "compose"]
    needs.need(shutil.which("docker-compose"), "no Compose (Debian: apt-get install docker-compose)")
    return ["docker-compose"]


def test_compose_takes_the_file():
    done = subprocess.run(
        [*need_compose(), "--file=launch/compose.yaml", "config", "--services"],
        capture_output=True,
        text=True,
        env={"PATH": os.environ["PATH"], "TRAINER_PASSWORD": "x", "WORKER_PASSWORD": "y", "MLAGENT_ARGUMENTS": "--a=b"},
        check=False,
    )
    assert sorted(done.stdout.split()) == ["queue", "roles", "trainer", "worker"], done.stderr


def docker(*arguments, **options):
    done = subprocess.run(["docker", *arguments], capture_output=True, check=False, **options)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode().split()


@pytest.fixture
def host_image():
    """An image with nothing in it but the frame of a root file system: programs, packages and this checkout are mounts
    of the host's own (`mounts`), in place of the copies that launch/image.sh makes in minutes."""
    engine = shutil.which("docker") and subprocess.run(["docker", "info"], capture_output=True, check=False).returncode
    needs.need(engine == 0, "no Docker engine: tests/run.sh starts one")
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as archive:
        for name in ("bin", "lib", "lib64"):  # sbin is a folder: the engine puts its init process there
            if os.path.islink(f"/{name}"):
                archive.add(f"/{name}", arcname=name)
        for name in ("passwd", "group", "ld.so.cache", "nsswitch.conf"):
            archive.add(f"/etc/{name}", arcname=f"etc/{name}")
        for name, mode in (("tmp", 0o1777), ("run", 0o755), ("sbin", 0o755), ("var/lib", 0o755), ("root", 0o700)):
            folder = tarfile.TarInfo(name)
            folder.type, folder.mode = tarfile.DIRTYPE, mode
            archive.addfile(folder)
    tag = f"mlagent-jax-test:{os.getpid()}"
    path = f"ENV PATH={Path(sys.prefix, 'bin')}:/usr/bin:/bin:/usr/sbin"
    lines = (path, f"ENV PYTHONPATH={ROOT}", f"ENV MLAGENT_CACHE={cache_directory()}", f"WORKDIR {ROOT}")
    changes = [f"--change={line}" for line in lines]
    docker("import", *changes, "-", tag, input=tar.getvalue())
    yield tag
    docker("rmi", "--force", tag)


def mounts():
    """Folders of this host that the services see, at the same place."""
    folders = {Path("/usr"), Path(sys.prefix), Path(sys.base_prefix), ROOT, cache_directory()}
    return [f"{folder}:{folder}:ro" for folder in sorted(folders) if not {*folder.parents} & folders]


@pytest.mark.slow
@pytest.mark.docker
@pytest.mark.postgres
def test_a_run_is_stopped_once_and_goes_on_to_its_end_through_postgresql_and_a_worker(
    launch, programs, host_image, tmp_path
):
    """PostgreSQL, roles, trainer and a worker as containers of launch/compose.yaml, the trainer pre-empted once while
    it collects. What the image of launch/image.sh holds is not tested: programs and packages are the host's."""
    needs.need(os.geteuid() == 0, "what containers write is root's: run as root")
    need_compose()
    to_mount = list(Path("/usr/lib/postgresql").glob("*/bin/initdb")) and shutil.which("bwrap")
    needs.need(to_mount, "no PostgreSQL or bubblewrap to mount: tests/run.sh installs them")
    ensure_rootfs()
    services = {name: {"volumes": mounts()} for name in ("queue", "roles", "trainer", "worker")}
    services["trainer"]["environment"] = {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_backend_optimization_level=0",
    }
    (tmp_path / "mounts.json").write_text(json.dumps({"services": services}))
    for name in ("docker", "docker-compose"):
        if real := shutil.which(name):
            programs(name, WITH_MOUNTS.replace("PROGRAM", real))
    name = f"test-{os.getpid()}"
    workdir = tmp_path / "runs" / name
    project = f"label=com.docker.compose.project=mlagent-{name}"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    def preempt():
        # From then on it waits for the worker.
        while not list(workdir.glob("tasks/*/task.json")):
            if finished.wait(0.1):
                return
        docker("kill", "--signal=TERM", *docker("ps", "--quiet", f"--filter={project}", f"--filter={TRAINER}"))

    finished = threading.Event()
    killer = threading.Thread(target=preempt)
    killer.start()
    try:
        arguments = (
            f"--name={name}",
            f"--runs={tmp_path}/runs",
            f"--port={port}",
            f"--image={host_image}",
            "--workers=1",
        )
        result = launch("compose.sh", *SETTINGS, "--config.stages=collect", *arguments)
        left = docker("ps", "--all", "--quiet", f"--filter={project}")
    finally:
        finished.set()
        killer.join()
        for kind, remove in (("ps", ("rm", "--force")), ("volume", ("volume", "rm"))):
            listing = ("ps", "--all") if kind == "ps" else ("volume", "ls")
            if found := docker(*listing, "--quiet", f"--filter={project}"):
                docker(*remove, *found)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    assert "the trainer was told to stop and has saved; starting it again" in result.stderr
    assert left == []
    assert (tmp_path / "runs" / f"{name}.env").stat().st_mode & 0o777 == 0o600
    outcomes = [record.outcome.kind for record in TrajectoryStore.open(workdir / "trajectories" / "collect")]
    assert len(outcomes) == 12
    assert OutcomeKind.SCORED in outcomes
    assert OutcomeKind.INFRASTRUCTURE_ERROR not in outcomes
