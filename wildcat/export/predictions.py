"""A folder of predictions: `predictions.jsonl`, one image a line, the images asked for, and an overview of them."""

from __future__ import annotations

import contextlib
import io
import json
import re
from collections.abc import Collection, Sequence
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from PIL import Image

from wildcat.errors import ConfigError, did_you_mean
from wildcat.files import refuse_existing, write_bytes, writing
from wildcat.prediction import Prediction, file_name, file_names, free_name, image_suffix
from wildcat.regions.masks import write_mask
from wildcat.viz.colors import apply_colormap, class_palette, unit_range
from wildcat.viz.overlay import overlay_heatmap, side_by_side

SAVE_KINDS = ("overlays", "heatmaps", "modalities", "masks", "arrays")
"""What can be written of a prediction beside its line.

overlays: the image under the heatmap, with the point. heatmaps: the heatmap alone, coloured, each map from its own
lowest to its highest value. Both are reduced where they would have more than 16 million pixels. modalities: the image
under each of the M maps of a class, and all M side by side. masks: an indexed .png of the predicted classes. arrays:
one .npz with the raw scores, class maps and modality maps in the network's resolution.
"""

ROWS = "predictions.jsonl"

OVERVIEW, THUMBNAIL = 48, 160
"""How many of the first overlays overview.jpg shows, and how high in pixels."""


def parse_save(text: str) -> tuple[str, ...]:
    """The kinds named in a comma-separated list; "none" or nothing is no kind.

    Raises:
        ConfigError: an unknown kind.

    >>> parse_save("overlays,modalities")
    ('overlays', 'modalities')
    """
    kinds = tuple(k.strip() for k in text.split(",") if k.strip() and k.strip() != "none")
    for kind in kinds:
        if kind not in SAVE_KINDS:
            raise ConfigError(
                f"there is nothing called {kind!r} to save.",
                did_you_mean(kind, SAVE_KINDS) or f"Give some of: {','.join(SAVE_KINDS)}.",
            )
    return kinds


class PredictionWriter:
    """Writes predictions into a new folder, one at a time, in bounded memory.

    Lines are appended to `predictions.jsonl` as they come, so that what is done is on disk if the process dies.

    Raises:
        RunError: the folder exists and is not empty, or cannot be written.
    """

    def __init__(
        self, folder: Path, save: Collection[str] = ("overlays",), classes: Sequence[str] = (), crf: bool = False
    ) -> None:
        refuse_existing(folder)
        self.folder, self.save, self.classes, self.crf = folder, save, tuple(classes), crf
        self.taken: dict[str, int] = {}
        self.class_files: dict[str, str] = {}
        self.thumbnails: list[tuple[Image.Image, str]] = []
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            self.rows: FileIO = (folder / ROWS).open("wb", buffering=0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.rows.close()
        if self.thumbnails and error is None:
            images, captions = zip(*self.thumbnails, strict=True)
            self._write("overview.jpg", _encoded(side_by_side(list(images), list(captions), height=THUMBNAIL), "jpg"))

    def add(self, prediction: Prediction, name: str) -> dict[str, object]:
        """Write one prediction; `name` is the image's relative path and names its files. Returns its row."""
        stem = self._unique(Path(name).with_suffix(""))
        if prediction.classes != tuple(self.class_files):
            self.class_files = file_names(prediction.classes)
        drawn = self.classes or prediction.labels or (prediction.top,)
        files: dict[str, object] = {}
        if "overlays" in self.save:
            overlays = {c: prediction.plot(c) for c in drawn}
            files["overlays"] = {c: self._image(overlay, "overlays", stem, c) for c, overlay in overlays.items()}
            self._remember(overlays[drawn[0]], stem)
        if "heatmaps" in self.save:
            files["heatmaps"] = {c: self._image(_heat(prediction, c), "heatmaps", stem, c) for c in drawn}
        if "modalities" in self.save:
            files["modalities"] = {c: self._modalities(prediction, stem, c) for c in drawn}
        if "masks" in self.save:
            files["masks"] = self._mask(prediction, stem)
        if "arrays" in self.save:
            files["arrays"] = self._arrays(prediction, stem)
        row = {**prediction.to_dict(), "files": files}
        # A file name that is not Unicode is written as JSON escapes, which read back as Python knows the name.
        self._append(json.dumps(row, ensure_ascii=False).encode(errors="backslashreplace") + b"\n")
        return row

    def _append(self, line: bytes) -> None:
        """Write a line, all of it or nothing."""
        with writing(self.folder / ROWS):
            whole, rest = self.rows.tell(), memoryview(line)
            try:
                while rest:
                    rest = rest[self.rows.write(rest) :]
            except OSError:
                with contextlib.suppress(OSError):
                    self.rows.truncate(whole)
                raise

    def _unique(self, stem: Path) -> str:
        """`stem` inside the folder, numbered where another image has the name."""
        parts = [file_name(part) for part in stem.parts if part not in ("/", "..", ".")]
        # A folder must not have the name of a file that another image brings: overlays/a/cat.jpg, arrays/a.npz.
        parts = [re.sub(r"\.(?=(jpg|png|npz)$)", "_", part, flags=re.IGNORECASE) for part in parts]
        return free_name("/".join(parts) or "image", self.taken)

    def _modalities(self, prediction: Prediction, stem: str, name: str) -> list[str]:
        maps = prediction.modalities(name, prediction.drawn_size)
        image = prediction.load_drawn()
        # One scale for all M maps, so that the strongest modality looks strongest.
        limits = (float(maps.min()), float(maps.max()))
        drawn = [overlay_heatmap(image, m, prediction.opacity(name), limits=limits) for m in maps]
        captions = [f"{name} {i + 1}" for i in range(len(drawn))]
        sheet = side_by_side([image, *drawn], ["", *captions], columns=min(5, len(drawn) + 1))
        named = [*((d, f"-{i + 1}") for i, d in enumerate(drawn)), (sheet, "-all")]
        return [self._image(d, "modalities", stem, name, which) for d, which in named]

    def _remember(self, overlay: Image.Image, stem: str) -> None:
        """Keep a small copy of the first overlays for overview.jpg."""
        if len(self.thumbnails) < OVERVIEW:
            width = max(1, round(overlay.width * THUMBNAIL / overlay.height))
            self.thumbnails.append((overlay.resize((min(width, 4 * THUMBNAIL), THUMBNAIL)), Path(stem).name))

    def _image(self, image: Image.Image, kind: str, stem: str, name: str, which: str = "") -> str:
        suffix = image_suffix(image)
        return self._write(f"{kind}/{stem}/{self.class_files[name]}{which}.{suffix}", _encoded(image, suffix))

    def _mask(self, prediction: Prediction, stem: str) -> str:
        relative = f"masks/{stem}.png"
        path = self.folder / relative
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_mask(path, prediction.mask(self.crf), class_palette(min(256, len(prediction.classes) + 1)))
        return relative

    def _arrays(self, prediction: Prediction, stem: str) -> str:
        arrays = {"scores": prediction.class_scores, "class_maps": prediction.class_maps}
        if prediction.modality_maps is not None:
            arrays["modality_maps"] = prediction.modality_maps
        buffer = io.BytesIO()
        np.savez_compressed(buffer, allow_pickle=False, **arrays)
        return self._write(f"arrays/{stem}.npz", buffer.getvalue())

    def _write(self, relative: str, content: bytes) -> str:
        path = self.folder / relative
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, content)
        return relative


def _heat(prediction: Prediction, name: str) -> Image.Image:
    return Image.fromarray(apply_colormap(unit_range(prediction.heatmap(name, prediction.drawn_size))))


def _encoded(image: Image.Image, suffix: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG" if suffix == "jpg" else "PNG", quality=92)
    return buffer.getvalue()
