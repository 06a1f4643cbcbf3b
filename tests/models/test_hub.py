"""Models of the Hugging Face Hub: hf://user/name is loaded like a model folder; errors are one sentence."""

from __future__ import annotations

import os
import pickle
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import constants

import wildcat
from tests.cli.conftest import command
from tests.hub_server import Hub, Repository
from wildcat.errors import ConfigError, RunError, WildcatError
from wildcat.export.hub import published_files
from wildcat.models.hub import MODEL_FILES, model_folder


@pytest.fixture
def published(hub: Hub, tiny: Path) -> Repository:
    """ann/tiny, with files that are no part of a model folder, and the revision v1."""
    repository = hub.repositories["ann/tiny"] = Repository()
    files = {
        name: value if isinstance(value, bytes) else value.read_bytes() for name, value in published_files(tiny).items()
    }
    repository.commits.append({**files, "README.md": b"# tiny", "state.pt": b"pickled", "base/evil.pkl": b"pickled"})
    repository.tags["v1"] = 1
    return repository


def test_a_model_of_the_hub_predicts_what_its_folder_does(published: Repository, tiny: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    loaded = wildcat.load("hf://ann/tiny", "cpu")
    assert loaded.name == "hf://ann/tiny"
    expected = wildcat.load(tiny, "cpu").predict(image)
    np.testing.assert_array_equal(loaded.predict(image).class_maps, expected.class_maps)


def test_only_the_files_of_a_model_folder_are_downloaded(published: Repository, hub: Hub) -> None:
    folder = model_folder("hf://ann/tiny")
    found = {path.name for path in folder.rglob("*")}
    assert found == {"config.yaml", "metrics.jsonl", "model.json", "model.safetensors"}
    assert not [name for name in MODEL_FILES if not name.endswith((".json", ".jsonl", ".yaml", ".safetensors"))]
    asked = {path.rpartition("/")[2] for method, path in hub.requests if "resolve" in path}
    assert asked == found


def test_weights_are_never_unpickled(published: Repository, tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "executed",)

    published.commits[-1]["model.safetensors"] = pickle.dumps({"transfer.weight": Evil()})
    with pytest.raises(RunError, match=r"model\.safetensors is damaged"):
        wildcat.load("hf://ann/tiny", "cpu")
    assert not (tmp_path / "executed").exists()


def test_revisions(published: Repository) -> None:
    changed = published.commits[-1]["model.json"].replace(b'"disc"', b'"dot"')
    published.commits.append({**published.commits[-1], "model.json": changed})
    assert "dot" in wildcat.load("hf://ann/tiny", "cpu").classes
    for revision in ("v1", published.sha(1)):
        assert "disc" in wildcat.load(f"hf://ann/tiny@{revision}", "cpu").classes
    with pytest.raises(RunError, match="ann/tiny has no revision 'v2'"):
        wildcat.load("hf://ann/tiny@v2")


def test_a_model_that_was_loaded_before_needs_no_connection(
    published: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = model_folder("hf://ann/tiny")
    with socket.create_server(("127.0.0.1", 0)) as closed:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{closed.getsockname()[1]}")
    assert model_folder("hf://ann/tiny") == folder
    with pytest.raises(RunError, match=r"^127.0.0.1:\d+ cannot be reached\.\nCheck the connection, and HF_HUB_OFFLINE"):
        model_folder("hf://ann/other")


def test_commands_take_models_of_the_hub(
    published: Repository, shapes_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = "hf://ann/tiny"
    assert command("evaluate", run, shapes_folder, "--split", "val", "--device", "cpu") == 0
    assert "val, 10 images" in capsys.readouterr().out
    image = next((shapes_folder / "JPEGImages").iterdir())
    out = ("--out", tmp_path / "out", "--report", "--device", "cpu")
    assert command("predict", run, image, *out) == 0
    assert "hf://ann/tiny: 5 classes" in capsys.readouterr().out
    assert (tmp_path / "out" / "report.html").is_file()
    assert command("ensemble", run, run, "--combine", "average", "--out", tmp_path / "both") == 0
    train = ("--epochs", 1, "--image-size", 64, "--workers", 0, "--device", "cpu", "--backbone", "test_resnet")
    assert command("train", shapes_folder, "--out", tmp_path / "next", "--weights", run, *train) == 0
    capsys.readouterr()
    assert command("calibrate", run, shapes_folder) == 1
    assert "hf://ann/tiny is a model of the hub.\n  Thresholds are stored in a model folder" in capsys.readouterr().err
    assert command("push", run, "ann/again") == 1
    assert "hf://ann/tiny is published already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("source", "kind", "said"),
    [
        ("hf://tiny", ConfigError, "hf://tiny is no model of the hub.\nWrite hf://user/name"),
        ("hf://ann/tiny/../..", ConfigError, "hf://ann/tiny/../.. is no model of the hub."),
        ("hf://ann/tiny@", ConfigError, "hf://ann/tiny@ is no model of the hub."),
        ("hf://ann/-tiny", ConfigError, "ann/-tiny cannot be the name of a model."),
        ("hf://ann/tinny", RunError, "there is no model ann/tinny on 127.0.0.1:"),
        ("hf://ann/gpt", RunError, "ann/gpt is not a wildcat model: it has no model.json."),
        ("hf://ann/secret", RunError, "there is no model ann/secret on 127.0.0.1:"),
    ],
)
def test_what_cannot_be_loaded(
    source: str, kind: type[WildcatError], said: str, published: Repository, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.repositories["ann/gpt"] = Repository()
    hub.repositories["ann/gpt"].commits.append({"config.json": b"{}", "model.safetensors": b"70 GB"})
    hub.repositories["ann/secret"] = Repository(private=True)
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(kind) as caught:
        wildcat.load(source)
    assert str(caught.value).startswith(said)
    assert not [path for method, path in hub.requests if path.endswith("safetensors")]


def test_a_private_model_needs_a_token(published: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    published.private = True
    monkeypatch.setenv("HF_TOKEN", "hf_read")
    assert wildcat.load("hf://ann/tiny", "cpu").classes, "also of a token that may only read"
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(RunError, match=r"127.0.0.1:\d+ answered 401 .*: it refused the token for ann/tiny") as caught:
        wildcat.load("hf://ann/tiny")
    assert "hf_wrong" not in str(caught.value)


@pytest.mark.parametrize(("status", "said"), [(500, "answered 500"), (403, "does not give access to ann/tiny")])
def test_a_hub_that_fails(status: int, said: str, published: Repository, hub: Hub) -> None:
    hub.failing["/api/models/ann/tiny"] = status
    with pytest.raises(RunError, match=said):
        wildcat.load("hf://ann/tiny")


def test_a_hub_that_does_not_answer(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wildcat.models.hub.TIMEOUT", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://ann:pass@127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(RunError, match=r"^127.0.0.1:\d+ cannot be reached"):
            wildcat.load("hf://ann/tiny")


def test_the_environment_names_the_hub(published: Repository, hub: Hub, shapes_folder: Path, tmp_path: Path) -> None:
    """As a user has it: settings in environment variables, and a process of its own."""
    image = next((shapes_folder / "JPEGImages").iterdir())
    words = (sys.executable, "-m", "wildcat", "predict", "hf://ann/tiny@v1", str(image), "--device", "cpu")
    settings = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
    done = subprocess.run(words, env={**os.environ, **settings}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "hf://ann/tiny@v1: 5 classes; 1 images" in done.stdout
