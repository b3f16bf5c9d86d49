"""Write a trained run as ONNX: three graphs that run without PyTorch, in a browser for instance.

    python -m hsnet.export RUN --out FOLDER                         features.onnx, match.onnx and prior.onnx, weights in float16
    python -m hsnet.export RUN --precision int8 --out FOLDER        weights in 8 bits

features.onnx: an image -> its features. It runs once for each image, support or query.
match.onnx: the features of a query and of one support, and the support's mask -> the query's probabilities. It runs once for
each support; the caller takes the mean of the probabilities, or combines the masks by `hsnet.vote`.
prior.onnx: the coarsest features of a query and of K supports, and the masks -> the prototypes' map, for `baselines.with_prior`.

The images are squares with the side of the run's training. The graphs compute in float32, whatever the stored precision.
"""

import tempfile
import warnings
from copy import deepcopy
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from . import naive, runs
from .baselines import Prototypes
from .config import command_line, run_program
from .conv4d import CenterPivotConv4d
from .correlation import hypercorrelation_pyramid
from .fast.convolution import conv2d, over_query, over_support
from .model import HSNet, resize
from .runs import DEFAULT_RUN, run_folder

OPSET = 18
PRECISIONS = ("float32", "float16", "int8")
SMALLEST = 256  # values: smaller tensors, such as biases, stay as they are


class Features(nn.Module):
    """The backbone as a graph of its own.

    Forward: a picture, uint8 RGB (1, 3, s, s), to all features, levels fine to coarse, in one tuple.
    """

    def __init__(self, model: HSNet):
        super().__init__()
        self.backbone = model.backbone

    def forward(self, picture: UInt8[Tensor, "1 3 s s"]) -> tuple[Float[Tensor, "1 _c _h _w"], ...]:
        """Normalise, and run the backbone."""
        levels = self.backbone(self.backbone.normalize(picture))
        return tuple(feature for level in levels for feature in level)


class Match(nn.Module):
    """Equations (1) and (2), encoder and decoder: the network's own modules, without what a graph cannot hold.

    The mask is resized by constant matrices, so that a position without a marked pixel gets 0 on every machine: a resize
    that rounds it to 0.0000001 would make it a support position like any other, for its features are normalised.

    Args:
        model: with center-pivot kernels.
        side: of the pictures.
        sizes: height and width of each level's features.

    Raises:
        ValueError: another kernel.
    """

    def __init__(self, model: HSNet, side: int, sizes: list[tuple[int, int]]):
        super().__init__()
        if model.settings["kernel"] != "center-pivot":
            raise ValueError(
                f"only center-pivot kernels can be exported, this run has {model.settings['kernel']!r} ones"
            )
        self.encoder, self.decoder = deepcopy(model.encoder), model.decoder
        for block in (*self.encoder.squeezing, *self.encoder.mixing):
            block.layers = nn.Sequential(*map(_Plain, block.layers))
        self.layers = [len(level) for level in model.backbone.layers]
        self.mask_support = model.settings["mask_support"]
        for level, size in enumerate(sizes):
            for name, length in zip(("rows", "columns"), size, strict=True):
                weights = F.interpolate(torch.eye(side)[None], length, mode="linear", align_corners=True)[0].mT
                self.register_buffer(f"{name}{level}", weights.contiguous())

    def forward(
        self,
        mask: Float[Tensor, "1 s s"],
        query: list[Float[Tensor, "1 _c _h _w"]],
        support: list[Float[Tensor, "1 _c _h _w"]],
    ) -> Float[Tensor, "s s"]:
        """The query's probability of being the object. `query` and `support`: as `Features` returns them."""
        query, support = ([list(islice(features, n)) for n in self.layers] for features in map(iter, (query, support)))
        for level, features in enumerate(support if self.mask_support else []):
            small = getattr(self, f"rows{level}") @ mask[0] @ getattr(self, f"columns{level}").mT
            support[level] = [feature * small for feature in features]
        context = self.encoder(hypercorrelation_pyramid(query, support))
        logits = resize(self.decoder(context), mask.shape[-2:])
        return torch.sigmoid(logits[0, 1] - logits[0, 0])  # the softmax of two


class Prior(nn.Module):
    """`Prototypes.contrast` of one query and K supports, from the features of the coarsest level."""

    def forward(
        self,
        mask: Float[Tensor, "k s s"],
        query: list[Float[Tensor, "1 _c h w"]],
        support: list[Float[Tensor, "k _c h w"]],
    ) -> Float[Tensor, "s s"]:
        """The cosine with the foreground's prototype minus the cosine with the background's."""
        return Prototypes.contrast([query], [support], mask[None] > 0, mask.shape[-2:])[0]


class _Plain(nn.Module):
    """A layer of a block in operations that have a counterpart in ONNX, where writing in place becomes a scatter."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        layer = self.layer
        if isinstance(layer, CenterPivotConv4d):
            of_query = over_query(partial(conv2d, layer.query), x[..., :: layer.stride, :: layer.stride])
            return over_support(partial(conv2d, layer.support), x) + of_query
        return naive.run([layer], x)


def write_graphs(graphs: dict[str, bytes], folder: Path, precision: str = "float16") -> dict[str, int]:
    """Write what `make_graphs` returns as `features.onnx`, `match.onnx` and `prior.onnx`, with smaller weights.

    Inputs of match.onnx are `mask` and, for each output `feature-N` of features.onnx, `query-N` and `support-N`; those of
    prior.onnx have the same names, for the features of the coarsest level alone, with the K supports in one tensor each.

    Returns:
        The files' sizes in bytes, by name.

    Raises:
        ValueError: an unknown precision.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"unknown precision {precision!r}: choose one of {', '.join(PRECISIONS)}")
    onnx, _ = _packages()
    folder.mkdir(parents=True, exist_ok=True)
    sizes = {}
    for name, graph in graphs.items():
        path = folder / f"{name}.onnx"
        runs.write_atomically(path, _store_small(onnx.load_from_string(graph), precision).SerializeToString())
        sizes[path.name] = path.stat().st_size
    return sizes


def make_graphs(model: HSNet) -> dict[str, bytes]:
    """All graphs in float32, what is constant computed.

    Raises:
        ImportError: the packages that write ONNX are missing.
        ValueError: a model without a training size, or with other kernels than center-pivot ones.
    """
    _, runtime = _packages()
    model = model.cpu().eval()
    side = model.training_size
    if side is None:
        raise ValueError("the training size of this model is unknown: load it with HSNet.from_run")
    picture, mask = torch.zeros(1, 3, side, side, dtype=torch.uint8), torch.ones(1, side, side)
    with torch.no_grad():
        levels = model.backbone(model.backbone.normalize(picture))
    features, sizes = [f for level in levels for f in level], [tuple(level[0].shape[-2:]) for level in levels]
    numbers, coarsest = range(len(features)), levels[-1]
    jobs = {
        "features": (Features(model), (picture,), ["picture"], [f"feature-{i}" for i in numbers]),
        "match": (
            Match(model, side, sizes),
            (mask, features, [f.clone() for f in features]),  # one tensor given twice becomes one input
            ["mask", *(f"query-{i}" for i in numbers), *(f"support-{i}" for i in numbers)],
            ["probability"],
        ),
        "prior": (
            Prior(),
            (mask.repeat(2, 1, 1), coarsest, [f.repeat(2, 1, 1, 1) for f in coarsest]),
            ["mask", *(f"{name}-{i}" for name in ("query", "support") for i in numbers[-len(coarsest) :])],
            ["contrast"],
        ),
    }
    shots = {0: torch.export.Dim("shots", min=1, max=64)}  # K of prior.onnx
    dynamic = {"prior": {"mask": shots, "query": [{}] * len(coarsest), "support": [shots] * len(coarsest)}}
    graphs = {}
    with tempfile.TemporaryDirectory() as scratch, warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*axis name: shots")  # the masks and the supports share it
        for name, (module, example, inputs, outputs) in jobs.items():
            path, folded = Path(scratch, f"{name}.onnx"), Path(scratch, f"{name}-folded.onnx")
            torch.onnx.export(
                module.eval(), example, path, dynamo=True, opset_version=OPSET, input_names=inputs, output_names=outputs,
                external_data=False, verbose=False, dynamic_shapes=dynamic.get(name),
            )  # fmt: skip
            options = runtime.SessionOptions()
            options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_ENABLE_BASIC
            options.optimized_model_filepath = str(folded)
            runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
            graphs[name] = folded.read_bytes()
    return graphs


def _store_small(graph, precision):
    """Store each large tensor of an ONNX model in fewer bits; the graph itself casts it back to float32.

    int8: each row (of a convolution: output channel) is divided by 1/127 of its largest value and rounded.
    """
    onnx, _ = _packages()
    tensors, nodes = [], []
    for tensor in graph.graph.initializer if precision != "float32" else ():
        values, name = onnx.numpy_helper.to_array(tensor), tensor.name
        if values.dtype != np.float32 or values.size < SMALLEST:
            continue
        result = name if precision == "float16" else f"{name}-cast"
        nodes.append(onnx.helper.make_node("Cast", [f"{name}-stored"], [result], to=onnx.TensorProto.FLOAT))
        stored = values.astype(np.float16)
        if precision == "int8":
            scale = np.abs(values).max(axis=tuple(range(1, values.ndim)), keepdims=True) / 127
            stored = np.round(values / np.maximum(scale, 1e-30)).astype(np.int8)
            nodes.append(onnx.helper.make_node("Mul", [result, f"{name}-scale"], [name]))
            tensors.append(onnx.numpy_helper.from_array(scale.astype(np.float32), f"{name}-scale"))
        tensor.CopyFrom(onnx.numpy_helper.from_array(stored, f"{name}-stored"))
    graph.graph.initializer.extend(tensors)
    nodes.extend(graph.graph.node)
    del graph.graph.node[:]
    graph.graph.node.extend(nodes)
    onnx.checker.check_model(graph)
    return graph


def _packages():
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401 - torch.onnx needs it
    except ImportError as error:
        raise ImportError(f"writing ONNX needs the package {error.name}: pip install -e '.[export]'") from error
    return onnx, onnxruntime


def main() -> None:
    """The program."""
    parser = command_line("export", __doc__)
    option = parser.add_argument
    option("run", nargs="?", default=DEFAULT_RUN, help=f"trained run, by name or folder (default: {DEFAULT_RUN})")
    option("--out", type=Path, help="folder of the three files (default: the run's name, in the current folder)")
    option(
        "--precision", default="float16", choices=PRECISIONS, help="precision of the stored weights (default: float16)"
    )
    arguments = parser.parse_args()
    folder = run_folder(arguments.run)
    model = HSNet.from_run(folder)
    out = arguments.out or Path(folder.name)
    sizes = write_graphs(make_graphs(model), out, arguments.precision)
    files = ", ".join(f"{out / name} {size / 1e6:.1f} MB" for name, size in sizes.items())
    print(f"opset {OPSET}, {model.training_size} px: {files}")


if __name__ == "__main__":
    run_program(main)
