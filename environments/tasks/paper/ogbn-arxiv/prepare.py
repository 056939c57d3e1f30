"""The benchmark's own split by time: its test nodes are hidden. Nodes are numbered anew."""

import numpy as np
import pandas as pd

from environments.tasks.folders import archives, splits


def prepare(raw, public, private, seed):
    with archives.open_archive(raw, "arxiv.zip") as archive:

        def read(name, kind):
            try:
                return archive.table(name, header=None).to_numpy(kind)
            except ValueError as error:
                raise archives.ArchiveError(f"{name} in {archive.path} holds no numbers: {error}") from error

        nodes, labels = read("raw/node-feat.csv", np.float32), read("raw/node-label.csv", int)[:, 0]
        edges, years = read("raw/edge.csv", int), read("raw/node_year.csv", int)[:, 0]
        parts = {part: read(f"split/time/{part}.csv", int)[:, 0] for part in ("train", "valid", "test")}
    if not len(nodes) == len(labels) == len(years) == sum(map(len, parts.values())) or edges.max() >= len(nodes):
        raise archives.ArchiveError("arxiv.zip: nodes, labels, years and splits do not have the same nodes")
    new = np.random.default_rng(seed).permutation(len(nodes))  # New number of each node.
    old = np.argsort(new)
    np.save(public / "nodes.npy", nodes[old])
    np.save(public / "years.npy", years[old])
    np.save(public / "edges.npy", new[edges].astype(np.int32))
    table = {
        part: pd.DataFrame({"node": new[rows], "label": labels[rows]}).sort_values("node", ignore_index=True)
        for part, rows in parts.items()
    }
    train = pd.concat([table[part].assign(part=part) for part in ("train", "valid")])
    splits.write(train, table["test"], ["label"], public, private, "node", renumber=False)
