"""The locked environment: one identity, built once, self-contained, without the originals that tasks are made of."""

import contextlib
import io
import os
import re
import shutil
import stat
import subprocess
import sys
import tarfile
import tempfile
import threading

import needs
import pytest

from environments.protocol import Limits
from environments.sandbox.rootfs import RootFsError, assemble, build, closure, ensure_rootfs


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    """An empty cache that an unprivileged user could read, and a builder that is quick."""
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_mode & 0o005 != 0o005:
            folder.chmod(0o755)
    monkeypatch.setenv("MLAGENT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def quick_builder(monkeypatch):
    """Counts builds instead of doing them."""
    built = []

    def build_nothing(root, progress):
        built.append(root)
        (root / "marker").write_text("complete")

    monkeypatch.setattr(assemble, "_build", build_nothing)
    return built


def test_the_lock_pins_every_package_exactly_and_the_digest_follows_it(tmp_path, monkeypatch):
    lines = [line for line in assemble.LOCK_FILE.read_text().splitlines() if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[a-z0-9-]+==[0-9.]+", line) for line in lines)
    assert {line.partition("==")[0] for line in lines} >= {"numpy", "scipy", "pandas", "scikit-learn", "networkx"}
    before = assemble.environment_digest()
    changed = tmp_path / "lock"
    changed.write_text(assemble.LOCK_FILE.read_text() + "six==1.17.0\n")
    monkeypatch.setattr(assemble, "LOCK_FILE", changed)
    assert assemble.environment_digest() != before
    monkeypatch.undo()
    monkeypatch.setattr(assemble.platform, "python_version", lambda: "3.99.0")
    assert assemble.environment_digest() != before


def test_it_is_built_once_also_for_those_who_ask_at_once(empty_cache, quick_builder):
    results = []
    threads = [threading.Thread(target=lambda: results.append(ensure_rootfs(lambda text: None))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(quick_builder) == 1
    assert len(results) == 4 and len(set(results)) == 1
    assert (results[0].path / "marker").read_text() == "complete"
    assert results[0].path.parent == empty_cache / "rootfs"


def test_a_build_that_fails_leaves_nothing_and_says_why(empty_cache, monkeypatch):
    def fail(root, progress):
        (root / "half").write_text("")
        raise closure.ClosureError("the dynamic loader does not find libx.so")

    monkeypatch.setattr(assemble, "_build", fail)
    with pytest.raises(RootFsError, match="libx"):
        ensure_rootfs(lambda text: None)
    assert [path.suffix for path in (empty_cache / "rootfs").iterdir()] == [".lock"]


def test_what_a_builder_that_died_left_is_removed(empty_cache, quick_builder):
    leftover = empty_cache / "rootfs" / f"{assemble.environment_digest()}.building-x"
    leftover.mkdir(parents=True)
    ensure_rootfs(lambda text: None)
    assert not leftover.exists()


def test_a_cache_that_the_sandbox_cannot_reach_is_refused_with_the_remedy(empty_cache, quick_builder):
    needs.need(os.geteuid() == 0, "only root runs sandboxes as somebody else")
    empty_cache.mkdir(mode=0o700)
    with pytest.raises(RootFsError, match=f"chmod o\\+rx {empty_cache}"):
        ensure_rootfs(lambda text: None)


def test_pip_errors_are_shown(monkeypatch, tmp_path):
    lock = tmp_path / "requirements.lock"
    lock.write_text("numpy==0.0.0.1\n")
    monkeypatch.setattr(assemble, "LOCK_FILE", lock)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(RootFsError, match=r"numpy==0\.0\.0\.1"):
        assemble._install_packages(tmp_path / "site-packages")


def test_a_library_that_is_nowhere_is_named(monkeypatch):
    listing = "\tlibm.so.6 => /lib/libm.so.6 (0x00007f0000000000)\n\tlibgone.so.1 => not found\n"
    monkeypatch.setattr(closure.subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 0, stdout=listing))
    with pytest.raises(closure.ClosureError, match=r"libgone\.so\.1"):
        closure.needed([closure.Path("/bin/x")])


@pytest.mark.slow
def test_the_built_root_is_self_contained_closed_to_writers_and_free_of_originals():
    root = ensure_rootfs().path
    packages = root / assemble.SITE_PACKAGES
    for name in assemble.BUNDLED_DATA:
        path = packages / name
        assert not path.exists() or path.read_text() == "__all__ = []\n"
    assert (
        not (packages / "statsmodels").exists()
        and not (root / assemble.PREFIX / "lib" / assemble.PYTHON / "pydoc_data").exists()
    )
    assert not [path for path in packages.rglob("tests") if path.is_dir()]
    for path in root.rglob("*"):
        if path.is_symlink():
            assert not os.path.isabs(os.readlink(path)), path
            continue
        mode = path.stat().st_mode
        assert mode & 0o022 == 0 and mode & 0o6000 == 0 and mode & 0o004, path
        assert stat.S_ISREG(mode) or stat.S_ISDIR(mode), path
    compiled = {path.name.partition(".")[0] for path in (packages / "numpy" / "__pycache__").iterdir()}
    assert {path.stem for path in (packages / "numpy").glob("*.py")} <= compiled


def test_byte_code_is_never_checked_against_times():
    root = ensure_rootfs().path
    code = next((root / assemble.SITE_PACKAGES / "numpy" / "__pycache__").glob("__init__.*.pyc")).read_bytes()
    assert int.from_bytes(code[4:8], "little") == 0b01  # PEP 552: hash-based, unchecked


def test_the_image_is_the_very_same_tree_without_an_owner(tmp_path):
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "hosts").write_text("x")
    reader, writer = os.pipe()
    build._write_tar(assemble.RootFs(tmp_path, "0"), writer)
    with os.fdopen(reader, "rb") as stream, tarfile.open(fileobj=io.BytesIO(stream.read())) as archive:
        members = {member.name: (member.uid, member.gid, member.mtime) for member in archive}
    assert members == {".": (0, 0, 0), "./etc": (0, 0, 0), "./etc/hosts": (0, 0, 0)}


def test_the_command_prints_where_it_is():
    done = subprocess.run(
        ["environments/sandbox/rootfs/build.sh"],
        env={**os.environ, "PYTHON": sys.executable},
        capture_output=True,
        text=True,
        check=True,
    )
    assert str(ensure_rootfs().path) in done.stdout


@pytest.mark.slow
def test_it_builds_from_nothing_and_the_interpreter_in_it_runs_alone(empty_cache):
    said = []
    built = ensure_rootfs(said.append)
    assert len(said) >= 4
    # Its own loader with its own libraries only: nothing of the host but the kernel.
    root = built.path
    loader = next(root.glob("lib64/ld-linux*")) if (root / "lib64").exists() else next(root.glob("lib/ld-linux*"))
    libraries = next(path.parent for path in root.glob("usr/lib*/**/libc.so.6"))
    python = root / assemble.PREFIX / "bin" / assemble.PYTHON
    done = subprocess.run(
        [loader, "--library-path", libraries, python, "-s", "-c", "import sklearn.svm, ssl, sys; print(sys.prefix)"],
        env={"PYTHONHOME": str(root / assemble.PREFIX)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == str(root / assemble.PREFIX), done.stderr


def test_a_root_that_is_chosen_but_not_there_is_an_error_with_the_remedy(empty_cache, monkeypatch):
    monkeypatch.setenv(assemble.CHOICE, "0123456789abcdef")
    with pytest.raises(RootFsError, match=r"copy the folder 0123456789abcdef there"):
        ensure_rootfs(lambda text: None)
    (empty_cache / "rootfs" / "0123456789abcdef").mkdir(parents=True)
    assert ensure_rootfs(lambda text: None).digest == "0123456789abcdef"
    monkeypatch.setenv(assemble.CHOICE, "../elsewhere")
    with pytest.raises(RootFsError, match="no digest"):
        ensure_rootfs(lambda text: None)


@pytest.mark.slow
def test_a_copy_of_another_hosts_root_is_what_scripts_run_in(monkeypatch, tmp_path):
    built = ensure_rootfs()
    (tmp_path / "train.py").write_text("import sys; print(open('/usr/mark').read(), sys.prefix)")
    with tempfile.TemporaryDirectory() as cache:
        os.chmod(cache, 0o755)
        copy = assemble.Path(cache, "rootfs", "0123456789abcdef")
        shutil.copytree(built.path, copy, symlinks=True)
        (copy / "usr" / "mark").write_text("of another host")
        monkeypatch.setenv("MLAGENT_CACHE", cache)
        monkeypatch.setenv(assemble.CHOICE, copy.name)
        with contextlib.closing(needs.sandbox("bubblewrap")) as sandbox:
            assert sandbox.environment_digest == copy.name
            assert sandbox.run(tmp_path, "train.py", Limits()).stdout == "of another host /usr/local\n"
