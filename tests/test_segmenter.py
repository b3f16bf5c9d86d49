"""From annotated pictures to masks: the class and the command line. The network is untrained: its answers are compared."""

import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import interpolate

from hsnet import HSNet, Segmenter
from hsnet.benchmarks.resize import resize_image, resize_mask
from hsnet.model import vote
from hsnet.paths import ROOT
from hsnet.pictures import BEHIND, read_image
from hsnet.predict import unique_names
from hsnet.runs import DEFAULT_RUN, WEIGHTS, run_folder, save_model
from hsnet.segmenter import square_image, square_mask

RNG = np.random.default_rng(0)
SIZE = 64


def picture(height=50, width=70):
    return RNG.integers(0, 256, (height, width, 3), np.uint8)


def mask_of(image):
    truth = np.zeros(image.shape[:2], bool)
    truth[image.shape[0] // 4 : -image.shape[0] // 4, image.shape[1] // 4 : -image.shape[1] // 4] = True
    return truth


@pytest.fixture
def run(run):
    """A run with random weights, whose bias makes about half of the pixels foreground."""
    torch.manual_seed(0)
    model = HSNet("efficientnet_lite0").eval()
    model.training_size = SIZE
    image = model.backbone.normalize(resize_image(picture(), SIZE)[None])
    with torch.no_grad():
        logits = model(image, image, torch.ones(1, SIZE, SIZE, dtype=torch.bool))
        model.decoder.after[-1].bias[0] += (logits[:, 1] - logits[:, 0]).median()
    save_model(run / WEIGHTS, model)
    return "one"


def test_equal_to_the_network(run):
    images, query = [picture(), picture(40, 40), picture(90, 30)], picture(SIZE, SIZE)
    masks = [mask_of(image) for image in images]
    segmenter = Segmenter(run).fit(images, masks)
    model = segmenter.model
    query_image, *support = (model.backbone.normalize(resize_image(image, SIZE)) for image in (query, *images))
    support_mask = torch.stack([resize_mask(mask, SIZE) for mask in masks])[None]
    expected = model.predict(query_image[None], torch.stack(support)[None], support_mask)[0].numpy()
    assert 0.1 < expected.mean() < 0.9
    assert (segmenter.predict(query) == expected).all()


def test_rules(run):
    images, query = [picture() for _ in range(3)], picture()
    alone = [Segmenter(run).fit(image, mask_of(image)) for image in images]
    probabilities = np.stack([one.predict_proba(query) for one in alone])
    masks = [mask_of(i) for i in images]
    together = {rule: Segmenter(run, rule=rule).fit(images, masks) for rule in ("paper", "majority", "mean")}
    assert np.allclose(together["mean"].predict_proba(query), probabilities.mean(0), atol=1e-5)
    sure = abs(probabilities - 0.5).min(0) > 1e-5
    votes = torch.tensor(probabilities > 0.5)[None]
    for rule in ("paper", "majority"):
        assert (together[rule].predict(query) == vote(votes, rule)[0].numpy())[sure].all()
    mean = probabilities.mean(0)
    assert (together["mean"].predict(query) == (mean > 0.5))[abs(mean - 0.5) > 1e-5].all()


@pytest.mark.parametrize("size", [(50, 70), (300, 1), (1, 3), (31, 4000)])
def test_answers_have_the_size_of_the_picture(run, size):
    segmenter = Segmenter(run).fit(picture(80, 1), np.arange(80)[:, None] // 20 % 3 > 0)
    query = picture(*size)
    mask, probabilities = segmenter.predict(query), segmenter.predict_proba(query)
    assert (mask.shape, mask.dtype, probabilities.shape) == (size, bool, size)
    assert 0 <= probabilities.min() <= probabilities.max() <= 1


def test_features_of_supports_are_computed_once(run, monkeypatch):
    segmenter, passed = Segmenter(run), []
    forward = segmenter.model.backbone.forward
    monkeypatch.setattr(segmenter.model.backbone, "forward", lambda x: passed.append(len(x)) or forward(x))
    segmenter.fit(images := [picture() for _ in range(3)], [mask_of(i) for i in images])
    assert [segmenter.predict(picture()).ndim for _ in range(2)] == [2, 2]
    assert passed == [3, 1, 1]


def test_a_list_is_answered_like_its_pictures(run):
    images, queries = [picture(), picture()], [picture(33, 44), picture(), picture(90, 20)]
    for aspect in ("resize", "pad"):
        segmenter = Segmenter(run, aspect=aspect).fit(images, [mask_of(i) for i in images])
        together = segmenter.predict(queries)
        assert [m.shape for m in together] == [q.shape[:2] for q in queries]
        for query, mask in zip(queries, together, strict=True):
            sure = abs(segmenter.predict_proba(query) - 0.5) > 1e-4
            assert (segmenter.predict(query) == mask)[sure].all()
            each = torch.tensor(segmenter.predict_each(query))
            assert (vote(each[None])[0].numpy() == segmenter.predict(query)).all()


def test_padding_keeps_proportions_and_is_no_part_of_the_answer(run):
    wide = picture(20, 60)
    square = square_image(wide, SIZE, "pad")
    height = round(20 * SIZE / 60)
    top = (SIZE - height) // 2
    small = Image.fromarray(wide).resize((SIZE, height), Image.Resampling.BILINEAR)
    assert (square[:, top : top + height].permute(1, 2, 0).numpy() == np.asarray(small)).all()
    assert (torch.cat([square[:, :top], square[:, top + height :]], dim=1) == BEHIND).all()
    everything = square_mask(np.ones((20, 60), bool), SIZE, "pad")
    assert everything.sum() == height * SIZE
    assert everything[top : top + height].all()
    # A picture with its padding is the same square, and the answer is what lies inside.
    padded, inside = square.permute(1, 2, 0).numpy(), everything.numpy()
    by_hand = Segmenter(run).fit(padded, inside).predict_proba(padded)[top : top + height]
    kept = Segmenter(run, aspect="pad").fit(wide, np.ones((20, 60), bool)).predict_proba(wide)
    assert kept.shape == (20, 60)
    again = interpolate(torch.tensor(by_hand)[None, None], (20, 60), mode="bilinear", align_corners=True)
    assert np.abs(kept - again[0, 0].numpy()).max() < 0.02  # resized as logits there, as probabilities here


def test_another_size_of_the_squares(run):
    image, query = picture(), picture(50, 40)
    larger = Segmenter(run, size=128).fit(image, mask_of(image))
    found = larger.predict_proba(query)
    # The same as of a network that was trained at that size.
    own = Segmenter(run)
    own.model.training_size = own.size = own._side = 128
    np.testing.assert_array_equal(found, own.fit(image, mask_of(image)).predict_proba(query))
    for size in (300, 16):
        with pytest.raises(ValueError, match=f"size is {size}: use 32 to 256 px. .* trained at {SIZE} px"):
            Segmenter(run, size=size)


def test_files_images_and_arrays_agree(run, tmp_path):
    image, query = picture(), picture(33, 44)
    cutout = Image.fromarray(np.dstack([image, mask_of(image) * np.uint8(255)]))
    cutout.save(tmp_path / "cutout.png")
    Image.fromarray(image).save(tmp_path / "a b ü.png")
    Image.fromarray(mask_of(image)).save(tmp_path / "mask.png")
    Image.fromarray(query).save(tmp_path / "query.png")
    expected = Segmenter(run).fit(image, mask_of(image)).predict(query)
    from_files = Segmenter(run).fit(tmp_path / "a b ü.png", str(tmp_path / "mask.png"))
    assert (from_files.predict(tmp_path / "query.png") == expected).all()
    from_images = Segmenter(run).fit(Image.fromarray(image), Image.fromarray(mask_of(image)))
    assert (from_images.predict(query) == expected).all()
    # A cut-out shows grey where the others show the background; the network sees that.
    on_grey, truth = read_image(cutout)[0], mask_of(image)
    expected = Segmenter(run).fit(on_grey, truth).predict_proba(query)
    assert np.allclose(Segmenter(run).fit(tmp_path / "cutout.png").predict_proba(query), expected, atol=1e-6)


WIDE, HIGH = (50, 70), (70, 50)
TRUTH = {size: mask_of(np.zeros(size)) for size in (WIDE, HIGH)}


@pytest.mark.parametrize(
    ("images", "masks", "message"),
    [
        ([], [], "no support"),
        ([WIDE, HIGH], [TRUTH[WIDE]], "2 images but 1 masks"),
        ([WIDE, HIGH], [TRUTH[HIGH], TRUTH[WIDE]], r"50 × 70 pixels, its image 70 × 50.*size\. Their orient"),
        ([WIDE], [np.zeros(WIDE, bool)], "is empty: mark the object"),
        ([WIDE], [np.ones((5, 7), bool)], r"Is it the mask of another image, or of this one before it was resized\?$"),
        ([WIDE], None, "not a cut-out"),
        ([(500, 500)], [np.arange(500) + np.arange(500)[:, None] == 2], "vanishes .* to 64 × 64 px"),
    ],
)
def test_errors_name_what_is_wrong(run, images, masks, message):
    with pytest.raises(ValueError, match=message):
        Segmenter(run).fit([picture(*size) for size in images], masks)


def test_wrong_files_and_calls_are_named(run, tmp_path):
    segmenter = Segmenter(run)
    with pytest.raises(RuntimeError, match="call fit"):
        segmenter.predict(picture())
    with pytest.raises(ValueError, match="is a folder: give its images"):
        segmenter.fit(tmp_path, TRUTH[WIDE])
    Image.fromarray(picture()).save(tmp_path / "photo.jpg")
    Image.fromarray(TRUTH[WIDE]).save(tmp_path / "mask.png")
    with pytest.raises(ValueError, match=r"photo\.jpg looks like a photograph, not a mask"):
        segmenter.fit(tmp_path / "mask.png", tmp_path / "photo.jpg")
    with pytest.raises(FileNotFoundError, match="no run 'nothing'"):
        Segmenter("nothing")
    for name, value in {"rule": "median", "aspect": "crop", "method": "magic", "exif": "turn"}.items():
        with pytest.raises(ValueError, match=f"unknown {name} '{value}': choose one of"):
            Segmenter(run, **{name: value})


def test_the_command_line(run, call, tmp_path):
    folder = tmp_path / "my photographs"
    folder.mkdir()
    image = picture()
    Image.fromarray(image).save(folder / "a.jpg")
    Image.fromarray(mask_of(image)).save(tmp_path / "a.png")
    Image.fromarray(picture(30, 90)).save(folder / "Käse & 'more'.png")
    (folder / "broken.jpg").write_bytes(b"\xff\xd8 nothing")
    (tmp_path / "b").mkdir()
    Image.fromarray(picture()).save(tmp_path / "b" / "a.jpg")  # another a.jpg
    out = tmp_path / "masks"
    result = call(
        "predict",
        "--run", run, "--support", folder / "a.jpg", tmp_path / "a.png", "--query", folder, tmp_path / "b" / "a.jpg", "--out", out,
        "--aspect", "pad", "--rule", "mean", "--size", "96", status=1,
    )  # fmt: skip
    assert result.stderr.count("broken.jpg is not an image") == 1
    assert all(t in result.stderr for t in ("skipped 1 of 4 images", "loading the network", "segmenting"))
    assert "3 masks" in result.stdout
    written = {p.name for p in out.iterdir()}
    assert written == {
        "a-mask.png", "a-overlay.jpg", "a-2-mask.png", "a-2-overlay.jpg",
        "Käse & 'more'-mask.png", "Käse & 'more'-overlay.jpg",
    }  # fmt: skip
    mask = np.asarray(Image.open(out / "Käse & 'more'-mask.png"))
    assert mask.shape == (30, 90)
    assert set(np.unique(mask)) <= {0, 255}
    names = unique_names(["x", "X", "x-2", "x"])  # some file systems take x and X for the same
    assert names[0] == "x"
    assert len({name.lower() for name in names}) == 4


def test_errors_of_the_command_line(run, call, tmp_path):
    Image.fromarray(picture()).save(tmp_path / "a.png")
    for options, message in (
        (["--support", "a", "b", "c", "--query", tmp_path], "--support takes one image and its mask, got 3 files"),
        (["--support", tmp_path, "--query", tmp_path], "is a folder: give --support IMAGE MASK for each"),
        (["--support", "b.png", tmp_path / "a.png", "--query", tmp_path], "nothing to segment"),
        (["--support", "b.png", "--query", tmp_path, "--out", tmp_path / "a.png"], "--out must be a folder"),
    ):
        result = call("predict", "--run", run, "--out", tmp_path / "out", *options, status=2)
        assert result.stderr.splitlines()[-1].startswith("error: ")
        assert message in result.stderr


def test_nothing_is_replaced_without_being_asked(run, call, tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for name in "ab":
        Image.fromarray(picture()).save(images / f"{name}.png")
    mask = tmp_path / "mask.png"
    Image.fromarray(mask_of(picture())).save(mask)
    out = tmp_path / "out"
    options = ["--run", run, "--support", images / "a.png", mask, "--query", images, "--out", out]
    call("predict", *options)
    first = (out / "b-mask.png").read_bytes()
    (out / "b-mask.png").write_bytes(mask.read_bytes())  # retouched by hand
    (out / "mine.txt").write_text("notes")
    message = f"error: {out} holds files: choose another folder for --out, or replace them with --overwrite\n"
    assert call("predict", *options, status=2).stderr == message
    assert (out / "b-mask.png").read_bytes() == mask.read_bytes()
    call("predict", *options, "--overwrite")
    assert (out / "b-mask.png").read_bytes() == first
    assert (out / "mine.txt").exists()
    # What is read is not written over, even so.
    result = call("predict", *options[:-1], images, "--overwrite", status=2)
    assert "contains the input" in result.stderr


def test_masks_among_the_queries_are_noticed(run, call, tmp_path):
    image = picture()
    Image.fromarray(image).save(tmp_path / "a.png")
    Image.fromarray(~mask_of(image)).save(tmp_path / "a-mask.png")
    out = tmp_path / "out"
    options = ["--support", tmp_path / "a.png", tmp_path / "a-mask.png", "--query", tmp_path, "--out", out]
    with pytest.warns(UserWarning, match="a-mask.png marks .* is it inverted"):
        result = call("predict", "--run", run, *options)
    assert "not segmented: 1 mask of the supports" in result.stderr
    assert not (out / "a-mask-mask.png").exists()
    assert "1 mask in" in result.stdout


def test_a_mask_of_everything_is_doubted_and_one_that_touches_the_borders_is_not(run):
    image = picture()
    close = mask_of(image)
    close[:, 30], close[20] = True, True  # as cut-outs do
    segmenter = Segmenter(run)
    with pytest.warns(UserWarning, match="is it inverted"):
        segmenter.fit(image, np.ones(image.shape[:2], bool))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        segmenter.fit(image, close)


def test_prototypes_find_what_is_like_the_objects(run):
    images = [np.full((50, 70, 3), 30, np.uint8), np.full((40, 90, 3), 30, np.uint8)]
    masks = [np.zeros(i.shape[:2], bool) for i in images]
    for image, mask in zip(images, masks, strict=True):
        mask[:, : mask.shape[1] // 2] = True  # in the middle it would have an equal share of all four positions
        image[mask] = (230, 40, 40)
    # Like the objects, and like what surrounds them: far from where rounding would decide.
    queries = [np.full((33, 44, 3), (230, 40, 40), np.uint8), np.full((44, 33, 3), 30, np.uint8)]
    segmenter = Segmenter(run, method="prototypes").fit(images, masks)
    answers = segmenter.predict(queries)
    assert [round(answer.mean()) for answer in answers] == [1, 0]
    with pytest.raises(ValueError, match="no probabilities"):
        segmenter.predict_proba(queries[0])


def test_without_a_run_the_shipped_weights_are_used(data, call, tmp_path):
    image = picture()
    Image.fromarray(np.dstack([image, mask_of(image) * np.uint8(255)])).save(tmp_path / "a.png")
    call("predict", "--support", tmp_path / "a.png", "--query", tmp_path / "a.png", "--out", tmp_path / "out")
    shipped = HSNet.from_run(ROOT / "data" / "runs" / DEFAULT_RUN)
    assert (Segmenter().size, Segmenter().zoom) == (shipped.training_size, shipped.zoom)
    for ours, theirs in zip(Segmenter().model.parameters(), shipped.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    # A folder without weights of that name, as a training leaves it that has just begun, does not hide them.
    (data / "runs" / DEFAULT_RUN).mkdir(parents=True)
    assert run_folder(DEFAULT_RUN) == ROOT / "data" / "runs" / DEFAULT_RUN
    with pytest.raises(FileNotFoundError, match=r"no run 'emoji'.*photographs"):
        Segmenter("emoji")
