"""The Linux calls that isolation needs and Python 3.11 lacks.

Each function is one call, or one short protocol of the kernel, and raises OSError if the kernel refuses. `supervisor`
defines their order.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import resource
import socket
import struct

_LIBC = ctypes.CDLL(None, use_errno=True)

CLONE_NEWPID, CLONE_NEWCGROUP = 0x20000000, 0x02000000
NEW_NAMESPACES = 0x10000000 | 0x00020000 | CLONE_NEWPID | 0x40000000 | 0x08000000 | 0x04000000
"""CLONE_NEWUSER, NEWNS, NEWPID, NEWNET, NEWIPC, NEWUTS."""

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = (
    1,
    2,
    4,
    8,
    32,
    4096,
    16384,
    1 << 18,
)

_MNT_DETACH = 2
_PR_SET_DUMPABLE, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT = 4, 24, 38, 47
_PR_CAP_AMBIENT_CLEAR_ALL = 4
_CAPABILITY_VERSION_3 = 0x20080522
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 1


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def unshare(flags: int) -> None:
    """Replace the namespaces in `flags` with new ones (the pid namespace: for children)."""
    _check(_LIBC.unshare(flags), "unshare")


def setns(descriptor: int, flags: int) -> None:
    """Enter the namespaces in `flags` of the process behind a pidfd (the pid namespace: for children)."""
    _check(_LIBC.setns(descriptor, flags), "setns")


def map_identity(uid: int, gid: int, outer_uid: int, outer_gid: int) -> None:
    """Map `uid` and `gid` of a new user namespace to the outer ids; no other id is mapped."""
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{uid} {outer_uid} 1"),
        ("gid_map", f"{gid} {outer_gid} 1"),
    ):
        with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
            file.write(text)


def mount(source: str | None, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    def text(value: str | None) -> bytes | None:
        return None if value is None else os.fsencode(value)

    arguments = (text(source), text(target), text(kind), ctypes.c_ulong(flags), text(options))
    _check(_LIBC.mount(*arguments), f"mount {target}")


def enter_root(place: str) -> None:
    """Make the mount `place` the root of this mount namespace, and detach the old root with all its mounts."""
    os.chdir(place)
    _check(_LIBC.pivot_root(b".", b"."), "pivot_root")
    _check(_LIBC.umount2(b".", _MNT_DETACH), "umount2")
    os.chdir("/")


def make_read_only(place: str) -> None:
    """Make a mount of this mount namespace read-only, repeating the flags that an outer namespace locked."""
    locked = os.statvfs(place).f_flag & (MS_NOSUID | MS_NODEV | MS_NOEXEC)
    mount(None, place, None, MS_BIND | MS_REMOUNT | MS_RDONLY | MS_NOSUID | locked)


def raise_loopback() -> None:
    """Bring up the loopback interface of a new network namespace, which multiprocessing's managers need."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        request = fcntl.ioctl(any_socket, _SIOCGIFFLAGS, struct.pack("16sh14x", b"lo", 0))
        (flags,) = struct.unpack_from("16xh", request)
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", flags | _IFF_UP))


def set_dumpable(dumpable: bool) -> None:
    """Set whether processes of the same user may inspect this one (ptrace, /proc/PID/fd, /proc/PID/mem)."""
    _check(_LIBC.prctl(_PR_SET_DUMPABLE, int(dumpable), 0, 0, 0), "PR_SET_DUMPABLE")


def drop_privileges() -> None:
    """Drop all capabilities irrevocably, so that no executed program can regain any."""
    _check(_LIBC.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "PR_SET_NO_NEW_PRIVS")
    with open("/proc/sys/kernel/cap_last_cap", encoding="ascii") as file:
        last = int(file.read())
    for capability in range(last + 1):
        _check(_LIBC.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0), "PR_CAPBSET_DROP")
    _check(_LIBC.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0), "PR_CAP_AMBIENT_CLEAR_ALL")
    header = struct.pack("Ii", _CAPABILITY_VERSION_3, 0)
    _check(_LIBC.capset(header, bytes(24)), "capset")


def set_limits(limits: dict[str, int]) -> None:
    """Set soft and hard resource limits by the name of their RLIMIT constant, never above the current ones."""
    for name, value in limits.items():
        kind = getattr(resource, f"RLIMIT_{name}")
        _, hard = resource.getrlimit(kind)
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (value, value))
