"""Snapshots: what goes in comes back, and what a script leaves behind does no harm."""

import io
import os
import socket
import stat
import time

import pytest

from environments.files.blobs import StoreError, open_store
from environments.files.hostile import HostileFileError, place, read_regular, remove, remove_folder
from environments.files.snapshots import Snapshots
from environments.guest import transfer, tree
from environments.protocol import canonical_json


@pytest.fixture
def snapshots(tmp_path):
    return Snapshots(open_store(tmp_path / "store"))


@pytest.fixture
def workspace(tmp_path):
    root = tmp_path / "ws"
    (root / "sub" / "empty").mkdir(parents=True)
    (root / "train.py").write_text("x = 1\n")
    (root / "sub" / "run.sh").write_bytes(b"#!/bin/sh\n\xff\x00")
    (root / "sub" / "run.sh").chmod(0o755)
    (root / "link").symlink_to("sub/run.sh")
    return root


def test_a_restored_workspace_is_the_same_and_has_the_same_id(snapshots, workspace, tmp_path):
    identity = snapshots.snapshot(workspace)
    snapshots.restore(identity, tmp_path / "back")
    back = tmp_path / "back"
    assert (back / "train.py").read_text() == "x = 1\n"
    assert (back / "sub" / "run.sh").read_bytes() == b"#!/bin/sh\n\xff\x00"
    assert stat.S_IMODE((back / "sub" / "run.sh").stat().st_mode) == 0o755
    assert (back / "sub" / "empty").is_dir()
    assert os.readlink(back / "link") == "sub/run.sh"
    assert snapshots.snapshot(back) == identity


def test_ids_tell_content_modes_and_names_apart(snapshots, workspace):
    identities = {snapshots.snapshot(workspace)}
    (workspace / "train.py").write_text("x = 2\n")
    identities.add(snapshots.snapshot(workspace))
    (workspace / "train.py").chmod(0o755)
    identities.add(snapshots.snapshot(workspace))
    (workspace / "train.py").rename(workspace / "other.py")
    identities.add(snapshots.snapshot(workspace))
    (workspace / "more").mkdir()
    identities.add(snapshots.snapshot(workspace))
    assert len(identities) == 5


def test_modes_do_not_depend_on_the_umask(snapshots, workspace, tmp_path):
    (workspace / "train.py").chmod(0o666)
    identity = snapshots.snapshot(workspace)
    before = os.umask(0o077)
    try:
        snapshots.restore(identity, tmp_path / "back")
        assert snapshots.snapshot(tmp_path / "back") == identity
    finally:
        os.umask(before)


def test_what_is_excluded_is_left_out_with_all_it_holds(snapshots, workspace, tmp_path):
    identity = snapshots.snapshot(workspace, exclude=("sub", "*.py"))
    assert [entry.path for entry in snapshots.entries(identity)] == ["link"]


def test_writing_a_restored_file_does_not_reach_the_store(snapshots, workspace, tmp_path):
    identity = snapshots.snapshot(workspace)
    snapshots.restore(identity, tmp_path / "back")
    (tmp_path / "back" / "train.py").write_text("broken")
    assert snapshots.read(identity, "train.py") == b"x = 1\n"
    with pytest.raises(FileNotFoundError):
        snapshots.read(identity, "link")


def make_fifo(path):
    os.mkfifo(path)


def make_socket(path):
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(path))


def make_sparse(path):
    path.touch()
    os.truncate(path, 1 << 40)


def make_deep(path):
    folder = path
    for _ in range(40):
        folder = folder / "d"
    folder.mkdir(parents=True)


def make_many(path):
    path.mkdir()
    for number in range(2001):
        (path / str(number)).touch()


def make_link_out(path):
    path.symlink_to("/etc/passwd")


def make_foreign_name(path):
    os.close(os.open(os.fsencode(path) + b"\xff", os.O_CREAT | os.O_WRONLY))


@pytest.mark.parametrize(
    "leave", [make_fifo, make_socket, make_sparse, make_deep, make_many, make_link_out, make_foreign_name]
)
def test_what_is_no_part_of_a_workspace_is_refused_without_being_read(snapshots, workspace, monkeypatch, leave):
    monkeypatch.chdir(workspace)
    leave(workspace / "left")
    with pytest.raises(HostileFileError):
        snapshots.snapshot(workspace)


def test_what_a_snapshot_keeps_can_enter_a_sandbox(snapshots, workspace, tmp_path):
    """At each limit and one beyond it, the two agree: no state is kept from which every step would fail."""
    kept = 0
    for depth in range(tree.MAX_DEPTH - 2, tree.MAX_DEPTH + 3):
        for name in ("x", "x" * 255):
            root = tmp_path / f"{depth}{len(name)}"
            (root / ("d/" * depth)).mkdir(parents=True)
            (root / ("d/" * depth) / name).touch()
            (root / ("n" * 200) / ("n" * 200)).mkdir(parents=True)
            (root / ("n" * 200) / ("n" * 200) / ("x" * (depth + 78))).touch()
            try:
                snapshots.snapshot(root)
            except HostileFileError:
                continue
            kept += 1
            stream = io.BytesIO()
            assert transfer.pack(str(root), stream).refused == []
            stream.seek(0)
            (back := tmp_path / f"back{kept}").mkdir()
            transfer.unpack(stream, str(back), 0)
            assert snapshots.snapshot(back) == snapshots.snapshot(root)
    assert 0 < kept < 10


def test_the_size_of_all_files_together_is_capped(tmp_path, workspace):
    snapshots = Snapshots(open_store(tmp_path / "store"), max_bytes=10)
    with pytest.raises(HostileFileError, match="too many bytes"):
        snapshots.snapshot(workspace)


@pytest.mark.parametrize("path", ["../escaped", "/tmp/escaped", "sub/../../escaped"])
def test_a_forged_manifest_cannot_write_outside(snapshots, tmp_path, path):
    blob = snapshots.store.put(b"x")
    entry = {"path": path, "kind": "file", "mode": 0o644, "blob": blob}
    identity = snapshots.store.put(canonical_json({"version": 1, "entries": [entry]}).encode())
    with pytest.raises(StoreError, match="leads out of a workspace"):
        snapshots.restore(identity, tmp_path / "back" / "inner")


def test_nothing_is_written_through_a_link_of_a_manifest(snapshots, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    blob = snapshots.store.put(b"x")
    entries = [
        {"path": "a", "kind": "link", "target": str(outside)},
        {"path": "a/file", "kind": "file", "mode": 0o644, "blob": blob},
    ]
    identity = snapshots.store.put(canonical_json({"version": 1, "entries": entries}).encode())
    with pytest.raises(OSError):
        snapshots.restore(identity, tmp_path / "back")
    assert list(outside.iterdir()) == []


def test_read_regular_reads_files_and_nothing_else(tmp_path):
    (tmp_path / "file").write_bytes(b"abc")
    assert read_regular(tmp_path / "file", 3) == b"abc"
    (tmp_path / "link").symlink_to("file")
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    for name, cap in (("file", 2), ("link", 9), ("fifo", 9), ("folder", 9), ("missing", 9)):
        with pytest.raises(HostileFileError) as raised:
            read_regular(tmp_path / name, cap)
        assert str(tmp_path) not in str(raised.value)
    with pytest.raises(HostileFileError):
        read_regular("/dev/zero", 9)


def test_place_replaces_whatever_is_in_the_way(tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    root = tmp_path / "root"
    root.mkdir()
    (root / "sub").symlink_to(outside)
    (root / "helper.py").mkdir()
    place(root, "sub/file", b"x")
    place(root, "helper.py", b"y")
    assert (root / "sub" / "file").read_bytes() == b"x"
    assert (root / "helper.py").read_bytes() == b"y"
    assert list(outside.iterdir()) == []


def test_remove_follows_nothing_and_opens_what_was_closed(tmp_path):
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").touch()
    root = tmp_path / "root"
    (root / "closed" / "inner").mkdir(parents=True)
    (root / "closed" / "inner" / "file").touch()
    (root / "link").symlink_to(tmp_path / "kept")
    (root / "closed" / "inner").chmod(0)
    (root / "closed").chmod(0)
    remove(root / "link")
    remove(root / "missing")
    (root / "file").touch()
    remove(root / "file" / "inner")
    remove(root / "missing" / "inner")
    remove_folder(root)
    assert not root.exists()
    assert (tmp_path / "kept" / "file").exists()


# -- collection --


def age(snapshots, seconds):
    then = time.time() - seconds
    for blob in snapshots.store.blobs():
        os.utime(snapshots.store._path(blob.id), (then, then))


def test_collection_keeps_what_a_root_reaches(snapshots, workspace, tmp_path):
    kept = snapshots.snapshot(workspace)
    (workspace / "train.py").write_text("x = 2\n")
    dropped = snapshots.snapshot(workspace)
    submission = snapshots.store.put(b"1,2")
    age(snapshots, 7200)
    result = snapshots.collect(snapshots.in_use([kept, submission]))
    assert result.deleted == 2  # The second manifest and the second train.py.
    assert not snapshots.store.has(dropped)
    assert snapshots.store.has(submission)
    snapshots.restore(kept, tmp_path / "back")


def test_collection_stops_at_the_cap_and_takes_the_oldest_first(snapshots):
    first = snapshots.store.put(b"a" * 100)
    age(snapshots, 9000)
    second = snapshots.store.put(b"b" * 100)
    os.utime(snapshots.store._path(second), (time.time() - 8000,) * 2)
    result = snapshots.collect([], max_bytes=150)
    assert (result.deleted, result.freed_bytes, result.kept_bytes) == (1, 100, 100)
    assert not snapshots.store.has(first)
    assert snapshots.store.has(second)


def test_collection_leaves_what_was_written_or_reused_lately(snapshots):
    old = snapshots.store.put(b"old")
    age(snapshots, 9000)
    snapshots.store.put(b"old")  # A snapshot that is being taken needs it again.
    new = snapshots.store.put(b"new")
    snapshots.collect([], max_bytes=0)
    assert snapshots.store.has(old)
    assert snapshots.store.has(new)


def test_what_is_in_use_is_found_through_stored_jobs_and_what_is_no_blob_is_passed_over(snapshots, workspace):
    kept = snapshots.snapshot(workspace)
    stored = snapshots.store.put(canonical_json({"state": {"snapshot": kept}, "seen": "0" * 64}).encode())
    submission = snapshots.store.put(b"1,2")
    names = [stored, submission, "f" * 64, "no id"]
    assert snapshots.in_use(names) == {stored, submission, *snapshots.reachable(kept)}
    assert snapshots.in_use([]) == set()


def test_a_bucket_is_collected_like_a_folder(tmp_path, monkeypatch):
    store = open_store(f"memory://{tmp_path}")
    kept, dropped = store.put(b"kept"), store.put(b"dropped")
    snapshots = Snapshots(store)
    assert {blob.id: blob.size for blob in store.blobs()} == {kept: 4, dropped: 7}
    assert snapshots.collect({kept}).deleted == 0, "what was written lately stays"
    assert snapshots.collect({kept}, min_age_seconds=-60.0).deleted == 1
    assert (store.has(kept), store.has(dropped)) == (True, False)
    store.delete(dropped)
