"""Trainings that are killed, cut off and moved; damaged pictures and bad inputs: the script that counts them, with smaller numbers."""

import json
import subprocess
import sys

import reliability
from kit.reliability import kills_table, table


def test_all_is_withstood(data):
    # A process of its own, which has started no threads: it forks.
    counts = ["--kills=20", "--checkpoints=8", "--pictures=200", "--inputs=1000"]
    done = subprocess.run([sys.executable, reliability.__file__, *counts], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result = json.loads((data / "reliability.json").read_text())
    kills = result["kills"]
    assert kills["random"] == {"tried": 20, "survived": 20}
    assert kills["inside_writes"] == {"tried": 10, "survived": 10}
    came = kills["kills"]
    assert len(came) == 30
    # From start to test, and not all at one step: which of them come early or late hangs on the machine.
    assert len({kill["phase"] for kill in came}) > 3
    steps = [kill["steps"] for kill in came]
    assert len(set(steps)) > 4
    assert max(map(steps.count, steps)) < 15
    assert "| validation " in kills_table(result)
    damaged = result["checkpoints"]
    assert damaged["tried"] == damaged["recovered"] + damaged["harmless"] == 8
    assert damaged["runs"] == damaged["equal_runs"] > 0
    assert result["disk"] == {"tried": 1, "status": 2, "named": True, "previous_kept": True, "equal_runs": True}
    assert result["locks"] == {"tried": 2, "refused": True, "taken_over": True}
    assert result["moves"] == {"tried": 2, "went_on": True, "loads": True}
    assert result["clocks"] == {"tried": 1, "equal_runs": True}
    assert result["pictures"]["other"] == []
    assert result["inputs"]["other"] == []
    assert result["inputs"]["refused_by_name"] == 1000
    assert "killed inside a write" in table(result)
