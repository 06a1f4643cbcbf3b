"""The methods of wildcat refine: each loss against its formula, and a refined model from each."""

from __future__ import annotations

import dataclasses
import importlib
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import optimize

from wildcat.cli import main
from wildcat.data import DataSet
from wildcat.errors import ConfigError
from wildcat.fitting.config import RefineConfig
from wildcat.fitting.methods import REFINE_METHODS, ccnn, em_adapt, mil_base, mil_fcn, sec
from wildcat.fitting.refine import refine
from wildcat.models.folder import open_model
from wildcat.models.run import open_run
from wildcat.nn.segmenter import Segmenter, log_probabilities
from wildcat.predictor import load
from wildcat.regions import CrfParams, dense_crf

pytestmark = pytest.mark.usefixtures("cache")

OTHERS = [name for name in REFINE_METHODS if name != "wildcat"]
SEGMENTERS = [name for name in OTHERS if REFINE_METHODS[name].gives == "masks"]


@pytest.fixture
def maps() -> torch.Tensor:
    """(3, 4, 5, 6) log-odds."""
    return 2 * torch.randn(3, 4, 5, 6, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def labels() -> torch.Tensor:
    """(3, 5): the background and one, two, three classes; class 3 is ignored in the second image."""
    return torch.tensor([[1, -1, 1, -1, -1], [1, 1, -1, 0, 1], [1, 1, 1, 1, -1]], dtype=torch.int8)


def probabilities(maps: torch.Tensor) -> np.ndarray:
    """(B, C + 1, h, w) by the definition of a softmax, the background first."""
    odds = np.exp(np.concatenate([np.zeros_like(maps[:, :1]), maps.numpy()], axis=1, dtype=np.float64))
    return odds / odds.sum(axis=1, keepdims=True)


def test_every_method_has_its_module() -> None:
    for name in REFINE_METHODS:
        assert callable(importlib.import_module(f"wildcat.fitting.methods.{name.replace('-', '_')}").train)


# --- mil-fcn and mil-base ---------------------------------------------------------------------------------------------


def test_mil_fcn_against_a_loop(maps: torch.Tensor, labels: torch.Tensor) -> None:
    probs, losses = probabilities(maps), []
    for image in range(3):
        present = [c for c in range(5) if labels[image, c] == 1]
        losses.append(-np.mean([math.log(max(probs[image, c].ravel())) for c in present]))
    assert mil_fcn.mil_loss(maps, labels).item() == pytest.approx(np.mean(losses), rel=1e-5)


def softmax(values: list[float]) -> list[float]:
    total = sum(math.exp(value) for value in values)
    return [math.exp(value) / total for value in values]


def test_mil_base_against_a_loop(maps: torch.Tensor, labels: torch.Tensor) -> None:
    losses = []
    for image in range(3):
        places = [softmax([0.0, *place]) for place in maps[image].flatten(1).T.tolist()]  # (n, C + 1)
        scores = [math.log(np.mean([place[c] ** 5.0 for place in places])) / 5.0 for c in range(5)]
        total = math.log(sum(math.exp(s) for s in scores))
        losses.append(-np.mean([scores[c] - total for c in range(5) if labels[image, c] == 1]))
    assert mil_base.image_loss(maps, labels).item() == pytest.approx(np.mean(losses), rel=1e-5)


def test_the_image_level_prior_multiplies_probabilities() -> None:
    torch.manual_seed(0)
    plain = Segmenter([3, 4], num_classes=2).eval()
    with_prior = Segmenter([3, 4], num_classes=2, prior_sharpness=5.0).eval()
    with_prior.load_state_dict(plain.state_dict())
    levels = [torch.randn(1, 3, 8, 8), torch.randn(1, 4, 4, 4)]
    with torch.no_grad():
        maps, multiplied = plain(levels), probabilities(with_prior(levels))
        prior = (probabilities(maps)[0] ** 5).mean(axis=(1, 2)) ** (1 / 5)
        expected = probabilities(maps) * (prior / prior.sum())[None, :, None, None]
        np.testing.assert_allclose(multiplied, expected / expected.sum(axis=1, keepdims=True), rtol=1e-4)
        torch.testing.assert_close(plain.train()(levels).shape, with_prior.train()(levels).shape)


# --- em-adapt ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("classes", [1, 2, 3, 5])
def test_the_bias_of_em_adapt_gives_each_label_its_share(classes: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(8, 200, generator=generator) * 3 + torch.randn(8, 1, generator=generator) * 5
    labels = torch.full((8,), -1)
    order = 1 + torch.randperm(7, generator=generator)
    labels[order[classes]] = 0  # an ignored class takes part, and may have any share
    labels[order[:classes]] = labels[0] = 1
    present = labels == 1
    bias = em_adapt.adaptive_bias(logits, labels)
    assert torch.isinf(bias[labels == -1]).all() and (bias[present] >= 0).all() and bias[order[classes]] == 0
    won = (logits + bias[:, None]).argmax(dim=0).bincount(minlength=8) / 200
    wanted = torch.where(torch.arange(8) == 0, 0.4, 0.2) * present
    wanted = wanted / max(1.0, wanted.sum().item())  # five classes cannot all have a fifth
    assert (won >= wanted - (0.05 if classes > 2 else 1e-6)).all(), (won, wanted)


def test_labels_with_enough_places_get_no_bias() -> None:
    logits = torch.tensor([[2.0, 2.0, 2.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0, 1.0], [9.0, 9.0, 9.0, 9.0, 9.0]])
    assert em_adapt.adaptive_bias(logits, torch.tensor([1, 1, -1])).tolist() == [0.0, 0.0, -math.inf]
    one_color = torch.zeros(3, 9)
    assert torch.isfinite(em_adapt.adaptive_bias(one_color, torch.tensor([1, 1, 1]))).all()


def test_the_gradient_of_em_adapt_is_that_of_its_labels(maps: torch.Tensor, labels: torch.Tensor) -> None:
    maps.requires_grad_()
    em_adapt.em_loss(maps, labels).backward()
    assert maps.grad is not None
    probs = probabilities(maps.detach())
    for image in range(3):
        logits = log_probabilities(maps.detach())[image].flatten(1)
        won = (logits + em_adapt.adaptive_bias(logits, labels[image])[:, None]).argmax(dim=0).numpy()
        one_hot = np.eye(5)[won].T.reshape(5, 5, 6)
        expected = (probs[image] - one_hot)[1:] / 90  # the mean over 3 x 5 x 6 places
        np.testing.assert_allclose(maps.grad[image].numpy(), expected, atol=1e-6)


# --- ccnn -------------------------------------------------------------------------------------------------------------


def projected(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    bias = ccnn.constraint_bias(logits[None], labels[None], tolerance=1e-6)[0]
    return (logits + bias[:, None]).softmax(dim=0)


@pytest.mark.parametrize("offset", [[0.0, 0.0, 0.0], [4.0, 0.0, 0.0], [-4.0, 0.0, 1.0], [0.0, -8.0, 0.0]])
def test_the_projection_of_ccnn_is_that_of_a_general_solver(offset: list[float]) -> None:
    """KL(p || q) + 2 * sum of xi over 6 places, the background, 2 labels and an ignored class, solved in p and xi."""
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(5, 6, generator=generator).double() + torch.tensor([*offset, 3.0, -1.0]).double()[:, None]
    labels = torch.tensor([1, 1, 1, -1, 0])
    possible = [0, 1, 2, 4]
    q = logits.softmax(dim=0).numpy()[possible]

    def objective(x: np.ndarray) -> float:
        p = x[:24].reshape(4, 6)
        return float((p * np.log(p / q)).sum() / 6 + 2 * x[24:].sum())

    def share(k: int, x: np.ndarray) -> float:
        return float(x[6 * k : 6 * k + 6].mean())

    constraints = [
        {"type": "eq", "fun": lambda x: x[:24].reshape(4, 6).sum(axis=0) - 1},
        {"type": "ineq", "fun": lambda x: share(1, x) - 0.05 + x[24]},
        {"type": "ineq", "fun": lambda x: share(2, x) - 0.05 + x[25]},
        {"type": "ineq", "fun": lambda x: share(0, x) - 0.3},
        {"type": "ineq", "fun": lambda x: 0.7 - share(0, x)},
    ]
    start = np.concatenate([np.full(24, 1 / 4), np.zeros(2)])
    bounds = [(1e-9, 1.0)] * 24 + [(0.0, 1.0)] * 2
    options = {"ftol": 1e-12, "maxiter": 500}
    solved = optimize.minimize(
        objective, start, bounds=bounds, constraints=constraints, method="SLSQP", options=options
    )
    assert solved.success
    ours = projected(logits, labels).numpy()
    np.testing.assert_allclose(ours[possible], solved.x[:24].reshape(4, 6), atol=2e-4)
    assert not ours[3].any()


def test_the_projection_of_ccnn_satisfies_its_constraints(maps: torch.Tensor, labels: torch.Tensor) -> None:
    maps[0, 1] -= 2  # without a constraint, far below its share
    logits = log_probabilities(maps).flatten(2)
    bias = ccnn.constraint_bias(logits, labels)
    p = (logits + bias[:, :, None]).softmax(dim=1)
    shares = p.mean(dim=2)
    assert not shares[labels == -1].any() and shares[labels == 0].all()
    assert not bias[labels == 0].any()
    assert ((shares[:, 0] > 0.3 - 0.01) & (shares[:, 0] < 0.7 + 0.01)).all()
    slack = bias[:, 1:] > ccnn.SLACK - 1e-3  # the price of the constraint is reached
    assert ((shares[:, 1:] > 0.05 - 0.01) | slack | (labels[:, 1:] != 1)).all()
    assert ((bias[:, 1:] < 1e-3) | (shares[:, 1:] < 0.05 + 0.01)).all(), "no more than needed"


def test_the_gradient_of_ccnn_is_q_minus_p(maps: torch.Tensor, labels: torch.Tensor) -> None:
    maps.requires_grad_()
    ccnn.constrained_loss(maps, labels).backward()
    logits = log_probabilities(maps.detach())
    p = (logits + ccnn.constraint_bias(logits.flatten(2), labels)[:, :, None, None]).softmax(dim=1)
    assert maps.grad is not None
    torch.testing.assert_close(maps.grad, (logits.exp() - p)[:, 1:] / 90)


# --- sec --------------------------------------------------------------------------------------------------------------


def test_weighted_rank_pooling_has_its_limits() -> None:
    x = torch.randn(2, 7, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(sec.weighted_rank_pool(x, 0.0), x.amax(dim=1))
    torch.testing.assert_close(sec.weighted_rank_pool(x, 1.0), x.mean(dim=1))
    expected = [sum(0.9**j * v for j, v in enumerate(sorted(row, reverse=True))) for row in x.tolist()]
    total = sum(0.9**j for j in range(7))
    torch.testing.assert_close(sec.weighted_rank_pool(x, 0.9), torch.tensor(expected) / total)


def test_the_losses_of_sec_against_loops(maps: torch.Tensor, labels: torch.Tensor) -> None:
    probs, scale = probabilities(maps), 1681 / 30
    seeds = torch.rand(3, 5, 5, 6, generator=torch.Generator().manual_seed(2)) > 0.9
    seeds[1] = False
    seeding, expanding = [], []
    for image in range(3):
        found = [probs[image][tuple(place)] for place in seeds[image].nonzero().tolist()]
        seeding.append(-np.mean(np.log(found)) if found else 0.0)

        def pooled(c: int, decay: float, of: np.ndarray = probs[image]) -> float:
            weights = [decay ** (scale * j) for j in range(30)]
            ranked = sorted(of[c].ravel(), reverse=True)
            return sum(w * v for w, v in zip(weights, ranked, strict=True)) / sum(weights)

        inside = [math.log(pooled(c, 0.996)) for c in range(1, 5) if labels[image, c] == 1]
        outside = [math.log(1 - max(probs[image, c].ravel())) for c in range(1, 5) if labels[image, c] == -1]
        expanding.append(-np.mean(inside) - np.mean(outside) - math.log(pooled(0, 0.999)))
    log_probs = log_probabilities(maps)
    assert sec.seed_loss(log_probs, seeds.float()).item() == pytest.approx(np.mean(seeding), rel=1e-4)
    assert sec.expand_loss(log_probs.exp(), labels).item() == pytest.approx(np.mean(expanding), rel=1e-4)
    wanted = torch.rand(3, 5, 5, 6, generator=torch.Generator().manual_seed(3)) * (labels[:, :, None, None] == 1)
    wanted /= wanted.sum(dim=1, keepdim=True)
    q, f = wanted.numpy(), probs
    divergence = np.where(q > 0, q * np.log(np.where(q > 0, q, 1) / f), 0).sum(axis=1).mean()
    assert sec.constrain_loss(log_probs, wanted).item() == pytest.approx(divergence, rel=1e-4)
    assert sec.constrain_loss(log_probs, log_probs.exp()).item() == pytest.approx(0, abs=1e-6)


def test_seeds_are_disjoint_and_each_class_has_its_peak() -> None:
    large = torch.tensor([[9.0, 8.0, 3.0, 1.0, -1.0, -2.0, -3.0, -4.0, -5.0, -6.0]])  # seeds: the first three
    small = torch.tensor([[0.0, 7.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -9.0]])  # the second place alone
    weak = torch.tensor([[-8.0, -8.0, -8.0, -8.0, -1.0, -8.0, -8.0, -8.0, -8.0, -8.0]])  # its peak
    seeds = sec.find_seeds(torch.stack([large, small, weak]))[:, 0].int()
    assert seeds[1].tolist() == [1, 0, 1, 0, 0, 0, 0, 0, 0, 0], "the smaller class takes the second place"
    assert seeds[2].nonzero().tolist() == [[1]] and seeds[3].nonzero().tolist() == [[4]]
    assert seeds[0].nonzero().tolist() == [[9]], "a tenth of the places, the lowest"
    placed = sec.place_seeds(seeds[:, None], torch.tensor([0, 2, 3, 5]), 6)
    assert placed.shape == (7, 1, 10) and placed.flatten(1).sum(dim=1).tolist() == [1, 0, 2, 1, 0, 1, 0]


def test_the_crf_of_sec_has_the_labels_of_the_image() -> None:
    generator = torch.Generator().manual_seed(0)
    log_probs = torch.randn(4, 6, 8, generator=generator).log_softmax(dim=0)
    pixels = torch.randint(0, 256, (3, 6, 8), generator=generator, dtype=torch.uint8)
    aligned = sec.sharpened(log_probs, pixels, torch.tensor([0, 2]), CrfParams(iterations=0))
    assert not aligned[[1, 3]].any()
    torch.testing.assert_close(aligned[[0, 2]], log_probs[[0, 2]].softmax(dim=0))
    crf = CrfParams(appearance_sigma_xy=80 / math.sqrt(48 / 187500), smoothness_sigma=3 / math.sqrt(48 / 187500))
    expected = dense_crf(pixels.permute(1, 2, 0).numpy(), log_probs[[0, 2]].softmax(dim=0), CrfParams())
    torch.testing.assert_close(sec.sharpened(log_probs, pixels, torch.tensor([0, 2]), crf)[[0, 2]], expected)


# --- from the command to a model --------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", SEGMENTERS)
def test_each_method_gives_a_model(
    method: str, tiny: Path, shapes_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, flags = tmp_path / "refined", ["--epochs", "1", "--batch-size", "8", "--device", "cpu"]
    if method == "mil-base":
        flags.append("--superpixels")
    if method == "sec":
        flags += ["--label-sizes", "1"]
    assert main(["refine", str(tiny), str(shapes_folder), "--out", str(out), "--method", method, *flags]) == 0
    model = open_model(out)
    trained = model.manifest["trained"]
    assert trained["method"] == method and len(trained["losses"]) == 1 and math.isfinite(trained["losses"][0])
    assert ("label_sizes" in trained) == (method == "sec") and "sharpen" not in trained
    assert model.manifest["prior_sharpness"] == (5.0 if method == "mil-base" else None)
    segmenter = model.load_segmenter()
    assert segmenter is not None and segmenter.prior_sharpness == model.manifest["prior_sharpness"]
    capsys.readouterr()
    assert main(["evaluate", str(out), str(shapes_folder), "--device", "cpu", "--json"]) == 0
    measured = json.loads(capsys.readouterr().out)["segmentation"]
    assert measured["rule"] == "score" and 0 <= measured["miou"] <= 1
    assert ("hindsight" in measured) == (method != "mil-base"), "superpixels run once for every threshold"
    background = json.loads((out / "calibration.json").read_text())["background"]
    assert background["superpixels"] == (method == "mil-base")
    prediction = load(out, "cpu").predict(next(shapes_folder.rglob("*.jpg")))
    assert prediction.mask_params().superpixels == (method == "mil-base")
    assert prediction.mask().shape == (prediction.height, prediction.width)
    assert main(["calibrate", str(out), str(shapes_folder), "--plain", "--device", "cpu"]) == 0
    background = json.loads((out / "calibration.json").read_text())["background"]
    assert background["superpixels"] == (method == "mil-base"), "calibration keeps what the method draws with"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--method", "ccn"], ["there is no method 'ccn' of wildcat refine", "Did you mean ccnn?"]),
        (["--method", "deepmil"], ["there is no method 'deepmil'", "wildcat, mil-fcn, mil-base"]),
        (
            ["--method", "ccnn", "--sharpen", "pamr"],
            ["--sharpen pamr is not a setting of --method ccnn", "belongs to wildcat"],
        ),
        (
            ["--method", "em-adapt", "--label-sizes", "1"],
            ["--label-sizes 1 is not a setting of --method em-adapt", "belongs to wildcat and sec"],
        ),
        (["--superpixels"], ["--superpixels is not a setting of --method wildcat", "belongs to mil-base"]),
        (["--method", "sec", "--rounds", "2"], ["--rounds 2 is not a setting of --method sec"]),
        (["--crops", "4"], ["--crops 4 is not a setting of --method wildcat", "belongs to pronet-cascade"]),
        (["--method", "pronet-cascade", "--tune", "all"], ["--tune all is not a setting of", "and sec."]),
    ],
)
def test_settings_of_other_methods_are_refused(
    flags: list[str], words: list[str], tiny: Path, shapes_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tiny.parent / "refused"
    assert main(["refine", str(tiny), str(shapes_folder), "--out", str(out), *flags]) == 2
    printed, said = capsys.readouterr()
    assert all(word in said for word in words), said
    assert not out.exists() and "Writing" not in printed


@pytest.mark.parametrize("method", OTHERS)
def test_classes_that_exclude_each_other_are_refused(method: str, tiny: Path, shapes: DataSet, tmp_path: Path) -> None:
    run = dataclasses.replace(open_run(tiny), task="multiclass")
    with pytest.raises(ConfigError, match=f"method='{method}' needs a background in every image") as caught:
        refine(run, shapes, tmp_path / "out", RefineConfig(method=method), device="cpu")
    assert "task=multilabel" in caught.value.hint and not (tmp_path / "out").exists()
