"""Data sets: formats read and refused, folders looked through, downloads resumed and checked."""

from __future__ import annotations

import gzip
import hashlib
import http.server
import io
import os
import struct
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparsewright.errors import DataError, UnknownNameError
from sparsewright.lab import data as data_module
from sparsewright.lab import download as download_module
from sparsewright.lab.data import (
    DATA,
    Download,
    Source,
    batches,
    cache_folder,
    find,
    load,
    read_cifar_batches,
    read_mnist_like,
    shift,
)
from sparsewright.lab.download import download
from sparsewright.lab.formats import read_cifar, read_idx, read_idx_pair


@pytest.fixture(autouse=True)
def _no_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees the data sets of this machine, unless it asks."""
    monkeypatch.delenv("SPARSEWRIGHT_DATA", raising=False)
    monkeypatch.setenv("SPARSEWRIGHT_CACHE", str(tmp_path / "cache"))


def idx(shape: tuple[int, ...], body: bytes, magic: int | None = None) -> bytes:
    magic = 0x0800 | len(shape) if magic is None else magic
    return struct.pack(f">{1 + len(shape)}I", magic, *shape) + body


def write_mnist_like(folder: Path, train: int = 3, test: int = 2) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for part, n in (("train", train), ("t10k", test)):
        pixels = bytes(i % 256 for i in range(n * 28 * 28))
        images, labels = idx((n, 28, 28), pixels), idx((n,), bytes(i % 10 for i in range(n)))
        (folder / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(images))
        (folder / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labels))


# --- digits -------------------------------------------------------------------------------------


def test_digits_are_standardised_and_split_by_class() -> None:
    images = load("digits")
    assert images.shape == (1, 8, 8)
    assert len(images.train[1]) == 1437
    assert len(images.test[1]) == 360
    assert images.train[0].mean().abs() < 1e-5
    assert (images.train[0].std() - 1).abs() < 1e-3
    share = images.train[1].bincount() / (images.train[1].bincount() + images.test[1].bincount())
    assert share.min() > 0.79
    assert share.max() < 0.81


def test_digits_split_is_the_same_every_time() -> None:
    one, two = load("digits"), load("digits")
    assert torch.equal(one.test[0], two.test[0])
    both = torch.cat([one.train[0], one.test[0]]).flatten(1)
    assert len(both.unique(dim=0)) >= 1790  # nearly no image is in both parts


# --- formats ------------------------------------------------------------------------------------


def test_idx_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(idx((2, 3), bytes(range(6))))
    assert read_idx(path, 2).tolist() == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "header takes 12 bytes; the file holds 0"),
        (idx((2, 3), bytes(6), magic=0x0801), "magic number must be 0x00000802; got 0x00000801"),
        (idx((2, 3), bytes(6), magic=0x0D02), "magic number must be 0x00000802; got 0x00000d02"),
        (idx((2, 3), bytes(5)), "claims 2 x 3 = 6 bytes; the file holds 5"),
        (idx((2, 3), bytes(7)), "claims 2 x 3 = 6 bytes; the file holds 7"),
        (idx((2**32 - 1, 2**32 - 1), bytes(6)), "= 18446744065119617025 bytes; the file holds 6"),
    ],
)
def test_broken_idx_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "broken-ubyte"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read_idx(path, 2)
    assert "broken-ubyte" in str(caught.value)


@given(st.binary(max_size=64))
def test_random_bytes_never_pass_for_idx_unless_they_are(content: bytes) -> None:
    path = Path(os.environ["SPARSEWRIGHT_CACHE"]).parent / "random"
    path.write_bytes(content)
    try:
        tensor = read_idx(path, 1)
    except DataError:
        return
    assert content == idx(tuple(tensor.shape), bytes(tensor.tolist()))


def test_cut_off_and_endless_gzip_are_refused(tmp_path: Path) -> None:
    whole = gzip.compress(idx((100,), bytes(100)))
    path = tmp_path / "a.gz"
    for content in (whole[:-20], b"no gzip at all", whole[:20] + b"\xff\xff\xff" + whole[23:]):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"a\.gz"):
            read_idx(path, 1)
    path.write_bytes(whole)
    with pytest.raises(DataError, match="must unpack to 50 bytes at most"):
        read_idx(path, 1, limit=50)


def test_images_and_labels_must_belong_together(tmp_path: Path) -> None:
    images, labels = tmp_path / "images", tmp_path / "labels"
    images.write_bytes(idx((2, 4, 4), bytes(32)))
    labels.write_bytes(idx((3,), bytes(3)))
    with pytest.raises(DataError, match="each of the 2 images in images; got 3"):
        read_idx_pair(images, labels, side=4, classes=10)
    labels.write_bytes(idx((2,), bytes([1, 10])))
    with pytest.raises(DataError, match="labels: labels must be below 10; got 10"):
        read_idx_pair(images, labels, side=4, classes=10)
    with pytest.raises(DataError, match=r"images must be 28 x 28; got \(4, 4\)"):
        read_idx_pair(images, labels, side=28, classes=10)


def test_cifar_records_are_read_planes_first(tmp_path: Path) -> None:
    path = tmp_path / "batch.bin"
    path.write_bytes(bytes([7]) + bytes([1] * 1024) + bytes([2] * 1024) + bytes([3] * 1024))
    images, labels = read_cifar(path, 1)
    assert labels.tolist() == [7]
    assert images[0, :, 5, 5].tolist() == [1, 2, 3]
    with pytest.raises(DataError, match="2 records of 3073 bytes = 6146 bytes; got 3073"):
        read_cifar(path, 2)
    path.write_bytes(bytes([10]) + bytes(3072))
    with pytest.raises(DataError, match="labels must be below 10; got 10"):
        read_cifar(path, 1)


def test_cifar_joins_training_files_in_order(tmp_path: Path) -> None:
    paths = [tmp_path / f"{i}.bin" for i in range(3)]
    for label, path in enumerate(paths):
        path.write_bytes(bytes([label]) + bytes(3072))
    train, test = read_cifar_batches(*paths, records=1)
    assert train[1].tolist() == [0, 1]
    assert test[1].tolist() == [2]


# --- folders ------------------------------------------------------------------------------------


def test_missing_data_names_folders_files_and_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPARSEWRIGHT_DATA", str(tmp_path / "own"))
    with pytest.raises(DataError) as caught:
        load("fashion-mnist")
    text = str(caught.value)
    for part in (
        "sparsewright data fashion-mnist",
        str(tmp_path / "own" / "fashion-mnist"),
        str(tmp_path / "cache" / "fashion-mnist"),
        "t10k-labels-idx1-ubyte.gz",
    ):
        assert part in text


def test_unknown_data_set_lists_what_exists() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'mnist'"):
        load("mnits")


def test_own_folder_comes_before_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_mnist_like(cache_folder() / "mnist", train=5)
    assert len(load("mnist").train[1]) == 5
    monkeypatch.setenv("SPARSEWRIGHT_DATA", str(tmp_path / "own"))
    assert len(load("mnist").train[1]) == 5  # nothing in the own folder yet
    write_mnist_like(tmp_path / "own" / "mnist", train=4)
    assert len(load("mnist").train[1]) == 4


def test_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SPARSEWRIGHT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert cache_folder() == Path("/x/sparsewright/data")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert cache_folder() == Path("/home/somebody/.cache/sparsewright/data")


def test_cifar_is_found_packed_and_extracted() -> None:
    folder = cache_folder() / "cifar-10"
    (folder / "cifar-10-batches-bin").mkdir(parents=True)
    for ways, way in zip(DATA["cifar-10"].files, (0, 1, 2, 0, 1, 2), strict=True):
        (folder / ways[way]).touch()
    assert [path.name for path in find("cifar-10")[1]] == [
        "data_batch_1.bin",
        "data_batch_2.bin.gz",
        "data_batch_3.bin",
        "data_batch_4.bin",
        "data_batch_5.bin.gz",
        "test_batch.bin",
    ]


def test_pixels_are_scaled_by_the_training_images() -> None:
    write_mnist_like(cache_folder() / "mnist")
    images = load("mnist")
    assert images.train[0].mean().abs() < 1e-5
    raw = torch.tensor([i % 256 for i in range(3 * 784)], dtype=torch.float32) / 255
    expected = (raw[: 2 * 784] - raw.mean()) / raw.std(correction=0)
    assert torch.allclose(images.test[0].flatten(), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "shape", "counts"),
    [("fashion-mnist", (1, 28, 28), (60_000, 10_000)), ("cifar-10", (3, 32, 32), (50_000, 10_000))],
)
def test_the_real_sets(
    name: str, shape: tuple[int, ...], counts: tuple[int, int], request: pytest.FixtureRequest
) -> None:
    monkeypatch = request.getfixturevalue("monkeypatch")
    monkeypatch.undo()
    if "SPARSEWRIGHT_DATA" not in os.environ:
        pytest.skip("needs SPARSEWRIGHT_DATA, a folder with the real data sets")
    try:
        find(name)
    except DataError:
        pytest.skip(f"{name} is not in SPARSEWRIGHT_DATA")
    images = load(name)
    assert images.shape == shape
    assert (len(images.train[1]), len(images.test[1])) == counts
    assert images.test[1].bincount().tolist() == [1000] * 10


# --- batches ------------------------------------------------------------------------------------


@given(n=st.integers(1, 40), size=st.integers(1, 50), epoch=st.integers(0, 5))
def test_an_epoch_holds_every_image_once(n: int, size: int, epoch: int) -> None:
    pair = torch.arange(n).reshape(n, 1, 1, 1).float(), torch.arange(n)
    parts = list(batches(pair, size, seed=3, epoch=epoch))
    labels = torch.cat([y for _, y in parts])
    assert sorted(labels.tolist()) == list(range(n))
    assert torch.equal(torch.cat([x for x, _ in parts]).flatten().long(), labels)
    assert all(len(y) == size for _, y in parts[:-1])


def test_order_depends_on_seed_and_epoch_alone() -> None:
    pair = torch.zeros(50, 1, 1, 1), torch.arange(50)

    def order(seed: int, epoch: int) -> list[int]:
        return torch.cat([y for _, y in batches(pair, 7, seed, epoch)]).tolist()

    assert order(0, 1) == order(0, 1)
    assert order(0, 1) != order(0, 2)
    assert order(0, 1) != order(1, 1)


def test_shifted_images_are_the_same_pixels_elsewhere() -> None:
    image = torch.zeros(200, 1, 16, 16)
    image[:, 0, 8, 4] = 1.0
    moved = shift(image, torch.Generator().manual_seed(0), mirror=False)
    places = moved[:, 0].nonzero()
    assert len(places) == 200
    assert set((places[:, 1] - 8).tolist()) == {-2, -1, 0, 1, 2}
    assert set((places[:, 2] - 4).tolist()) == {-2, -1, 0, 1, 2}
    mirrored = shift(image, torch.Generator().manual_seed(0), mirror=True)
    right = (mirrored[:, 0].nonzero()[:, 2] > 7).float().mean()
    assert 0.3 < right < 0.7


# --- downloads ----------------------------------------------------------------------------------


class Server(http.server.ThreadingHTTPServer):
    """Serves `files`; breaks the first `breaks` answers after half of their bytes."""

    files: dict[str, bytes]
    breaks = 0
    ranges = True
    asked: list[str | None]


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        self.server.asked.append(asked)
        content = self.server.files.get(self.path.lstrip("/"))
        if content is None:
            self.send_error(404)
            return
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and self.server.ranges else 0
        if start >= len(content) > 0 and start:
            self.send_error(416)
            return
        body = content[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.server.breaks > 0:
            self.server.breaks -= 1
            body = body[: len(body) // 2]
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(("127.0.0.1", 0), Handler) as it:
        it.files, it.asked = {}, []
        thread = threading.Thread(target=it.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield it
        it.shutdown()
        thread.join()


def sha256(content: bytes) -> str:
    return "sha256:" + hashlib.sha256(content).hexdigest()


@pytest.fixture
def offered(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Server:
    """The four files of a small MNIST on the server, as the data set "mnist"."""
    write_mnist_like(tmp_path / "origin")
    server.files = {path.name: path.read_bytes() for path in (tmp_path / "origin").iterdir()}
    offer(server, monkeypatch, DATA["mnist"].files)
    return server


def offer(
    server: Server,
    monkeypatch: pytest.MonkeyPatch,
    files: tuple[tuple[str, ...], ...],
    **changed: str,
) -> None:
    root = f"http://127.0.0.1:{server.server_address[1]}/"
    wanted = tuple(
        Download(root + name, changed.get(name.split("-")[0], sha256(content)))
        for name, content in sorted(server.files.items())
    )
    source = Source("a test", read_mnist_like, files, wanted)
    monkeypatch.setitem(DATA._parts, "mnist", source)


def test_download_fills_the_cache_and_does_nothing_twice(offered: Server) -> None:
    folder = download("mnist")
    assert folder == cache_folder() / "mnist"
    assert len(load("mnist").train[1]) == 3
    assert len(offered.asked) == 4
    assert download("mnist") == folder
    assert len(offered.asked) == 4
    assert not list(folder.glob("*.part"))


def test_broken_connection_is_taken_up_where_it_broke(offered: Server) -> None:
    offered.breaks = 2
    folder = download("mnist")
    first = sorted(offered.files)[0]
    size = len(offered.files[first])
    half = size // 2
    assert offered.asked[:3] == [None, f"bytes={half}-", f"bytes={half + (size - half) // 2}-"]
    assert folder is not None
    assert (folder / first).read_bytes() == offered.files[first]


def test_connection_that_keeps_breaking_keeps_what_came(offered: Server) -> None:
    offered.breaks = 1000
    with pytest.raises(DataError, match=r"connection broke\. [1-9]\d* bytes are kept: run"):
        download("mnist")
    (part,) = (cache_folder() / "mnist").glob("*.part")
    assert part.stat().st_size > 0
    offered.breaks = 0
    download("mnist")
    assert len(load("mnist").train[1]) == 3


def test_server_without_ranges_begins_again(offered: Server) -> None:
    offered.ranges, offered.breaks = False, 1
    download("mnist")
    assert len(load("mnist").train[1]) == 3


def test_part_that_is_whole_already_is_checked_and_used(offered: Server) -> None:
    first = sorted(offered.files)[0]
    (cache_folder() / "mnist").mkdir(parents=True)
    (cache_folder() / "mnist" / f"{first}.part").write_bytes(offered.files[first])
    download("mnist")
    assert (cache_folder() / "mnist" / first).read_bytes() == offered.files[first]


def test_wrong_checksum_removes_what_came(offered: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    offer(offered, monkeypatch, DATA["mnist"].files, t10k="md5:" + "0" * 32)
    with pytest.raises(DataError, match=r"md5 of t10k-images-idx3-ubyte\.gz must be 0{32}; got"):
        download("mnist")
    assert not list((cache_folder() / "mnist").iterdir())


def test_missing_file_on_the_server(offered: Server) -> None:
    offered.files.clear()
    with pytest.raises(DataError, match="the server answers 404"):
        download("mnist")


def test_no_network_names_the_folder_to_fill(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = (Download("http://127.0.0.1:9/file.gz", "md5:0"),)
    source = Source("a test", read_mnist_like, (("file.gz",),), wanted)
    monkeypatch.setitem(DATA._parts, "mnist", source)
    with pytest.raises(DataError, match="Connection refused") as caught:
        download("mnist")
    assert f"put file.gz into {cache_folder() / 'mnist'} by hand" in str(caught.value)


def tar(members: dict[str, bytes | str]) -> bytes:
    """A tar.gz; a text instead of bytes makes a symbolic link to it."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            if isinstance(content, str):
                info.type, info.linkname = tarfile.SYMTYPE, content
                archive.addfile(info)
            else:
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


def offer_archive(
    server: Server, monkeypatch: pytest.MonkeyPatch, content: bytes, members: tuple[str, ...]
) -> None:
    server.files = {"all.tar.gz": content}
    url = f"http://127.0.0.1:{server.server_address[1]}/all.tar.gz"
    wanted = (Download(url, sha256(content), members),)
    source = Source("a test", read_mnist_like, tuple((m,) for m in members), wanted)
    monkeypatch.setitem(DATA._parts, "mnist", source)


def test_archive_gives_the_named_files_and_nothing_else(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    content = tar({"d/a.bin": b"A", "d/other": b"O", "../evil": b"E", "/tmp/evil": b"E"})
    offer_archive(server, monkeypatch, content, ("d/a.bin",))
    folder = download("mnist")
    assert folder is not None
    assert [p.relative_to(folder).as_posix() for p in folder.rglob("*")] == ["d", "d/a.bin"]
    assert not (tmp_path / "cache" / "evil").exists()


@pytest.mark.parametrize(
    "members", [{"d/a.bin": "/etc/passwd"}, {"d/b.bin": b"B"}, {"d/a.bin": "a.bin"}]
)
def test_archive_without_the_regular_file_is_refused(
    members: dict[str, bytes | str], server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer_archive(server, monkeypatch, tar(members), ("d/a.bin",))
    with pytest.raises(DataError, match=r"d/a\.bin"):
        download("mnist")
    assert not (cache_folder() / "mnist" / "d" / "a.bin").exists()


def test_every_listed_download_has_a_checksum_and_a_place() -> None:
    for name, source in DATA.items():
        reached = {d.file for d in source.downloads} | {
            m for d in source.downloads for m in d.members
        }
        assert all(set(ways) & reached for ways in source.files), name
        for wanted in source.downloads:
            algorithm, digest = wanted.checksum.split(":")
            assert len(bytes.fromhex(digest)) == hashlib.new(algorithm).digest_size


def test_modules_agree_on_the_table() -> None:
    assert download_module.DATA is data_module.DATA
