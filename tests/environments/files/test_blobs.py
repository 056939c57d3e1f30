"""Blobs by content hash, in a folder and on an fsspec file system."""

import hashlib
import os
import threading

import pytest

from environments.files.blobs import CorruptBlobError, MissingBlobError, StoreError, open_store


@pytest.fixture(params=["folder", "file_url", "memory"])
def store(request, tmp_path):
    urls = {"folder": tmp_path, "file_url": f"file://{tmp_path}", "memory": f"memory://{tmp_path}"}
    return open_store(urls[request.param])


def test_bytes_come_back_under_their_hash(store):
    data = os.urandom(10_000)
    assert not store.has(hashlib.sha256(data).hexdigest())
    identity = store.put(data)
    assert identity == hashlib.sha256(data).hexdigest()
    assert store.has(identity)
    assert store.get(identity) == data
    assert store.put(data) == identity


def test_an_empty_blob_is_a_blob(store):
    assert store.get(store.put(b"")) == b""


def test_a_missing_blob_names_the_store(store):
    with pytest.raises(MissingBlobError, match="same store"):
        store.get("0" * 64)


@pytest.mark.parametrize("identity", ["", "../../etc/passwd", "ABCD", "0" * 63 + "/", "0" * 64 + "\n"])
def test_an_id_that_is_no_hash_is_refused(store, identity):
    with pytest.raises(StoreError, match="64 hex"):
        store.get(identity)
    with pytest.raises(StoreError, match="64 hex"):
        store.has(identity)


def blob_file(folder, identity):
    (path,) = folder.rglob(identity)
    return path


def test_a_damaged_blob_is_an_error_and_a_truncated_one_is_healed_by_the_next_put(tmp_path):
    store = open_store(tmp_path)
    identity = store.put(b"weights")
    blob_file(tmp_path, identity).write_bytes(b"w3ights")
    with pytest.raises(CorruptBlobError, match=identity):
        store.get(identity)
    blob_file(tmp_path, identity).write_bytes(b"")
    store.put(b"weights")
    assert store.get(identity) == b"weights"


def test_a_failed_write_leaves_nothing_behind(tmp_path, monkeypatch):
    store = open_store(tmp_path)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(StoreError, match="No space left"):
        store.put(b"data")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_many_threads_may_put_the_same_blob(tmp_path):
    store, data = open_store(tmp_path), os.urandom(100_000)
    threads = [threading.Thread(target=store.put, args=(data,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 1
    assert store.get(hashlib.sha256(data).hexdigest()) == data


def test_a_url_without_a_driver_says_what_to_install():
    with pytest.raises(StoreError, match="pip install"):
        open_store("nosuchscheme://bucket/path")


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="name a folder"):
        open_store(tmp_path / "file" / "store")
