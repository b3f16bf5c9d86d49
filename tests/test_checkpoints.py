"""Saved models come back; wrong or damaged ones say so."""

import errno
import io
import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
import torch

from hsnet import HSNet
from hsnet.runs import WEIGHTS, load_checkpoint, load_weights, lock, lock_holder, save_checkpoint, save_model

SETTINGS = {"kernel": "separable", "layers": "deep", "levels": 2, "mask_support": False}


@pytest.mark.parametrize(("pretrained", "train_backbone"), [(True, False), (False, False), (True, True)])
def test_a_run_needs_no_other_argument(run, pretrained, train_backbone):
    model = HSNet("efficientnet_lite0", pretrained=pretrained, train_backbone=train_backbone, **SETTINGS)
    model.training_size = 256
    save_model(run / WEIGHTS, model)
    megabytes = (run / WEIGHTS).stat().st_size / 1e6
    assert (megabytes > 15) == (train_backbone or not pretrained)  # a frozen ImageNet backbone is not stored again
    for name in ("one", run):
        again = HSNet.from_run(name)
        assert again.settings == model.settings
        assert again.training_size == 256
        for (n, a), b in zip(model.state_dict().items(), again.state_dict().values(), strict=True):
            assert torch.equal(a, b), n
    assert not list(run.glob("*.tmp"))
    with pytest.raises(ValueError, match="holds a model with backbone 'efficientnet_lite0', not 'resnet50'"):
        load_weights(HSNet("resnet50", pretrained=False), run / WEIGHTS)


@pytest.mark.parametrize("bytes_left", [0, 5, 1000, -1000])
def test_truncated(run, bytes_left):
    save_model(run / WEIGHTS, HSNet("efficientnet_lite0", pretrained=True))
    content = (run / WEIGHTS).read_bytes()
    (run / WEIGHTS).write_bytes(content[:bytes_left])
    with pytest.raises(ValueError, match=r"model.safetensors is damaged .*--name one"):
        HSNet.from_run("one")


@pytest.mark.parametrize("wrong", [MemoryError(), OSError(errno.ENOSPC, "No space left on device")])
def test_no_room_for_a_checkpoint_and_no_memory_to_read_it(tmp_path, monkeypatch, wrong):
    class Small(io.BytesIO):
        def write(self, part):
            if self.tell() + len(part) > 3000:
                raise wrong
            return super().write(part)

        def fileno(self):
            return os.open(os.devnull, os.O_RDONLY)

    save_checkpoint(tmp_path, {"epoch": 1})
    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", lambda *_: Small())
        message = r"last\.pt cannot be written \(No space" if isinstance(wrong, OSError) else None
        with pytest.raises(type(wrong), match=message):
            save_checkpoint(tmp_path, {str(i): torch.zeros(500) for i in range(5)})
    assert load_checkpoint(tmp_path) == {"epoch": 1}
    scarce = RuntimeError("DefaultCPUAllocator: can't allocate memory")
    monkeypatch.setattr(torch, "load", mock.Mock(side_effect=scarce))
    with pytest.raises(RuntimeError, match="can't allocate"):  # it is not called damaged
        load_checkpoint(tmp_path)


def test_a_damaged_checkpoint_is_named_and_an_earlier_versions_is_read(run):
    save_checkpoint(run, {"epoch": 1, "weights": torch.arange(9000)})
    path = run / "last.pt"
    sound = path.read_bytes()
    flipped = bytearray(sound)
    flipped[len(sound) // 2] ^= 1
    for content in (b"", sound[:1000], sound[:-100], bytes(flipped), b"rubbish" * 999):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"last\.pt is damaged \(.*--start one"):
            load_checkpoint(run)
    path.write_bytes(sound)
    path.rename(run / "previous.pt")  # killed between the two renames that there were
    assert load_checkpoint(run)["epoch"] == 1


def test_a_second_training_is_refused_and_a_killed_ones_lock_is_nobodys(run):
    hold = "import sys, pathlib, hsnet.runs as r\nwith r.lock(pathlib.Path(sys.argv[1])): print(flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", hold, str(run)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        holder.stdout.readline()
        with pytest.raises(FileExistsError, match=f"trained already by process {holder.pid} on "), lock(run):
            pass
        assert lock_holder(run).startswith(f"process {holder.pid} on ")
        holder.kill()
    assert lock_holder(run) is None
    with lock(run):
        assert lock_holder(run).startswith(f"process {os.getpid()} on ")


def test_missing(run):
    with pytest.raises(FileNotFoundError, match=r"holds no model.safetensors.*python -m hsnet.train --name one"):
        HSNet.from_run("one")
    with pytest.raises(FileNotFoundError, match=r"no run 'ones'.*Did you mean 'one'\? `python -m hsnet.train --list`"):
        HSNet.from_run("ones")
