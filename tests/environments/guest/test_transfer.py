"""What comes out of a sandbox is hostile: the stream is checked as a whole before anything is written."""

import io
import json
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from environments.guest import transfer, tree

ROOM = 1 << 20


def stream(entries, contents=b"", refused=()):
    index = json.dumps({"entries": entries, "refused": list(refused)}).encode()
    return io.BytesIO(len(index).to_bytes(8, "big") + index + contents)


def packed(folder, **options):
    out = io.BytesIO()
    done = transfer.pack(str(folder), out, options.pop("max_bytes", ROOM), **options)
    out.seek(0)
    return out, done.refused


@pytest.mark.parametrize(
    "entries",
    [
        [["../x", "f", 0o644, 1]],
        [["/etc/x", "f", 0o644, 1]],
        [["a/../../x", "f", 0o644, 1]],
        [[".", "d", 0o755, 0]],
        [["", "f", 0o644, 1]],
        [["x\0y", "f", 0o644, 1]],
        [["absent/x", "f", 0o644, 1]],
        [["x", "f", 0o644, 1], ["x", "f", 0o644, 1]],
        [["link", "l", 0o777, "/etc"]],
        [["link", "l", 0o777, "a/../.."]],
        [["link", "l", 0o777, "inner"], ["link/x", "f", 0o644, 1]],
        [["x", "f", 0o644, -1]],
        [["x", "f", 0o644, ROOM + 1]],
        [["x", "f", 0o644, "1"]],
        [["x", "p", 0o644, 0]],
        [["data", "d", 0o755, 0]],
        [["link", "l", 0o777, "a\0b"]],
        [["x\ud800", "f", 0o644, 1]],
        [["link", "l", 0o777, "\ud800"]],
        [["x", "f", "0o644", 1]],
        [["x", "f", 0o644, True]],
        [["x" * (tree.MAX_PATH_BYTES + 1), "f", 0o644, 1]],
        [[f"{n}", "f", 0o644, 0] for n in range(tree.MAX_INODES + 1)],
        [["/".join("d" * (n + 1)), "d", 0o755, 0] for n in range(tree.MAX_DEPTH + 1)],
        [["x"]],
        "entries",
        None,
    ],
)
def test_a_hostile_index_is_refused_and_nothing_is_touched(tmp_path, entries):
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(transfer.TransferError):
        transfer.unpack(stream(entries, b"x"), str(tmp_path), ROOM, keep=frozenset({"data"}))
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize("missing", [1, 5, 8])
def test_a_cut_stream_leaves_what_was_there(tmp_path, missing):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "mine").write_text("mine")
    whole = stream([["a", "f", 0o644, 4], ["b", "f", 0o644, 4]], b"aaaabbbb").getvalue()
    with pytest.raises(transfer.TransferError, match="ends early"):
        transfer.unpack(io.BytesIO(whole[:-missing]), str(tmp_path), ROOM)
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")] == ["folder", "folder/mine"]


def test_the_index_of_any_tree_within_the_limits_fits():
    line = json.dumps(["\x01" * tree.MAX_PATH_BYTES, "l", 0o777, "\x01" * tree.MAX_PATH_BYTES])
    assert tree.MAX_INODES * (len(line) + 2) < transfer.MAX_INDEX_BYTES


def test_refusals_are_counted_by_reason_so_that_a_report_stays_small(tmp_path):
    for number in range(1500):
        os.mkfifo(tmp_path / f"{number:04d}{'f' * 200}")
    _, refused = packed(tmp_path)
    assert [(each.why, each.count) for each in refused] == [(tree.ODD, 1500)]
    assert len(json.dumps(refused)) < 200 and str(refused[0]).startswith("'0000ff")


def test_paths_beyond_the_limits_are_refused_before_the_kernel_is_asked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for _ in range(20):  # 5,000 bytes: more than a path may have anywhere
        os.mkdir("d" * 250)
        os.chdir("d" * 250)
    os.chdir(tmp_path)
    os.makedirs("e/" * tree.MAX_DEPTH + "e")
    (tmp_path / "link").symlink_to("x" * 1000)
    out, refused = packed(tmp_path)
    assert {(each.why, each.count) for each in refused} == {(tree.TOO_LONG, 2), (tree.TOO_DEEP, 1)}
    (tmp_path / "target").mkdir()
    transfer.unpack(out, str(tmp_path / "target"), ROOM)


@pytest.mark.parametrize("raw", [b"", b"\0" * 7, (1 << 40).to_bytes(8, "big"), b"\0" * 7 + b"\2[[", b"\xff" * 100])
def test_a_broken_stream_is_refused(tmp_path, raw):
    with pytest.raises(transfer.TransferError):
        transfer.unpack(io.BytesIO(raw), str(tmp_path), ROOM)


@settings(max_examples=60, deadline=None)
@given(raw=st.binary(max_size=200))
def test_no_bytes_raise_anything_else(raw, tmp_path_factory):
    with pytest.raises(transfer.TransferError):
        transfer.unpack(io.BytesIO(len(raw).to_bytes(8, "big") + raw), str(tmp_path_factory.getbasetemp()), ROOM)


def test_a_tree_travels_whole(tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    (source / "a" / "empty").mkdir(parents=True)
    (source / "a" / "x.bin").write_bytes(bytes(range(256)) * 9000)
    (source / "run.sh").write_text("#!/bin/sh")
    (source / "run.sh").chmod(0o755)
    (source / "link").symlink_to("a/x.bin")
    target.mkdir()
    (target / "old").mkdir()
    (target / "old" / "file").write_text("goes")
    (target / "data").mkdir()
    out, refused = packed(source, max_bytes=4 << 20)
    assert refused == []
    transfer.unpack(out, str(target), 4 << 20, keep=frozenset({"data"}))
    names = sorted(str(path.relative_to(target)) for path in target.rglob("*"))
    assert names == ["a", "a/empty", "a/x.bin", "data", "link", "run.sh"]
    assert (target / "a" / "x.bin").read_bytes() == (source / "a" / "x.bin").read_bytes()
    assert (target / "run.sh").stat().st_mode & 0o777 == 0o755
    assert os.readlink(target / "link") == "a/x.bin"


def test_the_packer_opens_and_follows_nothing_special(tmp_path):
    os.mkfifo(tmp_path / "fifo")  # opening it would block for ever
    (tmp_path / "out").symlink_to("/etc")
    (tmp_path / "sparse").touch()
    os.truncate(tmp_path / "sparse", 1 << 40)
    (tmp_path / "good").write_text("good")
    out, refused = packed(tmp_path)
    assert {each.path: each.why for each in refused} == {
        "fifo": tree.ODD, "out": tree.LEADS_OUT, "sparse": tree.TOO_LARGE
    }  # fmt: skip
    target = tmp_path / "good-only"
    target.mkdir()
    assert transfer.unpack(out, str(target), ROOM) == refused
    assert [path.name for path in target.iterdir()] == ["good"]


def test_a_file_that_shrinks_while_it_is_packed_keeps_the_stream_in_step(tmp_path, monkeypatch):
    (tmp_path / "a").write_text("aaaa")
    (tmp_path / "b").write_text("bbbb")
    original = transfer._copy_out

    def shrink_first(path, size, out):
        if path.endswith("a"):
            os.truncate(path, 1)
        original(path, size, out)

    monkeypatch.setattr(transfer, "_copy_out", shrink_first)
    out, _ = packed(tmp_path)
    target = tmp_path / "target"
    target.mkdir()
    transfer.unpack(out, str(target), ROOM)
    assert (target / "a").read_bytes() == b"a\0\0\0" and (target / "b").read_text() == "bbbb"
