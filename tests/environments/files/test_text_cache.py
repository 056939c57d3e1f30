"""A cache that is broken, full or on shared storage costs its answers, never a step."""

import collections
import logging
import sqlite3
import stat

import pytest
from queue_cases import fill

from environments.files import file_systems
from environments.files.text_cache import TextCache

Mount = collections.namedtuple("Mount", "mountpoint fstype")
LARGE = "x" * 100_000


@pytest.fixture
def path(tmp_path):
    return tmp_path / "cache" / "texts.sqlite"


def opened(path):
    return TextCache(path, "answers")


def test_the_first_text_stays_for_all_processes(path):
    one, other = opened(path), opened(path)
    assert one.get("key") is None
    assert one.put("key", "first") == "first"
    assert other.put("key", "second") == "first"
    assert other.get("key") == "first"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    one.close()
    assert one.get("key") is None


@pytest.mark.parametrize("content", [b"no database at all" * 100, b"SQLite format 3\0" + bytes(5000)])
def test_a_broken_file_is_put_aside_with_a_line_in_the_log(path, caplog, content):
    path.parent.mkdir()
    path.write_bytes(content)
    cache = opened(path)
    cache.put("key", "text")
    assert cache.put("key", "text") == "text"
    assert cache.get("key") == "text"
    assert path.with_name("texts.sqlite.broken").read_bytes() == content
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "is broken" in caplog.text


def test_a_file_that_breaks_while_it_is_used_is_begun_anew(path, caplog):
    cache = opened(path)
    for number in range(200):
        cache.put(str(number), "x" * 500)
    other = sqlite3.connect(path)
    other.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    other.close()
    with open(path, "r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * 40_000)
    found = [cache.put(str(number), "again") for number in range(200)]
    assert set(found) <= {"again", "x" * 500}
    assert "is broken" in caplog.text
    assert cache.put("new", "text") == cache.get("new") == "text"


def test_a_full_disk_costs_the_cache_and_nothing_else(small_disk, caplog):
    cache = opened(small_disk / "texts.sqlite")
    assert cache.put("key", "text") == "text"
    fill(small_disk)
    assert [cache.put(str(number), LARGE) for number in range(10)] == [LARGE] * 10
    assert caplog.text.count("is not used from here on") == 1


def test_a_folder_that_cannot_be_made_costs_the_cache(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    cache = opened(tmp_path / "file" / "texts.sqlite")
    assert cache.put("key", "text") == "text"
    assert cache.get("key") is None
    assert "is not used from here on" in caplog.text


def test_on_a_network_file_system_the_file_is_in_the_hosts_own_cache(tmp_path, monkeypatch, caplog):
    shared, local = tmp_path / "shared", tmp_path / "local"
    mounts = [Mount("/", "ext4"), Mount(str(shared), "nfs4")]
    monkeypatch.setattr(file_systems.psutil, "disk_partitions", lambda all: mounts)
    monkeypatch.setenv("MLAGENT_CACHE", str(local))
    one, other = opened(shared / "a" / "texts.sqlite"), opened(shared / "b" / "texts.sqlite")
    assert one.put("key", "of a") == "of a"
    assert other.put("key", "of b") == "of b"
    assert opened(shared / "a" / "texts.sqlite").get("key") == "of a"
    assert not shared.exists()
    assert len(list(local.rglob("texts.sqlite"))) == 2
    mounts.append(Mount(str(local), "fuse.sshfs"))
    assert opened(shared / "a" / "texts.sqlite").put("key", "new") == "new"
    assert "is not used" in caplog.text
