"""Trainings that are killed, cut off and moved; damaged pictures and bad inputs: the script that counts them, with smaller numbers."""

import json
import subprocess
import sys

from hsnet.reliability import table


def test_all_is_withstood(data):
    # A process of its own, which has started no threads: it forks.
    counts = ["--kills=20", "--checkpoints=8", "--pictures=200", "--inputs=1000"]
    done = subprocess.run([sys.executable, "-m", "hsnet.reliability", *counts], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result = json.loads((data / "reliability.json").read_text())
    kills = result["kills"]
    assert kills["random"] == {"tried": 20, "survived": 20}
    assert kills["inside_writes"] == {"tried": 10, "survived": 10}
    assert len(set(kills["steps_at_kills"])) > 3  # at many places of a training
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
