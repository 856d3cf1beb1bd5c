"""Data sets as whole tensors, looked for in folders on this machine; nothing is downloaded here.

A set lies in $SPARSEWRIGHT_DATA/NAME or in the cache folder; `sparsewright data NAME` fills the
latter. `digits` ships inside scikit-learn and is always there.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import DataError
from ..registry import Table
from .formats import read_cifar, read_idx_pair

Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Images:
    """A data set in memory.

    train, test: (float32 images (n, channels, height, width), int64 labels (n,)). Pixels are
    standardised per channel by the mean and the deviation of the training images.
    mirror: whether an image mirrored left to right still means the same (for augmentation).
    """

    name: str
    train: Pair
    test: Pair
    classes: int
    mirror: bool

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of one image."""
        channels, height, width = self.train[0].shape[1:]
        return channels, height, width


@dataclass(frozen=True)
class Download:
    """A file at its official address, and its checksum as "algorithm:hex digits".

    members: for a tar archive, the (regular) files to take out of it; the archive is then removed.
    """

    url: str
    checksum: str
    members: tuple[str, ...] = ()

    @property
    def file(self) -> str:
        return self.url.rsplit("/", 1)[-1]


@dataclass(frozen=True)
class Source:
    """Where a data set comes from and how it is read.

    files: alternatives for each file wanted, relative to the set's folder. read: these files, in
    order -> (train, test) with uint8 images; a set without files ships inside a library.
    """

    about: str
    read: Callable[..., tuple[Pair, Pair]]
    files: tuple[tuple[str, ...], ...] = ()
    downloads: tuple[Download, ...] = ()
    classes: int = 10
    mirror: bool = False


DATA: Table[Source] = Table("data set")


def cache_folder() -> Path:
    """$SPARSEWRIGHT_CACHE, else sparsewright/data under $XDG_CACHE_HOME or ~/.cache."""
    own = os.environ.get("SPARSEWRIGHT_CACHE")
    if own:
        return Path(own)
    general = os.environ.get("XDG_CACHE_HOME")
    return (Path(general) if general else Path.home() / ".cache") / "sparsewright" / "data"


def folders(name: str) -> list[Path]:
    """The folders that may hold a data set, in the order in which they are looked through."""
    given = os.environ.get("SPARSEWRIGHT_DATA")
    return [Path(root) / name for root in (given, cache_folder()) if root]


def find(name: str) -> tuple[Path | None, list[Path]]:
    """(folder, files) of a data set on this machine; DataError names what to put where."""
    source = DATA[name]
    if not source.files:
        return None, []
    for folder in folders(name):
        found = [_first(folder, ways) for ways in source.files]
        if all(found):
            return folder, [path for path in found if path]
    wanted = "\n".join(f"  {' or '.join(ways)}" for ways in source.files)
    raise DataError(
        f"data set {name!r} is not on this machine. Run `sparsewright data {name}`, or put these "
        f"files\n{wanted}\ninto {' or '.join(map(str, folders(name)))}"
    )


def _first(folder: Path, ways: tuple[str, ...]) -> Path | None:
    return next((folder / way for way in ways if (folder / way).is_file()), None)


def load(name: str) -> Images:
    """A data set by name; DataError if it is not on this machine or not what it should be.

    >>> load("digits").train[0].shape
    torch.Size([1437, 1, 8, 8])
    """
    source = DATA[name]
    _, files = find(name)
    train, test = source.read(*files)
    means, deviations = pixel_statistics(train[0])
    x_train, x_test = (standardise(images, means, deviations) for images in (train[0], test[0]))
    return Images(name, (x_train, train[1]), (x_test, test[1]), source.classes, source.mirror)


def pixel_statistics(images: Tensor) -> Pair:
    """(n, channels, h, w) uint8 -> mean and standard deviation of every channel, float32.

    Counted, not summed, so that neither the number of threads nor rounding plays a part.

    >>> pixel_statistics(torch.tensor([0, 4], dtype=torch.uint8).reshape(2, 1, 1, 1))
    (tensor([2.]), tensor([2.]))
    """
    values = torch.arange(256, dtype=torch.float64)
    shares = (
        torch.stack(
            [torch.bincount(images[:, c].flatten(), minlength=256) for c in range(images.shape[1])]
        ).double()
        / images[:, 0].numel()
    )  # (channels, values)
    means = shares @ values
    variances = (shares * (values - means[:, None]) ** 2).sum(dim=1)
    return means.float(), variances.sqrt().float()


def standardise(images: Tensor, means: Tensor, deviations: Tensor) -> Tensor:
    """(n, channels, h, w) uint8 -> float32, (pixel - mean) / deviation of its channel."""
    return images.float().sub_(means[:, None, None]).div_(deviations[:, None, None])


def batches(
    pair: Pair, size: int, seed: int, epoch: int, *, augment: bool = False, mirror: bool = False
) -> Iterator[Pair]:
    """The batches of one epoch, in an order that (seed, epoch) alone decide, the last one smaller.

    Nothing has to be stored to resume at an epoch. augment: random crops of the image padded by
    an eighth of its side, and mirrored copies if `mirror` (He et al. 2016 for CIFAR).
    """
    images, labels = pair
    random = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63)
    order = torch.randperm(len(labels), generator=random)
    for places in order.split(size):
        x, y = images[places.to(images.device)], labels[places.to(labels.device)]
        yield (shift(x, random, mirror) if augment else x), y


def shift(images: Tensor, random: torch.Generator, mirror: bool) -> Tensor:
    """(n, c, h, w) -> the same: images moved by up to an eighth of their side, or mirrored."""
    n, _, height, width = images.shape
    pad = max(1, height // 8)
    top, left = torch.randint(0, 2 * pad + 1, (2, n, 1), generator=random)
    turn = torch.rand(n, 1, generator=random) < (0.5 if mirror else 0.0)
    steps = torch.arange(width)
    rows = (top + torch.arange(height)).to(images.device)  # (n, h)
    columns = (left + torch.where(turn, width - 1 - steps, steps)).to(images.device)  # (n, w)
    padded = F.pad(images, (pad, pad, pad, pad)).permute(0, 2, 3, 1)
    one = torch.arange(n, device=images.device)[:, None, None]
    return padded[one, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()


# --- the sets ---------------------------------------------------------------------------------


def read_digits() -> tuple[Pair, Pair]:
    """scikit-learn's digits, every class split 4 : 1 by a fixed seed."""
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise DataError(
            f"data set 'digits' ships inside scikit-learn, which cannot be imported ({error}); "
            "install sparsewright[lab]"
        ) from None
    images, labels = map(torch.from_numpy, load_digits(return_X_y=True))
    images = images.to(torch.uint8).reshape(-1, 1, 8, 8)  # pixels are whole numbers from 0 to 16
    places = range(len(labels))
    train, test = train_test_split(places, test_size=360, stratify=labels, random_state=0)
    return (images[train], labels[train]), (images[test], labels[test])


def read_mnist_like(*files: Path) -> tuple[Pair, Pair]:
    """The four IDX files that MNIST and Fashion-MNIST share."""
    train_images, train_labels, test_images, test_labels = files
    train = read_idx_pair(train_images, train_labels, side=28, classes=10)
    return train, read_idx_pair(test_images, test_labels, side=28, classes=10)


def read_cifar_batches(*files: Path, records: int = 10_000) -> tuple[Pair, Pair]:
    """CIFAR-10: any number of training files, then the test file."""
    *train, test = (read_cifar(path, records) for path in files)
    images, labels = zip(*train, strict=True)
    return (torch.cat(images), torch.cat(labels)), test


def _idx_files() -> tuple[tuple[str, ...], ...]:
    parts = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
    return tuple((f"{part}-ubyte.gz", f"{part}-ubyte") for part in parts)


def _idx_downloads(root: str, *checksums: str) -> tuple[Download, ...]:
    files = (ways[0] for ways in _idx_files())
    return tuple(Download(root + file, c) for file, c in zip(files, checksums, strict=True))


def _cifar_files() -> tuple[tuple[str, ...], ...]:
    names = [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]
    return tuple((name, f"{name}.gz", f"cifar-10-batches-bin/{name}") for name in names)


DATA.register("digits")(
    Source(
        "1,797 grey 8x8 images of handwritten digits, inside scikit-learn (Alpaydin, Kaynak 1998)",
        read_digits,
    )
)

DATA.register("mnist")(
    Source(
        "70,000 grey 28x28 images of handwritten digits (LeCun et al. 1998)",
        read_mnist_like,
        _idx_files(),
        _idx_downloads(
            "https://ossci-datasets.s3.amazonaws.com/mnist/",
            "md5:f68b3c2dcbeaaa9fbdd348bbdeb94873",
            "md5:d53e105ee54ea40749a09fcbcd1e9432",
            "md5:9fb629c4189551a2d022fa330f9573f3",
            "md5:ec29112dd5afa0611ce80d1b7f02629c",
        ),
    )
)

DATA.register("fashion-mnist")(
    Source(
        "70,000 grey 28x28 images of clothes (Xiao, Rasul, Vollgraf 2017)",
        read_mnist_like,
        _idx_files(),
        _idx_downloads(
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
            "sha256:3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
            "sha256:a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
            "sha256:346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
            "sha256:67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
        ),
        mirror=True,
    )
)

DATA.register("cifar-10")(
    Source(
        "60,000 colour 32x32 images of ten kinds of things (Krizhevsky 2009)",
        read_cifar_batches,
        _cifar_files(),
        (
            Download(
                "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
                "md5:c32a1d4ab5d03f1284b67883e8d87530",
                tuple(ways[-1] for ways in _cifar_files()),
            ),
        ),
        mirror=True,
    )
)
