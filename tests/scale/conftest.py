"""A tiny trained run, and images to put into shards and tables."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wildcat.cli import main
from wildcat.data import write_shapes


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("bulk")
    data = write_shapes(folder / "shapes", train=10, val=5, size=(40, 60))
    tiny = "--backbone test_resnet --weights none --image-size 32 --workers 0 --device cpu --batch-size 8 --epochs 1"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WILDCAT_CACHE", str(folder / "cache"))
        assert main(["train", str(data), "--out", str(folder / "tiny"), *tiny.split()]) == 0
        yield folder / "tiny"


def png(seed: int, size: tuple[int, int] = (24, 16)) -> bytes:
    """An image of noise that follows from its seed."""
    buffer = io.BytesIO()
    noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(noise).save(buffer, "PNG")
    return buffer.getvalue()


def shard(path: Path, members: Mapping[str, bytes | tarfile.TarInfo]) -> Path:
    """A tar with the members, in their order: contents, or headers without any."""
    with tarfile.open(path, "w") as file:
        for name, content in members.items():
            info = content if isinstance(content, tarfile.TarInfo) else tarfile.TarInfo(name)
            if isinstance(content, bytes):
                info.size = len(content)
            file.addfile(info, io.BytesIO(content) if isinstance(content, bytes) else None)
    return path
