"""Read-only: inputs of a graph task. A row is a node; `edges.csv` lists the pairs of nodes that are connected."""

import json
from pathlib import Path

import numpy as np


def inputs(hops=0, degree=False, spectral=0, votes=False):
    """Inputs of the training nodes and of the nodes to predict, `[nodes, columns]`.

    hops: add the mean of the columns over the neighbours, and over theirs, so many times.
    degree: add the number of neighbours and the mean of theirs.
    spectral: add so many coordinates that place connected nodes close together.
    votes: add what the targets of neighbouring training nodes are on average (a node's own is not in it).
    """
    train, test = (np.loadtxt(f"data/{name}.csv", delimiter=",", skiprows=1, ndmin=2) for name in ("train", "test"))
    nodes = np.concatenate([train[:, 0], test[:, 0]]).astype(int)
    table = np.zeros((len(nodes), train.shape[1] - 1))
    table[nodes] = np.vstack([train, test])[:, 1:]
    edges = np.loadtxt("data/edges.csv", delimiter=",", skiprows=1, dtype=int)
    links = np.zeros((len(nodes), len(nodes)))
    links[edges[:, 0], edges[:, 1]] = links[edges[:, 1], edges[:, 0]] = 1.0
    counts = links.sum(axis=1, keepdims=True)
    mean = links / np.maximum(counts, 1.0)
    columns = [table]
    for _ in range(hops):
        columns.append(mean @ columns[-1])
    if degree:
        columns.append(np.hstack([counts, mean @ counts]))
    if spectral:
        scaled = links / np.sqrt(np.maximum(counts, 1.0) * np.maximum(counts.T, 1.0))
        columns.append(np.linalg.eigh(scaled)[1][:, -spectral - 1 : -1])
    if votes:
        columns.append(_votes(links, nodes[: len(train)]))
    whole = np.hstack(columns)[nodes]
    return whole[: len(train)], whole[len(train) :]


def _votes(links, known):
    classes = json.loads(Path("data/about.json").read_text())["classes"]
    targets = np.loadtxt("data/target.csv", delimiter=",", skiprows=1)
    one = np.eye(classes)[targets.astype(int)] if classes else targets[:, None]
    return links[:, known] @ (one - one.mean(axis=0)) / np.maximum(links[:, known].sum(axis=1, keepdims=True), 1.0)
