"""Readers for the two public binary image formats, trusting nothing that a file claims.

IDX (LeCun's MNIST page): magic number, big-endian sizes, bytes. CIFAR binary (Krizhevsky 2009):
records of one label byte and the image, planes first.
"""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import DataError

UNSIGNED_BYTE = 0x08


def read_bytes(path: Path, limit: int) -> bytes:
    """All bytes of a file, unpacked if its name ends in .gz; DataError beyond `limit` bytes."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            data = file.read(limit + 1)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path}: must be a whole gzip file; got: {error}") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error}") from None
    if len(data) > limit:
        raise DataError(f"{path}: must unpack to {limit} bytes at most; it holds more")
    return data


def read_idx(path: Path, dims: int, limit: int = 1 << 28) -> Tensor:
    """An IDX file of unsigned bytes with `dims` dimensions -> uint8 tensor; DataError if broken."""
    data = read_bytes(path, limit)
    start = 4 + 4 * dims
    if len(data) < start:
        raise DataError(f"{path}: an IDX header takes {start} bytes; the file holds {len(data)}")
    magic, wanted = int.from_bytes(data[:4], "big"), UNSIGNED_BYTE << 8 | dims
    if magic != wanted:
        raise DataError(f"{path}: the magic number must be {wanted:#010x}; got {magic:#010x}")
    shape = [int.from_bytes(data[i : i + 4], "big") for i in range(4, start, 4)]
    claimed = 1
    for size in shape:
        claimed *= size  # Python's integers do not overflow
    if claimed != len(data) - start:
        raise DataError(
            f"{path}: the header claims {' x '.join(map(str, shape))} = {claimed} bytes; "
            f"the file holds {len(data) - start}"
        )
    return torch.from_numpy(np.frombuffer(data, np.uint8, offset=start).copy()).reshape(shape)


def read_idx_pair(images: Path, labels: Path, side: int, classes: int) -> tuple[Tensor, Tensor]:
    """(n, 1, side, side) uint8 images and (n,) int64 labels of two files that belong together."""
    x, y = read_idx(images, 3), read_idx(labels, 1)
    if tuple(x.shape[1:]) != (side, side):
        raise DataError(f"{images}: images must be {side} x {side}; got {tuple(x.shape[1:])}")
    if len(x) != len(y) or len(y) == 0:
        raise DataError(
            f"{labels}: there must be a label for each of the {len(x)} images in {images.name}; "
            f"got {len(y)}"
        )
    return x.unsqueeze(1), check_labels(labels, y, classes)


def read_cifar(path: Path, records: int) -> tuple[Tensor, Tensor]:
    """(records, 3, 32, 32) uint8 images and (records,) int64 labels of one CIFAR-10 binary file."""
    size = 1 + 3 * 32 * 32
    data = read_bytes(path, records * size)
    if len(data) != records * size:
        raise DataError(
            f"{path}: must hold {records} records of {size} bytes = {records * size} bytes; "
            f"got {len(data)}"
        )
    table = torch.from_numpy(np.frombuffer(data, np.uint8).copy()).reshape(records, size)
    return table[:, 1:].reshape(records, 3, 32, 32), check_labels(path, table[:, 0], 10)


def check_labels(path: Path, labels: Tensor, classes: int) -> Tensor:
    """The labels as int64; DataError if one is not below `classes`."""
    highest = int(labels.max())
    if highest >= classes:
        raise DataError(f"{path}: labels must be below {classes}; got {highest}")
    return labels.long()
