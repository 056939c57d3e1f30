"""What every sandbox does for an honest script, and how it reports each way to end."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from environments.protocol import Limits
from environments.sandbox import GUARANTEES, Ending, SandboxError, open_sandbox


def test_output_exit_code_and_times_are_reported(execute):
    ran = execute("import sys; print('to stdout'); print('to stderr', file=sys.stderr); sys.exit(3)")
    assert (ran.ending, ran.exit_code) == (Ending.EXITED, 3)
    assert (ran.stdout, ran.stderr) == ("to stdout\n", "to stderr\n")
    assert 0 < ran.cpu_seconds < 20 and 0 < ran.wall_seconds < 60


@pytest.mark.parametrize(
    "text",
    [
        "pass",
        "def f():\n    return {}['missing']\nf()",
        "import sys\nsys.exit('a message')",
        "raise SystemExit",
        "x = (",
        "try:\n    1 / 0\nexcept ZeroDivisionError as error:\n    raise ValueError('second') from error",
        "import atexit; atexit.register(print, 'last'); print(__name__)",
        "import threading, time\nthreading.Thread(target=lambda: (time.sleep(0.05), print('thread'))).start()",
        "import os, sys; sys.stdout.write('not flushed'); os.abort()",
    ],
)
def test_a_script_ends_as_under_a_plain_interpreter(execute, tmp_path, text):
    (tmp_path / "train.py").write_text(text)
    plain = subprocess.run([sys.executable, "train.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    ran = execute(text)
    assert ran.ending == Ending.EXITED
    assert ran.exit_code in (plain.returncode, 128 - plain.returncode if plain.returncode < 0 else None)
    assert ran.stderr == plain.stderr.replace(str(tmp_path), "/workspace")
    if plain.returncode >= 0:
        assert ran.stdout == plain.stdout


def test_a_missing_script_is_the_scripts_error(execute):
    ran = execute("pass", script="absent.py")
    assert ran.exit_code == 2
    assert "absent.py" in ran.stderr


def test_the_script_sees_its_workspace_its_data_and_no_arguments(execute):
    ran = execute(
        "import os, sys\n"
        "print(os.getcwd(), sys.argv, __file__, sorted(os.listdir('.')), sorted(os.listdir('data')))\n"
        "print(open('data/sub/x.csv').read(), open('src/helper.py').read(), repr(sys.stdin.read()))",
        files={"src/helper.py": "H = 1"},
        data={"x.csv": "a", "sub/x.csv": "public"},
    )
    assert ran.stdout == (
        "/workspace ['train.py'] /workspace/train.py ['data', 'src', 'train.py'] ['sub', 'x.csv']\npublic H = 1 ''\n"
    )


def test_the_environment_holds_nothing_of_the_hosts(execute, monkeypatch):
    monkeypatch.setenv("SECRET_TOKEN", "hunter2")
    ran = execute("import os; print(sorted(os.environ.items()))", seed=7)
    assert "hunter2" not in ran.stdout
    assert "('MLAGENT_SEED', '7')" in ran.stdout and "('PYTHONHASHSEED', '7')" in ran.stdout
    assert "('OMP_NUM_THREADS', '1')" in ran.stdout


def test_the_locale_is_that_of_utf8(execute):
    text = "import locale\nprint(locale.setlocale(locale.LC_ALL, ''), locale.strcoll('a', 'b') < 0, '\u00e9'.encode())"
    assert execute(text).stdout == "C.UTF-8 True b'\\xc3\\xa9'\n"


def test_the_same_seed_gives_the_same_numbers_and_another_seed_others(execute):
    text = "import random\nimport numpy as np\nprint(random.random(), np.random.rand())"
    first, again, other = (execute(text, seed=seed).stdout for seed in (1, 1, 2))
    assert first == again != other


def test_files_come_back_as_the_script_left_them(execute):
    ran = execute(
        "import os\n"
        "open('new.txt', 'w').write('new'); open('kept.txt', 'a').write('+'); os.remove('gone.txt')\n"
        "os.makedirs('folder/empty'); os.chmod('new.txt', 0o755); os.symlink('new.txt', 'inner')",
        files={"kept.txt": "kept", "gone.txt": "", "untouched/file": "same"},
        data={"x": ""},
    )
    assert ran.exit_code == 0, ran.stderr
    expected = ["folder", "folder/empty", "inner", "kept.txt", "new.txt", "train.py", "untouched", "untouched/file"]
    assert ran.files == expected
    assert (ran.workspace / "kept.txt").read_text() == "kept+"
    assert (ran.workspace / "new.txt").stat().st_mode & 0o777 == 0o755
    assert os.readlink(ran.workspace / "inner") == "new.txt"


def test_files_come_back_after_a_failure_and_after_a_time_limit(execute):
    assert (execute("open('x', 'w').write('x'); 1 / 0").workspace / "x").exists()
    ran = execute("open('x', 'w').write('x')\nwhile True: pass", cpu_seconds=0.5)
    assert ran.ending == Ending.TIME_LIMIT
    assert (ran.workspace / "x").exists()


def test_the_locked_packages_work(execute):
    ran = execute(
        "import numpy as np, pandas as pd, scipy.stats, networkx as nx\n"
        "from sklearn.datasets import make_classification\n"
        "from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier\n"
        "from sklearn.model_selection import cross_val_score\n"
        "x, y = make_classification(200, random_state=0)\n"
        "print(cross_val_score(HistGradientBoostingClassifier(max_iter=5), x, y).mean() > 0.5)\n"
        "print(RandomForestClassifier(10, n_jobs=-1, random_state=0).fit(x, y).score(x, y) > 0.5)\n"
        "pd.DataFrame(x).to_csv('x.csv'); print(len(pd.read_csv('x.csv')), nx.path_graph(3).size())"
    )
    assert ran.stdout == "True\nTrue\n200 2\n", ran.stderr


def test_processes_pools_and_local_sockets_work(execute):
    ran = execute(
        "import multiprocessing, subprocess, sys\n"
        "def square(x): return x * x\n"
        "if __name__ == '__main__':\n"
        "    with multiprocessing.Pool(2) as pool: print(pool.map(square, range(4)))\n"
        "    with multiprocessing.Manager() as manager: print(list(manager.list([1])))\n"
        "    print(subprocess.check_output([sys.executable, '-c', 'import numpy; print(6 * 7)'], text=True))\n"
    )
    assert ran.stdout.split("\n")[:3] == ["[0, 1, 4, 9]", "[1]", "42"], ran.stderr


def test_a_module_of_the_scripts_own_is_found_whatever_its_name(execute):
    text = "import transfer, script, kernel; print(transfer.X, script.X, kernel.X)"
    ran = execute(text, files={f"{name}.py": "X = 1" for name in ("transfer", "script", "kernel")})
    assert ran.stdout == "1 1 1\n", ran.stderr


def test_cpu_time_is_limited(execute):
    ran = execute("while True: pass", cpu_seconds=0.5)
    assert (ran.ending, ran.exit_code) == (Ending.TIME_LIMIT, None)
    assert 0.5 <= ran.cpu_seconds < 2
    assert "CPU" in ran.detail


def test_cpu_time_is_limited_over_all_processes(execute):
    ran = execute("import os\nfor _ in range(3): os.fork()\nwhile True: pass", cpu_seconds=1)
    assert ran.ending == Ending.TIME_LIMIT
    assert ran.cpu_seconds < 3


def test_wall_time_is_limited_and_what_was_printed_is_kept(execute):
    ran = execute("import time; print('started'); time.sleep(60)", wall_seconds=0.5)
    assert (ran.ending, ran.exit_code, ran.stdout) == (Ending.TIME_LIMIT, None, "started\n")
    assert "wall" in ran.detail


def test_memory_is_limited(execute):
    ran = execute("x = []\nwhile True: x.append(b'x' * (1 << 20))", memory_mb=128)
    assert (ran.ending, ran.exit_code) == (Ending.MEMORY_LIMIT, None)


def test_an_error_of_the_scripts_making_is_no_limit(execute):
    for text in ("raise MemoryError", "import os; os.kill(os.getpid(), 9)", "import os; os.kill(os.getpid(), 24)"):
        ran = execute(text)
        assert ran.ending == Ending.EXITED
        assert ran.exit_code not in (0, None)


def test_many_threads_run_at_once_and_each_gets_its_own(execute):
    text = "import time; time.sleep(0.1); print(open('name.txt').read())"
    with ThreadPoolExecutor(4) as threads:
        futures = [threads.submit(execute, text, files={"name.txt": str(n)}) for n in range(8)]
        assert [future.result().stdout for future in futures] == [f"{n}\n" for n in range(8)]


@pytest.mark.slow
def test_required_guarantees_hold_or_the_start_fails(sandbox):
    again = open_sandbox(sandbox.name, required=sandbox.guarantees)
    assert again.environment_digest == sandbox.environment_digest
    again.close()
    again.close()


def test_every_guarantee_that_needs_no_privilege_holds(sandbox):
    assert sandbox.guarantees >= set(GUARANTEES) - {"cpu_time", "memory"}


def test_gpus_that_are_not_there_are_our_failure(sandbox, tmp_path):
    with pytest.raises(SandboxError, match=rf"asks for {sandbox.gpus + 1} GPUs"):
        sandbox.run(tmp_path, "train.py", Limits(), gpus=sandbox.gpus + 1)


def test_an_unknown_guarantee_or_sandbox_is_named():
    with pytest.raises(ValueError, match="'privacy'"):
        open_sandbox("bubblewrap", required=["privacy"])
    with pytest.raises(ValueError, match="'chroot'"):
        open_sandbox("chroot")
