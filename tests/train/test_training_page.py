"""The commands of docs/guides/training.md run as written; two processes with the environment of torchrun replace it."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import timm
from PIL import Image

from tests.train.processes import run_processes
from wildcat.cli import main
from wildcat.models.run import open_run

GUIDES = Path(__file__).resolve().parents[2] / "docs" / "guides"

TINY = "--image-size 32 --epochs 1 --workers 0 --device cpu --batch-size 8"


def block_with(page: str, language: str, word: str) -> str:
    """The code block of a guide that contains `word`."""
    blocks = re.findall(rf"```{language}\n(.*?)```", (GUIDES / page).read_text(encoding="utf-8"), flags=re.DOTALL)
    return next(block for block in blocks if word in block)


def run_in(folder: Path, words: list[str]) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return main(words)


def test_the_commands_of_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    network = timm.create_model("test_vit", num_classes=0, img_size=32)  # without batch normalisation
    safetensors.torch.save_file(network.state_dict(), tmp_path / "vit.safetensors")
    rng = np.random.default_rng(0)
    for i in range(24):
        path = tmp_path / "images" / ("cat" if i % 2 else "dog") / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(60, 255, (40, 48, 3), dtype=np.uint8) // (1 + i % 2)).save(path)
    exec(compile(block_with("images.md", "python", "write_webdataset"), "images.md", "exec"), {})
    block = block_with("training.md", "sh", "torchrun")
    tiny = [*TINY.split(), "--backbone", "test_vit", "--weights", str(tmp_path / "vit.safetensors")]
    for number, command in enumerate(block.strip().splitlines()):
        words = shlex.split(command, comments=True)
        launcher, words = words[: words.index("wildcat")], words[words.index("wildcat") + 1 :]
        words += tiny if words[0] == "train" else ["--device", "cpu"]
        if launcher:
            assert launcher[:3] == ["torchrun", "--nproc-per-node", "2"]
            assert launcher[-1] == "-m"
            codes = run_processes(2, tmp_path / f"{number}", run_in, tmp_path, words, joined=False)
            assert codes == [0, 0], command
        else:
            assert main(words) == 0, command
    one, two = (open_run(tmp_path / "runs" / name).history()[0] for name in ("one", "two"))
    assert two["loss"] == pytest.approx(one["loss"], rel=1e-4)
