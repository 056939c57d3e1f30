"""What a search prints at its end, without a sandbox."""

import io
import types

import pytest
from rich.console import Console

from environments.actions.openai_http import EndpointError
from environments.protocol import Scale, State
from mlagent_jax.search import result, session
from mlagent_jax.search.budget import Budget
from mlagent_jax.search.run import Search, Settings
from mlagent_jax.search.strategies import STRATEGIES

SCALE = Scale(m_init=0.5, m_best=0.9, higher_is_better=True)


def test_the_text_of_an_endpoints_error_reaches_no_terminal_unchanged(tmp_path, monkeypatch):
    def fail(self):
        raise EndpointError("\x1b[31mno model\x07")

    def conclude(folder, episode, store, facts, ended, size):
        return {"ended": ended, "warning": ""}

    monkeypatch.setattr(Search, "run", fail)
    monkeypatch.setattr(result, "conclude", conclude)
    monkeypatch.setattr(result, "sentences", lambda score, metric, tree: [score["ended"]])
    episode = types.SimpleNamespace(
        task_key="t@1", profile="compact", scale=SCALE, spec=types.SimpleNamespace(metric="m")
    )
    episode.state, episode.take = State("t@1", (), "s", "start", 0.5), None
    console = Console(file=io.StringIO())
    settings = Settings(STRATEGIES.choose("greedy"), Budget(executions=1), 0)
    with pytest.raises(EndpointError):
        session.search(episode, None, tmp_path, settings, agent_name="mine", console=console)
    assert "no model" in console.file.getvalue()
    assert not {"\x1b", "\x07"} & set(console.file.getvalue())
