"""The script that kills trainings, damages files and gives bad inputs, with small numbers: `make reliability` tries more."""

import json
import os

from helpers import BOOK, python
from kit.reliability import table


def test_what_is_withstood(data):
    # A process of its own, which has started no threads: it forks.
    options = ["--only", "kills", "pictures", "inputs", "--kills=6", "--pictures=100", "--inputs=200"]
    python(BOOK.parent / "tests" / "reliability.py", *options, env=os.environ | {"PYTHONPATH": str(BOOK)})
    result = json.loads((data / "reliability.json").read_text())
    kills = result["kills"]
    assert kills["random"]["survived"] == kills["random"]["tried"] >= 6
    assert kills["inside_writes"]["survived"] == kills["inside_writes"]["tried"] >= 3
    assert (result["pictures"]["tried"], result["pictures"]["other"]) == (100, [])
    assert (result["inputs"]["refused_by_name"], result["inputs"]["other"]) == (200, [])
    assert "killed inside a write" in table(result)
