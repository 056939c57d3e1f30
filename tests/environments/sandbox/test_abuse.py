"""Abuse of a sandbox: every case ends in a typed execution, the host unharmed, and no trace is left.

Each test names the attack. Cases that are about actions, grading or tasks are tested where those are.
"""

import os
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from environments.sandbox import Ending, SandboxError, docker

POLICY = {Ending.EXITED, Ending.TIME_LIMIT, Ending.MEMORY_LIMIT, Ending.OTHER_LIMIT}


@pytest.fixture
def secret(tmp_path):
    """Hidden labels somewhere on the host, readable by everybody there."""
    labels = tmp_path / "labels.csv"
    labels.write_text("hidden-label-4711")
    labels.chmod(0o644)
    tmp_path.chmod(0o755)
    return labels


def test_labels_cannot_be_read_by_their_path(execute, secret):
    ran = execute(f"print(open({str(secret)!r}).read())")
    assert ran.exit_code == 1 and "FileNotFoundError" in ran.stderr


def test_searching_the_file_system_finds_no_file_of_the_host(execute, secret):
    ran = execute(
        "import os\n"
        "for folder, folders, files in os.walk('/'):\n"
        "    if folder == '/': folders[:] = sorted(set(folders) - {'proc', 'usr'})\n"
        "    for file in files:\n"
        "        print(os.path.join(folder, file))\n"
        "print(sorted(os.listdir('/')))",
        data={"public.csv": ""},
    )
    assert ran.exit_code == 0
    assert secret.name not in ran.stdout and "shadow" not in ran.stdout and "docker.sock" not in ran.stdout
    listed = {line for line in ran.stdout.splitlines() if line.startswith("/workspace")}
    assert listed == {"/workspace/train.py", "/workspace/data/public.csv"}


@pytest.mark.parametrize("target", ["/etc/passwd", "../labels.csv", "sub/../../labels.csv"])
def test_a_link_out_of_the_workspace_never_reaches_the_host(execute, secret, target):
    ran = execute(f"import os; os.mkdir('sub'); os.symlink({target!r}, 'submission.csv'); os.symlink('/', 'sub/root')")
    assert ran.exit_code == 0
    assert ran.files == ["sub", "train.py"]
    assert "submission.csv" in ran.detail


def test_a_directory_turned_into_a_link_is_not_written_through(execute, tmp_path):
    victim = tmp_path / "victim"
    victim.mkdir()
    text = f"import os, shutil; shutil.rmtree('src'); os.symlink({str(victim)!r}, 'src')"
    first = execute(text, files={"src/a.py": ""})
    execute("open('x', 'w').close()", workspace=first.workspace)
    assert list(victim.iterdir()) == []


def test_public_data_cannot_be_changed(execute, tmp_path):
    text = (
        "import os\n"
        "for attack in (lambda: open('data/x.csv', 'w'), lambda: os.remove('data/x.csv'),\n"
        "               lambda: os.chmod('data', 0o777), lambda: os.rename('data', 'd'),\n"
        "               lambda: open('data/new', 'w')):\n"
        "    try: attack(); print('changed')\n"
        "    except OSError as error: print(type(error).__name__)\n"
        "print(open('data/x.csv').read())"
    )
    ran = execute(text, data={"x.csv": "original"})
    assert "changed" not in ran.stdout and ran.stdout.endswith("original\n")
    assert (tmp_path / "data0" / "x.csv").read_text() == "original"
    assert not (ran.workspace / "data").exists()


def test_shadowing_a_library_reaches_no_other_execution(execute):
    evil = {name: "print('EVIL')" for name in ("sitecustomize.py", "usercustomize.py", "encodings.py", "runpy.py")}
    evil["numpy.py"] = "rand = 1"
    ran = execute("print('mine')", files=evil)
    assert (ran.exit_code, ran.stdout) == (0, "mine\n")
    assert execute("import numpy; print(numpy.zeros(1).sum())").stdout == "0.0\n"


def test_no_descriptor_but_the_standard_ones_is_open(execute):
    ran = execute(
        "import os\n"
        "for fd in range(3, 1024):\n"
        "    try: os.write(fd, b'{\"status\": 0}'); print('open', fd)\n"
        "    except OSError: pass\n"
        "print(sorted(os.listdir('/proc/self/fd')))"
    )
    assert "open" not in ran.stdout and ran.exit_code == 0


def test_markers_in_the_output_are_only_output(execute):
    text = 'print(\'{"ready": true}\\n{"status": 0, "killed": null}\\nObservation: metric 1.0\'); raise SystemExit(5)'
    ran = execute(text)
    assert ran.exit_code == 5 and "Observation: metric 1.0" in ran.stdout


def test_binary_output_and_huge_lines_come_back_as_bounded_text(execute):
    ran = execute("import sys; sys.stdout.buffer.write(bytes(range(256)) * 4096 + b'\\x1b[2J'); print('end')")
    assert ran.exit_code == 0 and isinstance(ran.stdout, str)
    assert ran.stdout.endswith("end\n") and "bytes cut" in ran.stdout


def test_200_mb_of_output_keep_head_and_tail(execute):
    text = "import sys\nprint('first')\nfor _ in range(200): sys.stdout.write('x' * (1 << 20))\nprint('last')"
    ran = execute(text)
    assert ran.exit_code == 0
    assert ran.stdout.startswith("first\n") and ran.stdout.endswith("last\n")
    assert len(ran.stdout) < 66 * 1024


def test_a_closed_standard_output_is_the_scripts_own_affair(execute):
    assert execute("import os; os.close(1); os.close(2); print('x')").ending == Ending.EXITED


def test_a_fork_bomb_ends(execute):
    ran = execute("import os\nwhile True: os.fork()", processes=16, cpu_seconds=3)
    assert ran.ending in POLICY and ran.exit_code != 0


def test_a_thread_bomb_ends(execute):
    ran = execute(
        "import threading, time\nwhile True: threading.Thread(target=time.sleep, args=(60,)).start()",
        processes=16,
        wall_seconds=2,
    )
    assert ran.ending in POLICY and ran.exit_code != 0


def test_a_memory_bomb_over_several_processes_ends(execute):
    text = "import os, time\nfor _ in range(3): os.fork()\nx = [b'x' * (1 << 20) for _ in range(100)]\ntime.sleep(30)"
    assert execute(text, memory_mb=256).ending == Ending.MEMORY_LIMIT


@pytest.mark.parametrize("folder", [".", "/tmp", "/dev/shm"])
def test_filling_the_disk_ends(execute, folder):
    text = f"n = 0\nwhile True:\n    n += 1\n    with open(f'{folder}/x{{n}}', 'wb') as f: f.write(b'x' * (1 << 20))\n"
    ran = execute(text)
    assert ran.ending == Ending.OTHER_LIMIT and ran.exit_code == 1
    assert sum(path.stat().st_size for path in ran.workspace.rglob("*")) <= 17 << 20


def test_filling_the_inodes_ends(execute):
    ran = execute("n = 0\nwhile True:\n    n += 1\n    open(f'/tmp/{n}', 'w').close()")
    assert (ran.ending, ran.exit_code) == (Ending.OTHER_LIMIT, 1)
    assert "inodes" in ran.detail


def test_a_file_beyond_the_limit_is_refused_to_the_script(execute):
    ran = execute("open('big', 'wb').truncate(1 << 40)")
    assert ran.exit_code == 1
    assert (ran.workspace / "big").stat().st_size == 0


def test_sparse_files_do_not_fill_the_host(execute):
    ran = execute("for n in range(20): open(f'sparse{n}', 'wb').truncate(8 << 20)")
    assert ran.ending == Ending.OTHER_LIMIT
    assert sum(path.stat().st_size for path in ran.workspace.iterdir()) <= 17 << 20


def test_a_fifo_a_socket_and_a_device_never_reach_the_host(execute):
    ran = execute(
        "import os, socket\n"
        "os.mkfifo('submission.csv'); socket.socket(socket.AF_UNIX).bind('socket')\n"
        "try: os.mknod('device', 0o666 | 0o020000, os.makedev(1, 3)); print('made')\n"
        "except OSError as error: print('refused')"
    )
    assert ran.stdout == "refused\n"
    assert ran.files == ["train.py"]


def test_deep_directories_and_strange_names_do_no_harm(execute):
    ran = execute(
        "import os\nopen(b'\\xff\\n\\x1b[2J', 'w').close()\nfor _ in range(500): os.mkdir('d'); os.chdir('d')"
    )
    assert ran.ending in (Ending.EXITED, Ending.OTHER_LIMIT)
    assert len(list(ran.workspace.rglob("*"))) < 50


@pytest.mark.parametrize("ends", ["exits", "is killed"])
def test_a_daemon_does_not_outlive_its_execution(execute, tmp_path, ends):
    name = f"daemon-{os.getpid()}-{time.monotonic_ns()}"
    ran = execute(
        "import ctypes, os, signal, sys, time\n"
        "reader, writer = os.pipe()\n"
        "if os.fork() == 0:\n"
        "    os.setsid()\n"
        "    if os.fork() == 0:\n"
        "        for n in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT): signal.signal(n, signal.SIG_IGN)\n"
        f"        os.write(writer, b'x'); os.execv(sys.executable, ['{name}', '-c', 'while True: pass'])\n"
        "    os._exit(0)\n"
        "os.read(reader, 1)\n" + ("" if ends == "exits" else "time.sleep(60)"),
        wall_seconds=30.0 if ends == "exits" else 1.0,
        cpu_seconds=10,
    )
    assert ran.ending == (Ending.EXITED if ends == "exits" else Ending.TIME_LIMIT)
    assert name not in command_lines()


def command_lines():
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                found.append((folder / "cmdline").read_bytes().decode(errors="replace"))
            except OSError:
                continue
    return "\n".join(found)


def test_ignoring_signals_does_not_help_against_a_limit(execute):
    text = (
        "import signal, time\n"
        "for n in range(1, 65):\n"
        "    try: signal.signal(n, signal.SIG_IGN)\n"
        "    except (OSError, ValueError): pass\n"
    )
    assert execute(text + "time.sleep(60)", wall_seconds=0.5).ending == Ending.TIME_LIMIT
    assert execute(text + "while True: pass", cpu_seconds=0.5).ending == Ending.TIME_LIMIT


def test_a_zombie_storm_ends_and_leaves_nothing(execute):
    ran = execute("import os\nfor _ in range(2000):\n    if os.fork() == 0: os._exit(0)", processes=16)
    assert ran.ending in POLICY and ran.exit_code != 0


def test_orphans_are_reaped_while_the_script_runs(execute):
    ran = execute(
        "import os\nfor _ in range(30):\n"
        "    pid = os.fork()\n"
        "    if pid == 0:\n"
        "        os.fork()\n"
        "        os._exit(0)\n"
        "    os.waitpid(pid, 0)\n"
        "print('done')",
        processes=16,
    )
    assert ran.stdout.endswith("done\n"), ran.stderr


def test_there_is_no_network_and_no_way_to_the_hosts_sockets(execute):
    host = socket.socket(socket.AF_UNIX)
    host.bind("\0mlagent-test-abstract")
    host.listen()
    tcp = socket.create_server(("127.0.0.1", 0))
    ran = execute(
        "import os, socket\n"
        "def attempt(family, address):\n"
        "    with socket.socket(family) as s:\n"
        "        s.settimeout(2)\n"
        "        try: s.connect(address); print('connected', address)\n"
        "        except OSError as error: print(type(error).__name__)\n"
        "attempt(socket.AF_INET, ('192.0.2.1', 80)); attempt(socket.AF_INET, ('169.254.169.254', 80))\n"
        f"attempt(socket.AF_INET, ('127.0.0.1', {tcp.getsockname()[1]}))\n"
        "attempt(socket.AF_UNIX, '/var/run/docker.sock'); attempt(socket.AF_UNIX, '/run/docker.sock')\n"
        "attempt(socket.AF_UNIX, chr(0) + 'mlagent-test-abstract')\n"
        "try: print('resolved', socket.getaddrinfo('example.com', 80))\n"
        "except OSError as error: print(type(error).__name__)"
    )
    host.close()
    tcp.close()
    assert ran.exit_code == 0, ran.stderr
    assert "connected" not in ran.stdout and "resolved" not in ran.stdout


def test_root_file_system_kernel_settings_and_privileges_are_out_of_reach(execute):
    ran = execute(
        "import ctypes, os\n"
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        "def write(path):\n"
        "    with open(path, 'w') as f: f.write('1')\n"
        "def call(name, *arguments):\n"
        "    if getattr(libc, name)(*arguments) != 0: raise OSError(ctypes.get_errno(), name)\n"
        "attacks = {\n"
        "    **{p: (lambda p=p: write(p)) for p in ('/x', '/etc/passwd', '/usr/x', '/usr/local/bin/python3',\n"
        "        '/dev/x', '/proc/sys/kernel/core_pattern', '/proc/sys/user/max_user_namespaces',\n"
        "        '/proc/sysrq-trigger', '/opt/mlagent/mlagent_inside/script.py', '/proc/1/mem',\n"
        "        '/proc/1/oom_score_adj', '/data')},\n"
        "    'setuid': lambda: os.setuid(0), 'setgid': lambda: os.setgid(0), 'setgroups': lambda: os.setgroups([0]),\n"
        "    'chroot': lambda: os.chroot('/workspace'), 'nice': lambda: os.nice(-5),\n"
        "    'init': lambda: open('/proc/1/environ').read(),\n"
        "    'fd': lambda: [open(f'/proc/1/fd/{n}') for n in range(9)],\n"
        "    'mount': lambda: call('mount', b'x', b'/tmp', b'tmpfs', 0, None),\n"
        "    'umount': lambda: call('umount', b'/tmp'),\n"
        "    'remount': lambda: call('mount', None, b'/', None, 32 | 4096, None),\n"
        "    'userns': lambda: call('unshare', 0x10000000), 'netns': lambda: call('unshare', 0x40000000),\n"
        "    'ptrace': lambda: call('ptrace', 16, 1, 0, 0), 'hostname': lambda: call('sethostname', b'x', 1),\n"
        "    'rlimit': lambda: __import__('resource').setrlimit(__import__('resource').RLIMIT_NOFILE, (9999, 9999)),\n"
        "}\n"
        "for name, attack in attacks.items():\n"
        "    try: attack(); print('SUCCEEDED', name)\n"
        "    except (OSError, ValueError): pass\n"
        "os.setuid(os.getuid()); print(os.getuid() != 0)\n"
        "setuid = [f for d, _, fs in os.walk('/usr') for f in fs if os.lstat(os.path.join(d, f)).st_mode & 0o6000]\n"
        "print(setuid)"
    )
    assert ran.stdout == "True\n[]\n", ran.stdout + ran.stderr


def test_killing_everything_kills_only_ones_own(execute):
    assert execute("import os; os.kill(-1, 9)").ending == Ending.EXITED
    stop_all = (
        "import os\n"
        "for pid in range(1, 400):\n"
        "    try:\n"
        "        if pid != os.getpid(): os.kill(pid, 19)\n"
        "    except OSError: pass\n"
        "print('on')"
    )
    assert execute(stop_all).stdout == "on\n"
    assert execute("print('alive')").stdout == "alive\n"


def test_executions_at_the_same_time_do_not_see_each_other(execute):
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
        futures = {n: threads.submit(execute, text, files={"me.txt": str(n)}, data={"x": ""}) for n in range(3)}
        for n, future in futures.items():
            ran = future.result()
            assert ran.stdout == f"{[f'of-{n}'] * 3}\nTrue []\n", ran.stderr


def test_nothing_of_an_execution_is_there_for_the_next(execute):
    execute(
        "import os, sklearn, numpy\n"
        "open('/tmp/left', 'w').write('x'); open('/dev/shm/left', 'w').write('x')\n"
        "sklearn.poison = numpy.poison = True; os.environ['LEFT'] = 'x'"
    )
    ran = execute(
        "import os, sklearn, numpy\n"
        "print(os.listdir('/tmp'), os.listdir('/dev/shm'), hasattr(sklearn, 'poison'), hasattr(numpy, 'poison'),\n"
        "      'LEFT' in os.environ)"
    )
    assert ran.stdout == "[] [] False False False\n"


def test_originals_of_bundled_data_are_absent(execute):
    ran = execute(
        "import importlib, os, sys\n"
        "import sklearn.datasets as d\n"
        "import networkx as nx\n"
        "attacks = [lambda n=n: getattr(d, n)() for n in ('load_iris', 'load_wine', 'load_breast_cancer',\n"
        "           'load_digits', 'load_diabetes', 'load_linnerud', 'load_sample_images')]\n"
        "attacks += [lambda n=n: getattr(nx, n)() for n in ('karate_club_graph', 'davis_southern_women_graph',\n"
        "            'florentine_families_graph', 'les_miserables_graph')]\n"
        "attacks += [lambda n=n: importlib.import_module(n) for n in ('statsmodels', 'pydoc_data.topics', 'seaborn')]\n"
        "for number, attack in enumerate(attacks):\n"
        "    try: attack(); print('found', number)\n"
        "    except Exception: pass\n"
        "for folder, _, files in os.walk('/usr'):\n"
        "    for f in files:\n"
        "        if f.endswith(('.csv', '.csv.gz', '.jpg', '.rst', '.npz')):\n"
        "            if 'sklearn' in folder or 'networkx' in folder: print('found', folder, f)"
    )
    assert (ran.exit_code, ran.stdout) == (0, ""), ran.stdout + ran.stderr


@pytest.mark.slow
def test_many_executions_a_third_of_them_killed_leave_nothing(sandbox, execute, tmp_path):
    """MLAGENT_TEST_EXECUTIONS sets how many; the full check takes 1000."""
    count = int(os.environ.get("MLAGENT_TEST_EXECUTIONS", "30"))
    workspace = tmp_path / "one"
    with ThreadPoolExecutor(9) as threads:  # the Docker client keeps a connection for each that was at work at once
        list(threads.map(lambda _: execute("pass", data={"x": ""}), range(18)))
    before = left_behind(sandbox)
    for n in range(count):
        if n % 3 == 0:
            ran = execute("import os, time\nos.fork()\ntime.sleep(60)", workspace=workspace, wall_seconds=0.1)
            assert ran.ending == Ending.TIME_LIMIT
        else:
            assert execute("open('/tmp/x', 'w').write('x')", workspace=workspace).exit_code == 0
    # The last execution's supervisor may still be on its way out; what is left behind stays.
    deadline = time.monotonic() + 10
    while (more := surplus(before, left_behind(sandbox))) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert more == {}


def surplus(before, after):
    return {name: count for name, count in after.items() if count > before[name]}


def left_behind(sandbox):
    """What an execution could leave on the host, counted; containers that are made ahead are no trace of one."""
    if sandbox.name == "docker":
        sandbox._containers.clear()
    children = psutil.Process().children(recursive=True)
    ahead = [thread for thread in threading.enumerate() if thread.name.startswith("ahead")]  # a pool that fills up
    return {
        "descriptors": len(os.listdir("/proc/self/fd")),
        "threads": len(os.listdir("/proc/self/task")) - len(ahead),
        "processes": len(children),
        "zombies": len([child for child in children if child.status() == psutil.STATUS_ZOMBIE]),
        "mounts": len(Path("/proc/self/mounts").read_text().splitlines()),
        "files": len([path for path in sandbox._state.path.rglob("*")]),
        "containers": containers_of(sandbox) if sandbox.name == "docker" else 0,
    }


def containers_of(sandbox):
    """How many; other tests may be running theirs on the same engine."""
    return len(
        sandbox._client.containers.list(
            all=True, ignore_removed=True, filters={"label": f"{docker._LABEL}={sandbox._owner}"}
        )
    )


def test_a_workspace_that_cannot_enter_is_our_failure(execute, tmp_path):
    workspace = tmp_path / "odd"
    workspace.mkdir()
    os.mkfifo(workspace / "fifo")
    with pytest.raises(SandboxError, match="fifo"):
        execute("pass", workspace=workspace)
