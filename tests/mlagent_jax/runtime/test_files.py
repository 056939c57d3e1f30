"""Atomic writes of one file by several threads, as by several processes."""

import threading

import pytest

from mlagent_jax.runtime.files import write_whole


def test_many_writers_of_one_file_disturb_no_other_and_leave_nothing(tmp_path):
    failures, texts = [], [str(number) * 100_000 for number in range(4)]

    def write(text):
        try:
            for _ in range(50):
                write_whole(tmp_path / "page.html", text)
        except OSError as error:
            failures.append(error)

    threads = [threading.Thread(target=write, args=(text,)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert (tmp_path / "page.html").read_text() in texts
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


def test_a_write_that_fails_leaves_no_part(tmp_path):
    (tmp_path / "folder" / "inside").mkdir(parents=True)
    with pytest.raises(OSError):
        write_whole(tmp_path / "folder", "text")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
