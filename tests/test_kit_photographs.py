"""The tables of photographs, from tests that were recorded."""

import json

import numpy as np
import pytest
from conftest import table_rows
from kit import photographs


def test_scores_by_object_size_and_beside_the_prototypes(data):
    folder = data / "runs" / "made"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    pixels, objects = 10_000, np.array([100, 600, 2000, 5000] * 10)

    def areas(iou):
        """Masks inside the object that cover so much of it."""
        found = (objects * iou).astype(int)
        rows = zip(np.arange(40) % 2, pixels - objects, found, pixels - found, objects, strict=True)
        return [list(map(int, row)) for row in rows]

    everything = [[int(i % 2), 0, int(o), pixels - int(o), pixels] for i, o in enumerate(objects)]
    for shot in (1, 5):
        content = {"HSNet": areas(0.6), "prototypes": areas(0.3), "all foreground": everything}
        (folder / f"test-{shot}shot.json").write_text(json.dumps({"areas": content}))
        if shot == 1:
            with pytest.raises(FileNotFoundError, match=r"hsnet\.evaluate made --shot 1 --size 400"):
                photographs.scores_table("made")
        content = {"HSNet": areas(rng.random()), "prototypes": areas(0.4), "all foreground": everything}
        (folder / f"400px-test-{shot}shot.json").write_text(json.dumps({"areas": content}))
    header, *rows = table_rows(photographs.scores_table("made"))
    assert header == ["supports", "HSNet", "prototypes", "prototypes, 400 px", "lead over the better"]
    assert [row[1].split()[0] for row in rows[-2:]] == ["60.0", "60.0"]
    assert rows[-1][-1].startswith("+20.0 [20.0")
    rows = table_rows(photographs.sizes_table("made"))[-8:]
    assert [row[2] for row in rows] == ["10"] * 8
    assert rows[0][3:] == ["60.0", "40.0", "100 %", "0 %"]
