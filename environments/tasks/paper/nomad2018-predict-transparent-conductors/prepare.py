"""A fifth of the labelled crystals is hidden; the files with positions become one table."""

import pandas as pd

from environments.tasks.folders import archives, splits

TARGETS = ["formation_energy_ev_natom", "bandgap_energy_ev"]


def prepare(raw, public, private, seed):
    with archives.open_archive(raw, "nomad2018-predict-transparent-conductors.zip") as archive:
        table = archive.table("train.csv", numbers=["id", "spacegroup", "lattice_vector_1_ang", *TARGETS])
        table["atoms"] = [read_atoms(archive, f"train/{crystal}/geometry.xyz") for crystal in table["id"]]
    parts = splits.split(table, 0.2, seed)
    splits.number(*parts, "id")
    rows = [
        (key, *atom)
        for part in parts
        for key, atoms in zip(part["id"], part.pop("atoms"), strict=True)
        for atom in atoms
    ]
    pd.DataFrame(rows, columns=["id", "what", "x", "y", "z"]).to_csv(public / "geometry.csv", index=False)
    splits.write(*parts, TARGETS, public, private, "id")


def read_atoms(archive, name):
    """(what, x, y, z) of every line that is no comment."""
    found = []
    for line in archive.read(name).decode().splitlines():
        kind, *rest = line.split()[:5] or ["#"]
        if kind == "lattice_vector":
            found.append((kind, *map(float, rest[:3])))
        elif kind == "atom":
            found.append((rest[3], *map(float, rest[:3])))
        elif not kind.startswith("#"):
            raise archives.ArchiveError(f"{name}: a line begins with {kind[:20]!r}, expected lattice_vector or atom")
    return found
