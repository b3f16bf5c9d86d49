"""From made-up archives on a server of this machine to a checked folder, whole and damaged; downloads."""

import hashlib
import io
import json
import pickle
import shutil

import numpy as np
import pytest
from drawn_datasets import instances, outline
from helpers import Server, encoded, packed
from PIL import Image
from scipy.io import savemat

from hsnet.benchmarks import coco as coco_module
from hsnet.benchmarks import load_benchmark, splits
from hsnet.benchmarks import pascal as pascal_module
from hsnet.benchmarks.coco import Coco
from hsnet.prepare import __main__ as program
from hsnet.prepare.downloads import RemoteFile, fetch, unpack


@pytest.fixture
def prepare(call):
    """`python -m hsnet.prepare`, and its status and output."""

    def run(*options, status=0):
        result = call("prepare.__main__", *options, status=status)
        return result.stdout + result.stderr

    return run


BOTH = "2007_000009"  # an image of which VOC and SBD have a mask


@pytest.fixture
def own_folders(monkeypatch):
    """Lists and images of the test's own: never in a folder that somebody has named."""
    monkeypatch.delenv("HSNET_SPLITS", raising=False)
    monkeypatch.delenv("HSNET_IMAGES", raising=False)


@pytest.fixture
def server():
    running = Server()
    yield running
    running.shutdown()
    running.server_close()


@pytest.fixture
def serve(monkeypatch, server):
    def start(files):
        server.files = files
        base = f"http://127.0.0.1:{server.server_port}/"

        def remote(file):
            content = files[file.name]
            return RemoteFile(base + file.name, f"md5:{hashlib.md5(content).hexdigest()}")

        for name in ("VOC", "SBD"):
            if getattr(pascal_module, name).name in files:
                monkeypatch.setattr(pascal_module, name, remote(getattr(pascal_module, name)))
        for name, file in coco_module.FILES.items():
            if file.name in files:
                monkeypatch.setitem(coco_module.FILES, name, remote(file))
        monkeypatch.setattr(splits, "REPOSITORY", base)
        return server

    return start


def photograph(k):
    return encoded(Image.fromarray(np.random.default_rng(k).integers(0, 255, (20, 30, 3), np.uint8)), "JPEG")


def make_official(monkeypatch, benchmark):
    """What lies in the lists' folder becomes official."""
    folder = splits.splits_folder()
    for name in [n for n in splits.LISTS if n.startswith(benchmark)]:
        monkeypatch.delitem(splits.LISTS, name)
    for path in (folder / benchmark).rglob("*.txt"):
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        monkeypatch.setitem(splits.LISTS, path.relative_to(folder).as_posix(), digest)


@pytest.fixture
def pascal(datasets, monkeypatch, serve, tmp_path):
    """The drawn data set as it is published: masks with a palette are VOC's, grey ones SBD's, and of one image both have one."""
    voc, sbd = {"VOCdevkit/VOC2012/Annotations/1.xml": b"<a/>"}, {}
    for path in (datasets / "pascal").rglob("*.*"):
        name = f"VOCdevkit/VOC2012/{path.parent.name}/{path.name}".replace("ClassAug", "Class")
        if path.suffix == ".jpg" or Image.open(path).mode == "P":
            voc[name] = path.read_bytes()
        if path.suffix == ".png" and (name not in voc or path.stem == BOTH):
            labels = np.asarray(Image.open(path)) * (path.stem != BOTH)
            file = io.BytesIO()
            savemat(file, {"GTcls": {"Segmentation": labels, "Boundaries": np.zeros(3)}})
            sbd[f"benchmark_RELEASE/dataset/cls/{path.stem}.mat"] = file.getvalue()
    make_official(monkeypatch, "pascal")
    server = serve({"VOCtrainval_11-May-2012.tar": packed("VOC.tar", voc), "benchmark.tgz": packed("SBD.tgz", sbd)})
    return tmp_path / "pascal", server


def test_pascal_from_archives_to_a_checked_folder(pascal, prepare, datasets):
    root, server = pascal
    out = prepare("pascal", "--root", root, "--cache", 16)
    found = "all 160 listed masks (built here) are there", "opened: sizes and labels are right"
    assert all(text in out for text in (*found, "everything is as expected"))
    for name in ("2007_000000", BOTH):  # of SBD; VOC's own wins
        paths = (folder / f"SegmentationClassAug/{name}.png" for folder in (root, datasets / "pascal"))
        assert np.array_equal(*(np.asarray(Image.open(path)) for path in paths))
    assert list((root / "downloads").iterdir()) == []
    assert not (root / "Annotations").exists()
    assert "2007_000003" in load_benchmark("pascal", size=16, root=str(root)).cache
    asked = len(server.asked)
    prepare("pascal", "--root", root)
    assert len(server.asked) == asked  # what is done is skipped


def test_damaged_and_missing_files_are_named(pascal, prepare):
    root, _ = pascal
    prepare("pascal", "--root", root)
    check = "pascal", "--root", root, "--check", "--sample", 999
    labels = [root / f"SegmentationClassAug/2007_00000{k}.png" for k in range(4, 8)]
    labels[0].write_bytes(b"half")
    Image.new("L", (120, 90)).save(labels[1])
    out = prepare(*check, status=1)
    assert "SegmentationClassAug/2007_000004.png cannot be read" in out
    assert "SegmentationClassAug/2007_000005.png lacks class 6, for which its image" in out
    for path in labels:
        path.write_bytes(b"half")
    (root / "JPEGImages" / "2007_000003.jpg").unlink()
    out = prepare(*check, status=1)
    assert "1 of 160 listed images are missing: 2007_000003" in out
    assert "more)" in out  # three are named, the others counted
    assert f"run `python -m hsnet.prepare pascal --root {root}`" in out
    folder = splits.splits_folder() / "pascal"
    (folder / "trn" / "fold0.txt").write_text("2007_000000__02\n")
    (folder / "val" / "fold2.txt").unlink()
    out = prepare("pascal", "--root", root, "--check", status=1)
    assert "trn/fold0.txt is not the official list" in out
    assert f"no list {folder}/val/fold2.txt" in out
    assert "python -m hsnet.prepare splits" in out


def test_the_authors_pascal_masks_are_left_as_they_are(pascal, prepare, datasets):
    root, server = pascal
    shutil.copytree(datasets / "pascal" / "SegmentationClassAug", root / "SegmentationClassAug")
    assert "all 160 listed masks (as published) are there" in prepare("pascal", "--root", root)
    assert len(server.asked) == 1  # SBD is not fetched
    with program.FileLock(root / ".prepare.lock"):  # two at once
        assert "another `prepare` is running" in prepare("pascal", "--root", root, status=2)


def box(image_id, category_id, left, top, right, bottom, crowd=False):
    marked = outline(left, top, right, bottom)
    if crowd:  # run lengths of the columns, background first
        edges = [20 * x + y for x in range(left, right) for y in (top, bottom)]
        marked = {"size": [20, 30], "counts": np.diff([0, *edges, 600]).tolist()}
    area = (right - left) * (bottom - top)
    about = {"image_id": image_id, "category_id": category_id, "iscrowd": int(crowd), "area": area}
    return about | {"segmentation": marked}


@pytest.fixture
def coco(own_folders, monkeypatch, serve, tmp_path):
    """Three categories; four images a year, whose masks have overlaps and a crowd."""
    members, files = {}, {}
    table = {str(c): {0: [1, 2, 3, 4], 1: [1, 2], 2: [4, 3, 2, 1]}.get(c, []) for c in range(80)}
    (splits.splits_folder() / "coco").mkdir(parents=True)
    for year, split in (("train2014", "trn"), ("val2014", "val")):
        names = {k: f"COCO_{year}_{k:012}.jpg" for k in range(1, 5)}
        boxes = [box(k, 1, 0, 0, 30, 20) for k in names] + [box(k, 90, 10, 5, 20, 15) for k in names]
        boxes += [box(1, 3, 12, 7, 14, 9), box(2, 3, 0, 0, 5, 5, crowd=True)]
        content = instances(names, boxes, {1: "thing 1", 3: "thing 3", 90: "thing 90"}, 20, 30)
        members[f"annotations/instances_{year}.json"] = json.dumps(content).encode()
        members[f"annotations/captions_{year}.json"] = b"{}"
        files[f"{year}.zip"] = packed(f"{year}.zip", {f"{year}/{name}": photograph(k) for k, name in names.items()})
        (splits.splits_folder() / f"coco/{split}.json").write_text(json.dumps(table))
    make_official(monkeypatch, "coco")
    digest = splits.content_digest({int(c): ids for c, ids in table.items()})
    for split in ("trn", "val"):
        monkeypatch.setitem(splits.LISTS, f"coco/{split}.json", digest)
    monkeypatch.setattr(Coco, "class_names", ["a", "b", "c"])
    server = serve(files | {"annotations_trainval2014.zip": packed("a.zip", members)})
    return tmp_path / "coco", server


def test_coco_from_archives_to_a_checked_folder(coco, prepare):
    root, server = coco
    out = prepare("coco", "--root", root)
    assert "all 8 listed masks (built here) are there" in out
    mask = Image.open(root / "masks" / "val2014" / "COCO_val2014_000000000001.png")
    assert mask.mode == "L"
    labels = np.asarray(mask)
    assert set(np.unique(labels).tolist()) == {1, 2, 3}  # categories 1, 3, 90
    assert (labels[8, 13], labels[10, 11], labels[1, 1]) == (2, 3, 1)  # the smallest lies on top
    assert np.asarray(Image.open(root / "masks" / "val2014" / "COCO_val2014_000000000002.png"))[2, 2] == 2  # the crowd
    assert load_benchmark("coco", size=16, root=str(root)).source()["crowd"] is True
    # Masks that were begun are gone on with.
    asked, done = len(server.asked), root / "masks" / "train2014"
    made = done / "COCO_train2014_000000000001.png"
    before = made.stat().st_mtime_ns
    (done / "COCO_train2014_000000000002.png").unlink()
    done.rename(done.with_name("train2014.part"))
    prepare("coco", "--root", root)
    assert len(server.asked) == asked
    assert made.stat().st_mtime_ns == before
    assert len(list(done.glob("*.png"))) == 4


def test_the_authors_masks_in_their_own_layout(coco, prepare):
    root, _ = coco
    prepare("coco", "--root", root)
    for path in (root / "annotations").iterdir():
        path.unlink()
    for part in ("train2014", "val2014"):
        (root / "masks" / part).rename(root / "annotations" / part)
    (root / "masks" / "source.json").unlink()
    (root / "masks").rmdir()
    assert "everything is as expected" in prepare("coco", "--root", root)
    assert load_benchmark("coco", size=16, root=str(root)).source()["source"] == "authors"


def test_a_damaged_coco_folder(coco, prepare):
    root, _ = coco
    prepare("coco", "--root", root)
    (root / "masks" / "train2014" / "COCO_train2014_000000000002.png").unlink()
    (root / "val2014" / "COCO_val2014_000000000002.jpg").unlink()
    out = prepare("coco", "--root", root, "--check", status=1)
    assert "masks (built here) are missing: train2014/COCO_train2014_000000000002.jpg" in out
    assert "1 of 8 listed images are missing: val2014/COCO_val2014_000000000002.jpg" in out
    annotations = root / "annotations" / "instances_val2014.json"
    annotations.write_text(annotations.read_text()[:500])
    out = prepare("coco", "--root", root, "--check", status=2)
    assert "instances_val2014.json is not a complete instances file" in out


def test_other_annotations_are_left_as_they_are(coco, prepare, monkeypatch):
    """Of another year, or with other categories under COCO's own file name."""
    root, server = coco
    prepare("coco", "--root", root)
    asked = len(server.asked)
    with monkeypatch.context() as fewer:
        fewer.setattr(Coco, "class_names", ["a", "b"])
        assert "COCO's format with 3 categories" in prepare("coco", "--root", root, status=2)
        assert "COCO's format with 3 categories" in prepare("coco", "--root", root, "--check")
    for path in (root / "annotations").glob("instances_*.json"):
        path.rename(path.with_name(path.name.replace("2014", "2017")))
    assert f"hsnet.train --benchmark folder --root {root}`" in prepare("coco", "--root", root, status=2)
    assert len(server.asked) == asked
    assert len(list((root / "annotations").iterdir())) == 4


@pytest.fixture
def fss(datasets, monkeypatch):
    make_official(monkeypatch, "fss")
    return datasets / "fss"


def test_fss_is_fetched_by_hand_and_checked(fss, prepare, tmp_path):
    out = prepare("fss", "--root", tmp_path / "empty", status=2)
    assert "github.com/HKUSTCV/FSS-1000" in out
    assert "abacus/1.jpg" in out
    out = prepare("fss", "--root", fss)
    assert "all 30 listed images are there" in out
    assert "30 listed pairs" in out


def test_the_official_lists_are_fetched_checked_and_stored(own_folders, serve, monkeypatch, prepare):
    table = {c: [1000 * c + k for k in (2, 1, 3)] for c in range(80)}
    made = {}
    for split, year in (("trn", "train2014"), ("val", "val2014")):
        for fold in range(4):  # of each split four pickles
            lists = {c: ids if (c % 4 == fold) == (split == "val") else [] for c, ids in table.items()}
            names = {c: [f"{year}/COCO_{year}_{i:012}.jpg" for i in ids] for c, ids in lists.items()}
            made[f"coco/{split}/fold{fold}.pkl"] = pickle.dumps(names)
    made |= {
        f"pascal/{s}/fold{f}.txt": f"2007_00000{f}__{5 * f + 1:02}\n".encode() for s in ("trn", "val") for f in range(4)
    }
    made |= {f"fss/{s}.txt": b"cup\n" for s in ("trn", "val", "test")}
    for name, content in made.items():
        monkeypatch.setitem(splits.LISTS, name, hashlib.sha256(content).hexdigest())
    for split in ("trn", "val"):
        monkeypatch.setitem(splits.LISTS, f"coco/{split}.json", splits.content_digest(table))
    server = serve(made)
    assert "13 lists in" in prepare("splits")
    assert splits.read_coco("val") == splits.read_coco("train") == table
    assert splits.read_pascal("train", 2) == [("2007_000002", 10)]
    assert sorted(p.name for p in (splits.splits_folder() / "coco").iterdir()) == ["trn.json", "val.json"]
    asked = len(server.asked)
    prepare("splits")
    assert len(server.asked) == asked
    server.files["fss/trn.txt"] = b"cup\nevil\n"
    (splits.splits_folder() / "fss" / "trn.txt").unlink()
    assert "differs from the published file and was deleted" in prepare("splits", status=2)
    assert not (splits.splits_folder() / "fss" / "trn.txt").exists()


def test_the_official_lists_are_read():
    folder = splits.splits_folder()
    pickled = folder / "coco/val/fold3.pkl"
    if not pickled.exists():
        pytest.skip("no official lists with a pickle of COCO's: HSNET_SPLITS is not set")
    assert [f.text for f in splits.verify_lists() if f.remedy] == []
    assert hashlib.sha256(pickled.read_bytes()).hexdigest() == splits.LISTS["coco/val/fold3.pkl"]
    theirs = splits.merge_coco_lists([pickle.loads(pickled.read_bytes())])
    assert theirs == {str(c): ids for c, ids in splits.read_coco("val").items() if c % 4 == 3}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "folder").mkdir()
    return tmp_path / "folder"


def remote(server):
    return RemoteFile(server.address, f"sha256:{hashlib.sha256(Server.content).hexdigest()}")


@pytest.mark.parametrize("ranges", [True, False])
def test_it_goes_on_in_a_later_call(server, folder, ranges):
    server.cut_at, server.cuts = 6000, 1
    with pytest.raises(ConnectionError, match="same command again, which continues the download"):
        fetch(remote(server), folder)
    assert [p.name for p in folder.iterdir()] == ["file.bin.part"]  # never under its own name
    (folder / "file.bin.part").write_bytes(Server.content[:5000])
    server.ranges = ranges  # without, the server sends all of it again
    assert fetch(remote(server), folder).read_bytes() == Server.content
    assert server.asked[-1] == "bytes=5000-"


def test_another_file_is_not_kept_and_a_copy_put_there_by_hand_is_used_if_it_is_right(server, folder):
    server.content = Server.content[::-1]
    with pytest.raises(ConnectionError, match="differs from the published file and was deleted"):
        fetch(remote(server), folder)
    assert list(folder.iterdir()) == []
    del server.content
    (folder / "file.bin").write_bytes(Server.content)
    fetch(remote(server), folder)
    assert len(server.asked) == 1
    (folder / "file.bin").write_bytes(Server.content[:-1])
    for _ in range(2):
        assert fetch(remote(server), folder).read_bytes() == Server.content
    assert len(server.asked) == 2  # it is fetched once
    assert [p.name for p in folder.iterdir()] == ["file.bin"]


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.tgz"])
def test_unpacking(folder, name):
    archive = folder / name
    archive.write_bytes(packed(name, {"in/one/1.txt": b"1", "in/one/deep/2.txt": Server.content, "in/two/3.txt": b"3"}))
    unpack(archive, {"in/one": folder / "one"})
    assert (folder / "one" / "deep" / "2.txt").read_bytes() == Server.content
    assert sorted(p.name for p in folder.iterdir()) == [name, "one"]
    (folder / "one" / "1.txt").write_text("mine")
    unpack(archive, {"in/one": folder / "one", "in/two": folder / "two"})
    assert (folder / "one" / "1.txt").read_text() == "mine"  # what is there is left as it is
    assert (folder / "two" / "3.txt").exists()
