"""Refining: targets from labels and images alone, a model folder, and better masks."""

from __future__ import annotations

import copy
import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional

from wildcat.cli import main
from wildcat.config import TrainConfig
from wildcat.data import DataSet, open_dataset, write_shapes
from wildcat.errors import ConfigError, DataError, RunError, TrainingError
from wildcat.evaluation import evaluate
from wildcat.export.onnx import export_onnx
from wildcat.fitting.calibrate import calibrate
from wildcat.fitting.config import RefineConfig
from wildcat.fitting.labels import scaled_crf, small_image
from wildcat.fitting.levels import FlatLevels, fit, unflattened
from wildcat.fitting.methods import wildcat as own
from wildcat.fitting.optimise import Training
from wildcat.fitting.refine import refine
from wildcat.fitting.training_images import TrainingImages
from wildcat.models.folder import open_model
from wildcat.models.run import create_run, open_run
from wildcat.nn.backbones import create_backbone
from wildcat.nn.boundaries import BoundaryNetwork
from wildcat.nn.segmenter import Segmenter
from wildcat.predictor import load
from wildcat.progress import SILENT
from wildcat.regions import CrfParams
from wildcat.train.loop import train

pytestmark = pytest.mark.usefixtures("cache", "few_boundary_steps")

QUICK = RefineConfig(label_sizes="1", epochs=8, batch_size=8)


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> DataSet:
    return open_dataset(write_shapes(tmp_path_factory.mktemp("data") / "shapes", train=80, val=16))


@pytest.fixture(scope="module")
def run(shapes: DataSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "tags"
    config = TrainConfig(
        backbone="lite0",
        image_size=224,
        epochs=20,
        batch_size=8,
        workers=0,
        tune="head",
        flip="horizontal",
        pooling="max",
        num_maps=1,
    )
    train(create_run(folder, config, shapes, "shapes"), shapes)
    return folder


@pytest.fixture(scope="module")
def refined(run: Path, shapes: DataSet) -> Path:
    folder = run.parent / "refined"
    refine(open_run(run), shapes, folder, QUICK, device="cpu")
    return folder


@pytest.fixture(scope="module")
def walked(run: Path, shapes: DataSet) -> Path:
    folder = run.parent / "walked"
    config = RefineConfig(label_sizes="1", propagate=True, epochs=1, batch_size=8)
    refine(open_run(run), shapes, folder, config, "val", device="cpu")  # few images
    return folder


def test_masks_become_better(run: Path, refined: Path, shapes: DataSet) -> None:
    before, after = (
        evaluate(load(f, "cpu"), shapes, "val", measures=("classification", "segmentation")) for f in (run, refined)
    )
    assert after["segmentation"]["miou"] > before["segmentation"]["miou"] + 0.02
    assert after["classification"]["map"] == pytest.approx(before["classification"]["map"]), (
        "the run still says which classes are there"
    )
    assert after["segmentation"]["rule"] == "score" and after["segmentation"]["calibration"]["masks"] == 0


def test_ground_truth_masks_are_not_used(run: Path, shapes: DataSet, tmp_path: Path) -> None:
    """Images and labels alone give bit-equal weights."""
    import dataclasses

    def bare(split: str) -> list[object]:
        return [dataclasses.replace(s, mask=None, boxes=None, box_classes=None) for s in shapes.split(split)]

    data = dataclasses.replace(shapes, readers={"train": lambda: bare("train"), "val": lambda: bare("val")}, _cache={})
    config = dataclasses.replace(QUICK, epochs=1)
    for name, images in (("with", shapes), ("without", data)):
        refine(open_run(run), images, tmp_path / name, config, "val", device="cpu")
    with_masks, without = (tmp_path / name / "segmenter.safetensors" for name in ("with", "without"))
    assert with_masks.read_bytes() == without.read_bytes()


def test_a_refined_folder_is_a_model(run: Path, refined: Path, shapes: DataSet, tmp_path: Path) -> None:
    path = shapes.split("val")[0].path
    plain, said = load(run, "cpu").predict(path), load(refined, "cpu").predict(path)
    np.testing.assert_allclose(
        said.class_scores, plain.class_scores, rtol=1e-4, atol=1e-4
    )  # batch norm is folded in one
    assert said.class_maps.shape == (5, 28, 28) and plain.class_maps.shape == (5, 7, 7)  # 1/8 and 1/32 of 224 pixels
    assert said.modality_maps is not None
    np.testing.assert_array_equal(said.modality_maps[:, 0], said.class_maps)
    mirrored = load(refined, "cpu", flip="horizontal")
    there, back = mirrored.predict(path), mirrored.predict(Image.open(path).transpose(Image.Transpose.FLIP_LEFT_RIGHT))
    np.testing.assert_allclose(there.class_maps, back.class_maps[..., ::-1], atol=2e-2)
    larger = load(refined, "cpu", sizes=(160, 192))
    assert larger.predict(path).class_maps.shape == (5, 24, 24)
    odd = load(refined, "cpu", sizes=(200,))  # 13 cells of 16 pixels, the last of them cut
    assert odd.predict(path).class_maps.shape == (5, 25, 25)
    with pytest.raises(ConfigError, match=r"output_stride=8: the refined model .* reads levels"):
        load(refined, "cpu", output_stride=8)
    assert load(refined, "cpu", output_stride=16).predict(path).class_maps.shape == (5, 28, 28)
    assert main(["evaluate", str(refined), str(shapes.root), "--device", "cpu"]) == 0
    out = tmp_path / "out"
    save = ["--out", str(out), "--save", "masks,overlays", "--device", "cpu"]
    assert main(["predict", str(refined), str(path), "--crf", *save]) == 0
    assert list((out / "masks").rglob("*.png"))


def test_masks_are_propagated_to_the_boundaries(
    run: Path, refined: Path, walked: Path, shapes: DataSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = shapes.split("val")[0].path
    plain, spread = (load(walked, "cpu", propagate=on).predict(path) for on in (False, True))
    assert plain.boundaries is None and spread.boundaries is not None and spread.boundaries.shape == (28, 28)
    np.testing.assert_array_equal(plain.class_maps, spread.class_maps)
    assert spread.mask().shape == plain.mask().shape and (spread.mask() != plain.mask()).any()
    offered = load(walked, "cpu", boundaries=True)
    chosen = pickle.loads(pickle.dumps(offered)).predict(path)  # as the worker processes of the service get it
    np.testing.assert_array_equal(chosen.mask(), plain.mask())
    np.testing.assert_array_equal(chosen.mask(propagate=True), spread.mask())
    np.testing.assert_array_equal(spread.mask(propagate=False), plain.mask())
    with pytest.raises(ConfigError, match="no boundaries"):
        plain.mask(propagate=True)
    assert load(run, "cpu", boundaries=True).predict(path).boundaries is None
    tiled = load(walked, "cpu", propagate=True, tile=100).predict(path)
    assert tiled.boundaries is not None and tiled.boundaries.ndim == 2
    command = ["evaluate", str(walked), str(shapes.root), "--device", "cpu", "--json"]
    ious = []
    for flags in ([], ["--propagate"]):
        assert main([*command, *flags]) == 0
        ious.append(json.loads(capsys.readouterr().out)["segmentation"]["miou"])
    assert all(0 < iou < 1 for iou in ious) and ious[0] != ious[1]
    _, record = calibrate(
        load(walked, "cpu", boundaries=True, calibrated=False), shapes, "val", crf=False, propagate=True
    )
    at_zero = next(row for row in record["tried"] if row["rule"] == "score" and row["threshold"] == 0)
    assert at_zero["miou"] == pytest.approx(ious[1], abs=0.1), "fitted on propagated masks; other gates"
    assert max(row["miou"] for row in record["tried"]) >= at_zero["miou"]
    assert len(open_model(walked).manifest["trained"]["losses"]) == 2, "of the boundaries and of the segmenter"
    assert not (refined / "boundaries.safetensors").exists()
    for model in (str(run), str(refined), "imagenet-lite0"):
        assert main(["predict", model, str(path), "--propagate", "--out", "never", "--device", "cpu"]) == 1
        assert "has no trained boundaries" in capsys.readouterr().err


def test_the_manifest_records_the_training(run: Path, refined: Path, shapes: DataSet) -> None:
    model = open_model(refined)
    labelled = [s for s in shapes.split("train") if (s.labels == 1).any()]
    assert model.manifest["channels"] == [24, 40, 112, 1280] and model.manifest["trained"]["images"] == len(labelled)
    assert len(model.manifest["trained"]["losses"]) == 1
    assert model.manifest["trained"]["rounds"] == 1
    assert model.runs[0].manifest["classes"] == open_run(run).manifest["classes"]
    with pytest.raises(RunError, match="is a refined model, not a run"):
        open_run(refined)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda f: (f / "model.json").write_text("{"), "damaged"),
        (lambda f: (f / "segmenter.safetensors").write_bytes(b"half"), "damaged or half-written"),
        (lambda f: shutil.rmtree(f / "base"), "no model folder"),
        (
            lambda f: (f / "model.json").write_text(
                json.dumps(json.loads((f / "model.json").read_text()) | {"schema": 7})
            ),
            "layout version 7",
        ),
        (
            lambda f: (f / "model.json").write_text(
                json.dumps(json.loads((f / "model.json").read_text()) | {"width": 64})
            ),
            "does not fit the network",
        ),
    ],
)
def test_a_damaged_folder_is_one_sentence(refined: Path, tmp_path: Path, spoil: object, words: str) -> None:
    copy = Path(shutil.copytree(refined, tmp_path / "copy"))
    spoil(copy)  # type: ignore[operator]
    with pytest.raises(RunError, match=words):
        load(copy, "cpu")


def test_the_command(run: Path, shapes: DataSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    short = ["--rounds", "2", "--epochs", "1", "--boundary-epochs", "1", "--batch-size", "16", "--sharpen", "pamr"]
    short += ["--propagate", "--label-sizes", "0.5,1", "--split", "val", "--device", "cpu"]
    assert main(["refine", str(run), str(shapes.root), "--out", str(out), *short]) == 0
    said = capsys.readouterr().out
    assert "16 images of val to train on" in said and "a segmenter on lite0; loss" in said
    assert len(open_model(out).manifest["trained"]["losses"]) == 3
    assert main(["refine", str(run), str(shapes.root), "--out", str(out), *short]) == 1
    assert "never overwritten" in capsys.readouterr().err
    assert main(["refine", str(out), str(shapes.root), "--out", str(tmp_path / "more")]) == 1
    assert "is a refined model, not a run" in capsys.readouterr().err
    assert main(["refine", str(run), str(shapes.root), "--out", str(tmp_path / "more"), "--epochs", "0"]) == 2
    assert "--epochs 0: give at least 1" in capsys.readouterr().err
    assert not (tmp_path / "more").exists()


def test_other_data_and_wrong_rates(run: Path, shapes: DataSet, tmp_path: Path) -> None:
    import dataclasses

    other = dataclasses.replace(shapes, classes=("a", "b", "c", "d", "e"))
    with pytest.raises(DataError, match="other classes"):
        refine(open_run(run), other, tmp_path / "out")
    with pytest.raises(ConfigError, match="lr=nan"):
        RefineConfig(lr=float("nan")).validate()
    for wrong in ({"weight_decay": -1}, {"boundary_lr": 0}, {"confidence": -1}, {"boundary_epochs": 0}):
        with pytest.raises(ConfigError, match=f"{next(iter(wrong))}="):
            RefineConfig(**wrong).validate()
    for sizes in ("", "1,x", "0,1", "nan"):
        with pytest.raises(ConfigError, match=r"label_sizes=.*give multiples"):
            RefineConfig(label_sizes=sizes).validate()
    with pytest.raises(ConfigError, match="sharpen='crff': give crf, pamr or none"):
        RefineConfig(sharpen="crff").validate()  # type: ignore[arg-type]
    with pytest.raises(TrainingError, match=r"the loss of segmenter is (nan|inf) in epoch"):
        refine(
            open_run(run),
            shapes,
            tmp_path / "out",
            RefineConfig(label_sizes="1", sharpen="none", epochs=3, lr=1e30),
            "val",
            device="cpu",
        )
    assert not (tmp_path / "out").exists() and not list(tmp_path.iterdir())


@pytest.mark.parametrize("network", [Segmenter((16, 24, 32), 3), BoundaryNetwork((16, 24, 32))])
def test_training_on_levels_in_bfloat16(network: Segmenter | BoundaryNetwork) -> None:
    """With amp the layers compute in bfloat16, the loss in float32, and it falls as it does without."""
    generator = torch.Generator().manual_seed(0)
    levels = [torch.randn(8, 16, 16, 16, generator=generator), torch.randn(8, 24, 8, 8, generator=generator)]
    levels.append(torch.randn(8, 32, 4, 4, generator=generator))

    class Levels:
        device, views = torch.device("cpu"), ((),)

        def __init__(self, amp: bool) -> None:
            self.amp = amp

        def __len__(self) -> int:
            return 8

        def batch(self, images: list[int], views: list[int]) -> list[torch.Tensor]:
            return [level[images] for level in levels]

    def loss(output: torch.Tensor, images: list[int], views: list[int]) -> torch.Tensor:
        assert output.dtype == torch.float32
        return functional.mse_loss(output, torch.full_like(output, 0.9))

    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    start, found = copy.deepcopy(network.state_dict()), {}
    for amp in (False, True):
        network.load_state_dict(start)
        dtypes = set()
        hooks = [one.register_forward_hook(lambda m, i, o, seen=dtypes: seen.add(o.dtype)) for one in convolutions]
        with torch.random.fork_rng():
            torch.manual_seed(0)
            training = Training("segmenter", 20, 4, "lr")
            found[amp] = fit(network, Levels(amp), loss, training, RefineConfig(), SILENT)  # type: ignore[arg-type]
        assert dtypes == {torch.bfloat16 if amp else torch.float32}
        for hook in hooks:
            hook.remove()
    assert found[True] == pytest.approx(found[False], rel=0.1, abs=1e-3) and found[False] < 0.1


def test_inner_layers_are_restored_from_one_vector() -> None:
    backbone = create_backbone("test_resnet", "none").eval()
    flat, images = FlatLevels(backbone), torch.randn(2, 3, 64, 96)
    with torch.inference_mode():
        back = unflattened(flat(images), flat.shapes)
        for level, expected in zip(back, backbone.levels(images), strict=True):
            torch.testing.assert_close(level, expected)


def test_a_crf_is_scaled_to_the_image(tmp_path: Path) -> None:
    assert scaled_crf(CrfParams(), 10**7) == CrfParams()
    quarter = scaled_crf(CrfParams(appearance_sigma_xy=80, smoothness_sigma=3), 375 * 500 // 4)
    assert quarter.appearance_sigma_xy == 40 and quarter.smoothness_sigma == 1.5
    assert quarter.appearance_sigma_rgb == CrfParams().appearance_sigma_rgb
    Image.new("RGB", (1024, 256)).save(tmp_path / "wide.png")
    assert small_image(tmp_path / "wide.png").shape == (128, 512, 3)


def test_as_onnx_and_by_engines(refined: Path, shapes: DataSet, tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    predictor = load(refined, "cpu")
    file = export_onnx(predictor, tmp_path / "refined.onnx")
    images = torch.stack([predictor.preprocess(Image.open(s.path)) for s in shapes.split("val")[:2]])
    session = runtime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    scores, maps = session.run(["scores", "class_maps"], {session.get_inputs()[0].name: images.numpy()})
    expected = predictor.forward([images], modalities=False)
    np.testing.assert_allclose(scores, expected.scores, atol=1e-3)
    np.testing.assert_allclose(maps, expected.class_maps, atol=1e-3)
    with pytest.raises(ConfigError, match="refined model: its segmenter needs inner layers"):
        load(refined, "cpu", engine="onnx")


def test_the_labels_of_a_mirrored_image_are_mirrored(run: Path, shapes: DataSet) -> None:
    opened = open_run(run)
    samples, order = shapes.split("train")[:6], list(range(5))
    images = TrainingImages(opened, samples, order, RefineConfig(), CrfParams(), None, "cpu", SILENT)
    maps = [images.maps(index, None) for index in range(6)]
    targets = own.make_targets(images, maps, images.params, "labels")
    for index, target in enumerate(targets):
        plain = own.target_of(images, index, target, ())
        assert plain.shape == (6, 28, 28)
        torch.testing.assert_close(plain.sum(dim=0), torch.ones(28, 28), atol=2e-3, rtol=0)
        assert not plain[1:][torch.from_numpy(samples[index].labels != 1)].any(), "a class that is not tagged"
        torch.testing.assert_close(own.target_of(images, index, target, images.cache.views[1]), plain.flip(2))
    levels = [images.cache.batch([0], [view])[-1] for view in (0, 1)]
    assert not torch.allclose(levels[0], levels[1]), "the views are those of the cache"
