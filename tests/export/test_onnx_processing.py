"""The processing around a network in an ONNX graph, with a network whose outputs can be computed by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import parser

from wildcat.data.transforms import Preprocess
from wildcat.errors import EngineError
from wildcat.export import onnx_processing
from wildcat.export.onnx_processing import add_processing

CLASSES = ("red", 'gr"een', "blåu")
PREPROCESS = Preprocess(4, (0.0, 0.5, 0.25), (1.0, 0.5, 1e-3), "bilinear")
# The class maps are the normalised channels of the resized image, the scores their means.
NETWORK = """
<ir_version: 10, opset_import: ["": 20]>
network (float[batch, 3, 4, 4] images) => (float[batch, 3] scores, float[batch, 3, 4, 4] class_maps)
<int64[2] axes = {2, 3}>
{
    class_maps = Identity (images)
    scores = ReduceMean <keepdims = 0> (images, axes)
}
"""
WITHOUT_MAPS = NETWORK.replace(", float[batch, 3, 4, 4] class_maps)", ")").replace("class_maps = Identity (images)", "")


def run(image: Any, task: Any = "multilabel", network: str = NETWORK) -> dict[str, Any]:
    graph = add_processing(parser.parse_model(network), PREPROCESS, CLASSES, task)
    onnx.checker.check_model(graph, full_check=True)
    session = onnxruntime.InferenceSession(graph.SerializeToString())
    return dict(zip((one.name for one in session.get_outputs()), session.run(None, {"image": image}), strict=True))


def blocks() -> Any:
    """An image of 8 x 12 pixels, 4 x 4 cells: black but for one cell of each channel."""
    image = np.zeros((8, 12, 3), np.uint8)
    for channel, (row, column) in enumerate([(0, 3), (2, 1), (3, 0)]):
        image[2 * row : 2 * row + 2, 3 * column : 3 * column + 3, channel] = 255
    return image


def test_points_are_the_centres_of_the_highest_cells_in_pixels_of_the_image() -> None:
    found = run(blocks())
    np.testing.assert_allclose(found["points"], [[10.5, 1], [4.5, 5], [1.5, 7]])
    assert found["class_maps"].shape == (3, 4, 4)
    assert found["classes"].tolist() == list(CLASSES)


def test_of_equal_cells_the_first_is_the_point() -> None:
    np.testing.assert_allclose(run(np.full((100, 60, 3), 7, np.uint8))["points"], [[7.5, 12.5]] * 3)


@pytest.mark.parametrize("network", [NETWORK, WITHOUT_MAPS])
def test_scores_and_probabilities(network: str) -> None:
    image = np.zeros((5, 9, 3), np.uint8)
    image[..., :] = 51, 102, 64  # a constant image stays constant when it is resized
    scores = np.asarray([0.2, -0.2, (64 / 255 - 0.25) / 1e-3])
    found = run(image, network=network)
    np.testing.assert_allclose(found["scores"], scores, rtol=1e-4)
    np.testing.assert_allclose(found["probabilities"], 1 / (1 + np.exp(-scores)), rtol=1e-4)
    found = run(image, "multiclass", network)
    np.testing.assert_allclose(found["probabilities"], np.exp(scores) / np.exp(scores).sum(), rtol=1e-4)
    assert ("points" in found) == ("class_maps" in found) == (network == NETWORK)


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (np.zeros((4, 5), np.uint8), "Invalid rank for input: image Got: 2 Expected: 3"),
        (np.zeros((4, 5, 4), np.uint8), "invalid dimensions for input: image"),
        (np.zeros((4, 5, 3), np.float32), "Unexpected input data type"),
        (np.zeros((0, 5, 3), np.uint8), "Resize"),
    ],
)
def test_other_images_are_refused_by_the_runtime(image: Any, said: str) -> None:
    with pytest.raises(Exception, match=said):
        run(image)


@pytest.mark.parametrize(
    ("part", "right", "wrong", "output"),
    [
        ("BEFORE", "Add (scaled, offset)", "Sub (scaled, offset)", "scores"),
        ("PROBABILITIES", "{activation} (", "Tanh (", "probabilities"),
        ("POINTS", "{{1, 0}}", "{{0, 1}}", "points"),
    ],
)
def test_processing_that_differs_is_refused(
    part: str, right: str, wrong: str, output: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = getattr(onnx_processing, part)
    assert right in text
    monkeypatch.setattr(onnx_processing, part, text.replace(right, wrong))
    with pytest.raises(EngineError, match=f"the {output} of the ONNX graph with processing differ"):
        run(blocks())
