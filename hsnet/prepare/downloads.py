"""Files from public addresses: fetched in pieces that a next call goes on with, checked, unpacked into their folder only."""

import contextlib
import errno
import gzip
import json
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

import pooch
import requests
from tqdm import tqdm

ATTEMPTS = 5  # connections without a byte of progress before giving up
TIMEOUT = 30  # seconds without an answer or a byte
PIECE = 1 << 20
SPARE = 1 << 29  # bytes that stay free


@dataclass(frozen=True)
class RemoteFile:
    """A file at a public address.

    Attributes:
        name: under which it is stored.
        addresses: where it lies; the next one is tried where one fails.
        checksum: "md5:…" or "sha256:…" of the whole file.
        size: in bytes; 0 where it does not matter.
        unpacked: bytes that unpacking needs, about; 0 for what is no archive.
    """

    name: str
    addresses: tuple[str, ...]
    checksum: str
    size: int = 0
    unpacked: int = 0


def require_space(folder: Path, needed: int, what: str) -> None:
    """Make sure that a disk has room.

    Raises:
        OSError: too little, with both numbers.
    """
    existing = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    free = shutil.disk_usage(existing).free
    if needed + SPARE > free:
        raise OSError(
            f"{what} needs {_gigabytes(needed + SPARE)} in {folder}, {_gigabytes(free)} are free: make room, or put the "
            "data on another disk with --root or HSNET_IMAGES; what is there already is kept"
        )


def _gigabytes(count):
    return f"{count / 1e9:.1f} GB"


def fetch(file: RemoteFile, folder: Path) -> Path:
    """The file in `folder`, downloaded unless it is there whole.

    An interrupted download leaves NAME.part, with which the next call goes on. NAME itself appears only when its
    checksum is right, so half a file is never taken for a whole one; a good copy put there by hand is used.

    Raises:
        ConnectionError: an address that does not answer or breaks off, saying how much is there.
        ValueError: a file with another checksum, which is not kept.
        OSError: no room.
    """
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / (file.name + ".part")
    if not (folder / file.name).exists():
        require_space(folder, file.size - (part.stat().st_size if part.exists() else 0), f"downloading {file.name}")
    pooch.get_logger().setLevel("WARNING")
    failed = []
    for address in file.addresses:
        try:
            return Path(
                pooch.retrieve(
                    address,
                    known_hash=file.checksum,
                    fname=file.name,
                    path=folder,
                    downloader=_Continuing(part, file.size),
                )
            )
        except ConnectionError as error:
            failed.append(str(error))
        except ValueError as error:  # pooch's, of a wrong checksum
            failed.append(f"{address} is not the file that was published and was not kept ({error})")
    kept = f", which goes on after the {part.stat().st_size:,} bytes that are there" if part.exists() else ""
    reasons = "\n  ".join(failed)
    raise ConnectionError(
        f"{file.name} could not be fetched:\n  {reasons}\nRun the same command again{kept}; or put a good copy "
        f"({file.checksum}) into {folder}"
    )


class _Continuing:
    """A downloader for pooch that goes on with a part, connecting again as long as bytes arrive."""

    def __init__(self, part: Path, size: int):
        self.part, self.size = part, size

    def __call__(self, url, output_file, _):
        idle = 0
        while True:
            before = self._length()
            try:
                self._receive(url)
                break
            except (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError) as error:
                idle = 0 if self._length() > before else idle + 1
                if idle == ATTEMPTS:
                    raise ConnectionError(f"{url}: {_reason(error)}") from error
            except requests.RequestException as error:
                raise ConnectionError(f"{url}: {_reason(error)}") from error
            except OSError as error:
                raise _explained(error, self.part) from error
        self.part.replace(output_file)

    def _length(self):
        return self.part.stat().st_size if self.part.exists() else 0

    def _receive(self, url):
        start = self._length()
        if self.size and start == self.size:
            return
        headers = {"Range": f"bytes={start}-"} if start else {}
        with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as response:
            if response.status_code == 416:  # nothing lies behind the part: its checksum will tell
                return
            response.raise_for_status()
            if response.status_code != 206:  # the server sends the whole again
                start = 0
            total = self.size or start + int(response.headers.get("Content-Length", 0))
            with (
                self.part.open("ab" if start else "wb") as file,
                tqdm(desc=self.part.stem, initial=start, total=total or None, unit="B", unit_scale=True) as bar,
            ):
                for piece in response.iter_content(PIECE):
                    file.write(piece)
                    bar.update(len(piece))
        if self._length() < total:
            raise requests.ConnectionError(f"broke off after {self._length()} of {total} bytes")


def _reason(error):
    inner = getattr(error.args[0], "reason", error) if error.args else error  # urllib3's, of what requests wraps
    text = str(inner).splitlines()[0]
    return text.partition("): ")[2] if text.startswith("HTTP") and "): " in text else text[:200]


def _explained(error: OSError, path: Path) -> OSError:
    if error.errno == errno.ENOSPC:
        return OSError(f"no space left while writing {path}: make room and run the same command again, it goes on")
    return error


def fetch_and_unpack(file: RemoteFile, wanted: dict[str, Path], folder: Path, *, keep_archive: bool = False) -> None:
    """Fetch an archive into `folder`/downloads and unpack it as `unpack` does, unless all that is wanted is there."""
    if all(target.exists() for target in wanted.values()):
        return
    require_space(folder, file.unpacked, f"unpacking {file.name}")
    archive = fetch(file, folder / "downloads")
    for target in wanted.values():
        target.parent.mkdir(parents=True, exist_ok=True)
    unpack(archive, wanted)
    if not keep_archive:
        archive.unlink()


def unpack(archive: Path, wanted: dict[str, Path]) -> None:
    """Unpack folders of a tar or zip archive.

    Each appears under its name only when it is complete. Only files and folders are written, never links.

    Args:
        wanted: a folder inside the archive -> where its content goes; one that is there already is left as it is.

    Raises:
        ValueError: a damaged archive, one that lacks a folder, or one with members that would lie outside, naming it.
        OSError: no room.
    """
    wanted = {inner: outer for inner, outer in wanted.items() if not outer.exists()}
    if not wanted:
        return
    parts = {inner: outer.with_name(outer.name + ".part") for inner, outer in wanted.items()}
    for part in parts.values():
        shutil.rmtree(part, ignore_errors=True)
    try:
        for name, content, length in _members(archive):
            path = PurePosixPath(name)
            if path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name:
                raise ValueError(
                    f"{archive} holds {name!r}, which would lie outside of its folder: it was not unpacked"
                )
            for inner, part in parts.items():
                if path.is_relative_to(inner) and path != PurePosixPath(inner):
                    if content is None:
                        raise ValueError(f"{archive}: {name} is no file, but a link or a device: it was not unpacked")
                    target = part / path.relative_to(inner)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    with target.open("wb") as file:
                        shutil.copyfileobj(content, file)
                    if target.stat().st_size != length:
                        raise EOFError(f"{name} has {target.stat().st_size} of {length} bytes")
        for inner, part in parts.items():
            if not part.exists():
                raise ValueError(f"{archive} holds no files in {inner}: is it another archive of this name?")
            part.replace(wanted[inner])
    except (tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise ValueError(f"{archive} is damaged ({error}): delete it and run the same command again") from error
    except OSError as error:
        raise _explained(error, archive.parent) from error
    finally:
        for part in parts.values():
            shutil.rmtree(part, ignore_errors=True)


def _members(archive: Path) -> Iterator[tuple[str, IO[bytes] | None, int]]:
    """Name, content and length of each member that is not a folder; without content where it is no regular file."""
    bar = {"desc": f"unpacking {archive.name}", "unit": "B", "unit_scale": True}
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as opened:
            members = [m for m in opened.infolist() if not m.is_dir()]
            require_space(archive.parent, sum(m.file_size for m in members), f"unpacking {archive.name}")
            with tqdm(total=sum(m.file_size for m in members), **bar) as progress:
                for member in members:
                    link = (member.external_attr >> 16) & 0o170000 == 0o120000
                    with opened.open(member) as content:
                        yield member.filename, None if link else content, member.file_size
                    progress.update(member.file_size)
        return
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(archive.open("rb"))
        content = stack.enter_context(tqdm.wrapattr(file, "read", total=archive.stat().st_size, **bar))
        if archive.suffix in (".tgz", ".gz"):  # not tarfile's own reader of gzip: it skips the checksum
            content = stack.enter_context(gzip.GzipFile(fileobj=content))
        opened = stack.enter_context(tarfile.open(fileobj=content, mode="r|"))
        for member in opened:
            if not member.isdir():
                yield member.name, opened.extractfile(member) if member.isreg() else None, member.size
        while content.read(PIECE):  # to the end, where gzip's checksum stands
            pass


def write_json(path: Path, content: dict) -> None:
    """Write JSON under a temporary name, then rename it."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(content) + "\n")
    temporary.replace(path)
