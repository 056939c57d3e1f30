"""The critic of an rl checkpoint as a judge of states: its estimate of the reward of a step from each."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from environments.protocol import State
from mlagent_jax import models
from mlagent_jax.agents.prompts import Renderer

MIN_TOKENS = 64
"""Smallest padded length of a prompt; lengths are powers of 2, so that few programs are compiled."""


class Critic:
    """Value head on the hidden states of the policy that it was trained with.

    Args:
      graph: The policy's graph.
      params: Its parameters.
      head: `kernel` [hidden] and `bias` [], as rl saves them (`checkpoints.policies.load_value_head`).
      renderer: Renderer of states as prompts.
    """

    def __init__(
        self, graph: models.Graph, params: models.Params, head: Mapping[str, jax.Array], renderer: Renderer
    ) -> None:
        self._graph, self._params, self._head, self._renderer = graph, params, dict(head), renderer

    def values(self, states: Sequence[State]) -> list[float | None]:
        """Return the value of each of `states`, None where its prompt is too long."""
        return [self._value(state) if self._renderer.fits(state) else None for state in states]

    def _value(self, state: State) -> float:
        prompt = self._renderer.encode(state)
        tokens = np.zeros((1, max(MIN_TOKENS, 1 << (len(prompt) - 1).bit_length())), np.int32)
        tokens[0, : len(prompt)] = prompt
        return float(_value(self._graph, self._params, self._head, tokens, np.array([len(prompt)], np.int32)))


@functools.partial(jax.jit, static_argnames="graph")
def _value(
    graph: models.Graph, params: models.Params, head: Mapping[str, jax.Array], tokens: jax.Array, lengths: jax.Array
) -> jax.Array:
    """Return the value at the last of `lengths` [1] tokens of `tokens` [1, time]: where the first action token is
    chosen, and the critic was trained."""
    hidden = models.hidden_states(graph, params, tokens, lengths=lengths)[0, lengths[0] - 1]
    return hidden.astype(jnp.float32) @ head["kernel"] + head["bias"]
