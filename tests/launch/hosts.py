"""Hosts of a small network on this machine: network namespaces around a switch, each with an address of its own.

They share files and processes' numbers, but no network: what goes between two of them goes over a wire that can be cut.
Needs root and the program `ip`.
"""

import contextlib
import ctypes
import os
import re
import shutil
import socket
import subprocess
from pathlib import Path

_CLONE_NEWNET = 0x40000000


def can_be_made():
    """Whether this machine makes network namespaces for us."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        return False
    name = f"mla{os.getpid()}probe"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False).returncode == 0
    subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
    return made


class Network:
    """Hosts by name, at 10.77.0.1 and on."""

    def __init__(self, *names):
        _remove_abandoned()
        self._prefix = f"mla{os.getpid()}"
        self._switch = f"{self._prefix}switch"
        self.addresses = {name: f"10.77.0.{number}" for number, name in enumerate(names, start=1)}
        _ip("netns", "add", self._switch)
        _ip("-n", self._switch, "link", "add", "switch", "type", "bridge")
        _ip("-n", self._switch, "link", "set", "switch", "up")
        for name, address in self.addresses.items():
            space = self.space(name)
            _ip("netns", "add", space)
            _ip("-n", space, "link", "add", "wire", "type", "veth", "peer", "name", name, "netns", self._switch)
            _ip("-n", space, "address", "add", f"{address}/24", "dev", "wire")
            for link in ("lo", "wire"):
                _ip("-n", space, "link", "set", link, "up")
            _ip("-n", self._switch, "link", "set", name, "master", "switch", "up")
            # What asks for the host's own name gets an address that the others reach.
            folder = Path("/etc/netns", space)
            folder.mkdir(parents=True)
            (folder / "hosts").write_text(f"127.0.0.1 localhost\n{address} {socket.gethostname()}\n")

    def space(self, name):
        """The namespace of a host."""
        return f"{self._prefix}{name}"

    def command(self, name, *command):
        """`command`, on a host."""
        return ["ip", "netns", "exec", self.space(name), *command]

    def cut(self, name):
        """Pull a host's wire: nothing is closed, nothing arrives."""
        _ip("-n", self._switch, "link", "set", name, "down")

    def restore(self, name):
        _ip("-n", self._switch, "link", "set", name, "up")

    @contextlib.contextmanager
    def on(self, name):
        """What this thread connects to or starts meanwhile, it does from a host."""
        with open("/proc/thread-self/ns/net") as own, open(f"/run/netns/{self.space(name)}") as there:
            _enter(there)
            try:
                yield
            finally:
                _enter(own)

    def close(self):
        for space in (*map(self.space, self.addresses), self._switch):
            _remove(space)


def _remove(space):
    subprocess.run(["ip", "netns", "del", space], check=False)
    shutil.rmtree(f"/etc/netns/{space}", ignore_errors=True)


def _remove_abandoned():
    """What tests left that were killed."""
    for path in Path("/run/netns").glob("mla*"):
        owner = re.match(r"mla(\d+)", path.name)
        if owner and not Path("/proc", owner[1]).exists():
            _remove(path.name)


def _ip(*arguments):
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


def _enter(file):
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(file.fileno(), _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns failed")
