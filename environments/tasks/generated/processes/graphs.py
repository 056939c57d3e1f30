"""Graphs of communities: nodes link mostly within their own, and a node's columns alone tell little."""

from __future__ import annotations

import dataclasses

import networkx
import numpy as np

from environments.tasks.generated.dataset import Dataset


@dataclasses.dataclass(frozen=True)
class Communities:
    """A stochastic block model. The target is a node's community, or a number that spreads along the links."""

    rows: int
    hidden: int
    communities: int
    within: float = 8.0
    """Mean number of neighbours in the same community."""
    across: float = 2.0
    """Mean number of neighbours in other communities."""
    columns: int = 6
    signal: float = 0.5
    """Distance of the communities' means in the columns, in standard deviations."""
    number: bool = False
    """Whether the target is a number: half the node's own columns, plus twice the mean over its neighbours, plus noise.
    """

    def data(self, rng: np.random.Generator) -> Dataset:
        """Draw the data."""
        total = self.rows + self.hidden
        sizes = np.full(self.communities, total // self.communities)
        sizes[0] += total - sizes.sum()
        chances = np.full((self.communities, self.communities), self.across / total)
        np.fill_diagonal(chances, self.within * self.communities / total)
        graph = networkx.stochastic_block_model(sizes, chances, seed=int(rng.integers(2**31)))
        order = rng.permutation(total)
        place = np.argsort(order)
        label = np.repeat(np.arange(self.communities), sizes)[order]
        edges = np.sort(place[np.array(graph.edges)], axis=1)
        inputs = rng.normal(size=(total, self.columns))
        inputs += self.signal * rng.normal(size=(self.communities, self.columns))[label]
        targets = self._numbers(inputs, edges, rng) if self.number else label
        return Dataset(inputs, targets, self.rows, edges=edges[np.lexsort(edges.T[::-1])])

    @staticmethod
    def _numbers(inputs: np.ndarray, edges: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        own = inputs @ rng.normal(size=inputs.shape[1])
        links = np.zeros((len(inputs), len(inputs)))
        links[edges[:, 0], edges[:, 1]] = links[edges[:, 1], edges[:, 0]] = 1.0
        around = links @ own / np.maximum(links.sum(axis=1), 1.0)
        return 10 * (0.5 * own + 2.0 * around + 0.5 * rng.normal(size=len(own))) + 50
