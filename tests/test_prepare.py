"""From made-up archives on a server of this machine to a checked folder, whole and damaged."""

import builtins
import hashlib
import io
import json
import pickle
import tarfile
import zipfile

import numpy as np
import pytest
from helpers import Server
from PIL import Image
from pycocotools import mask as coco_masks
from scipy.io import savemat

from hsnet.benchmarks import coco as coco_module
from hsnet.benchmarks import load_benchmark, splits
from hsnet.benchmarks import pascal as pascal_module
from hsnet.benchmarks.coco import Coco
from hsnet.benchmarks.fss import Fss
from hsnet.benchmarks.pascal import Pascal
from hsnet.prepare import __main__ as program
from hsnet.prepare import masks
from hsnet.prepare.downloads import RemoteFile


@pytest.fixture
def prepare(call):
    """`python -m hsnet.prepare`, and its status and output."""

    def run(*options, status=0):
        result = call("prepare.__main__", *options)
        assert result.returncode == status, result.stdout + result.stderr
        return result.stdout + result.stderr

    return run


@pytest.fixture
def own_folders(monkeypatch):
    """Lists and images of the test's own: never in a folder that somebody has named."""
    monkeypatch.delenv("HSNET_SPLITS", raising=False)
    monkeypatch.delenv("HSNET_IMAGES", raising=False)


@pytest.fixture
def serve(monkeypatch, own_folders):
    started = []

    def start(files):
        server = Server()
        server.files = files
        started.append(server)
        base = f"http://127.0.0.1:{server.server_port}/"

        def remote(file):
            content = files[file.name]
            return RemoteFile((base + file.name,), f"md5:{hashlib.md5(content).hexdigest()}", len(content))

        for name in ("VOC", "SBD"):
            if getattr(pascal_module, name).name in files:
                monkeypatch.setattr(pascal_module, name, remote(getattr(pascal_module, name)))
        for name, file in coco_module.FILES.items():
            if file.name in files:
                monkeypatch.setitem(coco_module.FILES, name, remote(file))
        monkeypatch.setattr(splits, "REPOSITORY", (base,))
        return server

    yield start
    for server in started:
        server.shutdown()
        server.server_close()


def tar(members, mode="w"):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return file.getvalue()


def zipped(members):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


def encoded(image, form):
    file = io.BytesIO()
    image.save(file, form)
    return file.getvalue()


def photograph(k, size=(30, 20)):
    return encoded(Image.fromarray(np.random.default_rng(k).integers(0, 255, (*size[::-1], 3), np.uint8)), "JPEG")


def grey(labels):
    return encoded(Image.fromarray(labels), "PNG")


def labels_of(class_ids, boundary=False):
    """Labels 20 × 30 with a stripe of each class (from 0) and a boundary above."""
    labels = np.zeros((20, 30), np.uint8)
    for k, class_id in enumerate(class_ids):
        labels[4:, 6 * k : 6 * k + 5] = class_id + 1
    if boundary:
        labels[3] = 255
    return labels


def write_lists(monkeypatch, benchmark, counts, files):
    """Official lists of a small made-up benchmark: files in the lists' folder, their checksums and counts."""
    folder = splits.splits_folder()
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    digests = {n: hashlib.sha256(c.encode()).hexdigest() for n, c in files.items() if n.endswith(".txt")}
    for name in list(splits.LISTS):
        if name.startswith(benchmark.name):
            monkeypatch.delitem(splits.LISTS, name)
    for name, digest in digests.items():
        monkeypatch.setitem(splits.LISTS, name, digest)
    monkeypatch.setattr(benchmark, "counts", counts)


@pytest.fixture
def pascal(monkeypatch, serve, tmp_path):
    """Twenty images, each class in two: ten masks of VOC's own, ten of SBD's, and one that both have."""
    voc, sbd, lines = {}, {}, {f"pascal/{s}/fold{f}.txt": [] for s in ("trn", "val") for f in range(4)}
    for k in range(20):
        class_ids = [k, (k + 8) % 20]
        voc[f"VOCdevkit/VOC2012/JPEGImages/2007_{k:06}.jpg"] = photograph(k)
        if k < 10:
            mask = grey(labels_of(class_ids, boundary=True))
            voc[f"VOCdevkit/VOC2012/SegmentationClass/2007_{k:06}.png"] = mask
        if k >= 9:
            file = io.BytesIO()
            labels = np.zeros((20, 30), np.uint8) if k == 9 else labels_of(class_ids)
            savemat(file, {"GTcls": {"Segmentation": labels, "Boundaries": np.zeros(3)}})
            sbd[f"benchmark_RELEASE/dataset/cls/2007_{k:06}.mat"] = file.getvalue()
        for class_id in class_ids:
            for split in ("trn", "val"):
                lines[f"pascal/{split}/fold{class_id // 5}.txt"].append(f"2007_{k:06}__{class_id + 1:02}\n")
    voc["VOCdevkit/VOC2012/Annotations/1.xml"] = b"<a/>"
    server = serve({"VOCtrainval_11-May-2012.tar": tar(voc), "benchmark.tgz": tar(sbd, "w:gz")})
    files = {name: "".join(found) for name, found in lines.items()}
    write_lists(monkeypatch, Pascal, {"JPEGImages/*.jpg": 20, "SegmentationClassAug/*.png": 20}, files)
    return tmp_path / "pascal", server


def test_pascal_from_archives_to_a_checked_folder(pascal, prepare):
    root, server = pascal
    out = prepare("pascal", "--root", root, "--cache", 16)
    for text in ("20 files SegmentationClassAug/*.png", "(built here)", "opened: sizes and labels are right"):
        assert text in out
    assert "all is as it should be" in out
    own = np.asarray(Image.open(root / "SegmentationClassAug" / "2007_000009.png"))
    assert (own == labels_of([9, 17], boundary=True)).all()  # VOC's own wins
    assert (np.asarray(Image.open(root / "SegmentationClassAug" / "2007_000010.png")) == labels_of([10, 18])).all()
    assert list((root / "downloads").iterdir()) == []
    assert not (root / "Annotations").exists()
    assert "2007_000003" in load_benchmark("pascal", size=16, root=str(root)).cache
    asked = len(server.asked)
    prepare("pascal", "--root", root)
    assert len(server.asked) == asked  # what is done is skipped


def test_damaged_files_are_named(pascal, prepare):
    root, _ = pascal
    prepare("pascal", "--root", root)
    damaged = {
        "JPEGImages/2007_000008.jpg": (photograph(8)[:200], "cannot be read"),
        "SegmentationClassAug/2007_000004.png": (
            grey(np.zeros((9, 9), np.uint8)),
            "is 9 × 9 pixels, its image 30 × 20",
        ),
        "SegmentationClassAug/2007_000005.png": (grey(labels_of([5])), "lacks class 14, for which its image is listed"),
        "SegmentationClassAug/2007_000006.png": (b"half", "cannot be read"),
        "SegmentationClassAug/2007_000007.png": (grey(labels_of([7, 15, 30])), "holds the label 31"),
    }
    for file, (content, message) in damaged.items():
        before = (root / file).read_bytes()
        (root / file).write_bytes(content)
        assert f"{file} {message}" in prepare("pascal", "--root", root, "--check", status=1)
        (root / file).write_bytes(before)
    for file, (content, _) in damaged.items():
        (root / file).write_bytes(content)
    (root / "JPEGImages" / "2007_000003.jpg").unlink()
    out = prepare("pascal", "--root", root, "--check", status=1)
    assert "19 files JPEGImages/*.jpg in" in out
    assert "1 of 20 listed images are missing: 2007_000003" in out
    assert "more)" in out  # three are named, the others counted
    assert f"run `python -m hsnet.prepare pascal --root {root}`" in out


def test_lists_that_are_not_the_official_ones(pascal, prepare):
    root, _ = pascal
    prepare("pascal", "--root", root)
    folder = splits.splits_folder() / "pascal"
    (folder / "trn" / "fold0.txt").write_text("2007_000000__02\n")
    (folder / "val" / "fold2.txt").unlink()
    out = prepare("pascal", "--root", root, "--check", status=1)
    assert "trn/fold0.txt is not the official list" in out
    assert f"no list {folder}/val/fold2.txt" in out
    assert "python -m hsnet.prepare splits" in out


def test_the_authors_pascal_masks(pascal, prepare, tmp_path):
    root, server = pascal
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    for k in range(20):
        (theirs / f"2007_{k:06}.png").write_bytes(grey(labels_of([k, (k + 8) % 20])))
    assert "(the authors')" in prepare("pascal", "--root", root, "--masks", theirs)
    assert len(server.asked) == 1  # SBD is not fetched


def instances(images, annotations, categories=(1, 3, 90)):
    return {
        "images": [{"id": i, "file_name": name, "height": 20, "width": 30} for i, name in images],
        "annotations": [{"id": k, **a} for k, a in enumerate(annotations)],
        "categories": [{"id": c, "name": f"thing {c}"} for c in categories],
    }


def box(image_id, category_id, left, top, right, bottom, crowd=0):
    if crowd:
        area = np.zeros((20, 30), np.uint8, order="F")
        area[top:bottom, left:right] = 1
        columns = area.flatten(order="F")
        changes = np.flatnonzero(np.diff(np.concatenate([[0], columns, [0]])))
        counts = np.diff(np.concatenate([[0], changes, [columns.size]])).tolist()
        outline = {"size": [20, 30], "counts": counts}
    else:
        outline = [[left, top, right, top, right, bottom, left, bottom]]
    area = (right - left) * (bottom - top)
    return {"image_id": image_id, "category_id": category_id, "iscrowd": crowd, "area": area, "segmentation": outline}


@pytest.fixture
def coco(monkeypatch, serve, tmp_path):
    """Three categories; four images a year, whose masks have overlaps and a crowd."""
    members, files = {}, {}
    for year, split in (("train2014", "trn"), ("val2014", "val")):
        names = [(k, f"COCO_{year}_{k:012}.jpg") for k in range(1, 5)]
        boxes = [box(k, 1, 0, 0, 30, 20) for k, _ in names] + [box(k, 90, 10, 5, 20, 15) for k, _ in names]
        boxes += [box(1, 3, 12, 7, 14, 9), box(2, 3, 0, 0, 5, 5, crowd=1)]
        members[f"annotations/instances_{year}.json"] = json.dumps(instances(names, boxes)).encode()
        members[f"annotations/captions_{year}.json"] = b"{}"
        files[f"{year}.zip"] = zipped({f"{year}/{name}": photograph(k) for k, name in names})
        table = {str(c): {0: [1, 2, 3, 4], 1: [1, 2], 2: [4, 3, 2, 1]}.get(c, []) for c in range(80)}
        counts = {"train2014/*.jpg": 4, "val2014/*.jpg": 4}
        write_lists(monkeypatch, Coco, counts, {f"coco/{split}.json": json.dumps(table)})
    monkeypatch.setattr(coco_module, "CLASSES", ["a", "b", "c"])
    monkeypatch.setattr(Coco, "class_names", ["a", "b", "c"])
    monkeypatch.setattr(
        splits,
        "CONTENT",
        dict.fromkeys(splits.CONTENT, splits.content_digest({int(c): ids for c, ids in table.items()})),
    )
    server = serve(files | {"annotations_trainval2014.zip": zipped(members)})
    return tmp_path / "coco", server


def test_coco_from_archives_to_a_checked_folder(coco, prepare):
    root, server = coco
    out = prepare("coco", "--root", root)
    assert "all 8 listed masks (built here, with crowds) are there" in out
    mask = Image.open(root / "masks" / "val2014" / "COCO_val2014_000000000001.png")
    assert mask.mode == "L"
    labels = np.asarray(mask)
    assert set(np.unique(labels).tolist()) == {1, 2, 3}  # categories 1, 3, 90
    assert labels[8, 13] == 2  # the smallest lies on top
    assert labels[10, 11] == 3
    assert labels[1, 1] == 1
    assert np.asarray(Image.open(root / "masks" / "val2014" / "COCO_val2014_000000000002.png"))[2, 2] == 2  # the crowd
    assert load_benchmark("coco", size=16, root=str(root)).source()["crowd"] is True
    asked = len(server.asked)
    prepare("coco", "--root", root)
    assert len(server.asked) == asked
    assert "asked for is {'source': 'ours', 'crowd': False}" in prepare("coco", "--root", root, "--no-crowd", status=2)


def test_coco_without_crowds(coco, prepare):
    root, _ = coco
    out = prepare("coco", "--root", root, "--no-crowd", status=1)  # the listed class of one image was the crowd
    assert "built here, without crowds" in out
    assert np.asarray(Image.open(root / "masks" / "val2014" / "COCO_val2014_000000000002.png"))[2, 2] == 1


def test_the_authors_coco_masks_are_compared_with_ours(coco, prepare, monkeypatch, tmp_path):
    root, _ = coco
    prepare("coco", "--root", root)
    theirs = tmp_path / "theirs"
    (root / "masks").rename(theirs)
    half = theirs / "val2014" / "COCO_val2014_000000000003.png"
    labels = np.asarray(Image.open(half)).copy()
    labels[:10] = 0
    Image.fromarray(labels).save(half)
    monkeypatch.setattr(Coco, "covered", 1.0)
    out = prepare("coco", "--root", root, "--masks", theirs)
    assert "the authors' masks of train2014 and ours agree in 100.00 % of the pixels" in out
    assert "the authors' masks of val2014 and ours agree in 87.50 % of the pixels" in out
    assert load_benchmark("coco", size=16, root=str(root)).source()["source"] == "authors"
    assert "no PNG files in" in prepare("coco", "--root", tmp_path / "new", "--masks", tmp_path, status=2)


def test_the_authors_masks_in_their_own_layout(coco, prepare):
    root, _ = coco
    prepare("coco", "--root", root)
    for path in (root / "annotations").iterdir():
        path.unlink()
    for part in ("train2014", "val2014"):
        (root / "masks" / part).rename(root / "annotations" / part)
    (root / "masks" / "source.json").unlink()
    (root / "masks").rmdir()
    assert "all is as it should be" in prepare("coco", "--root", root)
    assert load_benchmark("coco", size=16, root=str(root)).source()["source"] == "authors"


def test_a_damaged_coco_folder(coco, prepare):
    root, _ = coco
    prepare("coco", "--root", root)
    (root / "masks" / "train2014" / "COCO_train2014_000000000002.png").unlink()
    (root / "val2014" / "COCO_val2014_000000000002.jpg").unlink()
    out = prepare("coco", "--root", root, "--check", status=1)
    assert "masks (built here, with crowds) are missing: train2014/COCO_train2014_000000000002.jpg" in out
    assert "1 of 8 listed images are missing: val2014/COCO_val2014_000000000002.jpg" in out
    annotations = root / "annotations" / "instances_val2014.json"
    annotations.write_text(annotations.read_text()[:500])
    out = prepare("coco", "--root", root, "--check", status=1)
    assert "instances_val2014.json is no complete instances file" in out


def test_other_annotations_are_left_as_they_are(coco, prepare, monkeypatch):
    """Of another year, or with other categories under COCO's own file name."""
    root, server = coco
    prepare("coco", "--root", root)
    asked = len(server.asked)
    monkeypatch.setattr(coco_module, "CLASSES", ["a", "b"])
    assert "COCO's format with 3 categories" in prepare("coco", "--root", root, status=2)
    assert "COCO's format with 3 categories" in prepare("coco", "--root", root, "--check")
    monkeypatch.setattr(coco_module, "CLASSES", ["a", "b", "c"])
    for path in (root / "annotations").glob("instances_*.json"):
        path.rename(path.with_name(path.name.replace("2014", "2017")))
    assert "not COCO-20i. Nothing is to be prepared: train with" in prepare("coco", "--root", root, status=2)
    assert len(server.asked) == asked
    assert len(list((root / "annotations").iterdir())) == 4


def test_masks_that_were_begun_are_gone_on_with(coco, prepare):
    root, _ = coco
    prepare("coco", "--root", root)
    done = root / "masks" / "train2014"
    made = done / "COCO_train2014_000000000001.png"
    before = made.stat().st_mtime_ns
    (done / "COCO_train2014_000000000002.png").unlink()
    done.rename(done.with_name("train2014.part"))
    prepare("coco", "--root", root)
    assert made.stat().st_mtime_ns == before
    assert len(list(done.glob("*.png"))) == 4


def test_run_lengths_compressed_or_not_are_read():
    area = np.zeros((20, 30), np.uint8, order="F")
    area[3:9, 4:20] = 1
    assert (masks.outline_mask(coco_masks.encode(area), 20, 30) == area).all()
    assert (masks.outline_mask(box(1, 1, 4, 3, 20, 9, crowd=1)["segmentation"], 20, 30) == area).all()


def test_many_masks_are_built_in_processes(tmp_path):
    sources = {f"{k}.png": (20, 30, [(2, 49, box(k, 3, 2, 2, 9, 9)["segmentation"])]) for k in range(600)}
    masks.build(sources, tmp_path / "x", masks.write_coco_mask, workers=2)
    assert len(list((tmp_path / "x").glob("*.png"))) == 600
    assert np.asarray(Image.open(tmp_path / "x" / "599.png")).max() == 2


@pytest.fixture
def fss(monkeypatch, tmp_path, own_folders):
    root = tmp_path / "fss"
    listed = {"trn": ["cup", "fan"], "val": ["owl"], "test": ["axe"]}
    for names in listed.values():
        for name in names:
            (root / name).mkdir(parents=True)
            for k in range(1, 11):
                (root / name / f"{k}.jpg").write_bytes(photograph(k))
                mask = np.zeros((20, 30, 4), np.uint8)
                mask[5:9, 5:9, :3], mask[..., 3] = 255, 255
                (root / name / f"{k}.png").write_bytes(encoded(Image.fromarray(mask), "PNG"))
    files = {f"fss/{split}.txt": "\n".join(names) + "\n" for split, names in listed.items()}
    write_lists(monkeypatch, Fss, {"*/*.jpg": 40, "*/*.png": 40}, files)
    return root


def test_fss_is_fetched_by_hand_and_checked(fss, prepare, tmp_path):
    out = prepare("fss", "--root", tmp_path / "empty", status=2)
    assert "github.com/HKUSTCV/FSS-1000" in out
    assert "abacus/1.jpg" in out
    out = prepare("fss", "--root", fss)
    assert "all 40 listed images are there" in out
    assert "40 listed pairs" in out


def test_a_damaged_fss_folder(fss, prepare):
    (fss / "cup" / "7.png").unlink()
    (fss / "owl" / "1.png").write_bytes(encoded(Image.new("RGBA", (30, 20), (0, 0, 0, 255)), "PNG"))
    (fss / "axe").rename(fss / "ax")
    out = prepare("fss", "--root", fss, "--check", status=1)
    assert "10 of 40 listed images are missing: axe/1.jpg" in out
    assert "masks (as published) are missing: cup/7.jpg" in out
    assert "1.png lacks class 1" in out


def test_fss_unpacked_too_deep(fss, prepare):
    deep = fss.parent / "outer" / "fewshot_data" / "fewshot_data"
    deep.parent.mkdir(parents=True)
    fss.rename(deep)
    out = prepare("fss", "--root", fss.parent / "outer", "--check", status=1)
    assert f"the classes lie too deep: move the folders in {deep} into" in out


def test_options_of_other_benchmarks(prepare, tmp_path):
    assert "--masks is for coco and pascal" in prepare("fss", "--masks", tmp_path, status=2)


class Evil:
    def __reduce__(self):
        return (exec, ("import builtins; builtins.evil_ran = True",))


@pytest.mark.parametrize("content", [pickle.dumps({0: [Evil()]}), pickle.dumps({0: ["a"]})[:-3]])
def test_a_pickle_that_would_run_code_is_refused(content):
    with pytest.raises(ValueError, match="this pickle holds more than lists, texts and numbers, or is damaged"):
        splits.read_plain_pickle(content)
    assert not hasattr(builtins, "evil_ran")


def coco_pickles(folds):
    """What the authors' repository holds, made up: of each split four pickles, by name."""
    table = {c: [1000 * c + k for k in (2, 1, 3)] for c in range(80)}
    made = {}
    for split, year in (("trn", "train2014"), ("val", "val2014")):
        for fold in folds:
            names = {
                c: [f"{year}/COCO_{year}_{i:012}.jpg" for i in ids] if (c % 4 == fold) == (split == "val") else []
                for c, ids in table.items()
            }
            made[f"coco/{split}/fold{fold}.pkl"] = pickle.dumps(names)
    return table, made


def test_the_official_lists_are_fetched_checked_and_stored(serve, monkeypatch, prepare):
    table, made = coco_pickles(range(4))
    made |= {
        f"pascal/{s}/fold{f}.txt": f"2007_00000{f}__{5 * f + 1:02}\n".encode() for s in ("trn", "val") for f in range(4)
    }
    made |= {f"fss/{s}.txt": b"cup\n" for s in ("trn", "val", "test")}
    for name, content in made.items():
        monkeypatch.setitem(splits.LISTS, name, hashlib.sha256(content).hexdigest())
    digest = splits.content_digest(table)
    monkeypatch.setattr(splits, "CONTENT", {"coco/trn.json": digest, "coco/val.json": digest})
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
    assert "not the file that was published and was not kept" in prepare("splits", status=2)
    assert not (splits.splits_folder() / "fss" / "trn.txt").exists()


def test_a_genuine_pickle_holds_the_lists_that_are_read():
    folder = splits.splits_folder() / "coco"
    pickled = folder / "val" / "fold3.pkl"
    if not pickled.exists():
        pytest.skip("no official COCO pickle under HSNET_SPLITS")
    assert hashlib.sha256(pickled.read_bytes()).hexdigest() == splits.LISTS["coco/val/fold3.pkl"]
    read = splits.read_plain_pickle(pickled.read_bytes())
    numbers = {c: [int(name[-16:-4]) for name in names] for c, names in read.items() if names}
    assert numbers == {c: ids for c, ids in splits.read_coco("val").items() if c % 4 == 3}


def test_the_official_lists_are_those_of_the_reference():
    if not (splits.splits_folder() / "fss").exists():
        pytest.skip("no official lists: HSNET_SPLITS is not set")
    assert [f.text for f in splits.verify_lists() if f.remedy] == []
    entries = {s: [len(splits.read_pascal(s, fold)) for fold in range(4)] for s in ("train", "val")}
    assert entries == {"train": [2286, 3425, 5883, 2086], "val": [346, 451, 725, 346]}
    images = {
        s: [
            len({i for c, ids in splits.read_coco(s).items() if (c % 4 == fold) == (s == "val") for i in ids})
            for fold in range(4)
        ]
        for s in ("train", "val")
    }
    assert images == {"train": [62_040, 74_381, 73_035, 73_808], "val": [26_052, 15_305, 13_138, 12_640]}
    assert [len(splits.read_fss(s)) for s in ("train", "val", "test")] == [520, 240, 240]


def test_two_at_once(tmp_path, prepare):
    root = tmp_path / "pascal"
    root.mkdir()
    with program.FileLock(root / ".prepare.lock"):
        assert "another `prepare` is at work" in prepare("pascal", "--root", root, status=2)
