"""What test modules share, beside the fixtures of conftest.py."""

import http.server
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import tarfile
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

BOOK = Path(__file__).resolve().parents[1] / "book"
# What people ask for, in the words that they use.
QUESTIONS = [
    "reproduce the paper's number", "fair comparison", "prepare COCO masks", "use my own images", "validation equals test",
    "5-shot voting", "out of memory", "how long does training take", "which pixels are ignored",
    "why pre-ReLU features",
]  # fmt: skip
# Where `make pages` says that the built pages lie, the browser, and the sizes of its window.
PAGES = os.environ.get("HSNET_PAGES")
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
VIEWS = {"desk": (1280, 900), "phone": (390, 844)}
MEASURED = ("seconds", "peak_bytes")  # of a line of history: what differs between two runs that are otherwise equal
# A training of a few seconds.
TINY = {
    "benchmark": "shapes", "size": 64, "batch": 2, "epochs": 2, "epoch_episodes": 6, "val_episodes": 4,
    "test_episodes": 4, "shot": "1,2", "workers": 0, "device": "cpu", "name": "tiny",
    "minutes": 0.0,  # a limit would make the schedule follow the clock
}  # fmt: skip
OPTIONS = [f"--{k.replace('_', '-')}={v}" for k, v in TINY.items()]


def assert_close(ours, theirs, relative=1e-4):
    """Equal within `relative` of the standard deviation of theirs: the tolerance of the golden numbers."""
    ours = ours.detach().numpy() if isinstance(ours, torch.Tensor) else np.asarray(ours)
    theirs = np.asarray(theirs)
    assert ours.shape == theirs.shape, f"shape {ours.shape}, golden {theirs.shape}"
    error = np.abs(ours - theirs).max() / theirs.std()
    print(f"largest error: {error:.1e} of the standard deviation")  # shown by pytest -rP
    assert error <= relative, f"largest error is {error:.1e} of the standard deviation, allowed {relative:.0e}"


def names(episode):
    return [episode.query, *episode.supports]


def scored(shot, episodes=1000, **scores):
    """The file of a test: mIoUs by predictor."""
    about = {"shot": shot, "protocol": "official", "size": 400, "digest": "a"}
    found = {who: {"miou": v, "interval": [v - 1, v + 1], "fb_iou": v + 10.0} for who, v in scores.items()}
    return about | {"scores": {who: score | {"episodes": episodes} for who, score in found.items()}}


def history(folder):
    return [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]


def outcome(folder):
    """What two finished runs that are otherwise equal have in common: the bits of their weights, losses and areas."""
    state = torch.load(folder / "last.pt", weights_only=True)
    # The file of equal weights may differ: safetensors writes its header's entries in any order.
    weights = {"last": state["model"], "best": load_file(folder / "model.safetensors")}
    bits = {which: {n: t.numpy().tobytes() for n, t in tensors.items()} for which, tensors in weights.items()}
    lines = [{k: v for k, v in line.items() if k not in MEASURED} for line in history(folder)]
    areas = json.loads((folder / "test-1shot.json").read_text())["areas"]
    return bits | {"finished": state["finished"], "history": lines, "areas": areas}


def python(*arguments, **keywords):
    """Python in a process of its own, which ends well: its `stdout` and `stderr`."""
    done = subprocess.run([sys.executable, *map(str, arguments)], capture_output=True, text=True, **keywords)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


TRAIN = "from hsnet import train\ntrain.SAVE_EVERY, train.SAVE_SHARE = 0, float('inf')\ntrain.run_program(train.main)\n"


def several(count, settings, folder, source=TRAIN, **keywords):
    """`torchrun` with so many processes, started; by default a training with a checkpoint after each step."""
    options = [f"--{k.replace('_', '-')}={v}" for k, v in settings.items()]
    program = folder / "program.py"
    program.write_text(source)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={count}", f"--master-port={port}"]
    return subprocess.Popen(
        [*command, str(program), *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **keywords
    )


def finished(process):
    """What it printed, once it has ended well."""
    out, error = process.communicate(timeout=500)
    assert process.returncode == 0, error
    return out


def encoded(image, form):
    """The content of the image's file."""
    file = io.BytesIO()
    image.save(file, form)
    return file.getvalue()


def packed(name, members):
    """An archive of that name, .zip, .tar or .tgz: its content."""
    file = io.BytesIO()
    if name.endswith(".zip"):
        with zipfile.ZipFile(file, "w") as archive:
            for path, content in members.items():
                archive.writestr(path, content)
    else:
        with tarfile.open(fileobj=file, mode="w:gz" if name.endswith(".tgz") else "w") as archive:
            for path, content in members.items():
                member = tarfile.TarInfo(path)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return file.getvalue()


class Server(http.server.ThreadingHTTPServer):
    """Serves `files` by name, or one content under any name. `cut_at`: the connection ends there, for as long as `cuts` lasts; `ranges`: whether parts can be asked for."""

    content, files, cut_at, cuts, ranges = bytes(range(256)) * 40, None, None, 0, True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked = []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def address(self):
        return f"http://127.0.0.1:{self.server_port}/file.bin"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        server, asked = self.server, self.headers.get("Range")
        server.asked.append(asked)
        content = server.files[self.path[1:]] if server.files else server.content
        start = int(asked[6:-1]) if asked and server.ranges else 0
        self.send_response(206 if asked and server.ranges else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        end = server.cut_at if server.cuts else None
        server.cuts -= bool(server.cuts)
        self.wfile.write(content[start:end])

    def log_message(self, *_):
        pass


def require_pages():
    """Skip the module that calls this where there are no built pages, or no browser to look at them."""
    if not PAGES:
        pytest.skip("the book's pages are looked at by `make pages`, after `make book`", allow_module_level=True)
    if not BROWSER:
        pytest.skip("no browser found: install chromium to have the book's pages looked at", allow_module_level=True)
    pytest.importorskip("playwright.sync_api", reason="`make pages` installs playwright")
