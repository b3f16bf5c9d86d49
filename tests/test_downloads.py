"""Downloads go on where they broke off, and nothing but the published file is kept."""

import hashlib

import pytest
from helpers import Server, packed

from hsnet.prepare.downloads import RemoteFile, fetch, unpack

CONTENT = Server.content


@pytest.fixture
def server():
    running = Server()
    yield running
    running.shutdown()
    running.server_close()


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "folder"
    made.mkdir()
    return made


def remote(server):
    return RemoteFile(server.address, f"sha256:{hashlib.sha256(CONTENT).hexdigest()}")


def test_a_file_is_fetched_once(server, folder):
    path = fetch(remote(server), folder)
    assert path.read_bytes() == CONTENT
    assert fetch(remote(server), folder) == path
    assert len(server.asked) == 1
    assert [p.name for p in folder.iterdir()] == ["file.bin"]


@pytest.mark.parametrize("ranges", [True, False])
def test_it_goes_on_in_a_later_call(server, folder, ranges):
    server.cut_at, server.cuts = 6000, 1
    with pytest.raises(ConnectionError, match="same command again, which continues the download"):
        fetch(remote(server), folder)
    assert [p.name for p in folder.iterdir()] == ["file.bin.part"]  # never under its own name
    (folder / "file.bin.part").write_bytes(CONTENT[:5000])
    server.ranges = ranges  # without, the server sends all of it again
    assert fetch(remote(server), folder).read_bytes() == CONTENT
    assert server.asked[-1] == "bytes=5000-"


def test_another_file_is_not_kept(server, folder):
    server.content = CONTENT[::-1]
    with pytest.raises(ConnectionError, match="differs from the published file and was deleted"):
        fetch(remote(server), folder)
    assert list(folder.iterdir()) == []


def test_a_copy_put_there_by_hand_is_used_if_it_is_right(server, folder):
    (folder / "file.bin").write_bytes(CONTENT)
    fetch(remote(server), folder)
    assert server.asked == []
    (folder / "file.bin").write_bytes(CONTENT[:-1])
    assert fetch(remote(server), folder).read_bytes() == CONTENT


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.tgz"])
def test_unpacking(folder, name):
    archive = folder / name
    archive.write_bytes(packed(name, {"in/one/1.txt": b"1", "in/one/deep/2.txt": CONTENT, "in/two/3.txt": b"3"}))
    unpack(archive, {"in/one": folder / "one"})
    assert (folder / "one" / "deep" / "2.txt").read_bytes() == CONTENT
    assert sorted(p.name for p in folder.iterdir()) == [name, "one"]
    (folder / "one" / "1.txt").write_text("mine")
    unpack(archive, {"in/one": folder / "one", "in/two": folder / "two"})
    assert (folder / "one" / "1.txt").read_text() == "mine"  # what is there is left as it is
    assert (folder / "two" / "3.txt").exists()
