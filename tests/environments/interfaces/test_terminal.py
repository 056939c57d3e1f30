"""What others wrote is shown on a terminal, and never obeyed by it."""

import dataclasses
import types

from environments import tasks
from environments.interfaces import command_line as command
from environments.interfaces.terminal import printable

EVIL = "digits\x1b[2J\x1b]0;OWNED\x07\x9b31m\rgone\u202e"


def test_escape_codes_become_plain_signs_and_text_stays():
    assert printable("caf\u00e9 \U0001f389\n\tx") == "caf\u00e9 \U0001f389\n\tx"
    assert not {"\x1b", "\x07", "\x9b", "\r", "\u202e"} & set(printable(EVIL))


def test_a_task_s_text_reaches_no_terminal_as_codes(monkeypatch, capsys):
    spec = dataclasses.replace(tasks.get("wine").spec, description=EVIL)
    monkeypatch.setattr(command.tasks, "get", lambda name: types.SimpleNamespace(spec=spec))
    assert not command.main(["show", "wine"])
    assert "OWNED" in (shown := capsys.readouterr().out) and "\x1b" not in shown
