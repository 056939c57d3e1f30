"""Behaviour of every sandbox for an honest script, and its report of each way to end."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

from environments.sandbox.base import Ending
from environments.sandbox.self_check.bench import CONFORMANCE, Bench, check, expect


@check(CONFORMANCE)
def output_exit_code_and_times_are_reported(bench: Bench) -> None:
    """Output, exit code and times are reported."""
    ran = bench.execute("import sys; print('to stdout'); print('to stderr', file=sys.stderr); sys.exit(3)")
    expect((ran.ending, ran.exit_code) == (Ending.EXITED, 3), ran.execution)
    expect((ran.stdout, ran.stderr) == ("to stdout\n", "to stderr\n"), ran.execution)
    expect(0 < ran.cpu_seconds < 20 and 0 < ran.wall_seconds < 60, ran.execution)


_PLAIN = (
    "pass",
    "def f():\n    return {}['missing']\nf()",
    "import sys\nsys.exit('a message')",
    "raise SystemExit",
    "x = (",
    "try:\n    1 / 0\nexcept ZeroDivisionError as error:\n    raise ValueError('second') from error",
    "import atexit; atexit.register(print, 'last'); print(__name__)",
    "import threading, time\nthreading.Thread(target=lambda: (time.sleep(0.05), print('thread'))).start()",
    "import os, sys; sys.stdout.write('not flushed'); os.abort()",
)


@check(CONFORMANCE)
def a_script_ends_as_under_a_plain_interpreter(bench: Bench) -> None:
    """A script ends as under a plain interpreter."""
    for text in _PLAIN:
        (bench.folder / "train.py").write_text(text, encoding="utf-8")
        plain = subprocess.run(
            [sys.executable, "train.py"], cwd=bench.folder, capture_output=True, text=True, check=False
        )
        ran = bench.execute(text)
        codes = (plain.returncode, 128 - plain.returncode if plain.returncode < 0 else None)
        expect(ran.ending == Ending.EXITED and ran.exit_code in codes, ran.execution)
        expect(ran.stderr == plain.stderr.replace(str(bench.folder), "/workspace"), ran.execution)
        expect(plain.returncode < 0 or ran.stdout == plain.stdout, ran.execution)


@check(CONFORMANCE)
def a_missing_script_is_the_scripts_error(bench: Bench) -> None:
    """A missing script is the script's error."""
    ran = bench.execute("pass", script="absent.py")
    expect(ran.exit_code == 2, ran.execution)
    expect("absent.py" in ran.stderr, ran.execution)


@check(CONFORMANCE)
def the_script_sees_its_workspace_its_data_and_no_arguments(bench: Bench) -> None:
    """The script sees its workspace, its data and no arguments."""
    ran = bench.execute(
        "import os, sys\n"
        "print(os.getcwd(), sys.argv, __file__, sorted(os.listdir('.')), sorted(os.listdir('data')))\n"
        "print(open('data/sub/x.csv').read(), open('src/helper.py').read(), repr(sys.stdin.read()))",
        files={"src/helper.py": "H = 1"},
        data={"x.csv": "a", "sub/x.csv": "public"},
    )
    first = "/workspace ['train.py'] /workspace/train.py ['data', 'src', 'train.py'] ['sub', 'x.csv']"
    expect(ran.stdout == f"{first}\npublic H = 1 ''\n", ran.execution)


@check(CONFORMANCE)
def the_environment_holds_nothing_of_the_hosts(bench: Bench) -> None:
    """The environment holds nothing of the host's."""
    os.environ["MLAGENT_CHECK"] = "hunter2"
    try:
        ran = bench.execute("import os; print(sorted(os.environ.items()))", seed=7)
    finally:
        del os.environ["MLAGENT_CHECK"]
    expect("hunter2" not in ran.stdout, ran.execution)
    expect("('MLAGENT_SEED', '7')" in ran.stdout and "('PYTHONHASHSEED', '7')" in ran.stdout, ran.execution)
    expect("('OMP_NUM_THREADS', '1')" in ran.stdout, ran.execution)


@check(CONFORMANCE)
def the_locale_is_that_of_utf8(bench: Bench) -> None:
    """The locale is that of UTF-8."""
    text = "import locale\nprint(locale.setlocale(locale.LC_ALL, ''), locale.strcoll('a', 'b') < 0, '\u00e9'.encode())"
    ran = bench.execute(text)
    expect(ran.stdout == "C.UTF-8 True b'\\xc3\\xa9'\n", ran.execution)


@check(CONFORMANCE)
def the_same_seed_gives_the_same_numbers_and_another_seed_others(bench: Bench) -> None:
    """The same seed gives the same numbers and another seed others."""
    text = "import random\nimport numpy as np\nprint(random.random(), np.random.rand())"
    first, again, other = (bench.execute(text, seed=seed).stdout for seed in (1, 1, 2))
    expect(first == again != other)


@check(CONFORMANCE)
def files_come_back_as_the_script_left_them(bench: Bench) -> None:
    """Files come back as the script left them."""
    ran = bench.execute(
        "import os\n"
        "open('new.txt', 'w').write('new'); open('kept.txt', 'a').write('+'); os.remove('gone.txt')\n"
        "os.makedirs('folder/empty'); os.chmod('new.txt', 0o755); os.symlink('new.txt', 'inner')",
        files={"kept.txt": "kept", "gone.txt": "", "untouched/file": "same"},
        data={"x": ""},
    )
    expect(ran.exit_code == 0, ran.stderr)
    expected = ["folder", "folder/empty", "inner", "kept.txt", "new.txt", "train.py", "untouched", "untouched/file"]
    expect(ran.files == expected, ran.execution)
    expect((ran.workspace / "kept.txt").read_text() == "kept+", ran.execution)
    expect((ran.workspace / "new.txt").stat().st_mode & 0o777 == 0o755, ran.execution)
    expect(os.readlink(ran.workspace / "inner") == "new.txt", ran.execution)


@check(CONFORMANCE)
def files_come_back_after_a_failure_and_after_a_time_limit(bench: Bench) -> None:
    """Files come back after a failure and after a time limit."""
    expect((bench.execute("open('x', 'w').write('x'); 1 / 0").workspace / "x").exists(), "lost after a failure")
    ran = bench.execute("open('x', 'w').write('x')\nwhile True: pass", cpu_seconds=0.5)
    expect(ran.ending == Ending.TIME_LIMIT, ran.execution)
    expect((ran.workspace / "x").exists(), ran.execution)


@check(CONFORMANCE)
def the_locked_packages_work(bench: Bench) -> None:
    """The locked packages work."""
    ran = bench.execute(
        "import numpy as np, pandas as pd, scipy.stats, networkx as nx\n"
        "from sklearn.datasets import make_classification\n"
        "from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier\n"
        "from sklearn.model_selection import cross_val_score\n"
        "x, y = make_classification(200, random_state=0)\n"
        "print(cross_val_score(HistGradientBoostingClassifier(max_iter=5), x, y).mean() > 0.5)\n"
        "print(RandomForestClassifier(10, n_jobs=-1, random_state=0).fit(x, y).score(x, y) > 0.5)\n"
        "pd.DataFrame(x).to_csv('x.csv'); print(len(pd.read_csv('x.csv')), nx.path_graph(3).size())"
    )
    expect(ran.stdout == "True\nTrue\n200 2\n", ran.stderr)


@check(CONFORMANCE)
def processes_pools_and_local_sockets_work(bench: Bench) -> None:
    """Processes, pools and local sockets work."""
    ran = bench.execute(
        "import multiprocessing, subprocess, sys\n"
        "def square(x): return x * x\n"
        "if __name__ == '__main__':\n"
        "    with multiprocessing.Pool(2) as pool: print(pool.map(square, range(4)))\n"
        "    with multiprocessing.Manager() as manager: print(list(manager.list([1])))\n"
        "    print(subprocess.check_output([sys.executable, '-c', 'import numpy; print(6 * 7)'], text=True))\n"
    )
    expect(ran.stdout.split("\n")[:3] == ["[0, 1, 4, 9]", "[1]", "42"], ran.stderr)


@check(CONFORMANCE)
def a_module_of_the_scripts_own_is_found_whatever_its_name(bench: Bench) -> None:
    """A module of the script's own is found whatever its name."""
    text = "import transfer, script, kernel; print(transfer.X, script.X, kernel.X)"
    ran = bench.execute(text, files={f"{name}.py": "X = 1" for name in ("transfer", "script", "kernel")})
    expect(ran.stdout == "1 1 1\n", ran.stderr)


@check(CONFORMANCE)
def cpu_time_is_limited(bench: Bench) -> None:
    """CPU time is limited."""
    ran = bench.execute("while True: pass", cpu_seconds=0.5)
    expect((ran.ending, ran.exit_code) == (Ending.TIME_LIMIT, None), ran.execution)
    expect(0.5 <= ran.cpu_seconds < 2, ran.execution)
    expect("CPU" in ran.detail, ran.execution)


@check("cpu_time")
def cpu_time_is_limited_over_all_processes(bench: Bench) -> None:
    """CPU time is limited over all processes."""
    ran = bench.execute("import os\nfor _ in range(3): os.fork()\nwhile True: pass", cpu_seconds=1)
    expect(ran.ending == Ending.TIME_LIMIT, ran.execution)
    expect(ran.cpu_seconds < 3, ran.execution)


@check(CONFORMANCE)
def wall_time_is_limited_and_what_was_printed_is_kept(bench: Bench) -> None:
    """Wall time is limited and what was printed is kept."""
    ran = bench.execute("import time; print('started'); time.sleep(60)", wall_seconds=0.5)
    expect((ran.ending, ran.exit_code, ran.stdout) == (Ending.TIME_LIMIT, None, "started\n"), ran.execution)
    expect("wall" in ran.detail, ran.execution)


@check("memory")
def memory_is_limited(bench: Bench) -> None:
    """Memory is limited."""
    ran = bench.execute("x = []\nwhile True: x.append(b'x' * (1 << 20))", memory_mb=128)
    expect((ran.ending, ran.exit_code) == (Ending.MEMORY_LIMIT, None), ran.execution)


@check(CONFORMANCE)
def an_error_of_the_scripts_making_is_no_limit(bench: Bench) -> None:
    """An error of the script's making is no limit."""
    for text in ("raise MemoryError", "import os; os.kill(os.getpid(), 9)", "import os; os.kill(os.getpid(), 24)"):
        ran = bench.execute(text)
        expect(ran.ending == Ending.EXITED, ran.execution)
        expect(ran.exit_code not in (0, None), ran.execution)


@check(CONFORMANCE)
def many_threads_run_at_once_and_each_gets_its_own(bench: Bench) -> None:
    """Many threads run at once and each gets its own."""
    text = "import time; time.sleep(0.1); print(open('name.txt').read())"
    with ThreadPoolExecutor(4) as threads:
        futures = [threads.submit(bench.execute, text, files={"name.txt": str(n)}) for n in range(8)]
        expect([future.result().stdout for future in futures] == [f"{n}\n" for n in range(8)])
