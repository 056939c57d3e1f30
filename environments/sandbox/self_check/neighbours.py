"""Attacks of one script on concurrent and later executions, each of which must end as it would alone.

The test of what executions leave behind runs the scripts of `ATTACKS` too, in a third of its executions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

from environments.sandbox.base import Ending
from environments.sandbox.self_check.bench import OF_THE_POLICY, Bench, check, expect


@dataclasses.dataclass(frozen=True)
class Attack:
    """A hostile script."""

    text: str
    limits: Mapping[str, float] = dataclasses.field(default_factory=dict)


_CALLS = "import ctypes, fcntl, os, signal, socket, sys, time\nlibc = ctypes.CDLL(None, use_errno=True)\n"
_HOLD = "time.sleep(float(open('hold.txt').read()) if os.path.exists('hold.txt') else 0)\n"
"""Seconds that an attack lasts while an honest script runs concurrently."""

ATTACKS = {
    "killed": Attack("import os, time\nos.fork()\ntime.sleep(60)", {"wall_seconds": 0.1}),
    "sibling": Attack(  # clone(CLONE_PARENT | SIGCHLD), by its number on x86-64 and on AArch64
        _CALLS + "number = 220 if os.uname().machine == 'aarch64' else 56\n"
        "pid = libc.syscall(number, 0x8000 | 17, 0, 0, 0, 0)\n"
        "if pid == 0: os._exit(0)\n" + _HOLD + "print('refused' if pid < 0 else 'made')"
    ),
    "descriptors": Attack(
        _CALLS + "import array\nfds, pairs, sent = [os.dup(0) for _ in range(250)], [], 0\n"
        "try:\n"
        "    while True:\n"
        "        a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)\n"
        "        a.setblocking(False); pairs.append((a, b))\n"
        "        try:\n"
        "            while True: a.sendmsg([b'x'], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array('i', fds))])\n"
        "        except BlockingIOError: pass\n"
        "except OSError as error: print(error)\n" + _HOLD
    ),
    "watches": Attack(
        _CALLS + "made = 0\nwhile made < 2000 and libc.inotify_init1(0) >= 0: made += 1\nprint(made)\n" + _HOLD
    ),
    "timers": Attack(
        _CALLS + "timer, made = ctypes.c_void_p(), 0\n"
        "while made < 200_000 and libc.timer_create(0, None, ctypes.byref(timer)) == 0: made += 1\n"
        "print(made)\n" + _HOLD
    ),
    "pipes": Attack(
        _CALLS + "for _ in range(5): os.fork()\npipes = []\n"
        "try:\n"
        "    while True: pipes.append(os.pipe())\n"
        "except OSError: pass\n" + _HOLD,
        {"processes": 40},
    ),
    "lease": Attack(
        _CALLS + "signal.signal(signal.SIGIO, signal.SIG_IGN)\n"
        "for command, value in ((1024, fcntl.F_WRLCK), (1024, fcntl.F_RDLCK), (1026, 1)):\n"
        "    for name in ('train.py', '/usr', *(['data/x.csv'] if os.path.exists('data') else [])):\n"
        "        try: fcntl.fcntl(os.open(name, os.O_RDONLY), command, value); print('held', name)\n"
        "        except OSError: pass\n" + _HOLD
    ),
    "lock": Attack(
        _CALLS + "import this as shared\nfile = open(shared.__file__)\nfcntl.flock(file, fcntl.LOCK_EX)\n"
        "fcntl.lockf(file, fcntl.LOCK_SH)\n" + _HOLD
    ),
    "dump": Attack(
        _CALLS + "import resource\nresource.setrlimit(resource.RLIMIT_CORE, (0, 0))\nkept = bytearray(50 << 20)\n"
        "print(resource.getrlimit(resource.RLIMIT_CORE))\n" + _HOLD + "sys.stdout.flush(); ctypes.string_at(0)"
    ),
    "memory files": Attack(
        _CALLS + "files = [os.memfd_create('x') for _ in range(60)]\nfor f in files: os.write(f, bytes(8 << 20))\n",
        {"memory_mb": 256},
    ),
    "segments": Attack(
        _CALLS + "libc.shmat.restype = ctypes.c_void_p\n"
        "for _ in range(24):\n"
        "    p = libc.shmat(libc.shmget(0, 20 << 20, 0o1600), None, 0)\n"
        "    assert p != 2**64 - 1\n"
        "    ctypes.memset(p, 1, 20 << 20); libc.shmdt(ctypes.c_void_p(p))\n",
        {"memory_mb": 256},
    ),
    "page tables": Attack(
        _CALLS + "libc.mmap.restype = ctypes.c_void_p\n"
        "for _ in range(24):\n"
        "    p = libc.mmap(None, ctypes.c_size_t(8 << 30), 1, 0x4022, -1, 0)\n"
        "    for o in range(0, 8 << 30, 2 << 20): ctypes.c_byte.from_address(p + o).value\n"
    ),
    "signals": Attack(_CALLS + "for n in range(1, 65): libc.kill(1, n)\n" + _HOLD),
    "names": Attack("import os\nfor i in range(1500): os.mkfifo(f'{i}' + 'f' * 200)"),
    "fork bomb": Attack("import os\nwhile True: os.fork()", {"processes": 16, "cpu_seconds": 1}),
}
"""Hostile scripts by name. Without a file `hold.txt` each ends within a second or two."""


def _concurrently(bench: Bench, name: str, honest: str, expected: str) -> str:
    """Run an attack concurrently with `honest`, which must print `expected`; return the output of the attack."""
    attack = ATTACKS[name]
    files, data = {"hold.txt": "3"}, {"x.csv": "a"}
    honest_runs, attacker = bench.concurrently(attack.text, honest, files=files, data=data, **attack.limits)
    for ran in honest_runs:
        expect((ran.exit_code, ran.stdout) == (0, expected), ran.execution)
    expect(attacker.ending in OF_THE_POLICY, attacker.execution)
    return attacker.stdout


@check("neighbours")
def a_child_of_the_interpreters_own_ends_no_other_execution(bench: Bench) -> None:
    """A script that forks a child of the interpreter ends no other execution."""
    _concurrently(bench, "sibling", "import time; time.sleep(0.5); print('fine')", "fine\n")


@check("neighbours")
def descriptors_in_flight_are_no_ones_but_the_scripts(bench: Bench) -> None:
    """A script with the maximum of descriptors in flight leaves others theirs."""
    honest = "import socket\na, b = socket.socketpair()\nsocket.send_fds(a, [b'x'], [0, 1, 2])\nprint('fine')"
    _concurrently(bench, "descriptors", honest, "fine\n")


@check("neighbours")
def timers_and_signals_are_counted_for_each_execution(bench: Bench) -> None:
    """A script with the maximum of timers leaves others theirs."""
    honest = (
        "import ctypes\nlibc, timer = ctypes.CDLL(None), ctypes.c_void_p()\n"
        "print([libc.timer_create(0, None, ctypes.byref(timer)) for _ in range(10)] == [0] * 10)"
    )
    made = int(_concurrently(bench, "timers", honest, "True\n"))
    expect(made <= 2048, f"{made} timers")


@check("neighbours")
def pipes_are_as_large_as_alone(bench: Bench) -> None:
    """A script that fills its processes with pipes leaves others the usual capacity of pipes."""
    _concurrently(bench, "pipes", "import fcntl, os; print(fcntl.fcntl(os.pipe()[0], 1032) >= 65536)", "True\n")


@check("neighbours")
def no_script_holds_a_file_that_others_read(bench: Bench) -> None:
    """Leases and notices on files are refused: opening a shared file never waits."""
    held = _concurrently(bench, "lease", "print(open('data/x.csv').read())", "a\n")
    expect(held == "", held)


@check("neighbours")
def no_script_is_told_what_another_reads(bench: Bench) -> None:
    """Watches on shared files are refused."""
    expect(_concurrently(bench, "watches", "import networkx; print('fine')", "fine\n") == "0\n", "a watch was made")


@check("neighbours")
def a_lock_in_the_root_is_the_executions_own(bench: Bench) -> None:
    """A lock on a file of the root affects no other execution."""
    honest = (
        "import fcntl, this as shared\nfile = open(shared.__file__)\n"
        "fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)\nprint('free')"
    )
    ran, attacker = bench.concurrently(ATTACKS["lock"].text, honest, files={"hold.txt": "3"})
    expect(attacker.exit_code == 0, attacker.execution)
    for each in ran:
        expect(each.stdout.endswith("free\n"), each.execution)


@check("neighbours")
def what_a_script_left_in_the_kernel_is_not_the_next_ones(bench: Bench) -> None:
    """Kernel memory of an ended script does not count for the next one."""
    for _ in range(5):
        first = bench.execute(ATTACKS["page tables"].text)
        expect(first.ending in OF_THE_POLICY, first.execution)
        after = bench.execute("print('fine')", memory_mb=256)
        expect((after.exit_code, after.stdout) == (0, "fine\n"), after.execution)


@check("privileges")
def a_crash_is_no_dump_for_the_host(bench: Bench) -> None:
    """The limit of core dumps disables the host's handler, and cannot be raised."""
    ran = bench.execute(ATTACKS["dump"].text)
    expect(ran.stdout == "(1, 1)\n" and ran.exit_code not in (0, 1), ran.execution)


@check("memory")
def memory_that_no_process_maps_is_limited(bench: Bench) -> None:
    """Memory files and System V segments count, or are refused."""
    for name in ("memory files", "segments"):
        attack = ATTACKS[name]
        ran = bench.execute(attack.text, **attack.limits)
        expect(ran.ending == Ending.MEMORY_LIMIT or ran.exit_code != 0, ran.execution)


@check("processes")
def signals_to_the_first_process_are_the_scripts_own_affair(bench: Bench) -> None:
    """Every signal to the first process is ignored, or ends the script's own execution."""
    _concurrently(bench, "signals", "print('fine')", "fine\n")


@check("processes")
def executions_at_the_same_time_do_not_see_each_other(bench: Bench) -> None:
    """Executions at the same time do not see each other."""
    text = (
        "import os, socket, time\n"
        "mine = open('me.txt').read()\n"
        "for folder in ('/tmp', '/dev/shm', '.'): open(f'{folder}/of-{mine}', 'w').write(mine)\n"
        "s = socket.socket(socket.AF_UNIX); s.bind(chr(0) + 'rendezvous'); s.listen()\n"
        "t = socket.create_server(('127.0.0.1', 5555))\n"
        "time.sleep(0.5)\n"
        "print(sorted(f for folder in ('/tmp', '/dev/shm', '.') for f in os.listdir(folder) if f.startswith('of-')))\n"
        "print(len([p for p in os.listdir('/proc') if p.isdecimal()]) <= 3,\n"
        "      os.listdir('/store') if os.path.exists('/store') else [])"
    )
    with ThreadPoolExecutor(3) as threads:
        futures = {n: threads.submit(bench.execute, text, files={"me.txt": str(n)}, data={"x": ""}) for n in range(3)}
        for n, future in futures.items():
            ran = future.result()
            expect(ran.stdout == f"{[f'of-{n}'] * 3}\nTrue []\n", ran.stderr)


@check("filesystem")
def nothing_of_an_execution_is_there_for_the_next(bench: Bench) -> None:
    """Nothing of an execution remains for the next."""
    bench.execute(
        "import os, sklearn, numpy\n"
        "open('/tmp/left', 'w').write('x'); open('/dev/shm/left', 'w').write('x')\n"
        "sklearn.poison = numpy.poison = True; os.environ['LEFT'] = 'x'"
    )
    ran = bench.execute(
        "import os, sklearn, numpy\n"
        "print(os.listdir('/tmp'), os.listdir('/dev/shm'), hasattr(sklearn, 'poison'), hasattr(numpy, 'poison'),\n"
        "      'LEFT' in os.environ)"
    )
    expect(ran.stdout == "[] [] False False False\n", ran.execution)
