"""The few Linux calls that a wall is built from and that Python 3.11 has no name for.

Thin: each function is one call, or one short protocol of the kernel, and raises OSError where the kernel refuses.
`supervisor` says in which order they make a wall.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import platform
import resource
import socket
import struct

_LIBC = ctypes.CDLL(None, use_errno=True)

CLONE_NEWPID = 0x20000000
NEW_NAMESPACES = 0x10000000 | 0x00020000 | 0x20000000 | 0x40000000 | 0x08000000 | 0x04000000 | 0x02000000
"""CLONE_NEWUSER, NEWNS, NEWPID, NEWNET, NEWIPC, NEWUTS, NEWCGROUP."""

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

_PR_SET_DUMPABLE, _PR_SET_SECCOMP, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT = 4, 22, 24, 38, 47
_PR_CAP_AMBIENT_CLEAR_ALL, _SECCOMP_MODE_FILTER = 4, 2
_CAPABILITY_VERSION_3 = 0x20080522
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 1


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def unshare(flags: int) -> None:
    """Leave the namespaces in `flags` for fresh ones (the pid namespace: for children)."""
    _check(_LIBC.unshare(flags), "unshare")


def setns(descriptor: int, flags: int) -> None:
    """Enter the namespaces in `flags` of the process behind a pidfd (the pid namespace: for children)."""
    _check(_LIBC.setns(descriptor, flags), "setns")


def map_identity(uid: int, gid: int, outer_uid: int, outer_gid: int) -> None:
    """In a fresh user namespace: be `uid` and `gid`, which are the outer ones' only names."""
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


def make_read_only(place: str) -> None:
    """Make a mount of this mount namespace read-only; the kernel wants the flags that an outer one locked again."""
    locked = os.statvfs(place).f_flag & (MS_NOSUID | MS_NODEV | MS_NOEXEC)
    mount(None, place, None, MS_BIND | MS_REMOUNT | MS_RDONLY | MS_NOSUID | locked)


def raise_loopback() -> None:
    """A fresh network namespace has a loopback interface that is down; multiprocessing's managers need it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        request = fcntl.ioctl(any_socket, _SIOCGIFFLAGS, struct.pack("16sh14x", b"lo", 0))
        (flags,) = struct.unpack_from("16xh", request)
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", flags | _IFF_UP))


def set_dumpable(dumpable: bool) -> None:
    """Whether processes of the same user may look into this one (ptrace, /proc/PID/fd, /proc/PID/mem)."""
    _check(_LIBC.prctl(_PR_SET_DUMPABLE, int(dumpable), 0, 0, 0), "PR_SET_DUMPABLE")


def drop_privileges() -> None:
    """No capability, none to be had, and nothing that is executed can give one: this cannot be undone."""
    _check(_LIBC.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "PR_SET_NO_NEW_PRIVS")
    with open("/proc/sys/kernel/cap_last_cap", encoding="ascii") as file:
        last = int(file.read())
    for capability in range(last + 1):
        _check(_LIBC.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0), "PR_CAPBSET_DROP")
    _check(_LIBC.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0), "PR_CAP_AMBIENT_CLEAR_ALL")
    header = struct.pack("Ii", _CAPABILITY_VERSION_3, 0)
    _check(_LIBC.capset(header, bytes(24)), "capset")


def set_limits(limits: dict[str, int]) -> None:
    """Soft and hard resource limits by the name of their RLIMIT constant; never raised above what is there."""
    for name, value in limits.items():
        kind = getattr(resource, f"RLIMIT_{name}")
        _, hard = resource.getrlimit(kind)
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (value, value))


# System calls that no machine-learning script needs and that kernels were broken through, by architecture. As in the
# container engines' default profiles; a second wall behind the missing capabilities.
_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_SINCE_2019 = range(425, 434)  # io_uring_*, open_tree, move_mount, fsopen, fsconfig, fsmount, fspick
_MOUNT_SETATTR, _CLONE3 = 442, 435
_DENIED = {
    "x86_64": {
        "ptrace": 101, "syslog": 103, "pivot_root": 155, "chroot": 161, "acct": 163, "mount": 165, "umount2": 166,
        "swapon": 167, "swapoff": 168, "reboot": 169, "iopl": 172, "ioperm": 173, "init_module": 175,
        "delete_module": 176, "quotactl": 179, "kexec_load": 246, "add_key": 248, "request_key": 249, "keyctl": 250,
        "unshare": 272, "move_pages": 279, "perf_event_open": 298, "fanotify_init": 300, "name_to_handle_at": 303,
        "open_by_handle_at": 304, "setns": 308, "process_vm_readv": 310, "process_vm_writev": 311, "kcmp": 312,
        "finit_module": 313, "kexec_file_load": 320, "bpf": 321, "userfaultfd": 323,
    },
    "aarch64": {
        "ptrace": 117, "syslog": 116, "pivot_root": 41, "chroot": 51, "acct": 89, "mount": 40, "umount2": 39,
        "swapon": 224, "swapoff": 225, "reboot": 142, "init_module": 105, "delete_module": 106, "quotactl": 60,
        "kexec_load": 104, "add_key": 217, "request_key": 218, "keyctl": 219, "unshare": 97, "move_pages": 239,
        "perf_event_open": 241, "fanotify_init": 262, "name_to_handle_at": 264, "open_by_handle_at": 265,
        "setns": 268, "process_vm_readv": 270, "process_vm_writev": 271, "kcmp": 272, "finit_module": 273,
        "kexec_file_load": 294, "bpf": 280, "userfaultfd": 282,
    },
}  # fmt: skip
_CLONE = {"x86_64": 56, "aarch64": 220}
_SOCKET = {"x86_64": 41, "aarch64": 198}
_FAMILIES = (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6, 16)  # 16: netlink, which the C library's resolver asks
_X32 = 0x40000000


def filter_system_calls() -> bool:
    """Install the seccomp filter for this process and all that descend from it.

    Returns:
      False where the numbers for this machine's architecture are not known and nothing was installed.
    """
    machine = platform.machine()
    if machine not in _ARCHITECTURES:
        return False
    load, equal, at_least, bits, answer = 0x20, 0x15, 0x35, 0x45, 0x06
    allow, kill = 0x7FFF0000, 0x80000000

    def fail(number: int) -> int:
        return 0x00050000 | number

    eperm, enosys, eafnosupport = 1, 38, 97
    number_at, architecture_at, argument_at = 0, 4, 16
    program: list[tuple[int, int, int, int]] = [
        (load, 0, 0, architecture_at),
        (equal, 1, 0, _ARCHITECTURES[machine]),
        (answer, 0, 0, kill),
        (load, 0, 0, number_at),
    ]
    if machine == "x86_64":
        program += [(at_least, 0, 1, _X32), (answer, 0, 0, fail(enosys))]
    for number in [*_DENIED[machine].values(), *_SINCE_2019, _MOUNT_SETATTR]:
        program += [(equal, 0, 1, number), (answer, 0, 0, fail(eperm))]
    # The C library falls back from clone3, whose flags a filter cannot read, to clone, whose flags it can.
    program += [(equal, 0, 1, _CLONE3), (answer, 0, 0, fail(enosys))]
    program += [
        (equal, 0, 4, _CLONE[machine]),
        (load, 0, 0, argument_at),
        (bits, 0, 1, NEW_NAMESPACES),
        (answer, 0, 0, fail(eperm)),
        (answer, 0, 0, allow),
    ]
    program += [(equal, 0, 2 + len(_FAMILIES), _SOCKET[machine]), (load, 0, 0, argument_at)]
    for left, family in enumerate(reversed(_FAMILIES)):
        program.insert(len(program) - left, (equal, left + 1, 0, int(family)))
    program += [(answer, 0, 0, fail(eafnosupport)), (answer, 0, 0, allow)]

    code = b"".join(struct.pack("HBBI", *instruction) for instruction in program)
    buffer = ctypes.create_string_buffer(code, len(code))
    header = struct.pack("HxxxxxxP", len(program), ctypes.addressof(buffer))
    _check(_LIBC.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, header, 0, 0), "PR_SET_SECCOMP")
    return True
