"""wildcat push: what is uploaded, the model card, and refusals; against a stand-in of the hub."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

import wildcat
from tests.cli.conftest import command
from tests.hub_server import Hub, Repository
from wildcat.errors import ConfigError, RunError
from wildcat.export.card import model_card
from wildcat.export.hub import GENERATED, push_model
from wildcat.models.calibration import write_calibration
from wildcat.models.folder import open_model, write_cascade, write_ensemble
from wildcat.models.run import open_run
from wildcat.nn.model import Transfer
from wildcat.regions import MaskParams

CARD = f"---\nlicense: mit\n---\n{GENERATED}\n"


@pytest.fixture
def run(tiny: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny, tmp_path / "runs" / "tiny"))


def test_a_run_goes_to_the_hub_and_back(hub: Hub, run: Path, shapes_folder: Path) -> None:
    write_calibration(
        run, open_run(run).classes, MaskParams(gate=0.3), {"data": "d", "split": "s", "images": 1, "masks": 0}
    )
    address, written = push_model(run, "ann/tiny", CARD)
    assert address.startswith(f"{hub.url}/ann/tiny/commit/") and written
    files = hub.files("ann/tiny")
    names = {"config.yaml", "metrics.jsonl", "model.json", "model.safetensors", "calibration.json"}
    assert set(files) == {*names, ".gitattributes", "README.md"}
    assert len(hub.blobs) == 1  # the weights went by LFS
    assert not [name for name, data in files.items() if str(shapes_folder.parent).encode() in data], "a local path"
    image = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    found, expected = (wildcat.load(source, "cpu").predict(image) for source in ("hf://ann/tiny", run))
    np.testing.assert_array_equal(found.class_scores, expected.class_scores)
    assert found.thresholds.tolist() == pytest.approx([0.3] * 5)


def test_an_ensemble_replaces_a_run(hub: Hub, run: Path, tmp_path: Path) -> None:
    hub.lfs = ".nothing"  # everything goes with the commit
    push_model(run, "ann/model", CARD)
    hub.repositories["ann/model"].commits[-1]["notes.txt"] = b"mine"
    other = shutil.copytree(run, tmp_path / "elsewhere" / "other")
    both = write_ensemble(tmp_path / "both", [open_model(run), open_model(other)], None, {}).folder
    push_model(both, "ann/model", CARD)
    files = hub.files("ann/model")
    member = {
        f"members/{n}/{name}"
        for n in (1, 2)
        for name in ("config.yaml", "metrics.jsonl", "model.json", "model.safetensors")
    }
    assert set(files) == {*member, "model.json", "notes.txt", ".gitattributes", "README.md"}
    assert json.loads(files["model.json"])["members"] == ["tiny", "other"]
    image = np.full((40, 40, 3), 99, np.uint8)
    found, expected = (wildcat.load(source, "cpu").predict(image) for source in ("hf://ann/model", both))
    np.testing.assert_array_equal(found.class_maps, expected.class_maps)
    assert len(wildcat.load("hf://ann/model/members/2", "cpu").members) == 1


def test_an_ensemble_with_a_cascade(hub: Hub, run: Path, tmp_path: Path) -> None:
    opened = open_run(run)
    verifier = Transfer(opened.load_model().backbone.num_features, len(opened.classes))
    cascade = write_cascade(tmp_path / "cascade", opened, verifier, 4, 0.7, {})
    both = write_ensemble(tmp_path / "both", [cascade, open_model(run)], None, {}).folder
    push_model(both, "ann/model", CARD)
    image = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    found, expected = (wildcat.load(source, "cpu").predict(image) for source in ("hf://ann/model", both))
    np.testing.assert_array_equal(found.class_scores, expected.class_scores)
    assert found.located and found.located == expected.located
    assert wildcat.load("hf://ann/model/members/1/base", "cpu").cascade is None


def test_paths_do_not_leave_the_machine(hub: Hub, run: Path) -> None:
    manifest = json.loads((run / "model.json").read_text())
    manifest["data"]["options"] = ["classes=/home/ann/classes.txt", "task=multilabel"]
    manifest["launch"] = "ann-laptop:17"
    (run / "model.json").write_text(json.dumps(manifest))
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("weights: none", "weights: /home/ann/secret/first"))
    push_model(run, "ann/tiny", CARD)
    files = hub.files("ann/tiny")
    assert b"/home" not in files["model.json"] + files["config.yaml"] and b"laptop" not in files["model.json"]
    assert json.loads(files["model.json"])["data"]["options"] == ["task=multilabel"]
    assert yaml.safe_load(files["config.yaml"])["weights"] == "first"
    wildcat.load("hf://ann/tiny", "cpu")


def test_a_card_of_the_user_stays(hub: Hub, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("push", run, "ann/tiny") == 0
    assert hub.files("ann/tiny")["README.md"].count(GENERATED.encode()) == 1
    assert command("push", run, "ann/tiny", "--license", "mit") == 0
    assert b"license: mit" in hub.files("ann/tiny")["README.md"]
    hub.repositories["ann/tiny"].commits[-1]["README.md"] = b"# my own"
    capsys.readouterr()
    assert command("push", run, "ann/tiny", "--license", "apache-2.0") == 0
    assert "ann/tiny has a card of your own, which stays as it is" in capsys.readouterr().err
    assert hub.files("ann/tiny")["README.md"] == b"# my own"


def test_the_card(hub: Hub, run: Path, shapes_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("evaluate", run, shapes_folder, "--split", "val", "--device", "cpu", "--json") == 0
    metrics = tmp_path / "val.json"
    metrics.write_text(capsys.readouterr().out)
    result = json.loads(metrics.read_text())
    image = next((shapes_folder / "JPEGImages").iterdir())
    flags = ("--license", "apache-2.0", "--metrics", metrics, "--image", image)
    assert command("push", run, "ann/tiny", *flags) == 0
    card = hub.files("ann/tiny")["README.md"].decode()
    _, header, text = card.split("---\n", 2)
    about = yaml.safe_load(header)
    assert (about["license"], about["library_name"], about["pipeline_tag"]) == (
        "apache-2.0",
        "wildcat",
        "image-classification",
    )
    (entry,) = about["model-index"]
    first = entry["results"][0]
    assert first["dataset"] == {"name": result["data"], "type": "shapes", "split": "val"}
    assert first["metrics"] == [
        {"type": "mAP", "value": round(result["classification"]["map"], 4), "name": "mAP (voc10)"}
    ]
    assert {r["task"]["type"] for r in entry["results"]} == {
        "image-classification",
        "object-detection",
        "image-segmentation",
    }
    for said in (
        'wildcat.load("hf://ann/tiny")',
        "(voc10 AP, %)",
        "22 images for train, 10 images for val",
        "Terms of the data: Drawn by wildcat",
        "Classes | 5: cross, disc, ring, square, triangle",
        "](example.jpg)",
        "During training, mAP (voc10)",
    ):
        assert said in text, said
    example = Image.open(io.BytesIO(hub.files("ann/tiny")["example.jpg"]))
    assert example.size == Image.open(image).size and not example.getexif()


def test_names_in_the_card_are_escaped(run: Path) -> None:
    manifest = json.loads((run / "model.json").read_text())
    manifest["classes"][0] = "<img src=x>|`a`\n# b"
    manifest["data"]["name"] = "[click](http://evil)"
    (run / "model.json").write_text(json.dumps(manifest))
    card = model_card("ann/tiny", open_model(run), wildcat.load(run, "cpu"))
    assert "<img" not in card and "`a`" not in card and "[click]" not in card and "\n# b" not in card
    assert "None were given" not in card and "The author states no licence" in card
    assert "not known to wildcat" in card


def taken(hub: Hub, run: Path) -> None:
    hub.repositories["ann/bert"] = Repository()
    hub.repositories["ann/bert"].commits.append({"pytorch_model.bin": b"x", "README.md": b"mine"})
    push_model(run, "ann/bert", CARD)


def public(hub: Hub, run: Path) -> None:
    hub.repositories["ann/tiny"] = Repository()
    push_model(run, "ann/tiny", CARD, private=True)


def failing_upload(hub: Hub, run: Path) -> None:
    hub.failing["^/lfs/"] = 403
    push_model(run, "ann/tiny", CARD)


@pytest.mark.parametrize(
    ("attempt", "token", "kind", "said"),
    [
        (lambda hub, run: push_model(run, "tiny", CARD), "hf_write", ConfigError, "tiny is no name of a model"),
        (lambda hub, run: push_model(run, "ann/tiny", CARD), "", RunError, "publishing needs a token of the hub"),
        (lambda hub, run: push_model(run, "ann/tiny", CARD), "hf_wrong", RunError, "it refused the token for ann/tiny"),
        (lambda hub, run: push_model(run, "ann/tiny", CARD), "hf_read", RunError, "does not give access to ann/tiny"),
        (lambda hub, run: push_model(run, "bob/tiny", CARD), "hf_write", RunError, "does not give access to bob/tiny"),
        (
            lambda hub, run: push_model(run, "ann/tiny", CARD.replace("mit", "beer")),
            "hf_write",
            ConfigError,
            'does not accept the model card: "license" must be one of',
        ),
        (taken, "hf_write", RunError, "ann/bert holds no wildcat model, but pytorch_model.bin"),
        (public, "hf_write", RunError, "ann/tiny exists and is public"),
        (failing_upload, "hf_write", RunError, "answered 403"),
    ],
)
def test_refusals(
    attempt: Callable[[Hub, Path], object],
    token: str,
    kind: type[Exception],
    said: str,
    hub: Hub,
    run: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(kind) as caught:
        attempt(hub, run)
    assert said in str(caught.value)
    assert "hf_w" not in str(caught.value) and "s3cret" not in str(caught.value) + caplog.text
    assert not [name for name in hub.repositories if "model.json" in hub.files(name)]


def test_a_private_repository(hub: Hub, run: Path) -> None:
    push_model(run, "ann/tiny", CARD, private=True)
    assert hub.repositories["ann/tiny"].private


@pytest.mark.parametrize(
    ("content", "code", "said"),
    [
        ("{", 1, "metrics.json is damaged"),
        ("{}", 2, "metrics.json is not the output of wildcat evaluate --json"),
        (
            '{"data": "", "split": "", "images": 1, "classification": {"map": 1, "ap": {"cat": 1}, "variant": ""}}',
            2,
            "metrics.json is of another model: this one has no class 'cat'",
        ),
    ],
)
def test_other_files_of_metrics_are_refused(
    content: str, code: int, said: str, hub: Hub, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "metrics.json").write_text(content)
    assert command("push", run, "ann/tiny", "--metrics", tmp_path / "metrics.json") == code
    assert said in capsys.readouterr().err
    assert hub.requests == []
