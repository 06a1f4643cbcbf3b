"""The processing around a network as parts of an ONNX graph: an RGB image -> its input; its outputs -> points."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image

from wildcat.data.dataset import Task
from wildcat.data.transforms import Preprocess
from wildcat.engines.onnx_graph import EXACT, probe, relative_error, session_of
from wildcat.errors import EngineError
from wildcat.prediction import score_probabilities
from wildcat.regions.points import peak_points

if TYPE_CHECKING:
    import onnx

SHAPES = (97, 150), (640, 301)  # (height, width) of the images that a graph is checked on
CLOSE = 1e-2  # largest relative error of the scores: some pixels differ by one level

HEADER = '<ir_version: {ir_version}, opset_import: ["": {opset}]>'
# The resizing of `Preprocess.warp`: of uint8, antialiased, with a = -0.5 in the cubic.
BEFORE = """
before (uint8[height, width, 3] image) => (float[1, 3, {size}, {size}] images, int64[2] image_size)
<int64[1] batch_axis = {{0}}, int64[4] shape = {{1, 3, {size}, {size}}}>
{{
    image_size = Shape <end = 2> (image)
    planes = Transpose <perm = [2, 0, 1]> (image)
    batch = Unsqueeze (planes, batch_axis)
    resized = Resize <mode = "{mode}", antialias = 1, cubic_coeff_a = -0.5, exclude_outside = 1> (batch, , , shape)
    pixels = Cast <to = 1> (resized)
    scaled = Mul (pixels, scale)
    images = Add (scaled, offset)
}}
"""
# `score_probabilities`. The names are an output because not every runtime gives access to the metadata.
PROBABILITIES = """
probabilities (float[1, {classes}] batch_scores)
    => (float[{classes}] scores, float[{classes}] probabilities, string[{classes}] classes)
<int64[1] score_axis = {{0}}>
{{
    scores = Squeeze (batch_scores, score_axis)
    probabilities = {activation} (scores)
    classes = Identity (class_names)
}}
"""
# `peak_points`: the centre of the highest cell, of equal ones the first in row-major order, in pixels of the image.
POINTS = """
points (float[1, {classes}, {h}, {w}] batch_maps, int64[2] size)
    => (float[{classes}, {h}, {w}] class_maps, float[{classes}, 2] points)
<int64[1] map_axis = {{0}}, int64[2] flat_shape = {{{classes}, -1}}, int64 columns = {{{w}}}, float half = {{0.5}},
 float[2] grid = {{{h}, {w}}}, int64[2] x_y = {{1, 0}}>
{{
    class_maps = Squeeze (batch_maps, map_axis)
    flat = Reshape (class_maps, flat_shape)
    cell = ArgMax <axis = 1> (flat)
    row = Div (cell, columns)
    column = Mod (cell, columns)
    row_column = Concat <axis = 1> (row, column)
    corner = Cast <to = 1> (row_column)
    centre = Add (corner, half)
    float_size = Cast <to = 1> (size)
    cell_size = Div (float_size, grid)
    y_x = Mul (centre, cell_size)
    points = Gather <axis = 1> (y_x, x_y)
}}
"""


def add_processing(
    model: onnx.ModelProto, preprocess: Preprocess, classes: Sequence[str], task: Task
) -> onnx.ModelProto:
    """A graph images (B, 3, S, S) -> scores and maybe class_maps, with the processing of one image around it.

    Input: image (H, W, 3) uint8. Outputs: scores (C,), probabilities (C,), classes (C,); class_maps (C, h, w) and
    points (C, 2) if the graph has class maps. Compared with `Preprocess` and the functions of `Prediction`.

    Raises:
        EngineError: an output differs by more than a level of some pixels explains.
    """
    from onnx import compose, numpy_helper, parser  # noqa: PLC0415

    def part(text: str, **values: object) -> onnx.ModelProto:
        common = {"ir_version": model.ir_version, "opset": model.opset_import[0].version, "classes": len(classes)}
        return parser.parse_model((HEADER + text).format(**common, **values))

    mode = "linear" if preprocess.interpolation == "bilinear" else "cubic"
    before = part(BEFORE, size=preprocess.size, mode=mode)
    std, mean = np.asarray(preprocess.std), np.asarray(preprocess.mean)
    for name, values in (("scale", 1 / (255 * std)), ("offset", -mean / std)):
        tensor = numpy_helper.from_array(values.astype(np.float32).reshape(3, 1, 1), name)
        before.graph.initializer.append(tensor)
    network = compose.add_prefix(model, "network/")
    with_maps = len(model.graph.output) > 1
    outputs = ["network/scores"] + ["network/class_maps", "image_size"] * with_maps
    graph = compose.merge_models(before, network, [("images", "network/images")], outputs=outputs)

    after = part(PROBABILITIES, activation="Softmax" if task == "multiclass" else "Sigmoid")
    names = np.asarray([name.encode(errors="backslashreplace") for name in classes], dtype=object)
    after.graph.initializer.append(numpy_helper.from_array(names, "class_names"))
    graph = compose.merge_models(graph, after, [("network/scores", "batch_scores")])
    if with_maps:
        h, w = (side.dim_value for side in model.graph.output[1].type.tensor_type.shape.dim[2:])
        after = part(POINTS, h=h, w=w)
        graph = compose.merge_models(graph, after, [("network/class_maps", "batch_maps"), ("image_size", "size")])
    _check(graph, model, preprocess, task)
    return graph


def _check(graph: onnx.ModelProto, network: onnx.ModelProto, preprocess: Preprocess, task: Task) -> None:
    """Run a graph with processing, and the network's graph with our own processing, on random images."""
    session, reference = session_of(graph.SerializeToString()), session_of(network.SerializeToString())
    for seed, (height, width) in enumerate(SHAPES):
        levels = probe(max(height, width), seed=seed)[0, :, :height, :width].mul(50).add(128).clamp(0, 255)
        pixels = levels.byte().permute(1, 2, 0).contiguous().numpy()
        found = dict(zip((o.name for o in graph.graph.output), session.run(None, {"image": pixels}), strict=True))
        scores = reference.run(None, {"images": preprocess(Image.fromarray(pixels))[None].numpy()})[0]
        expected = {"scores": (scores[0], CLOSE), "probabilities": (score_probabilities(found["scores"], task), EXACT)}
        if "points" in found:
            expected["points"] = peak_points(found["class_maps"], (height, width)), EXACT
        for name, (values, tolerance) in expected.items():
            error = relative_error(torch.from_numpy(found[name]), torch.from_numpy(values))
            if error > tolerance:
                raise EngineError(
                    f"the {name} of the ONNX graph with processing differ from wildcat's by {error:.1e} of their size.",
                    "Nothing was written. Try another version of onnxruntime, or export without --with-processing.",
                )
