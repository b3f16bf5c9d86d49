"""Downloads go on where they broke off, nothing but the published file is kept, and archives stay in their folder."""

import hashlib
import io
import random
import tarfile
import zipfile

import pytest
from helpers import Server

from hsnet.prepare import downloads
from hsnet.prepare.downloads import RemoteFile, fetch, require_space, unpack

CONTENT = Server.content


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(downloads, "PIECE", 1000)
    monkeypatch.setattr(downloads, "ATTEMPTS", 2)
    running = Server()
    yield running
    running.shutdown()
    running.server_close()


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "folder"
    made.mkdir()
    return made


def remote(server, **changes):
    whole = {
        "name": "file.bin",
        "addresses": (server.address,),
        "checksum": f"sha256:{hashlib.sha256(CONTENT).hexdigest()}",
        "size": len(CONTENT),
    }
    return RemoteFile(**whole | changes)


def test_a_file_is_fetched_once(server, folder):
    path = fetch(remote(server), folder)
    assert path.read_bytes() == CONTENT
    assert fetch(remote(server), folder) == path
    assert server.asked == [None]
    assert [p.name for p in folder.iterdir()] == ["file.bin"]


def test_it_goes_on_where_the_connection_broke(server, folder):
    server.cut_at, server.cuts = 6000, 1
    assert fetch(remote(server), folder).read_bytes() == CONTENT
    assert server.asked == [None, "bytes=6000-"]


def test_it_goes_on_in_a_later_call(server, folder):
    server.cut_at, server.cuts = 6000, 9
    with pytest.raises(
        ConnectionError, match=r"same command again, which goes on after the 6,000 bytes that are there"
    ):
        fetch(remote(server), folder)
    assert [p.name for p in folder.iterdir()] == ["file.bin.part"]  # never under its own name
    server.cuts = 0
    assert fetch(remote(server), folder).read_bytes() == CONTENT
    assert server.asked[-1] == "bytes=6000-"


def test_a_server_that_sends_the_whole_again(server, folder):
    (folder / "file.bin.part").write_bytes(b"x" * 100)
    server.ranges = False
    assert fetch(remote(server), folder).read_bytes() == CONTENT


@pytest.mark.parametrize("size", [0, len(CONTENT)])
def test_another_file_is_not_kept(server, folder, size):
    server.content = CONTENT[::-1]
    with pytest.raises(ConnectionError, match="not the file that was published and was not kept"):
        fetch(remote(server, size=size), folder)
    assert list(folder.iterdir()) == []


def test_a_copy_put_there_by_hand_is_used_if_it_is_right(server, folder):
    (folder / "file.bin").write_bytes(CONTENT)
    fetch(remote(server), folder)
    assert server.asked == []
    (folder / "file.bin").write_bytes(CONTENT[:-1])
    assert fetch(remote(server), folder).read_bytes() == CONTENT


def test_the_next_address_is_tried(server, folder):
    addresses = (server.address.replace("file", "missing"), server.address)
    assert fetch(remote(server, addresses=addresses), folder).read_bytes() == CONTENT


def test_no_room(server, folder):
    with pytest.raises(OSError, match=r"downloading file.bin needs 111111\.\d GB .* are free: make room"):
        fetch(remote(server, size=10**15 // 9), folder)
    assert server.asked == []
    require_space(folder / "not" / "there", 1, "a byte")


def pack(path, members):
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in members.items():
                archive.writestr(name, content)
    else:
        with tarfile.open(path, "w:gz" if path.suffix == ".tgz" else "w") as archive:
            for name, content in members.items():
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return path


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.tgz"])
def test_unpacking(folder, name):
    archive = pack(folder / name, {"in/one/1.txt": b"1", "in/one/deep/2.txt": CONTENT, "in/two/3.txt": b"3", "4": b"4"})
    unpack(archive, {"in/one": folder / "one"})
    assert (folder / "one" / "deep" / "2.txt").read_bytes() == CONTENT
    assert sorted(p.name for p in folder.iterdir()) == [name, "one"]
    (folder / "one" / "1.txt").write_text("mine")
    unpack(archive, {"in/one": folder / "one", "in/two": folder / "two"})
    assert (folder / "one" / "1.txt").read_text() == "mine"  # what is there is left as it is
    assert (folder / "two" / "3.txt").exists()
    with pytest.raises(ValueError, match="holds no files in in/three"):
        unpack(archive, {"in/three": folder / "three"})


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.tgz"])
@pytest.mark.parametrize("outside", ["../evil", "in/../../evil", "/tmp/evil"])
def test_members_outside_are_refused(folder, name, outside):
    archive = pack(folder / name, {"in/1.txt": b"1", outside: b"evil"})
    with pytest.raises(ValueError, match="would lie outside"):
        unpack(archive, {"in": folder / "in"})
    assert [p.name for p in folder.iterdir()] == [name]
    assert not (folder.parent / "evil").exists()


def test_links_are_refused(folder):
    with tarfile.open(folder / "a.tar", "w") as archive:
        link = tarfile.TarInfo("in/link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc"
        archive.addfile(link)
    with pytest.raises(ValueError, match="no file, but a link"):
        unpack(folder / "a.tar", {"in": folder / "in"})
    with zipfile.ZipFile(folder / "a.zip", "w") as archive:
        link = zipfile.ZipInfo("in/link")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc")
    with pytest.raises(ValueError, match="no file, but a link"):
        unpack(folder / "a.zip", {"in": folder / "in"})
    assert not (folder / "in").exists()


# A plain tar has no checksum of its content: the download's is for that.
@pytest.mark.parametrize(
    ("name", "damage"),
    [("a.zip", "cut"), ("a.tar", "cut"), ("a.tgz", "cut"), ("a.zip", "changed"), ("a.tgz", "changed")],
)
def test_damaged_archives_leave_nothing(folder, name, damage):
    content = {f"in/{k}.txt": random.Random(k).randbytes(3200) for k in range(9)}
    archive = pack(folder / name, content)
    whole, middle = archive.read_bytes(), archive.stat().st_size // 2 + 700
    rest = b"" if damage == "cut" else bytes(b ^ 255 for b in whole[middle : middle + 20]) + whole[middle + 20 :]
    archive.write_bytes(whole[:middle] + rest)
    with pytest.raises(ValueError, match=r"is damaged .* delete it and run the same command again"):
        unpack(archive, {"in": folder / "in"})
    assert [p.name for p in folder.iterdir()] == [name]
