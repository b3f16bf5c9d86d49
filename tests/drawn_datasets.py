"""Small data sets in the exact layout of PASCAL, COCO and FSS-1000, and split lists to go with them."""

import json

import numpy as np
from PIL import Image

PALETTE = [channel for i in range(256) for channel in (37 * i % 256, 91 * i % 256, 53 * i % 256)]


def picture(rng, height, width):
    """Smooth, as photographs are: noise would make every JPEG large."""
    small = rng.integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def pascal(root, splits):
    """Eight training and eight validation images for each class, sizes from 90 to 130 px; every image shows two classes."""
    rng = np.random.default_rng(0)
    (root / "JPEGImages").mkdir(parents=True)
    (root / "SegmentationClassAug").mkdir()
    for part, begin in (("trn", 0), ("val", 100)):
        (splits / "pascal" / part).mkdir(parents=True)
        lines = {fold: [] for fold in range(4)}
        for i in range(80):
            name = f"2007_{begin + i:06d}"
            height, width = (90, 120) if i % 2 else (130, 100)
            labels = np.zeros((height, width), np.uint8)
            classes = i % 20, (i + 7 + 3 * (i // 20)) % 20
            for place, c in enumerate(classes):
                left = 5 + 45 * place
                labels[20:70, left : left + 40] = 255
                labels[23:67, left + 3 : left + 37] = c + 1
                lines[c // 5].append(f"{name}__{c + 1:02d}")
            picture(rng, height, width).save(root / "JPEGImages" / f"{name}.jpg", quality=90)
            mask = Image.fromarray(labels)
            if i % 2:  # VOC's have a palette, SBD's are often made grey
                mask = mask.convert("P")
                mask.putdata(labels.flatten().tolist())
                mask.putpalette(PALETTE)
            mask.save(root / "SegmentationClassAug" / f"{name}.png")
        for fold, found in lines.items():
            (splits / "pascal" / part / f"fold{fold}.txt").write_text("\n".join(found) + "\n")


def fss(root, splits, classes=("ab_wheel", "abe's_flyingfish", "bus")):
    """Ten images a class; one class for each of training, validation and test. Masks grey, RGB or RGBA."""
    rng = np.random.default_rng(1)
    (splits / "fss").mkdir(parents=True)
    for part, name in zip(("trn", "val", "test"), classes, strict=True):
        (splits / "fss" / f"{part}.txt").write_text(name + "\n")
        (root / name).mkdir(parents=True)
        for i in range(1, 11):
            picture(rng, 60, 60).save(root / name / f"{i}.jpg", quality=90)
            mask = np.zeros((60, 60), np.uint8)
            mask[10 : 30 + i, 15:45] = 255
            mask[0, :2] = 127, 128  # the border of foreground
            mode = ("L", "RGB", "RGBA")[i % 3]
            if mode == "RGBA":  # opaque everywhere, as published
                mask = np.dstack([mask, mask, mask, np.full_like(mask, 255)])
            Image.fromarray(mask).convert(mode).save(root / name / f"{i}.png")


def coco(root, splits):
    """Six images for each class and part, each with that class and the next but two, and masks that prepare would make."""
    rng = np.random.default_rng(2)
    (splits / "coco").mkdir(parents=True)
    for part, short in (("train", "trn"), ("val", "val")):
        images, masks = root / f"{part}2014", root / "masks" / f"{part}2014"
        images.mkdir(parents=True)
        masks.mkdir(parents=True)
        lists = {c: [] for c in range(80)}
        for i in range(240):
            number, height, width = 7 * i + 3, *((30, 40) if i % 2 else (44, 33))
            labels = np.zeros((height, width), np.uint8)
            for place, c in enumerate((i % 80, (i + 3) % 80)):
                labels[5:25, 3 + 15 * place : 16 + 15 * place] = c + 1
                lists[c].append(number)
            name = f"COCO_{part}2014_{number:012d}"
            picture(rng, height, width).save(images / f"{name}.jpg", quality=90)
            Image.fromarray(labels).save(masks / f"{name}.png")
        (splits / "coco" / f"{short}.json").write_text(json.dumps({str(c): found for c, found in lists.items()}))
    (root / "masks" / "source.json").write_text(json.dumps({"source": "ours", "crowd": True}))


def folder(root, splits, classes=("ant", "bee", "cat", "dog", "eel", "fox", "gnu", "hen"), images=4):
    """Images of two classes each, in `images/` and `masks/CLASS/`."""
    rng = np.random.default_rng(3)
    (root / "images").mkdir(parents=True)
    for i in range(len(classes) * images // 2):
        picture(rng, 60, 80).save(root / "images" / f"{i:03d}.jpg", quality=90)
        for place, name in enumerate((classes[2 * i % len(classes)], classes[(2 * i + 1) % len(classes)])):
            mask = np.zeros((60, 80), np.uint8)
            mask[10:40, 5 + 35 * place : 35 + 35 * place] = 255
            (root / "masks" / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(mask).save(root / "masks" / name / f"{i:03d}.png")


def instances(names, annotations, categories, height, width):
    """The content of a file in COCO's format: images and categories by number, annotations without their own numbers."""
    return {
        "images": [{"id": i, "file_name": name, "height": height, "width": width} for i, name in names.items()],
        "annotations": [{"id": k, "iscrowd": 0, **annotation} for k, annotation in enumerate(annotations)],
        "categories": [{"id": i, "name": name} for i, name in categories.items()],
    }


def outline(left, top, right, bottom):
    """A rectangle, as COCO's files have it."""
    return [[left, top, right, top, right, bottom, left, bottom]]


DATASETS = {"pascal": pascal, "coco": coco, "fss": fss, "folder": folder}


class StandIns:
    """A coloured disc for every drawing."""

    def __init__(self):
        y, x = np.mgrid[-1:1:160j, -1:1:160j]
        self.alpha = (255 * (x**2 + y**2 < 1)).astype(np.uint8)

    def image(self, concept_id, artist):
        colour = np.random.default_rng([concept_id, len(artist)]).integers(0, 256, 3)
        planes = [np.minimum(self.alpha, c) for c in colour]
        return np.stack([*planes, self.alpha], axis=-1).astype(np.uint8)


def with_stand_ins(kind):
    """An emoji benchmark of 64 px that needs no drawings."""
    made = kind(64)
    made.sprites = StandIns()
    return made
