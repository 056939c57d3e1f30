"""A table that becomes a task, written by a stand-in for the factory's writer."""

import types

import pytest

from environments.factory import writing
from mlagent_jax.search.table_task import task_of_table


def test_a_table_whose_task_was_cut_short_becomes_one_at_the_next_start_and_says_what_to_look_at(
    tmp_path, monkeypatch, capsys
):
    table = tmp_path / "sales.csv"
    rows = [f"7,{number % 13},{number * number % 101},{(number % 13) * 2.5 + number % 3}" for number in range(150)]
    table.write_text("\n".join(["always,x,z,price", *rows]) + "\n")

    def cut(plan, folder, *others):
        folder.mkdir()
        raise KeyboardInterrupt

    def whole(plan, folder, *others):
        folder.mkdir()
        (folder / "task.yaml").write_text("")
        return writing.Written(folder, types.SimpleNamespace(agrees=False), "")

    monkeypatch.setattr(writing, "write", cut)
    with pytest.raises(KeyboardInterrupt):
        task_of_table(table, "price", tmp_path / "out" / "task", 0)
    monkeypatch.setattr(writing, "write", whole)
    for _ in range(2):
        assert (task_of_table(table, "price", tmp_path / "out" / "task", 0) / "task.yaml").exists()
    shown = capsys.readouterr().out
    assert shown.count("table: left out: always") == 1
    assert "hidden rows: scores are noisy" in shown
    assert "the reference is not clearly better than the start" in shown
