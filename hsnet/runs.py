"""A run's folder: its weights, what a training needs to go on, its lock, its test files, and tables of runs.

A model is one safetensors file: the tensors that training changed, and in its metadata the settings that rebuild the
rest. A frozen backbone with its ImageNet weights is not stored: every installation can load it again.

A training's state is `last.pt`, complete whatever instant a process is killed at. Nothing is unpickled freely: weights are
read by safetensors or with `weights_only=True`.
"""

import difflib
import errno
import hashlib
import json
import os
import pickle
import re
import socket
import subprocess
import sys
import zipfile
from collections.abc import Callable
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

import safetensors
import safetensors.torch
import torch
from tabulate import tabulate
from torch import Tensor, nn

try:
    import fcntl
except ImportError:  # Windows: two trainings in one folder are not noticed there
    fcntl = None

from .config import Config
from .devices import is_out_of_memory
from .paths import ROOT, SHIPPED, data_folder

WEIGHTS = "model.safetensors"
LAST, LOCK = "last.pt", "lock"
# The run whose weights come with the repository, the default of every `run` argument. When a better one is shipped it is
# named here and in pyproject.toml, and `python -m hsnet.export` is run again.
DEFAULT_RUN = "photographs"


def save_model(path: Path, model: nn.Module, learned: dict[str, Tensor] | None = None) -> None:
    """Write a model's learned tensors and settings, by `write_atomically`; `learned` stand in for some of its own."""
    tensors = model.state_dict() | (learned or {})
    stored = {name: t.detach().contiguous() for name, t in tensors.items() if _is_stored(name, model)}
    metadata = {
        "settings": json.dumps(model.settings),
        "training_size": json.dumps(model.training_size),
        "thresholds": json.dumps(model.thresholds),
        "prior": json.dumps(model.prior),
        "zoom": json.dumps(model.zoom),
        "backbone_stored": json.dumps(not model.backbone.pretrained or model.backbone.trainable),
    }
    write_atomically(path, safetensors.torch.save(stored, metadata))


def write_atomically(path: Path, content: bytes | Callable[[BinaryIO], object]) -> None:
    """Write a file so that its name never shows half of it: under a temporary name, on the disk, renamed.

    Args:
        content: bytes, or what writes into the file that it is given.

    Raises:
        OSError: a folder that cannot be written, a full disk; what had the name before is still there.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as file:
            content(file) if callable(content) else file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise type(error)(
            f"{path} cannot be written ({error.strerror}): free some space, or correct the folder's permissions. The "
            "file as it was before remains"
        ) from error
    temporary.replace(path)
    if os.name != "nt":  # there folders cannot be opened
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def save_checkpoint(folder: Path, state: dict[str, Any]) -> None:
    """Write a training's state as `last.pt`, by `write_atomically`.

    Raises:
        OSError: it cannot be written; what was there before is untouched.
        MemoryError: there is too little memory for it beside the training.
    """

    def write(file):
        try:
            torch.save(state, file)
        except RuntimeError as error:  # of the zip file's end, after what really went wrong
            raise (error.__context__ if isinstance(error.__context__, OSError | MemoryError) else error) from None

    write_atomically(folder / LAST, write)


def load_checkpoint(folder: Path) -> dict[str, Any] | None:
    """The state of a training; None where there is none yet.

    Raises:
        ValueError: it is damaged, naming it and the next step.
    """
    # Earlier versions kept the state before as well, for an instant alone.
    path = next((folder / name for name in (LAST, "previous.pt") if (folder / name).exists()), None)
    if path is None:
        return None
    try:
        with zipfile.ZipFile(path) as parts:  # PyTorch itself does not compare the checksums
            if part := parts.testzip():
                raise ValueError(f"wrong checksum of {part}")
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch and zipfile raise many kinds for a damaged file
        if is_out_of_memory(error):
            raise
        raise ValueError(
            f"{path} is damaged ({why_unread(error)}): delete the folder to train anew, or start another run from "
            f"the best weights so far: --start {folder.name} --name NEW"
        ) from error


def why_unread(error: Exception) -> str:
    """Why a checkpoint was not read, in one line; never PyTorch's advice to load whatever a file would run."""
    if isinstance(error, pickle.UnpicklingError):
        return "it holds more than tensors, numbers and text, which is not loaded"
    return (str(error) or f"{type(error).__name__}, an empty file?").splitlines()[0]


@contextmanager
def lock(folder: Path):
    """Keep other trainings out of a run's folder. The system lets go of it when the process ends, however that happens.

    Raises:
        FileExistsError: another process trains there, naming it.
    """
    if fcntl is None:
        yield
        return
    path = folder / LOCK
    with path.open("a+") as file:
        try:
            # Not flock, which the loader's workers would inherit: they outlive a killed training by seconds.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                file.seek(0)
                raise FileExistsError(
                    f"the run {folder.name} is being trained already by {file.read().strip() or 'another process'} ({path}): "
                    "wait for it to end, or start another run with --name"
                ) from error
            print(
                f"warning: {path} cannot be locked ({error.strerror}): start no other training there", file=sys.stderr
            )
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def lock_holder(folder: Path) -> str | None:
    """Who trains in a run's folder, as far as this machine can tell; None for nobody."""
    try:
        holder = (folder / LOCK).read_text().strip()
        number, _, host = holder.removeprefix("process ").partition(" on ")
        if host == socket.gethostname():
            os.kill(int(number), 0)
    except (FileNotFoundError, ProcessLookupError, ValueError):
        return None
    except PermissionError:  # somebody else's process
        pass
    return holder


def load_model(run: str | Path, build: Callable[..., nn.Module]) -> nn.Module:
    """The model of a run, by name or folder, built by `build(**settings, pretrained=…)`; see `HSNet.from_run`."""
    path = weights_of(run)
    metadata, _ = _read(path)
    model = build(**json.loads(metadata["settings"]), pretrained=not json.loads(metadata["backbone_stored"]))
    load_weights(model, path)
    # Not in `load_weights`: a training that starts from a run may have another size, and chooses anew where to cut.
    model.training_size = json.loads(metadata["training_size"])
    model.thresholds = tuple(json.loads(metadata.get("thresholds", "[0.5, 0.5]")))
    model.prior = json.loads(metadata.get("prior", "0.0"))
    model.zoom = json.loads(metadata.get("zoom", "false"))
    return model.eval()


def weights_of(run: str | Path) -> Path:
    """The file of a run's weights; `run` as in `run_folder`.

    Raises:
        FileNotFoundError: no such run, or one without weights.
    """
    path = run_folder(run) / WEIGHTS
    if not path.exists():
        raise FileNotFoundError(
            f"{path.parent} holds no {WEIGHTS}: its training has not finished an epoch, or the weights were not copied. "
            f"Train it with `python -m hsnet.train --name {path.parent.name}`"
        )
    return path


def load_weights(model: nn.Module, path: Path) -> None:
    """Load the learned tensors of a file of `save_model` into a model built with the same settings.

    Raises:
        ValueError: a damaged file, or the weights of a model with other settings (another backbone, say), naming them.
    """
    metadata, tensors = _read(path)
    settings = json.loads(metadata["settings"])
    other = [f"{k} {settings[k]!r}, not {v!r}" for k, v in model.settings.items() if settings.get(k, v) != v]
    if other:
        raise ValueError(f"{path} holds a model with {'; '.join(other)}: build the model with the file's settings")
    _, unexpected = model.load_state_dict(tensors, strict=False)
    missing = [n for n, _ in model.named_parameters() if _is_stored(n, model) and n not in tensors]
    if missing or unexpected:
        raise ValueError(f"{path} holds other tensors: missing {missing[:5]}, unexpected {unexpected[:5]}")


def run_folder(run: str | Path) -> Path:
    """The folder of a run, given as a folder or as a name under `data/runs`.

    The weights of `DEFAULT_RUN` that the data folder lacks are those that come with the library.

    Raises:
        FileNotFoundError: no such run, with the most similar name and the command that lists all.
    """
    runs = data_folder() / "runs"
    if str(run) == DEFAULT_RUN and not (runs / run / WEIGHTS).exists():
        return SHIPPED / "runs" / DEFAULT_RUN
    for folder in (Path(run), runs / run):
        if folder.is_dir():
            return folder
    similar = difflib.get_close_matches(str(run), [DEFAULT_RUN, *(p.name for p in runs.glob("*/"))], n=1)
    raise FileNotFoundError(
        f"no run {str(run)!r}, neither as a folder nor under {runs}. "
        + "".join(f"Did you mean {name!r}? " for name in similar)
        + f"`python -m hsnet.train --list` lists all runs; the library contains {DEFAULT_RUN}"
    )


def _is_stored(name: str, model: nn.Module) -> bool:
    return not name.startswith("backbone.") or model.backbone.trainable or not model.backbone.pretrained


def _read(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    try:
        with safetensors.safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            if "settings" not in metadata:
                raise safetensors.SafetensorError("it lacks the settings that this library stores with the weights")
            return metadata, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise ValueError(
            f"{path} is damaged or not a model ({error}): copy it again, or train it anew with "
            f"`python -m hsnet.train --name {path.parent.name}`"
        ) from error


def write_json(path: Path, content: dict) -> None:
    """Write JSON by `write_atomically`. Innermost lists stand on one line each."""
    text = json.dumps(content, indent=1)
    text = re.sub(r"\[\n\s+([^\[\]{}]*?)\n\s+\]", lambda found: "[" + re.sub(r"\n\s+", " ", found[1]) + "]", text)
    write_atomically(path, f"{text}\n".encode())


def traces(folder: Path) -> dict[str, str]:
    """By what a score can be traced: the weights' checksum, and the commit of the code, "changed" where it was."""
    found = {}
    if (folder / WEIGHTS).exists():
        found["weights_sha256"] = hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()
    with suppress(OSError, subprocess.CalledProcessError):  # no git, or no checkout
        commit, changed = (
            subprocess.run(["git", *command], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
            for command in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no", "hsnet"])
        )
        found["commit"] = commit + ", changed" * bool(changed)
    return found


def test_path(folder: Path, config: Config, shot: int, original_size: bool = False) -> Path:
    """Where `test_run` writes: `test-<shot>shot.json`; what is not the run's own test has in its name what differs."""
    own = Config.load(folder / "config.json")
    other = "" if own.benchmark == config.benchmark else f"{config.benchmark}-fold{config.fold}-"
    other += "" if own.protocol == config.protocol else f"{config.protocol}-"
    other += "" if own.rule == config.rule else f"{config.rule}-"
    other += "" if own.size == config.size else f"{config.size}px-"
    other += "original-" if original_size else ""
    count = "" if own.test_episodes == config.test_episodes else f"-{config.test_episodes}"
    return folder / f"{other}test-{shot}shot{count}.json"


test_path.__test__ = False  # its name makes pytest take it for a test


def read_tests(folder: Path, before: str = "") -> list[dict]:
    """The `test-*.json` files of a run, by shot; with `before`, such as "coco-fold0-", those on another benchmark, of any length."""
    files = folder.glob(f"{before}test-*shot*.json" if before else "test-*shot.json")
    return sorted((json.loads(file.read_text()) for file in files), key=lambda test: test["shot"])


def scores_table(tests: list[dict]) -> str:
    """Markdown: a row a predictor, mIoU with its 95 % interval and FB-IoU for each number of shots.

    Raises:
        ValueError: scores of different test scenes, which must not stand in one table.
    """
    digests = {t["digest"] for t in tests}
    if len(digests) > 1:
        raise ValueError(
            f"these scores are of different test scenes (digests {', '.join(sorted(digests))}): evaluate the runs again"
        )
    names = dict.fromkeys(name for t in tests for name in t["scores"])
    header = [""]
    for test in tests:
        count = next(iter(test["scores"].values())).get("episodes", 0)
        header += [f"{test['shot']}-shot mIoU [95 %], {count} episodes", f"{test['shot']}-shot FB-IoU"]
    rows = [[name, *chain(*(_columns(test["scores"].get(name)) for test in tests))] for name in names]
    return markdown(header, rows)


def _columns(score):
    if score is None:
        return [None, None]
    low, high = score["interval"]
    return [f"{score['miou']:.1f} [{low:.1f}, {high:.1f}]", f"{score['fb_iou']:.1f}"]


def markdown(header: list[str], rows: list[list[str | None]]) -> str:
    """A Markdown table whose columns line up in a terminal too; "–" stands for None."""
    return tabulate(rows, header, tablefmt="github", disable_numparse=True, missingval="–")


def read_history(folder: Path) -> list[dict]:
    """The lines of a run's `history.jsonl`, one an epoch; none before the first has ended."""
    path = folder / "history.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def runs_table() -> str:
    """Markdown: a row for every run of the data folder, with its settings, its state and its scores."""
    folders = [path.parent for path in sorted((data_folder() / "runs").glob("*/config.json"))]
    if not folders:
        return f"no runs under {data_folder() / 'runs'} yet: `make train` trains one"
    settings = ("benchmark", "fold", "backbone", "kernel", "size")
    rows = []
    for folder in folders:
        try:
            config = vars(Config()) | json.loads((folder / "config.json").read_text())
        except ValueError as error:  # no JSON, or no text
            rows.append([folder.name, f"config.json is damaged ({error})"])
            continue
        history, tests, holder = read_history(folder), read_tests(folder), lock_holder(folder)
        saved = "stopped: the same command resumes it" if (folder / LAST).exists() else "nothing saved yet"
        best = max(history, key=lambda line: (line["val_miou"], line["epoch"]), default=None)
        scores = (f"{_columns(test['scores']['HSNet'])[0]} ({test['shot']}-shot)" for test in tests)
        rows.append(
            [
                folder.name,
                f"running, {holder}" if holder else "finished" if tests else saved,
                *(str(config[name]) for name in settings),
                f"{len(history)} of {config['epochs']}",
                best and f"{best['val_miou']:.1f} (epoch {best['epoch']})",
                ", ".join(scores) or None,
            ]
        )
    return markdown(["run", "state", *settings, "epochs", "validation mIoU", "test mIoU [95 %]"], rows)
