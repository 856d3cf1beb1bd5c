"""Fetch a data set from its official address: resumable, checked, and put in place by a rename."""

from __future__ import annotations

import hashlib
import os
import shutil
import tarfile
import urllib.error
import urllib.request
from http.client import HTTPException
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from ..errors import DataError
from .data import DATA, Download, cache_folder, find

PIECE = 1 << 20  # bytes read at a time
ATTEMPTS = 3  # times that a broken connection is taken up again


def download(name: str, *, timeout: float = 30.0) -> Path | None:
    """Bring a data set into the cache folder, unless it is on this machine; returns its folder.

    None for a set that ships inside a library. An interrupted download goes on where it stopped.
    DataError if an address cannot be reached (naming the folder to fill by hand) or a checksum
    does not match (what was fetched is then removed).
    """
    try:
        return find(name)[0]
    except DataError:
        pass  # then fetch it
    folder = cache_folder() / name
    folder.mkdir(parents=True, exist_ok=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        for wanted in DATA[name].downloads:
            if not (folder / wanted.file).is_file():
                fetch(wanted, folder, progress, timeout)
            if wanted.members:
                unpack(folder / wanted.file, wanted.members, folder)
    return find(name)[0]


def fetch(wanted: Download, folder: Path, progress: Progress, timeout: float) -> Path:
    """Download one file into `folder` by way of FILE.part, which a later call continues."""
    part, target = folder / f"{wanted.file}.part", folder / wanted.file
    task = progress.add_task(wanted.file, total=None)
    reason = ""
    for _ in range(ATTEMPTS):
        try:
            if _continue(wanted.url, part, progress, task, timeout):
                _check(part, wanted)
                os.replace(part, target)
                return target
            reason = "the connection broke"
        except (urllib.error.URLError, HTTPException, OSError) as error:
            if isinstance(error, DataError):  # it is an OSError too
                raise
            reason = str(getattr(error, "reason", error))
    kept = part.stat().st_size if part.exists() else 0
    raise DataError(
        f"{wanted.url}: cannot be downloaded: {reason}. {kept} bytes are kept: run the same "
        f"command again to go on, or put {wanted.file} into {folder} by hand"
    )


def _continue(url: str, part: Path, progress: Progress, task: object, timeout: float) -> bool:
    """Append what is missing to `part`; whether all bytes that the server announced are there."""
    have = part.stat().st_size if part.exists() else 0
    headers = {"User-Agent": "sparsewright", **({"Range": f"bytes={have}-"} if have else {})}
    try:
        reply = urllib.request.urlopen(
            urllib.request.Request(url, headers=headers), timeout=timeout
        )
    except urllib.error.HTTPError as error:
        with error:  # closes its socket
            if error.code == 416 and have:  # nothing is missing; the checksum decides
                return True
            raise DataError(f"{url}: the server answers {error.code} {error.reason}") from None
    if reply.status != 206:  # the server does not continue: begin again
        have = 0
    with reply, part.open("ab" if have else "wb") as file:
        length = reply.headers.get("Content-Length")
        whole = have + int(length) if length else None
        progress.update(task, total=whole, completed=have)  # type: ignore[arg-type]
        while piece := reply.read(PIECE):
            have += file.write(piece)
            progress.advance(task, len(piece))  # type: ignore[arg-type]
        return whole is None or have == whole


def _check(part: Path, wanted: Download) -> None:
    algorithm, _, expected = wanted.checksum.partition(":")
    with part.open("rb") as file:
        digest = hashlib.file_digest(
            file, lambda: hashlib.new(algorithm, usedforsecurity=False)
        ).hexdigest()
    if digest != expected:
        part.unlink()
        raise DataError(
            f"{wanted.url}: the {algorithm} of {wanted.file} must be {expected}; got {digest}. "
            "What was downloaded is removed"
        )


def unpack(archive: Path, members: tuple[str, ...], folder: Path) -> None:
    """Take the named regular files, and nothing else, out of a tar archive; then remove it."""
    try:
        with tarfile.open(archive) as tar:
            for name in members:
                _take(tar, name, folder)
    except (tarfile.TarError, EOFError, KeyError) as error:
        wanted = ", ".join(members)
        raise DataError(f"{archive}: must be a tar archive with {wanted}; got: {error}") from None
    archive.unlink()


def _take(tar: tarfile.TarFile, name: str, folder: Path) -> None:
    # Written through a file object: the archive chooses neither path, nor mode, nor kind.
    source = tar.extractfile(name) if tar.getmember(name).isreg() else None
    if source is None:  # links are not even looked at
        raise DataError(f"{folder}: member {name} of the archive must be a regular file")
    target = folder / name
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.part")
    with source, part.open("wb") as file:
        shutil.copyfileobj(source, file)
    os.replace(part, target)
