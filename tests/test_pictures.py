"""Pictures, masks and annotations of every kind people have."""

import json

import numpy as np
import pytest
from drawn_datasets import instances
from PIL import Image, ImageOps

from hsnet import pictures
from hsnet.annotations import read_annotations
from hsnet.paths import ROOT
from hsnet.pictures import find_pictures, read_image, read_mask
from hsnet.segmenter import read_support

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (40, 60, 3), np.uint8)


def saved(image, path, **options):
    """The path of the written file; `image` may be an array."""
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(path, **options)
    return path


@pytest.mark.parametrize("mode", ["P", "L", "RGBA", "LA", "1", "CMYK"])
def test_modes_become_rgb(tmp_path, mode):
    suffix = ".tif" if mode == "CMYK" else ".png"
    picture = Image.fromarray(PIXELS).convert("RGB" if mode == "P" else mode)
    if mode == "P":
        picture = picture.quantize(64)
    image, size = read_image(saved(picture, tmp_path / ("a" + suffix)))
    assert (image.dtype, image.shape, size) == (np.uint8, (40, 60, 3), (40, 60))
    assert image.std() > 10


def test_greys_of_sixteen_bits_are_scaled(tmp_path):
    grey = np.linspace(0, 65535, 40 * 60).reshape(40, 60).astype(np.uint16)
    for image in (read_image(saved(grey, tmp_path / "deep.png"))[0], read_image(grey)[0]):
        assert np.abs(image[..., 0].astype(int) - grey // 257).max() <= 1


def test_what_is_transparent_is_grey(tmp_path):
    cutout = np.dstack([PIXELS, np.zeros((40, 60), np.uint8)])
    cutout[:20, :, 3] = 255
    image, _ = read_image(saved(cutout, tmp_path / "cutout.png"))
    assert (image[:20] == PIXELS[:20]).all()
    assert (image[20:] == 127).all()
    assert (read_image(cutout)[0] == image).all()


def test_a_large_photograph_is_decoded_small(tmp_path):
    path = saved(Image.new("RGB", (9000, 6700), (200, 30, 30)), tmp_path / "large.jpg")  # 60 megapixels
    image, size = read_image(path, least=256)
    assert size == (6700, 9000)
    assert image.shape[:2] == (838, 1125)  # an eighth, the smallest that JPEG can
    assert np.abs(image[400, 500].astype(int) - (200, 30, 30)).max() < 5


def test_floats_and_wrong_arrays():
    assert np.abs(read_image(PIXELS / 255)[0].astype(int) - PIXELS).max() == 0
    with pytest.raises(ValueError, match=r"floats from .* to .*255.* expected \[0, 1\]"):
        read_image(PIXELS.astype(float))
    with pytest.raises(ValueError, match=r"shape \(3, 40, 60\).*channels come last"):
        read_image(PIXELS.transpose(2, 0, 1))
    with pytest.raises(ValueError, match="integers from -1"):
        read_image(PIXELS.astype(int) - 1)


# Masks


TRUTH = np.zeros((40, 60), bool)
TRUTH[10:30, 20:50] = True


def palette(indices, *colours):
    picture = Image.fromarray(indices.astype(np.uint8), "P")
    picture.putpalette([*np.ravel(colours)])
    return picture


WHITE = Image.fromarray(TRUTH * np.uint8(255))
CUTOUT = np.dstack([PIXELS, TRUTH * np.uint8(255)])
MASKS = {
    "bool": TRUTH,
    "0/1": TRUTH.astype(np.uint8),
    "0/255": TRUTH * np.uint8(255),
    "16 bits": TRUTH * np.uint16(65535),
    "float": TRUTH.astype(float),
    "1 h w": TRUTH[None],
    "h w 1": TRUTH[..., None],
    "cut-out": CUTOUT,
    **{kind: WHITE.convert(kind) for kind in ("L", "1", "RGB")},
    "I;16": Image.fromarray(TRUTH * np.uint16(65535)),
    "RGBA": Image.fromarray(CUTOUT),
    "P": palette(TRUTH, (0, 0, 0), (128, 0, 0)),
    "P, the darker colour is background": palette(~TRUTH, (255, 255, 255), (0, 0, 0)),
}


@pytest.mark.parametrize("kind", MASKS)
def test_masks_of_many_kinds(tmp_path, kind):
    mask = MASKS[kind]
    assert (read_mask(mask) == TRUTH).all()
    if isinstance(mask, Image.Image):
        assert (read_mask(saved(mask, tmp_path / "mask.png")) == TRUTH).all()


def test_soft_edges_are_cut_at_half(tmp_path):
    large = WHITE.resize((120, 80), Image.Resampling.BICUBIC)
    soft = read_mask(saved(large, tmp_path / "soft.png"))
    assert (soft == np.kron(TRUTH, np.ones((2, 2), bool))).mean() > 0.99
    assert (read_mask(saved(WHITE, tmp_path / "mask.jpg")) == TRUTH).all()


def test_empty_and_wrong_masks():
    assert not read_mask(np.zeros((4, 5), np.uint8)).any()
    with pytest.raises(ValueError, match=r"shape \(2, 40, 60\), expected"):
        read_mask(np.zeros((2, 40, 60)))
    with pytest.raises(ValueError, match="NaN"):
        read_mask(np.full((4, 4), np.nan))


def test_folders_are_searched(tmp_path):
    folder = tmp_path / "my photographs"
    folder.mkdir()
    for name in ("b.JPG", "a ü 猫.png", "notes.txt", ".hidden.png"):
        (folder / name).touch()
    found, unused = find_pictures([folder])
    assert [p.name for p in found] == ["a ü 猫.png", "b.JPG"]
    assert [line.partition(" (")[0] for line in unused] == [
        f"not used in {folder}: {name}" for name in (".hidden.png", "notes.txt")
    ]
    (tmp_path / "bare").mkdir()
    for name, message in (("nowhere", "nowhere"), ("bare", "no images in")):
        with pytest.raises(FileNotFoundError, match=message):
            find_pictures([tmp_path / name])


def test_the_page_has_the_table_of_the_module():
    page = (ROOT / "book" / "own_files.md").read_text(encoding="utf-8")
    rows = [line for line in pictures.__doc__.splitlines() if line.startswith("|")]
    assert len(rows) > 15
    assert "\n".join(rows) in page


OTHER = np.zeros((40, 60), bool)
OTHER[32:39, 2:15] = True


def painted(one, other):
    image = np.zeros((40, 60, *np.shape(one)), np.uint16 if np.max(other) > 255 else np.uint8)
    image[TRUTH], image[OTHER] = one, other
    return image


@pytest.mark.parametrize(
    ("one", "other", "label"),
    [(1, 2, 1), (3, 300, 3), (12, 255, "12"), (1, 255, 1), (128, 255, 128), ((255, 0, 0), (0, 255, 0), "255,0,0"),
     ((128, 0, 0), (0, 128, 0), (128, 0, 0)), ((255, 0, 0), (254, 254, 254), "#ff0000")],
)  # fmt: skip
def test_several_values_or_colours_are_listed_and_picked(one, other, label):
    mask = painted(one, other)
    for shown in (one, other):
        with pytest.raises(ValueError, match=f"holds 2 labels: .*{str(shown).strip('()').replace(' ', '')}"):
            read_mask(mask)
    assert (read_mask(mask, label) == TRUTH).all()
    with pytest.raises(ValueError, match="has no label 77"):
        read_mask(mask, 77)


@pytest.mark.parametrize("alpha", [255, 254, 128])
def test_an_alpha_channel_that_hides_nothing_says_nothing(alpha):
    grey = TRUTH * np.uint8(255)
    nearly = np.where(OTHER, alpha, 255).astype(np.uint8) if alpha > 128 else np.full_like(grey, alpha)
    assert (read_mask(np.dstack([grey, grey, grey, nearly])) == TRUTH).all()
    assert (read_mask(Image.fromarray(np.dstack([grey, nearly]))) == TRUTH).all()


def test_numbers_and_photographs_are_no_masks(tmp_path):
    logits = np.where(TRUTH, 3.0, -2.0)
    with pytest.raises(ValueError, match="logits > 0"):
        read_mask(logits)
    np.save(tmp_path / "logits.npy", logits)
    with pytest.raises(ValueError, match=r"logits\.npy .*logits > 0"):
        read_mask(tmp_path / "logits.npy")
    np.save(tmp_path / "mask.npy", TRUTH)
    assert (read_mask(tmp_path / "mask.npy") == TRUTH).all()
    for photograph in (PIXELS, PIXELS * TRUTH[..., None], PIXELS[..., 0]):
        with pytest.raises(ValueError, match="looks like a photograph, not a mask"):
            read_mask(photograph)
    flat = np.full((40, 60, 3), 90, np.uint8)
    flat[TRUTH] = 200, 60, 40
    with pytest.raises(ValueError, match="not on black"):
        read_mask(flat * TRUTH[..., None], of=flat)


@pytest.mark.parametrize("turn", range(1, 9))
def test_every_turn_is_applied_or_ignored(tmp_path, turn):
    exif = Image.Exif()
    exif[0x0112] = turn
    for suffix in (".png", ".tif"):
        path = saved(PIXELS, tmp_path / f"turned{suffix}", exif=exif)
        with Image.open(tmp_path / "turned.png") as image:
            upright = np.asarray(ImageOps.exif_transpose(image))
        image, size = read_image(path)
        assert (image == upright).all()
        assert size == upright.shape[:2]
        if suffix == ".png":  # Pillow turns a TIFF by itself
            assert (read_image(path, exif="ignore")[0] == PIXELS).all()


# Outlines of labelme and COCO


SQUARE = [[20, 10], [49, 10], [49, 29], [20, 29]]  # TRUTH's
CORNER = [[2, 32], [14, 32], [14, 38], [2, 38]]  # OTHER's


def labelme(*shapes):
    shapes = [{"label": label, "points": points, "shape_type": "polygon"} for label, points in shapes]
    return {"shapes": shapes, "imageHeight": 40, "imageWidth": 60, "imagePath": "a.png"}


def coco(**change):
    annotation = {"image_id": 1, "category_id": 7, "segmentation": [np.ravel(SQUARE).tolist()]} | change
    return instances(
        {i: f"images/default/{name}.png" for i, name in ((1, "a"), (2, "b"))}, [annotation], {7: "thing"}, -1, -1
    )


@pytest.fixture
def write(tmp_path):
    def write(content):
        (tmp_path / "a.json").write_text(json.dumps(content))
        return tmp_path / "a.json"

    saved(PIXELS, tmp_path / "a.png")
    return write


RUNS = {"size": [40, 60], "counts": [20 * 40 + 10, *([20, 20] * 30)[:-1], 60 * 40 - 49 * 40 - 30]}


@pytest.mark.parametrize("content", [labelme(("thing", SQUARE)), coco(), coco(segmentation=RUNS)])
def test_one_label_is_the_object(write, tmp_path, content):
    assert (read_support(tmp_path / "a.png", write(content)).mask == TRUTH).all()


def test_several_labels_are_listed_and_shapes_of_one_joined(write):
    path = write(labelme(("cat", SQUARE), ("dog", CORNER), ("dog", SQUARE)))
    with pytest.raises(ValueError, match=r"2 labels: cat \(25 %\), dog .*--label cat"):
        read_annotations(path, "a.png", (40, 60))
    assert (read_annotations(path, "a.png", (40, 60), "cat") == TRUTH).all()
    assert read_annotations(path, "a.png", (40, 60), "dog").sum() == (TRUTH | OTHER).sum()
    with pytest.raises(ValueError, match="no label 'cow': it holds cat, dog"):
        read_annotations(path, "a.png", (40, 60), "cow")


@pytest.mark.parametrize(
    ("content", "message"),
    [(coco(segmentation=[]), "no outline for a.png: draw one and save it; a box is not an outline"), ({"regions": []}, "neither labelme's json nor COCO's"), (labelme(), "no outline"),
     (labelme(("x", SQUARE[:2])), "cannot be read: draw it as a polygon"), (coco(image_id=2), "no outline for a.png")],
)  # fmt: skip
def test_what_is_not_read_is_named(write, content, message):
    with pytest.raises(ValueError, match=message):
        read_annotations(write(content), "a.png", (40, 60))
