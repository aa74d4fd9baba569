"""Trains the two versions of the inspector and writes them to models/v1.onnx and v2.onnx.

A small convolutional network, written out in numpy: forwards, backwards, and as an ONNX graph that must answer the same.
Nothing that is measured or sent down the line was trained on: training draws with the seed TRAINED, measuring with MEASURED.

    python examples/phone-inspection/training.py [DIR]       needs onnx; about a minute
"""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from numpy.lib.stride_tricks import sliding_window_view
from onnx import TensorProto, helper, numpy_helper
from phones import DIM, NORMAL, SIDE, Phones, draw

MODELS = Path(__file__).parent / "models"
TRAINED, MEASURED = 1_000, 2_000
"""First numbers of the seeds; a seed of the line has one number only, so that the three can never meet."""

OPSET = 17
IR_VERSION = 8  # the oldest that carries opset 17, so that older runtimes load it too
ANGLES = 10
FILTERS = ((1, 2 * ANGLES, 9, 4), (2 * ANGLES, 24, 3, 1), (24, 24, 3, 5))
"""Of each convolution: channels in, channels out, side of its square, side of the maximum that follows its ReLU."""

LINE_GAIN = 16.0  # brings a scratch in normal light to about one
HIDDEN = 32
BATCH = 50

Floats = npt.NDArray[np.float32]
Weights = dict[str, Floats]


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a version is trained: pictures, how often each is seen, and the darkest light among them."""

    pictures: int
    epochs: int
    darkest: float
    rate: float = 0.003


RECIPES = {
    "v1": Recipe(pictures=2000, epochs=10, darkest=NORMAL),
    "v2": Recipe(pictures=6000, epochs=12, darkest=DIM),
}


# The network: activations are [phones, height, width, channels], for then a convolution is one matrix product.


def fresh_weights(rng: np.random.Generator) -> Weights:
    """Where training starts: the first convolution looks for lines and stays as it is, the rest is He's noise.

    He et al., Delving Deep into Rectifiers, 2015, eq. 10: a deviation of sqrt(2 / inputs).
    """

    def he(inputs: int, outputs: int) -> Floats:
        return rng.normal(0, np.sqrt(2 / inputs), (inputs, outputs)).astype(np.float32)

    weights = {}
    for layer, (channels, outputs, side, _) in enumerate(FILTERS):
        weights[f"w{layer}"] = he(side * side * channels, outputs)
        weights[f"b{layer}"] = np.zeros(outputs, np.float32)
    weights["w0"] = _line_filters()
    for layer, (inputs, outputs) in enumerate(((_flat_size(), HIDDEN), (HIDDEN, 2)), len(FILTERS)):
        weights[f"w{layer}"] = he(inputs, outputs)
        weights[f"b{layer}"] = np.zeros(outputs, np.float32)
    return weights


def probabilities(weights: Weights, pictures: Floats) -> Floats:
    """[phones, 2]: that a phone is fine, that it is scratched. `pictures` as `draw` gives them."""
    lines = lines_in(weights, pictures)
    parts = [_forward(weights, lines[at : at + BATCH])[0] for at in range(0, len(lines), BATCH)]
    return np.concatenate(parts)


def lines_in(weights: Weights, pictures: Floats) -> Floats:
    """What the first convolution makes of pictures, [phones, height, width, channels]; it never learns, so once is enough."""
    parts = []
    for at in range(0, len(pictures), BATCH):
        seen = pictures[at : at + BATCH].transpose(0, 2, 3, 1)
        parts.append(_convolve(weights, 0, seen)[2])
    return np.concatenate(parts)


def accuracy(weights: Weights, phones: Phones) -> float:
    """The share of phones that is judged as it is."""
    return float((probabilities(weights, phones.pictures).argmax(1) == phones.scratched).mean())


def train(recipe: Recipe) -> Weights:
    """Adam (Kingma and Ba, 2015, algorithm 1) on the cross entropy, with a rate that falls to zero."""
    weights = fresh_weights(np.random.default_rng((TRAINED, 0)))
    first = {name: np.zeros_like(value) for name, value in weights.items()}
    second = {name: np.zeros_like(value) for name, value in weights.items()}
    steps = recipe.epochs * (recipe.pictures // BATCH)
    for step, (lines, scratched) in enumerate(_batches(recipe, weights), 1):
        rate = recipe.rate * 0.5 * (1 + np.cos(np.pi * step / (steps + 1)))
        for name, slope in _slopes(weights, lines, scratched).items():
            first[name] += 0.1 * (slope - first[name])
            second[name] += 0.001 * (slope**2 - second[name])
            change = (first[name] / (1 - 0.9**step)) / (np.sqrt(second[name] / (1 - 0.999**step)) + 1e-8)
            weights[name] -= np.float32(rate) * change
    return weights


def onnx_model(weights: Weights) -> onnx.ModelProto:
    """The same network as a graph: `image` FP32 [batch, 1, 64, 64] in, `probabilities` FP32 [batch, 2] out."""
    nodes, constants, last = [], [], "image"

    def constant(name: str, value: Floats) -> str:
        constants.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    for layer, (channels, outputs, side, pool) in enumerate(FILTERS):
        kernel = weights[f"w{layer}"].reshape(side, side, channels, outputs).transpose(3, 2, 0, 1)
        inputs = [last, constant(f"w{layer}", kernel), constant(f"b{layer}", weights[f"b{layer}"])]
        nodes.append(helper.make_node("Conv", inputs, [f"conv{layer}"], kernel_shape=[side, side]))
        nodes.append(helper.make_node("Relu", [f"conv{layer}"], [f"relu{layer}"]))
        last = f"relu{layer}"
        if pool > 1:
            shape: dict[str, Any] = {"kernel_shape": [pool, pool], "strides": [pool, pool]}
            nodes.append(helper.make_node("MaxPool", [last], [f"pool{layer}"], **shape))
            last = f"pool{layer}"
    nodes.append(helper.make_node("Flatten", [last], ["flat"], axis=1))
    dense, head = len(FILTERS), len(FILTERS) + 1
    width, channels = _sides()[-1], FILTERS[-1][1]
    # Flatten puts the channels first, the network above puts them last.
    rows = (
        weights[f"w{dense}"].reshape(width, width, channels, HIDDEN).transpose(2, 0, 1, 3).reshape(-1, HIDDEN)
    )
    inputs = ["flat", constant(f"w{dense}", rows), constant(f"b{dense}", weights[f"b{dense}"])]
    nodes.append(helper.make_node("Gemm", inputs, ["dense"]))
    nodes.append(helper.make_node("Relu", ["dense"], ["hidden"]))
    inputs = ["hidden", constant(f"w{head}", weights[f"w{head}"]), constant(f"b{head}", weights[f"b{head}"])]
    nodes.append(helper.make_node("Gemm", inputs, ["logits"]))
    nodes.append(helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1))
    graph = helper.make_graph(
        nodes,
        "phone-inspection",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 1, SIDE, SIDE])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", 2])],
        constants,
    )
    model = helper.make_model(
        graph,
        producer_name="deployctl-phone-inspection",
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
    )
    onnx.checker.check_model(model, full_check=True)
    return model


def weights_in(model: onnx.ModelProto) -> Weights:
    """The weights of such a graph, in the order of this module: what `onnx_model` has turned, turned back."""
    stored = {each.name: numpy_helper.to_array(each) for each in model.graph.initializer}
    weights = {name: np.array(value) for name, value in stored.items()}
    for layer, (channels, outputs, side, _) in enumerate(FILTERS):
        kernel = stored[f"w{layer}"].transpose(2, 3, 1, 0)
        weights[f"w{layer}"] = kernel.reshape(side * side * channels, outputs)
    width, channels, dense = _sides()[-1], FILTERS[-1][1], f"w{len(FILTERS)}"
    rows = stored[dense].reshape(channels, width, width, HIDDEN).transpose(1, 2, 0, 3)
    weights[dense] = rows.reshape(-1, HIDDEN)
    return weights


def main(folder: Path) -> None:
    """Trains, writes and measures both."""
    folder.mkdir(parents=True, exist_ok=True)
    measured = [draw((MEASURED, number), 2000, light) for number, light in enumerate((NORMAL, DIM))]
    for name, recipe in RECIPES.items():
        began = time.monotonic()
        weights = train(recipe)
        model = onnx_model(weights).SerializeToString(deterministic=True)
        (folder / f"{name}.onnx").write_bytes(model)
        normal, dim = (accuracy(weights, phones) for phones in measured)
        digest, seconds = hashlib.sha256(model).hexdigest(), time.monotonic() - began
        print(
            f"{name}  normal {normal:.1%}  dim {dim:.1%}  {len(model)} bytes  {seconds:.0f} s  sha256:{digest}",
            flush=True,
        )


def _batches(recipe: Recipe, weights: Weights) -> Iterator[tuple[Floats, npt.NDArray[np.int64]]]:
    """(lines, scratched) in a new order each time round; half of the pictures are in normal light, whatever the recipe."""
    rng = np.random.default_rng((TRAINED, 1))
    lines, scratched = [], []
    for number in range(recipe.pictures // BATCH):
        dimmed = (
            recipe.darkest + (NORMAL - recipe.darkest) * rng.random(BATCH) ** 2
        )  # more dark than twilight
        light = np.where(rng.random(BATCH) < 0.5, NORMAL, dimmed)
        phones = draw((TRAINED, 2, number), BATCH, light)
        lines.append(lines_in(weights, phones.pictures))
        scratched.append(phones.scratched.astype(np.int64))
    all_lines, all_scratched = np.concatenate(lines), np.concatenate(scratched)
    for _ in range(recipe.epochs):
        order = rng.permutation(len(all_lines))
        for at in range(0, len(order), BATCH):
            rows = order[at : at + BATCH]
            yield all_lines[rows], all_scratched[rows]


def _convolve(weights: Weights, layer: int, seen: Floats) -> tuple[Floats, Floats, Floats]:
    """(what lay under the filter, what came out of the ReLU, the maxima of its squares)."""
    _, outputs, side, pool = FILTERS[layer]
    patches = _patches(seen, side)
    active = np.maximum(patches @ weights[f"w{layer}"] + weights[f"b{layer}"], 0)
    width = active.shape[1] // pool
    return patches, active, active.reshape(-1, width, pool, width, pool, outputs).max((2, 4))


def _forward(
    weights: Weights, lines: Floats
) -> tuple[Floats, list[tuple[Floats, Floats, Floats]], Floats, Floats]:
    """(probabilities, what each convolution saw and gave, the flat features, the hidden layer)."""
    kept, seen = [], lines
    for layer in range(1, len(FILTERS)):
        kept.append(_convolve(weights, layer, seen))
        seen = kept[-1][2]
    flat = seen.reshape(len(seen), -1)
    hidden = np.maximum(flat @ weights["w3"] + weights["b3"], 0)
    logits = hidden @ weights["w4"] + weights["b4"]
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True), kept, flat, hidden


def _slopes(weights: Weights, lines: Floats, scratched: npt.NDArray[np.int64]) -> Weights:
    """The gradient of the mean cross entropy, by the chain rule from the last layer to the second."""
    answer, kept, flat, hidden = _forward(weights, lines)
    count = len(lines)
    by_logit = (answer - np.eye(2, dtype=np.float32)[scratched]) / np.float32(count)
    by_hidden = (by_logit @ weights["w4"].T) * (hidden > 0)
    slopes = {"w4": hidden.T @ by_logit, "b4": by_logit.sum(0)}
    slopes |= {"w3": flat.T @ by_hidden, "b3": by_hidden.sum(0)}
    by_pooled = (by_hidden @ weights["w3"].T).reshape(kept[-1][2].shape)
    for layer in reversed(range(1, len(FILTERS))):
        channels, outputs, side, pool = FILTERS[layer]
        patches, active, pooled = kept[layer - 1]
        # All of a square that are its maximum pass it on: ties are zeros, and the ReLU stops those.
        won = (active == pooled.repeat(pool, 1).repeat(pool, 2)) & (active > 0)
        by_sum = by_pooled.repeat(pool, 1).repeat(pool, 2) * won
        width = by_sum.shape[1]
        slopes[f"w{layer}"] = patches.reshape(-1, side * side * channels).T @ by_sum.reshape(-1, outputs)
        slopes[f"b{layer}"] = by_sum.sum((0, 1, 2))
        if layer > 1:
            by_patch = (by_sum @ weights[f"w{layer}"].T).reshape(count, width, width, side, side, channels)
            by_pooled = np.zeros(kept[layer - 2][2].shape, np.float32)
            for row in range(side):
                for column in range(side):
                    by_pooled[:, row : row + width, column : column + width] += by_patch[:, :, :, row, column]
    return slopes


def _patches(seen: Floats, side: int) -> Floats:
    """[phones, height, width, side · side · channels]: what lies under the filter at each place."""
    windows = sliding_window_view(seen, (side, side), axis=(1, 2)).transpose(0, 1, 2, 4, 5, 3)
    return np.ascontiguousarray(windows).reshape(*windows.shape[:3], -1)


def _line_filters() -> Floats:
    """[81, 20]: a light and a dark line through the middle at each of ten angles, without a mean: plain grey gives nothing."""
    half = FILTERS[0][2] // 2
    rows, columns = np.mgrid[-half : half + 1, -half : half + 1]
    filters = []
    for angle in np.arange(ANGLES) * np.pi / ANGLES:
        across = columns * np.sin(angle) - rows * np.cos(angle)
        along = columns * np.cos(angle) + rows * np.sin(angle)
        profile = np.exp(-((across / 0.9) ** 2)) - 0.45 * np.exp(-((across / 2.0) ** 2))
        line = profile * np.exp(-((along / 3.0) ** 2)) * (np.hypot(along, across) <= half + 0.5)
        line -= line.mean()
        line *= LINE_GAIN / np.abs(line).sum()
        filters += [line.ravel(), -line.ravel()]
    return np.stack(filters, axis=1).astype(np.float32)


def _sides() -> list[int]:
    """The side of what is left after each convolution and its maximum."""
    sides, left = [], SIDE
    for _, _, side, pool in FILTERS:
        left = (left - side + 1) // pool
        sides.append(left)
    return sides


def _flat_size() -> int:
    return _sides()[-1] ** 2 * FILTERS[-1][1]


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else MODELS)
