"""The filter of system calls (seccomp) that every script runs under.

It backs up the missing capabilities: it blocks calls that no machine-learning script needs and that kernel exploits
used. It is the only barrier between executions for calls that reach shared objects: a lease or a watch on a file that
another one reads, a process that becomes the warm interpreter's child, a dump for the host's handler.
"""

from __future__ import annotations

import ctypes
import os
import platform
import socket
import struct

_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_NUMBERS = {
    "x86_64": {
        "socket": 41, "clone": 56, "fcntl": 72, "ptrace": 101, "syslog": 103, "pivot_root": 155, "setrlimit": 160,
        "chroot": 161, "sync": 162, "acct": 163, "mount": 165, "umount2": 166, "swapon": 167, "swapoff": 168,
        "reboot": 169, "iopl": 172, "ioperm": 173, "init_module": 175, "delete_module": 176, "quotactl": 179,
        "io_setup": 206, "kexec_load": 246, "add_key": 248, "request_key": 249, "keyctl": 250, "inotify_init": 253,
        "unshare": 272, "move_pages": 279, "inotify_init1": 294, "perf_event_open": 298, "fanotify_init": 300,
        "prlimit64": 302, "name_to_handle_at": 303, "open_by_handle_at": 304, "syncfs": 306, "setns": 308,
        "process_vm_readv": 310, "process_vm_writev": 311, "kcmp": 312, "finit_module": 313, "memfd_create": 319,
        "kexec_file_load": 320, "bpf": 321, "userfaultfd": 323, "shmget": 29,
    },
    "aarch64": {
        "io_setup": 0, "fcntl": 25, "inotify_init1": 26, "umount2": 39, "mount": 40, "pivot_root": 41, "chroot": 51,
        "quotactl": 60, "sync": 81, "acct": 89, "unshare": 97, "kexec_load": 104, "init_module": 105,
        "delete_module": 106, "syslog": 116, "ptrace": 117, "reboot": 142, "setrlimit": 164, "shmget": 194,
        "socket": 198, "add_key": 217, "request_key": 218, "keyctl": 219, "clone": 220, "swapon": 224, "swapoff": 225,
        "move_pages": 239, "perf_event_open": 241, "prlimit64": 261, "fanotify_init": 262, "name_to_handle_at": 264,
        "open_by_handle_at": 265, "syncfs": 267, "setns": 268, "process_vm_readv": 270, "process_vm_writev": 271,
        "kcmp": 272, "finit_module": 273, "memfd_create": 279, "bpf": 280, "userfaultfd": 282, "kexec_file_load": 294,
    },
}  # fmt: skip
_EVERYWHERE = {
    "io_uring_setup": 425, "io_uring_enter": 426, "io_uring_register": 427, "open_tree": 428, "move_mount": 429,
    "fsopen": 430, "fsconfig": 431, "fsmount": 432, "fspick": 433, "clone3": 435, "mount_setattr": 442,
    "quotactl_fd": 443, "memfd_secret": 447, "cachestat": 451,
}  # fmt: skip
"""Numbers of newer calls, the same on all architectures."""

_WITH_RULES = frozenset({"clone", "clone3", "fcntl", "socket", "setrlimit", "prlimit64", "sync", "syncfs"})
_UNMAPPED_MEMORY = frozenset({"memfd_create", "memfd_secret", "shmget"})
"""Calls for memory that need not be mapped by a process, so that watching processes does not reveal it."""

_NEW_NAMESPACES = 0x10000000 | 0x00020000 | 0x20000000 | 0x40000000 | 0x08000000 | 0x04000000 | 0x02000000
_CLONE_PARENT = 0x00008000
"""Flag that makes the new process a child of the caller's parent, which is ours."""
_FCNTL_COMMANDS = (1024, 1026, 1036, 1038)
"""F_SETLEASE, F_NOTIFY, F_SET_RW_HINT, F_SET_FILE_RW_HINT: each affects the file for everyone who has it open."""
_FAMILIES = (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6, 16)  # 16: netlink, which the C library's resolver asks
_RLIMIT_CORE = 4
_X32 = 0x40000000

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _ANSWER = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER_AT, _ARCHITECTURE_AT, _ARGUMENTS_AT = 0, 4, 16
_ALLOW, _KILL, _FAIL = 0x7FFF0000, 0x80000000, 0x00050000
_EPERM, _ENOSYS, _EAFNOSUPPORT = 1, 38, 97
_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 22, 2

Instruction = tuple[int, int, int, int]
"""Code, jump if true, jump if false, operand."""


def known(machine: str | None = None) -> bool:
    """Check whether system-call numbers are known for `machine` (default: this one)."""
    return (machine or platform.machine()) in _ARCHITECTURES


def install(unmapped_memory: bool = True) -> bool:
    """Filter the system calls of this process and all its descendants.

    Args:
      unmapped_memory: whether memory files and System V segments are allowed; must be False if memory is only watched.

    Returns:
      False if the numbers for this machine's architecture are unknown and nothing was installed.
    """
    machine = platform.machine()
    if not known(machine):
        return False
    code = b"".join(struct.pack("HBBI", *instruction) for instruction in _program(machine, unmapped_memory))
    buffer = ctypes.create_string_buffer(code, len(code))
    header = struct.pack("HxxxxxxP", len(code) // 8, ctypes.addressof(buffer))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, header, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"PR_SET_SECCOMP: {os.strerror(number)}")
    return True


def _program(machine: str, unmapped_memory: bool) -> list[Instruction]:
    numbers = _NUMBERS[machine] | _EVERYWHERE
    program = [
        (_LOAD, 0, 0, _ARCHITECTURE_AT),
        (_EQUAL, 1, 0, _ARCHITECTURES[machine]),
        (_ANSWER, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER_AT),
    ]
    if machine == "x86_64":
        program += [(_AT_LEAST, 0, 1, _X32), _fail(_ENOSYS)]
    for name, number in numbers.items():
        if name not in _WITH_RULES and not (unmapped_memory and name in _UNMAPPED_MEMORY):
            program += _on(number, _fail(_EPERM))
    allow = (_ANSWER, 0, 0, _ALLOW)
    pretend = _fail(0)
    # The C library falls back from clone3, whose flags a filter cannot read, to clone, whose flags it can.
    program += _on(numbers["clone3"], _fail(_ENOSYS))
    flags = _NEW_NAMESPACES | _CLONE_PARENT
    program += _on(numbers["clone"], _argument(0), (_ANY_BIT, 0, 1, flags), _fail(_EPERM), allow)
    commands = [step for command in _FCNTL_COMMANDS for step in _on(command, _fail(_EPERM))]
    program += _on(numbers["fcntl"], _argument(1), *commands, allow)
    families = [step for family in _FAMILIES for step in _on(int(family), allow)]
    program += _on(numbers["socket"], _argument(0), *families, _fail(_EAFNOSUPPORT))
    # A script's limit is 1, which stops a dump to the host's handler where 0 does not. Setting 0 only seems to succeed.
    program += _on(numbers["setrlimit"], _argument(0), *_on(_RLIMIT_CORE, pretend), allow)
    sets = [step for high in (False, True) for step in (_argument(2, high), (_EQUAL, 1, 0, 0), pretend)]
    program += _on(numbers["prlimit64"], _argument(1), *_on(_RLIMIT_CORE, *sets, allow), allow)
    # A script writes to memory only: these calls would flush the host's data to disk.
    program += [*_on(numbers["sync"], pretend), *_on(numbers["syncfs"], pretend)]
    return [*program, allow]


def _fail(number: int) -> Instruction:
    return (_ANSWER, 0, 0, _FAIL | number)


def _argument(index: int, high: bool = False) -> Instruction:
    """Load the lower (first, on these little-endian machines) or the higher half of an argument."""
    return (_LOAD, 0, 0, _ARGUMENTS_AT + 8 * index + 4 * high)


def _on(value: int, *steps: Instruction) -> list[Instruction]:
    """Run `steps`, which end with an answer, if the loaded value equals `value`."""
    return [(_EQUAL, 0, len(steps), value), *steps]
