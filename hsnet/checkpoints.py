"""What a saved model holds, what a training needs to go on, and the reader of the authors' checkpoints.

A model is one safetensors file: the tensors that training changed, and in its metadata the settings that rebuild the
rest. A frozen backbone with its ImageNet weights is not stored: every installation can load it again.

A training's state is `last.pt`, beside it `previous.pt`, the one before: whatever instant a process is killed at, one of
them is whole. Nothing is unpickled freely: weights are read by safetensors or with `weights_only=True`.
"""

import difflib
import errno
import hashlib
import json
import os
import re
import socket
import sys
import zipfile
from collections.abc import Callable
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

try:
    import fcntl
except ImportError:  # Windows: two trainings in one folder are not noticed there
    fcntl = None

from .config import ROOT, data_folder
from .devices import is_out_of_memory

WEIGHTS = "model.safetensors"
LAST, PREVIOUS, DAMAGED, LOCK = "last.pt", "previous.pt", "damaged.pt", "lock"
# The runs whose weights come with the repository, by the short name that every `run` argument takes. When a better one is
# shipped it is named here, and `python -m hsnet.export` and `python -m hsnet.try_photographs` are run again.
SHIPPED = {"emoji": "emoji-photographs"}
BACKBONE = "backbone.network."


def save_model(path: Path, model: nn.Module, learned: dict[str, Tensor] | None = None) -> None:
    """Write a model's learned tensors and settings, by `write_whole`; `learned` stand in for some of its own."""
    tensors = model.state_dict() | (learned or {})
    stored = {name: t.detach().contiguous() for name, t in tensors.items() if _is_stored(name, model)}
    metadata = {
        "settings": json.dumps(model.settings),
        "training_size": json.dumps(model.training_size),
        "backbone_stored": json.dumps(not model.backbone.pretrained or model.backbone.trainable),
    }
    write_whole(path, safetensors.torch.save(stored, metadata))


def write_whole(
    path: Path, content: bytes | Callable[[BinaryIO], object], check: Callable[[Path], object] | None = None
) -> None:
    """Write a file so that its name never shows half of it: under a temporary name, on the disk, checked, renamed.

    Args:
        content: bytes, or what writes into the file that it is given.
        check: reads the temporary file, and raises where it is not what it should be.

    Raises:
        OSError: a folder that cannot be written, a full disk; what had the name before is still there.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as file:
            content(file) if callable(content) else file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if check:
            check(temporary)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise type(error)(
            f"{path} cannot be written ({error.strerror}): make room, or put the folder's permissions right. What was "
            "there before is untouched"
        ) from error
    temporary.replace(path)
    _fsync_folder(path.parent)


def _fsync_folder(folder):
    if os.name == "nt":  # folders cannot be opened there
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def save_checkpoint(folder: Path, state: dict[str, Any]) -> None:
    """Write a training's state as `last.pt`; what had that name becomes `previous.pt`, once the new one has been read.

    Args:
        state: tensors, numbers, text, lists and dicts.

    Raises:
        OSError: it cannot be written; what was there before is untouched.
        MemoryError: it does not fit into memory beside the training.
    """

    def write(file):
        try:
            torch.save(state, file)
        except RuntimeError as error:  # of the zip file's end, after what really went wrong
            raise (error.__context__ if isinstance(error.__context__, OSError | MemoryError) else error) from None

    def check(temporary):
        _read_checkpoint(temporary)
        if (folder / LAST).exists():
            (folder / LAST).replace(folder / PREVIOUS)

    write_whole(folder / LAST, write, check)


def load_checkpoint(folder: Path) -> dict[str, Any] | None:
    """The last whole state of a training; None where there is none yet.

    A damaged `last.pt` is named on stderr, kept as `damaged.pt`, and `previous.pt` is read instead.

    Raises:
        ValueError: all there is, is damaged, naming it.
    """
    problems = []
    for name in (LAST, PREVIOUS):
        if not (folder / name).exists():
            continue
        try:
            state = _read_checkpoint(folder / name)
        except ValueError as error:
            problems.append(str(error))
            continue
        if problems:
            (folder / LAST).replace(folder / DAMAGED)  # or it would take the place of the good one
            print(f"warning: {problems[0]}: kept as {DAMAGED}, going on from {PREVIOUS}", file=sys.stderr)
        return state
    if problems:
        raise ValueError(f"{'; '.join(problems)}: delete the folder and train anew, or train another with --name")
    return None


def _read_checkpoint(path):
    try:
        with zipfile.ZipFile(path) as parts:  # PyTorch itself does not compare the checksums
            if part := parts.testzip():
                raise ValueError(f"wrong checksum of {part}")
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch and zipfile raise many kinds for a damaged file
        if is_out_of_memory(error):
            raise
        raise ValueError(f"{path} is damaged ({(str(error) or type(error).__name__).splitlines()[0]})") from error


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
    while True:
        file = path.open("a+")
        try:
            # Not flock, which the loader's workers would inherit: they outlive a killed training by seconds.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):  # a file system that has no locks
                print(
                    f"warning: {path} cannot be locked ({error.strerror}): start no other training there",
                    file=sys.stderr,
                )
                break
            file.seek(0)
            holder = file.read().strip() or "another process"
            file.close()
            raise FileExistsError(
                f"the run {folder.name} is being trained already by {holder} ({path}): let it end, or train another with --name"
            ) from error
        if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
            break
        file.close()  # its holder was just done, and has removed it
    try:
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield
    finally:
        path.unlink(missing_ok=True)
        file.close()


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
    """Load a file of `save_model` into a model built with the same settings.

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
        raise ValueError(f"{path} does not fit: missing {missing[:5]}, left over {unexpected[:5]}")
    model.training_size = json.loads(metadata["training_size"])


def run_folder(run: str | Path) -> Path:
    """The folder of a run, given as a folder, as a name under `data/runs`, or as a key of `SHIPPED`.

    The weights of a shipped run that the data folder lacks are found in the checkout.

    Raises:
        FileNotFoundError: no such run, with the most similar name and those of the runs that have weights.
    """
    runs = data_folder() / "runs"
    shipped = SHIPPED.get(str(run))
    if shipped and not (runs / shipped / WEIGHTS).exists():
        runs = ROOT / "data" / "runs"
    for folder in (runs / shipped,) if shipped else (Path(run), runs / run):
        if folder.is_dir():
            return folder
    similar = difflib.get_close_matches(str(run), [*SHIPPED, *(p.name for p in runs.glob("*/"))], n=1)
    names = sorted(p.parent.name for p in runs.glob(f"*/{WEIGHTS}"))
    raise FileNotFoundError(
        f"no run {str(run)!r}, neither as a folder nor under {runs}. "
        + "".join(f"Did you mean {name!r}? " for name in similar)
        + (f"Runs with weights: {', '.join(names)}" if names else "There are none yet: `make train` trains one")
        + f". Shipped with the repository: {', '.join(SHIPPED)}"
    )


def _is_stored(name: str, model: nn.Module) -> bool:
    return not name.startswith("backbone.") or model.backbone.trainable or not model.backbone.pretrained


def _read(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    try:
        with safetensors.safe_open(path, "pt") as file:
            return file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise ValueError(
            f"{path} is damaged or not a model ({error}): copy it again, or train it anew with "
            f"`python -m hsnet.train --name {path.parent.name}`"
        ) from error


# The names of the authors' implementation, and ours. Theirs count levels by ResNet stage: encoder_layer4 is the coarsest.
_REFERENCE_NAMES = (
    (r"^backbone\.", "backbone.network."),
    (r"^hpn_learner\.encoder_layer([234])\.", lambda m: f"encoder.squeezing.{int(m[1]) - 2}.layers."),
    (r"^hpn_learner\.encoder_layer[43]to([32])\.", lambda m: f"encoder.mixing.{int(m[1]) - 2}.layers."),
    (r"^hpn_learner\.decoder1\.", "decoder.before."),
    (r"^hpn_learner\.decoder2\.", "decoder.after."),
    (r"(layers\.\d)\.conv1\.", r"\1.query."),
    (r"(layers\.\d)\.conv2\.", r"\1.support."),
)
_UNUSED = re.compile(r"^backbone\.(fc|classifier)\.")


def load_reference(path: Path, model: nn.Module) -> dict[str, str]:
    """Load a file of the authors' released weights into a model; what to record of it.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no checkpoint, or one for other settings, naming what differs.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}: the authors link their checkpoints in the README of juhongm999/hsnet")
    try:
        state_dict = torch.load(path, map_location="cpu", weights_only=True)
        if not all(isinstance(tensor, Tensor) for tensor in state_dict.values()):
            raise ValueError("it holds other things than tensors")
    except Exception as error:  # torch raises many kinds for what is no checkpoint
        raise ValueError(f"{path} is no checkpoint, or damaged ({str(error).splitlines()[0]})") from error
    model.load_reference_state_dict(state_dict)
    return {"checkpoint": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


def from_reference(state_dict: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Rename the tensors of the authors' checkpoint to those of `model`, dropping the unused ImageNet classifier.

    The backbone's are those of `Backbone.unfolded`.

    Args:
        state_dict: as `torch.load(path, weights_only=True)` returns it; names with or without `module.`.
        model: the model that will load them: center-pivot kernels, the whole pyramid, the checkpoint's backbone.

    Raises:
        ValueError: tensors that are missing, left over or of another shape, each named.
    """
    renamed = {}
    for name, tensor in state_dict.items():
        name = name.removeprefix("module.")
        if _UNUSED.match(name):
            continue
        for pattern, replacement in _REFERENCE_NAMES:
            name = re.sub(pattern, replacement, name)
        renamed[name] = tensor
    expected = {n: t for n, t in model.state_dict().items() if not n.startswith(BACKBONE)}
    expected |= {BACKBONE + n: t for n, t in model.backbone.unfolded().state_dict().items()}
    problems = {
        "missing": [n for n in expected if n not in renamed],
        "left over": [n for n in renamed if n not in expected],
        "of another shape": [
            f"{n} {tuple(renamed[n].shape)} instead of {tuple(expected[n].shape)}"
            for n in expected
            if n in renamed and renamed[n].shape != expected[n].shape
        ],
    }
    found = [
        f"{len(names)} {what}: {', '.join(names[:4])}{', …' * (len(names) > 4)}"
        for what, names in problems.items()
        if names
    ]
    if found:
        raise ValueError(
            f"this is not a reference checkpoint for {model.settings['backbone']} with {model.settings['kernel']} kernels, "
            f"{model.settings['layers']} layers, {model.settings['levels']} levels. " + "; ".join(found)
        )
    return renamed
