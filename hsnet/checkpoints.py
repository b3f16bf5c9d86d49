"""What a saved model holds, and the reader of the authors' checkpoints.

A model is one safetensors file: the tensors that training changed, and in its metadata the settings that rebuild the
rest. A frozen backbone with its ImageNet weights is not stored: every installation can load it again.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path

import safetensors
import safetensors.torch
from torch import Tensor, nn

from .config import ROOT, data_folder

WEIGHTS = "model.safetensors"
# The runs whose weights come with the repository, by the short name that every `run` argument takes. When a better one is
# shipped it is named here, and `python -m hsnet.export` and `python -m hsnet.try_photographs` are run again.
SHIPPED = {"emoji": "emoji-fold0-efficientnet_lite0"}
BACKBONE = "backbone.network."


def save_model(path: Path, model: nn.Module) -> None:
    """Write a model's learned tensors and settings. To a temporary name first: never half a file.

    Raises:
        PermissionError: a folder that cannot be written.
    """
    stored = {name: t.detach().contiguous() for name, t in model.state_dict().items() if _is_stored(name, model)}
    metadata = {
        "settings": json.dumps(model.settings),
        "training_size": json.dumps(model.training_size),
        "backbone_stored": json.dumps(not model.backbone.pretrained or model.backbone.trainable),
    }
    temporary = path.with_name(path.name + ".tmp")
    safetensors.torch.save_file(stored, temporary, metadata)
    temporary.replace(path)


def load_model(run: str | Path, build: Callable[..., nn.Module]) -> nn.Module:
    """The model of a run, by name or folder, built by `build(**settings, pretrained=…)`; see `HSNet.from_run`."""
    path = run_folder(run) / WEIGHTS
    if not path.exists():
        raise FileNotFoundError(
            f"{path.parent} holds no {WEIGHTS}: its training has not finished an epoch, or the weights were not copied. "
            f"Train it with `python -m hsnet.train --name {path.parent.name}`"
        )
    metadata, _ = _read(path)
    model = build(**json.loads(metadata["settings"]), pretrained=not json.loads(metadata["backbone_stored"]))
    load_weights(model, path)
    return model.eval()


def load_weights(model: nn.Module, path: Path) -> None:
    """Load a file of `save_model` into a model built with the same settings.

    Raises:
        ValueError: a damaged file, or the weights of a model with other settings (another backbone, say), naming them.
    """
    metadata, tensors = _read(path)
    settings = json.loads(metadata["settings"])
    other = [f"{k} {settings[k]!r}, not {v!r}" for k, v in model.settings.items() if settings.get(k) != v]
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
        FileNotFoundError: no such run, with the names that exist.
    """
    runs = data_folder() / "runs"
    shipped = SHIPPED.get(str(run))
    if shipped and not (runs / shipped / WEIGHTS).exists():
        runs = ROOT / "data" / "runs"
    for folder in (runs / shipped,) if shipped else (Path(run), runs / run):
        if folder.is_dir():
            return folder
    names = sorted(p.name for p in runs.glob("*/")) if runs.is_dir() else []
    raise FileNotFoundError(
        f"no run {str(run)!r}, neither as a folder nor under {runs}. "
        + (f"There are: {', '.join(names)}" if names else "There are none yet: `make train` trains one")
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
