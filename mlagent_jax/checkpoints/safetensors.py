"""Safetensors files, read in slices and written as a stream, so that no file is held in memory as a whole.

The format: 8 bytes of length (little-endian), a JSON header of that length (name -> dtype, shape, offsets), the data.
The package `safetensors` is not used for reading: it does not name the tensor that a truncated file breaks, and it does
not slice bfloat16 for NumPy.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import struct
from collections.abc import Callable, Mapping
from pathlib import Path

import ml_dtypes
import numpy as np
from etils import epath

from mlagent_jax.runtime.files import refuse_pointer

DTYPES: dict[str, np.dtype] = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F64": np.dtype(np.float64),
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_LARGEST_HEADER = 100_000_000
"""Maximum bytes of a header, as the format defines it."""


class TensorFileError(ValueError):
    """A weight file is damaged, or lacks what the model needs; the message names the file and the tensor."""


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor of a file, whose data are not read yet."""

    path: epath.Path
    name: str
    dtype: np.dtype
    shape: tuple[int, ...]
    offset: int
    """Bytes from the start of the file."""

    def map(self) -> np.ndarray:
        """Return the tensor as a read-only view of the file, of which a slice reads only its own pages.

        A tensor of a remote file is read as a whole."""
        if 0 in self.shape:
            return np.empty(self.shape, self.dtype)
        if "://" in os.fspath(self.path):
            with self.path.open("rb") as file:
                file.seek(self.offset)
                data = file.read(math.prod(self.shape) * self.dtype.itemsize)
            return np.frombuffer(data, self.dtype).reshape(self.shape)
        return np.memmap(self.path, self.dtype, mode="r", offset=self.offset, shape=self.shape)


def read_header(path: epath.Path) -> dict[str, Tensor]:
    """Return the tensors of a file by name, without reading their data.

    Raises:
      TensorFileError: the file is truncated or not a safetensors file, or a tensor's dtype is not in `DTYPES`.
    """
    try:
        refuse_pointer(path)
    except ValueError as error:
        raise TensorFileError(str(error)) from error
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        prefix = file.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
        if not 2 <= length <= min(size - 8, _LARGEST_HEADER):
            raise TensorFileError(f"{path} has {size} bytes and no whole header: truncated, or no safetensors file")
        try:
            header = json.loads(file.read(length))
        except ValueError as error:
            raise TensorFileError(f"{path} has no readable header: {error}") from error
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        if entry["dtype"] not in DTYPES:
            raise TensorFileError(f"{path}: tensor {name!r} is {entry['dtype']}; supported are {', '.join(DTYPES)}")
        dtype, shape, (start, end) = DTYPES[entry["dtype"]], tuple(entry["shape"]), entry["data_offsets"]
        if end - start != math.prod(shape) * dtype.itemsize:
            raise TensorFileError(f"{path}: tensor {name!r} of shape {shape} has {end - start} bytes: damaged header")
        if 8 + length + end > size:
            raise TensorFileError(
                f"{path} is truncated: tensor {name!r} ends at byte {8 + length + end}, the file at {size}; "
                "download it again"
            )
        tensors[name] = Tensor(path, name, dtype, shape, 8 + length + start)
    return tensors


def write(
    path: Path, tensors: Mapping[str, tuple[np.dtype, tuple[int, ...]]], read: Callable[[str], np.ndarray]
) -> None:
    """Write a file, one tensor at a time, and flush it to the disk.

    Args:
      path: path of the file.
      tensors: dtype and shape by name, in the order of the file.
      read: function that returns the tensor of a name; called in the order of the file.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (dtype, shape) in tensors.items():
        start, end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # The format aligns the data.
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, (dtype, shape) in tensors.items():
            array = read(name)
            if (array.dtype, array.shape) != (dtype, shape):
                raise TensorFileError(f"tensor {name!r} is {array.dtype}{array.shape}, announced as {dtype}{shape}")
            file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
        file.flush()
        os.fsync(file.fileno())
