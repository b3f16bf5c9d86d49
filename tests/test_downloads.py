"""Downloads go on where they broke off, nothing but the published file is kept, and archives stay in their folder."""

import hashlib
import tarfile

import pytest
from helpers import Server, packed

from hsnet.prepare import downloads
from hsnet.prepare.downloads import RemoteFile, fetch, fetch_and_unpack, unpack

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


def remote(*addresses, size=0):
    return RemoteFile(addresses, f"sha256:{hashlib.sha256(CONTENT).hexdigest()}", size)


def test_a_file_is_fetched_once(server, folder):
    path = fetch(remote(server.address), folder)
    assert path.read_bytes() == CONTENT
    assert fetch(remote(server.address), folder) == path
    assert server.asked == [None]
    assert [p.name for p in folder.iterdir()] == ["file.bin"]


def test_it_goes_on_where_the_connection_broke(server, folder):
    server.cut_at, server.cuts = 6000, 1
    assert fetch(remote(server.address), folder).read_bytes() == CONTENT
    assert server.asked == [None, "bytes=6000-"]


def test_it_goes_on_in_a_later_call(server, folder):
    server.cut_at, server.cuts = 6000, 9
    with pytest.raises(ConnectionError, match="same command again, which goes on where it ended"):
        fetch(remote(server.address), folder)
    assert [p.name for p in folder.iterdir()] == ["file.bin.part"]  # never under its own name
    server.cuts = 0
    assert fetch(remote(server.address), folder).read_bytes() == CONTENT
    assert server.asked[-1] == "bytes=6000-"


def test_a_server_that_sends_all_of_it_again(server, folder):
    (folder / "file.bin.part").write_bytes(b"x" * 100)
    server.ranges = False
    assert fetch(remote(server.address), folder).read_bytes() == CONTENT


def test_another_file_is_not_kept(server, folder):
    server.content = CONTENT[::-1]
    with pytest.raises(ConnectionError, match="not the file that was published and was not kept"):
        fetch(remote(server.address), folder)
    assert list(folder.iterdir()) == []


def test_a_copy_put_there_by_hand_is_used_if_it_is_right(server, folder):
    (folder / "file.bin").write_bytes(CONTENT)
    fetch(remote(server.address), folder)
    assert server.asked == []
    (folder / "file.bin").write_bytes(CONTENT[:-1])
    assert fetch(remote(server.address), folder).read_bytes() == CONTENT


def test_the_next_address_is_tried(server, folder):
    file = remote(server.address.replace("file", "missing/file"), server.address)
    assert fetch(file, folder).read_bytes() == CONTENT


def test_no_room(server, folder):
    with pytest.raises(OSError, match=r"file.bin and its content need 222222\.\d GB in .* are free: make room"):
        fetch_and_unpack(remote(server.address, size=10**15 // 9), {"in": folder / "in"}, folder)
    assert server.asked == []


def pack(path, members):
    path.write_bytes(packed(path.name, members))
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


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.tgz"])
@pytest.mark.parametrize("outside", ["in/../../evil", "in/..\\..\\evil"])
def test_members_outside_are_refused(folder, name, outside):
    archive = pack(folder / name, {"in/1.txt": b"1", outside: b"evil"})
    with pytest.raises(ValueError, match="would lie outside"):
        unpack(archive, {"in": folder / "in"})
    assert [p.name for p in folder.iterdir()] == [name]
    assert not (folder.parent / "evil").exists()


def test_links_are_passed_over(folder):
    with tarfile.open(folder / "a.tar", "w") as archive:
        link = tarfile.TarInfo("in/link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc"
        archive.addfile(link)
        archive.addfile(tarfile.TarInfo("in/file"))
    unpack(folder / "a.tar", {"in": folder / "in"})
    assert [p.name for p in (folder / "in").iterdir()] == ["file"]
