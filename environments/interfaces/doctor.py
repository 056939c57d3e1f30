"""`python -m environments doctor`: what this host can do, and the command that mends each gap."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

from environments.sandbox import GUARANTEES, SANDBOXES, SandboxError
from environments.sandbox.bubblewrap.cgroups import open_cgroups
from environments.sandbox.gpus import nvidia_gpus
from environments.sandbox.rootfs.assemble import cache_directory

GOOD, OPTIONAL, GAP = "ok", "optional", "GAP"
REQUIRED = ("filesystem", "network", "processes", "privileges", "output")
"""Guarantees that a run requires by default (`config.workers.guarantees`)."""
MIN_MEMORY_GB, MIN_DISK_GB = 8, 6
"""Needs of the quickstart; README names them."""
_INSTALL = {
    "apt-get": "apt-get install {}",
    "dnf": "dnf install {}",
    "yum": "yum install {}",
    "zypper": "zypper install {}",
    "pacman": "pacman -S {}",
    "apk": "apk add {}",
}
_FLAX_OF_JAX = {(0, 11): (0, 12, 9), (0, 12): (0, 12, 9)}
"""Oldest Flax that works with a version of JAX; an older JAX takes any that setup.py allows."""
_ASK_SECONDS = 5.0


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing that a host has, or lacks."""

    name: str
    state: str
    """`ok`; `optional`: missing, and needed for more than the usual alone; `GAP`: missing and needed."""
    found: str
    remedy: str = ""
    """Command or step that mends it; empty if there is nothing to mend."""


def examine() -> list[Finding]:
    """Return what this host has. Sandboxes are tried out; the first time on a host that builds their root."""
    looks: tuple[Callable[[], Iterator[Finding]], ...] = (_system, _python, _jax, _room)
    linux = (_sandboxes, _groups, _accelerators, _clock)
    return [finding for look in (*looks, *(linux if sys.platform == "linux" else ())) for finding in look()]


def install_command(package: str) -> str:
    """Return the command of this host's package manager that installs `package`."""
    for program, command in _INSTALL.items():
        if shutil.which(program):
            prefix = "" if os.geteuid() == 0 else "sudo "
            return prefix + command.format(package)
    return f"install {package} with this system's package manager"


def table(findings: list[Finding]) -> str:
    """Return the findings as a table for people, with remedies below what they mend."""
    width = max(len(finding.name) for finding in findings)
    lines = []
    for each in findings:
        lines.append(f"{each.state:<8}  {each.name:<{width}}  {each.found}")
        if each.remedy:
            lines.append(f"{'':<8}  {'':<{width}}  -> {each.remedy}")
    gaps = sum(each.state == GAP for each in findings)
    lines.append("" if not gaps else f"{gaps} to mend before a run here.")
    lines.append("This host runs everything of one host: ./launch/quickstart.sh" if not gaps else "")
    return "\n".join(line for line in lines if line)


def _system() -> Iterator[Finding]:
    name = f"{platform.system()} {platform.release()} {platform.machine()}"
    if sys.platform == "linux":
        yield Finding("system", GOOD, name)
    else:
        yield Finding(
            "system",
            GAP,
            f"{name}: workers execute scripts on Linux alone; sampling, serving, reports and plans work here",
            "run workers and quickstart in a Linux machine or container",
        )


def _python() -> Iterator[Finding]:
    version = platform.python_version()
    old = sys.version_info < (3, 11)
    yield Finding("python", GAP if old else GOOD, version, "install Python 3.11 or later" if old else "")


def _jax() -> Iterator[Finding]:
    versions = {name: _version(name) for name in ("jax", "flax")}
    if None in versions.values():
        remedy = "pip install -c constraints.txt -e '.[cpu]' (cuda, tpu); workers need none"
        yield Finding("jax and flax", OPTIONAL, "not installed: this host can work, not train", remedy)
        return
    jax, flax = (_numbers(version) for version in versions.values())
    least = _FLAX_OF_JAX.get(jax[:2])
    works = least is None or flax >= least
    found = f"jax {versions['jax']}, flax {versions['flax']}"
    needed = "" if works else f"pip install 'flax>={'.'.join(map(str, least))}'"
    yield Finding("jax and flax", GOOD if works else GAP, found if works else f"{found} do not go together", needed)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:3] if part.isdecimal())


def _room() -> Iterator[Finding]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = psutil.virtual_memory().total / 1e9
    few = memory < MIN_MEMORY_GB * 0.9
    yield Finding(
        "cores and memory",
        OPTIONAL if few or cores < 2 else GOOD,
        f"{cores} cores, {memory:.0f} GB",
        f"the quickstart needs 2 cores and {MIN_MEMORY_GB} GB" if few or cores < 2 else "",
    )
    for name, place in (("disk here", Path.cwd()), ("disk of sandbox roots", cache_directory())):
        while not place.exists():
            place = place.parent
        free = shutil.disk_usage(place).free / 1e9
        small = free < (MIN_DISK_GB if name == "disk here" else 1)
        remedy = "free space; MLAGENT_CACHE names another place for roots" if small else ""
        yield Finding(name, GAP if small else GOOD, f"{free:.0f} GB free at {place}", remedy)


def _sandboxes() -> Iterator[Finding]:
    working: list[str] = []
    found = [_sandbox(name, working) for name in ("bubblewrap", "docker")]
    for each in found:
        # One that works is enough.
        yield dataclasses.replace(each, state=OPTIONAL) if each.state == GAP and working else each


def _sandbox(name: str, working: list[str]) -> Finding:
    title = f"sandbox {name}"
    if name == "bubblewrap" and not shutil.which("bwrap"):
        return Finding(title, GAP, "bwrap is not installed", install_command("bubblewrap"))
    try:
        sandbox = SANDBOXES.get(name)()
    except SandboxError as error:
        told, _, remedy = " ".join(str(error).split()).rpartition("): ")
        return Finding(title, GAP, told.partition(" (")[0] or str(error), remedy)
    try:
        held = sandbox.guarantees
    except SandboxError as error:
        return Finding(title, GAP, " ".join(str(error).split()), "python -m environments self-check")
    finally:
        sandbox.close()
    missing = sorted(set(GUARANTEES) - held)
    needed = sorted(set(REQUIRED) - held)
    if not needed:
        working.append(name)
    told = f"holds {', '.join(sorted(held))}" + (f"; not {', '.join(missing)}" if missing else "")
    remedy = "" if not missing else "start workers as root, or in a group that they may divide (systemd: Delegate=yes)"
    return Finding(title, GAP if needed else GOOD, told, remedy)


def _groups() -> Iterator[Finding]:
    version = "2" if Path("/sys/fs/cgroup/cgroup.controllers").exists() else "1"
    groups = open_cgroups()
    if groups is None:
        remedy = "as root, or: systemd-run --user --scope -p Delegate=yes COMMAND"
        yield Finding("control groups", OPTIONAL, f"version {version}, none may be made here", remedy)
        return
    groups.close()
    yield Finding("control groups", GOOD, f"version {version}; memory, processes and CPU time are limited together")


def _accelerators() -> Iterator[Finding]:
    count = len(nvidia_gpus())
    chips = len([*Path("/dev").glob("accel*"), *Path("/dev").glob("vfio/[0-9]*")])
    if count and _version("jax") and not _version("jax-cuda13-plugin") and not _version("jax-cuda12-plugin"):
        remedy = "pip install -c constraints.txt -e '.[cuda]'"
        yield Finding("accelerators", OPTIONAL, f"{count} NVIDIA GPUs, and JAX for the CPU alone", remedy)
    else:
        kinds = [f"{count} NVIDIA GPUs"] * bool(count) + [f"{chips} TPU chips"] * bool(chips)
        yield Finding("accelerators", GOOD, ", ".join(kinds) or "none; the quickstart needs none")


def _clock() -> Iterator[Finding]:
    if shutil.which("timedatectl"):
        asked = ["timedatectl", "show", "--property=NTPSynchronized", "--value"]
        try:
            done = subprocess.run(  # noqa: S603 - a fixed command
                asked, capture_output=True, text=True, timeout=_ASK_SECONDS, check=True
            )
            answer = done.stdout.strip()
        except (OSError, subprocess.SubprocessError):
            answer = ""
        if answer == "no":
            remedy = "timedatectl set-ntp true (leases use the queue's clock; logs and TLS use this one)"
            yield Finding("clock", OPTIONAL, "is not synchronised", remedy)
            return
        if answer == "yes":
            yield Finding("clock", GOOD, "is synchronised")
            return
    yield Finding("clock", GOOD, "nothing here tells whether it is synchronised; leases use the queue's clock")
