"""From images to predictions: locations in pixels, kinds of input, memory bounds, views, tiles, loading."""

from __future__ import annotations

import copy
import io
import multiprocessing
import os
import pickle
import weakref
import zipfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path, PurePath
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import skimage.data
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

import wildcat
from wildcat.config import Architecture
from wildcat.data.image_ref import ImageRef
from wildcat.data.images import Decoded, IntensityRange, MaxDownscale, decode_bytes, full_size
from wildcat.data.transforms import Preprocess
from wildcat.device import CONCURRENT_BATCHES, cpu_has_bf16
from wildcat.errors import ConfigError, EngineError, ImageError, RunError
from wildcat.files import file_name
from wildcat.models.member import Member
from wildcat.nn.backbones import Backbone
from wildcat.nn.factory import ARCHITECTURES, create_model
from wildcat.nn.heads import create_pool
from wildcat.predictor import BATCH_SIZE, Predictor, load
from wildcat.regions.tiling import tile_image

COLOURS = ("red", "green", "blue")
CELLS = 8


class Cells(nn.Module):
    """A network whose features are the mean colours of 8 x 8 pixels: what is found follows from the image by hand."""

    pretrained_cfg: ClassVar = {"mean": (0.0,) * 3, "std": (1.0,) * 3}
    num_features = 3

    def forward_features(self, images: Tensor) -> Tensor:
        return functional.avg_pool2d(images, 8)


def colour_finder(architecture: Architecture = "a", pool: tuple[float, float] = (3, 0.7)) -> Predictor:
    """Class c is where channel c is bright; its first map says so doubly, its second less. 64 x 64 in, 8 x 8 out."""
    network = ARCHITECTURES[architecture]
    model = network(Backbone("cells", Cells()), 3, 2, create_pool("wildcat", pool[0], alpha=pool[1]))
    with torch.no_grad():
        model.transfer.weight.copy_(torch.eye(3).repeat_interleave(2, 0)[:, :, None, None])
        model.transfer.weight[::2] *= 2
        model.transfer.bias.copy_(torch.tensor([-1.0, 0.5] * 3))
    preprocess = Preprocess(8 * CELLS, (0.0,) * 3, (1.0,) * 3, "bilinear")
    return Predictor("colours", [Member(model, preprocess)], COLOURS, "multilabel", "cpu")


def block(row: int, column: int, width: int = 320, height: int = 160, channel: int = 0) -> NDArray[np.uint8]:
    """A black image with one bright cell of the 8 x 8 grid over it."""
    image = np.zeros((height, width, 3), np.uint8)
    h, w = height // CELLS, width // CELLS
    image[row * h : (row + 1) * h, column * w : (column + 1) * w, channel] = 255
    return image


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return colour_finder()


# --- locations ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("row", "column"), [(0, 0), (7, 7), (2, 5), (6, 1), (0, 7)])
@pytest.mark.parametrize("size", [(320, 160), (160, 480)])
def test_the_point_is_the_centre_of_the_bright_block(
    predictor: Predictor, row: int, column: int, size: tuple[int, int]
) -> None:
    width, height = size
    p = predictor.predict(block(row, column, width, height, channel=1))
    assert (p.width, p.height) == size
    assert p.points["green"] == ((column + 0.5) * width / CELLS, (row + 0.5) * height / CELLS)
    (box,) = p.find_boxes("green")
    expected = np.array([column * width, row * height, (column + 1) * width, (row + 1) * height]) / CELLS
    np.testing.assert_allclose(box[:4], expected, atol=max(size) / 128 + 0.5)  # boxes are found on a grid of 128


def test_the_heatmap_is_centred_on_the_block(predictor: Predictor) -> None:
    heatmap = predictor.predict(block(3, 5)).heatmap("red")
    assert heatmap.shape == (160, 320)
    weight = heatmap - heatmap.min()
    y, x = np.mgrid[0.5:160, 0.5:320]
    assert np.average(x, weights=weight) == pytest.approx(5.5 * 40, abs=0.05)  # half a cell would be 20
    assert np.average(y, weights=weight) == pytest.approx(3.5 * 20, abs=0.05)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_rotated_photograph_gets_upright_coordinates(predictor: Predictor, tmp_path: Path, orientation: int) -> None:
    upright = Image.fromarray(block(1, 6))
    # How a camera stores an image it wants shown upright (EXIF 2.3: which side row 0 and column 0 are).
    stored = {
        1: [],
        2: [Image.Transpose.FLIP_LEFT_RIGHT],
        3: [Image.Transpose.ROTATE_180],
        4: [Image.Transpose.FLIP_TOP_BOTTOM],
        5: [Image.Transpose.TRANSPOSE],
        6: [Image.Transpose.ROTATE_90],
        7: [Image.Transpose.TRANSVERSE],
        8: [Image.Transpose.ROTATE_270],
    }[orientation]
    image = upright
    for turn in stored:
        image = image.transpose(turn)
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(tmp_path / "photo.jpg", quality=95, exif=exif)
    p = predictor.predict(tmp_path / "photo.jpg")
    assert (p.width, p.height) == (320, 160)
    assert p.points["red"] == (6.5 * 40, 1.5 * 20)
    assert p.heatmap("red").shape == (160, 320)
    assert p.plot("red").size == (320, 160)


class InAnArchive(ImageRef):
    """A JPEG that lies in memory."""

    def __init__(self, content: bytes) -> None:
        self.content = content

    @property
    def name(self) -> str:
        return "archive#photo"

    def decode(self, max_downscale: MaxDownscale = full_size, intensity: IntensityRange | None = None) -> Decoded:
        return decode_bytes(self.content, self.name, max_downscale)


def test_a_large_jpeg_is_decoded_small_but_located_and_drawn_at_full_size(
    predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "photo.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(block(1, 6, 1200, 800)).transpose(Image.Transpose.ROTATE_90).save(path, quality=95, exif=exif)
    warped: list[tuple[int, int]] = []
    warp = Preprocess.warp
    monkeypatch.setattr(Preprocess, "warp", lambda self, image: warped.append(image.size) or warp(self, image))
    for given in (path, InAnArchive(path.read_bytes())):
        p = predictor.predict(given)
        assert (p.width, p.height) == (1200, 800)
        assert p.points["red"] == (6.5 * 150, 1.5 * 100)
        assert p.heatmap("red").shape == (800, 1200)
        assert p.load_image().size == p.plot("red").size == (1200, 800)
        assert p.mask(crf=True).shape == (800, 1200)
    assert warped == [(300, 200)] * 2
    whole = predictor.predict(Image.open(path))  # an image in memory is taken as it is
    assert warped[-1] == (1200, 800)
    np.testing.assert_allclose(p.class_maps, whole.class_maps, atol=0.02)
    tiled(predictor, 500).predict(path)
    assert set(warped[3:]) == {(500, 500)}, "tiles are cut from all pixels"


# --- scores and maps ------------------------------------------------------------------------------------------------


def test_maps_and_scores_follow_from_the_image(predictor: Predictor) -> None:
    p = predictor.predict(block(1, 2, 64, 64))  # the network's own size: no warping
    expected = np.zeros((3, 2, 8, 8))
    expected[0, 0, 1, 2], expected[0, 1, 1, 2] = 2, 1
    expected += np.array([-1.0, 0.5])[None, :, None, None]
    assert p.modality_maps is not None
    np.testing.assert_allclose(p.modality_maps, expected, atol=1e-5)
    np.testing.assert_allclose(p.class_maps, expected.mean(axis=1), atol=1e-5)
    ranked = np.sort(expected.mean(axis=1).reshape(3, -1))
    pooled = ranked[:, -3:].mean(axis=1) + 0.7 * ranked[:, :3].mean(axis=1)  # eq. 3 with k+ = k- = 3
    np.testing.assert_allclose(p.class_scores, pooled, atol=1e-5)
    np.testing.assert_allclose(p.modalities("red").mean(axis=0), p.heatmap("red"), atol=1e-5)
    assert predictor.predict(block(1, 2), modalities=False).modality_maps is None


def test_architecture_b_scores_pooled_features() -> None:
    p = colour_finder("b").predict(block(1, 2, 64, 64))
    red = 1 / 3  # of the three brightest cells one is red; the three darkest are black
    expected = [((2 * red - 1) + (red + 0.5)) / 2, -0.25, -0.25]
    np.testing.assert_allclose(p.class_scores, expected, atol=1e-5)


def test_results_do_not_depend_on_the_batch(predictor: Predictor) -> None:
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (60 + i, 90 - i, 3), np.uint8) for i in range(7)]
    torch.manual_seed(0)
    model = create_model("test_resnet", num_classes=3, pretrained=False)
    real = Predictor("tiny", [Member(model, Preprocess(64, (0.5,) * 3, (0.5,) * 3))], COLOURS, "multilabel", "cpu")
    alone = [real.predict(image) for image in images]
    for batch_size in (2, 3, 8):
        together = list(real.stream(images, batch_size=batch_size))
        assert [(p.width, p.height) for p in together] == [(p.width, p.height) for p in alone]
        for a, b in zip(alone, together, strict=True):
            np.testing.assert_allclose(a.class_scores, b.class_scores, rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(a.class_maps, b.class_maps, rtol=1e-4, atol=1e-5)


# --- kinds of input -------------------------------------------------------------------------------------------------


def test_path_image_and_array_give_the_same_prediction(predictor: Predictor, tmp_path: Path) -> None:
    array = block(4, 3)
    path = tmp_path / "a.png"
    Image.fromarray(array).save(path)
    in_memory = io.BytesIO()
    Image.fromarray(array).save(in_memory, "PNG")  # and leaves it at its end
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(path, "a.png")
    with path.open("rb") as file, zipfile.ZipFile(tmp_path / "a.zip") as archive, archive.open("a.png") as member:
        kinds: list[Any] = [path, str(path), os.fspath(path), Image.fromarray(array), array]
        kinds += [file, file, in_memory, in_memory.getvalue(), member, PurePath(path)]
        found = [predictor.predict(kind) for kind in kinds]
        assert [p.points for p in predictor.predict(kinds)] == [p.points for p in found]
    for kind, p in zip(kinds, found, strict=True):
        assert p.points["red"] == (3.5 * 40, 4.5 * 20)
        name = "a.png" if kind is member else str(path) if isinstance(kind, (str, PurePath)) or kind is file else ""
        assert p.path == name
        assert np.array_equal(np.asarray(p.load_image()), array)


def test_a_list_or_tuple_gives_a_list_in_order(predictor: Predictor) -> None:
    cells = [(i % 8, (3 * i) % 8) for i in range(2 * BATCH_SIZE + 3)]
    images = [block(r, c) for r, c in cells]
    for given in (images, tuple(images)):
        found = predictor.predict(given)
        assert isinstance(found, list)
        assert [p.points["red"] for p in found] == [((c + 0.5) * 40, (r + 0.5) * 20) for r, c in cells]
    assert predictor.predict([]) == []


AHEAD = CONCURRENT_BATCHES + 2  # batches: those that are computed, the next one, and two that are read


def test_an_iterator_gives_an_iterator_that_reads_few_images_ahead(predictor: Predictor) -> None:
    pulled = 0

    def endless() -> Iterator[NDArray[np.uint8]]:
        nonlocal pulled
        while True:
            pulled += 1
            yield block(0, pulled % 8)

    found = predictor.predict(endless())
    assert isinstance(found, Iterator)
    assert pulled == 1  # the first is checked at once, the others are read when they are asked for
    first = next(found)
    assert first.points["red"] == (1.5 * 40, 10)
    assert pulled <= AHEAD * BATCH_SIZE
    for _ in range(5 * BATCH_SIZE):
        next(found)
    assert pulled <= (6 + AHEAD) * BATCH_SIZE
    found.close()  # type: ignore[attr-defined]  # a generator; the threads end with it


def test_a_long_stream_keeps_few_images_alive(predictor: Predictor) -> None:
    made: list[weakref.ref[Image.Image]] = []
    most = 0

    def images() -> Iterator[Image.Image]:
        for i in range(100):
            image = Image.fromarray(block(0, i % 8, 64, 32))
            made.append(weakref.ref(image))
            yield image

    for _ in predictor.predict(images()):
        most = max(most, sum(reference() is not None for reference in made))
    assert most <= (2 + AHEAD) * BATCH_SIZE


def test_grey_arrays_are_accepted(predictor: Predictor) -> None:
    grey = block(2, 2)[:, :, 0]
    p = predictor.predict(grey)
    assert p.points == dict.fromkeys(COLOURS, (2.5 * 40, 2.5 * 20))  # bright in all three channels


@pytest.mark.parametrize(
    ("image", "named"),
    [
        (np.zeros((8, 8, 3), np.float32), "float32"),
        (np.zeros((8, 8, 4), np.uint8), "(8, 8, 4)"),
        (np.zeros((2, 8, 8, 3), np.uint8), "(2, 8, 8, 3)"),
        (np.zeros((0, 8, 3), np.uint8), "(0, 8, 3)"),
        (7, "int"),
        ({"a.jpg"}, "set"),
        (None, "NoneType"),
        ([block(0, 0)], "list"),
        ({"image": "a.jpg"}, "dict"),
        (io.StringIO("a.jpg"), "opened as text"),
        (SimpleNamespace(read=lambda *_: "text"), "read() gives str"),
    ],
)
def test_inputs_that_are_not_images_are_refused(predictor: Predictor, image: Any, named: str) -> None:
    wrong: list[Any] = [[block(0, 0), image], [image], *([] if isinstance(image, list) else [image])]
    for given in wrong:
        with pytest.raises(ConfigError, match="is not an image") as caught:
            predictor.predict(given)
        assert named in caught.value.message


def test_a_list_or_generator_of_something_else_is_refused_before_the_first_forward_pass(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Predictor, "forward", lambda *_: pytest.fail("a forward pass"))
    with pytest.raises(ConfigError, match="an int, from a generator, is not an image"):
        predictor.predict(i for i in range(3))
    with pytest.raises(ConfigError, match="an int, item 40 of a list, is not an image"):
        predictor.predict([*[block(0, 0)] * 40, 7])
    assert list(predictor.predict(iter([]))) == []


def test_a_closed_file_is_refused(predictor: Predictor, tmp_path: Path) -> None:
    Image.fromarray(block(0, 0)).save(tmp_path / "a.png")
    with (tmp_path / "a.png").open("rb") as file:
        pass
    with pytest.raises(ImageError, match=r"a\.png cannot be read: .*closed"):
        predictor.predict(file)


# --- pickling and processes -----------------------------------------------------------------------------------------


@pytest.mark.skipif(not cpu_has_bf16(), reason="no bf16 instructions")
def test_copies_and_spawned_processes_predict_the_same() -> None:
    """With an engine, whose session is opened again."""
    predictor, image = colour_finder(), block(2, 5)
    predictor.use_engine("torch", "bf16")
    expected = predictor.predict(image)
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        spawned = pool.submit(predictor.predict, image).result(timeout=120)
    for found in (
        spawned,
        copy.deepcopy(predictor).predict(image),
        pickle.loads(pickle.dumps(predictor)).predict(image),
    ):
        assert found.to_dict() == expected.to_dict()
        assert np.array_equal(found.class_maps, expected.class_maps)
        assert np.array_equal(np.asarray(found.load_image()), image)


def test_a_trained_network_can_be_copied(classifier: Predictor) -> None:
    """Batch normalisation is folded into its convolutions by tracing."""
    image = skimage.data.chelsea()
    for copied in (copy.deepcopy(classifier), pickle.loads(pickle.dumps(classifier))):
        np.testing.assert_array_equal(copied.predict(image).class_scores, classifier.predict(image).class_scores)


def test_a_forked_process_is_refused_instead_of_hanging(monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = colour_finder()
    monkeypatch.setattr("os.getpid", lambda: -1)
    monkeypatch.setattr("torch.get_num_threads", lambda: 1)
    predictor.predict(block(0, 0))  # one thread does not hang
    monkeypatch.setattr("torch.get_num_threads", lambda: 2)
    with pytest.raises(EngineError, match="forked") as caught:
        predictor.predict(block(0, 0))
    assert "spawn" in caught.value.hint


def test_a_predictor_is_one_line(predictor: Predictor) -> None:
    assert repr(predictor) == "Predictor('colours', multilabel, 3 classes, device 'cpu')"


def test_a_broken_file_raises_or_is_reported_and_skipped(predictor: Predictor, tmp_path: Path) -> None:
    for i in range(5):
        Image.fromarray(block(0, i)).save(tmp_path / f"{i}.png")
    (tmp_path / "1.png").write_bytes(b"")
    (tmp_path / "3.png").write_text("hello")
    paths = [tmp_path / f"{i}.png" for i in range(5)]
    with pytest.raises(ImageError, match=r"1\.png is empty"):
        predictor.predict(paths)
    told: list[tuple[Any, str]] = []
    found = list(predictor.stream(paths, batch_size=2, on_error=lambda p, e: told.append((p, e.message))))
    assert [p.path for p in found] == [str(paths[i]) for i in (0, 2, 4)]
    assert [p.points["red"][0] for p in found] == [20, 100, 180]
    assert [p for p, _ in told] == [paths[1], paths[3]]


def test_the_input_image_is_not_modified(predictor: Predictor) -> None:
    image = Image.fromarray(block(1, 1)[:, :, 0]).convert("P")
    before = image.tobytes()
    predictor.predict(image)
    assert image.mode == "P" and image.tobytes() == before


# --- loading --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def classifier() -> Predictor:
    return wildcat.load("imagenet-lite0", device="cpu")


def test_the_packaged_model_classifies_and_localizes_a_cat(classifier: Predictor) -> None:
    photograph = skimage.data.chelsea()  # 451 x 300, a cat's face that fills most of the image
    p = classifier.predict(photograph)
    (label,) = p.labels
    assert label in {"Egyptian cat", "tabby", "tiger cat"}
    assert p.probabilities[label] > 0.3
    x, y = p.points[label]
    assert 80 < x < 400 and 30 < y < 270
    np.testing.assert_allclose(p.class_maps.mean(axis=(1, 2)), p.class_scores, atol=1e-4)  # average pooling
    assert p.heatmap(label).shape == (300, 451)


def test_imagenet_names_are_short_and_all_different(classifier: Predictor) -> None:
    names = classifier.classes
    assert len(names) == 1000
    assert len({file_name(n).casefold() for n in names}) == 1000
    assert not [n for n in names if "," in n]  # --classes separates with commas
    assert names[0] == "tench" and names[281] == "tabby"
    assert "crane n02012849" in names and "crane n03126707" in names  # the bird and the machine


def test_unknown_models_are_named_with_a_suggestion(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="imagenet-lite9") as caught:
        load("imagenet-lite9")
    assert "imagenet-lite0" in caught.value.hint
    (tmp_path / "run").mkdir()
    with pytest.raises(RunError, match="there is no model folder") as caught:
        load(tmp_path / "rum")
    assert caught.value.hint == f"did you mean {tmp_path / 'run'}?"
    with pytest.raises(RunError, match=r"it has no model\.json"):
        load(tmp_path / "run")


def test_mirrored_views_are_mirrored_back_and_averaged(predictor: Predictor) -> None:
    image = block(1, 3)
    one = predictor.predict(image)
    for flip, mirrored in (
        ("horizontal", [np.s_[:, ::-1]]),
        ("both", [np.s_[:, ::-1], np.s_[::-1], np.s_[::-1, ::-1]]),
    ):
        views = [one.class_maps] + [
            predictor.predict(np.ascontiguousarray(image[cut])).class_maps[(np.s_[:], *_two(cut))] for cut in mirrored
        ]
        fused = Predictor("x", predictor.members, predictor.classes, predictor.task, "cpu", flip)  # type: ignore[arg-type]
        np.testing.assert_allclose(fused.predict(image).class_maps, np.mean(views, axis=0), atol=1e-5)
        assert fused.predict(image).points == one.points
    with pytest.raises(ConfigError, match="flip='vertical': give none, horizontal or both"):
        Predictor("x", predictor.members, predictor.classes, predictor.task, "cpu", "vertical")  # type: ignore[arg-type]


def _two(cut: Any) -> tuple[Any, Any]:
    """Rows and columns of a cut that may name rows alone."""
    return cut if isinstance(cut, tuple) else (cut, np.s_[:])


# --- tiles and strides ------------------------------------------------------------------------------------------------


def large_image() -> NDArray[np.uint8]:
    """900 x 600, black but for a red square of 20 pixels at (700, 100) and a green one at (110, 500)."""
    image = np.zeros((600, 900, 3), np.uint8)
    image[90:110, 690:710, 0] = 255
    image[490:510, 100:120, 1] = 255
    return image


def tiled(finder: Predictor, tile: int) -> Predictor:
    return Predictor("tiled", finder.members, finder.classes, finder.task, "cpu", tile=tile)


def test_tiles_find_small_objects() -> None:
    whole, parts = colour_finder(), tiled(colour_finder(), 128)
    found = parts.predict(large_image())
    assert found.class_maps.shape[1] >= 600 * CELLS / 128 and found.class_maps.shape[2] >= 900 * CELLS / 128
    assert found.modality_maps is not None and found.modality_maps.shape[:2] == (3, 2)
    np.testing.assert_allclose(found.modality_maps.mean(axis=1), found.class_maps, atol=1e-5)
    assert found.points["red"] == pytest.approx((700, 100), abs=10)
    assert found.points["green"] == pytest.approx((110, 500), abs=10)
    missed = whole.predict(large_image())
    for name in ("red", "green"):
        assert found.scores[name] > missed.scores[name] + 0.2
    assert found.scores["blue"] == pytest.approx(missed.scores["blue"], abs=1e-5)
    with_red = [parts.predict(large_image()[60:188, 640:768])]  # one tile's worth: looked at whole
    assert with_red[0].class_maps.shape == (3, CELLS, CELLS)


def test_an_image_no_larger_than_a_tile_is_not_cut() -> None:
    image = block(2, 5)
    whole, parts = colour_finder().predict(image), tiled(colour_finder(), 320).predict(image)
    np.testing.assert_array_equal(parts.class_maps, whole.class_maps)
    np.testing.assert_array_equal(parts.class_scores, whole.class_scores)


def test_scores_of_tiles_highest_or_mean() -> None:
    """Independent classes are there if any tile shows them; classes that exclude each other are averaged."""
    image = large_image()
    finder = colour_finder()
    crops = [image[t:b, left:r] for left, t, r, b in tile_image(900, 600, 128)]
    each = np.stack([finder.predict(crop).class_scores for crop in crops])
    np.testing.assert_allclose(tiled(finder, 128).predict(image).class_scores, each.max(axis=0), rtol=1e-5)
    finder.task = "multiclass"
    np.testing.assert_allclose(tiled(finder, 128).predict(image).class_scores, each.mean(axis=0), rtol=1e-5)


def test_small_and_large_images_in_one_stream() -> None:
    images = [block(1, 1), large_image(), block(6, 2), large_image()[:, ::-1].copy()]
    parts = tiled(colour_finder(), 330)
    streamed = list(parts.stream(images, batch_size=3))
    assert [(p.width, p.height) for p in streamed] == [(320, 160), (900, 600), (320, 160), (900, 600)]
    for one, image in zip(streamed, images, strict=True):
        np.testing.assert_allclose(one.class_maps, parts.predict(image).class_maps, atol=1e-6)


def test_prepared_images_give_the_same_predictions(predictor: Predictor) -> None:
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 256, (30, 40 + i, 3), dtype=np.uint8)) for i in range(3)]
    together = predictor.predict_prepared([predictor.prepare(image) for image in images])
    for one, other in zip(together, predictor.predict(images), strict=True):
        assert one.to_dict() == other.to_dict()
        assert np.array_equal(one.modality_maps, other.modality_maps)  # type: ignore[arg-type]
    assert predictor.predict_prepared([predictor.prepare(images[0])], modalities=False)[0].modality_maps is None


def test_finer_maps_from_the_same_weights() -> None:
    plain, fine = load("imagenet-lite0", "cpu"), load("imagenet-lite0", "cpu", output_stride=16)
    cat = skimage.data.chelsea()
    seen, finer = plain.predict(cat), fine.predict(cat)
    assert seen.class_maps.shape[1:] == (7, 7) and finer.class_maps.shape[1:] == (14, 14)
    assert "cat" in finer.top and np.hypot(*np.subtract(seen.points[seen.top], finer.points[seen.top])) < 80


def test_wrong_tiles_and_strides(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="tile=8: give a side of at least 32"):
        load("imagenet-lite0", "cpu", tile=8)
    with pytest.raises(ConfigError, match="test_vit has no choice of output stride"):
        create_model("test_vit", 3, pretrained=False, output_stride=8, image_size=160)
