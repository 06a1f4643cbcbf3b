"""Write predictions into a folder: predictions.jsonl with a row per image, drawings of them, and an overview."""

from __future__ import annotations

import contextlib
import io
import json
import re
from collections.abc import Collection, Sequence
from io import FileIO
from pathlib import Path
from typing import Self

import numpy as np
from PIL import Image

from wildcat.data.video import VideoFrame
from wildcat.errors import ConfigError, MissingExtra, did_you_mean
from wildcat.export.geo import georeference, write_geo_mask, write_polygons
from wildcat.export.video import OverlayVideo
from wildcat.files import (
    file_name,
    file_names,
    free_name,
    make_parent,
    refuse_existing,
    write_bytes,
    write_json,
    writing,
)
from wildcat.prediction import Prediction
from wildcat.regions.masks import write_mask
from wildcat.viz.colors import apply_colormap, class_palette, unit_range
from wildcat.viz.overlay import draw_point, image_suffix, overlay_heatmap, side_by_side

# What can be written for a prediction in addition to its row.
# overlays: the image with the heatmap and the point of a class; for the frames of a video, one video. heatmaps: the
# coloured heatmap alone, each scaled from its minimum to its maximum. modalities: the image with each of the M maps of
# a class, or with one of them if they are alike, and a grid of them. These are reduced to 16 million pixels. masks: an
# indexed .png of the predicted classes, or a GeoTIFF for a georeferenced image. polygons: GeoJSON of the mask of a
# georeferenced image. arrays: one .npz with raw scores, class maps and modality maps in the network's resolution.
SAVE_KINDS = ("overlays", "heatmaps", "modalities", "masks", "polygons", "arrays")

ROWS = "predictions.jsonl"
LEGEND = "legend.json"  # number on the drawings -> class, where no font has the characters of its name
OVERVIEW, THUMBNAIL = 48, 160  # number of overlays in overview.jpg, and their height in pixels


def parse_save(text: str) -> tuple[str, ...]:
    """Parse a comma-separated list of `SAVE_KINDS`; "none" and "" are empty lists.

    >>> parse_save("overlays,modalities")
    ('overlays', 'modalities')
    """
    kinds = tuple(k.strip() for k in text.split(",") if k.strip() and k.strip() != "none")
    for kind in kinds:
        if kind not in SAVE_KINDS:
            raise ConfigError(
                f"--save {kind}: unknown.",
                did_you_mean(kind, SAVE_KINDS) or f"Choose from: {','.join(SAVE_KINDS)}.",
            )
    return kinds


class PredictionWriter:
    """A context manager that writes predictions into a new folder, one at a time, in bounded memory.

    Each row is appended to `predictions.jsonl` at once, so that a killed process loses no finished row.

    Args:
        folder: must not exist, or be empty.
        save: some of `SAVE_KINDS`.
        classes: classes to draw; empty: the predicted classes of each image, or its most likely one.
        top_k: see `Prediction.to_dict`.

    Raises:
        RunError: the folder exists and is not empty, or cannot be written.
    """

    def __init__(
        self, folder: Path, save: Collection[str] = ("overlays",), classes: Sequence[str] = (), top_k: int = 0
    ) -> None:
        refuse_existing(folder)
        self.folder, self.save, self.classes, self.top_k = folder, save, tuple(classes), top_k
        self.names: dict[str, int] = {}  # see `free_name`
        self.class_files: dict[str, str] = {}
        self.legend: dict[str, str] = {}  # see `Prediction.legend`
        self.thumbnails: list[tuple[Image.Image, str]] = []
        self.video: tuple[str, str, OverlayVideo] | None = None  # of which video; the file, relative to the folder
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            self.rows: FileIO = (folder / ROWS).open("wb", buffering=0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        unused = not self.rows.tell()
        self.rows.close()
        if unused:  # nothing was predicted: the same folder can be given again
            with contextlib.suppress(OSError):
                (self.folder / ROWS).unlink()
                self.folder.rmdir()
        if self.video:
            self.video[2].close()
        if self.legend and not {"overlays", "modalities"}.isdisjoint(self.save):
            write_json(self.folder / LEGEND, self.legend)
        if self.thumbnails and error is None:
            images, captions = zip(*self.thumbnails, strict=True)
            self._write("overview.jpg", _encoded(side_by_side(list(images), list(captions), height=THUMBNAIL), "jpg"))

    def add(self, prediction: Prediction, name: str) -> dict[str, object]:
        """Write one prediction and return its row; `name` is the relative path of the image and names its files."""
        stem = self._unique_stem(Path(name).with_suffix("")) if self.save else ""
        if prediction.classes != tuple(self.class_files):
            self.class_files = file_names(prediction.classes)
            self.legend |= prediction.legend
        drawn = self.classes or prediction.labels or (prediction.top,)
        files: dict[str, object] = {}
        frame = prediction.image if isinstance(prediction.image, VideoFrame) else None
        if "overlays" in self.save and frame:
            files["overlays"] = self._video_frame(prediction, frame, stem, drawn)
        elif "overlays" in self.save:
            overlays = {c: prediction.plot(c) for c in drawn}
            files["overlays"] = {c: self._image(overlay, "overlays", stem, c) for c, overlay in overlays.items()}
            self._add_thumbnail(overlays[drawn[0]], stem)
        if "heatmaps" in self.save:
            files["heatmaps"] = {c: self._image(draw_heatmap(prediction, c), "heatmaps", stem, c) for c in drawn}
        if "modalities" in self.save:
            files["modalities"] = {c: self._modalities(prediction, stem, c) for c in drawn}
        if not {"masks", "polygons"}.isdisjoint(self.save):
            files |= self._masks(prediction, stem)
        if "arrays" in self.save:
            files["arrays"] = self._arrays(prediction, stem)
        row = {**prediction.to_dict(self.top_k), **({"time": frame.time} if frame else {}), "files": files}
        # Lone surrogates (file names that are not Unicode) become JSON escapes.
        self._append(json.dumps(row, ensure_ascii=False).encode(errors="backslashreplace") + b"\n")
        return row

    def _append(self, line: bytes) -> None:
        """Write a line completely, or not at all."""
        with writing(self.folder / ROWS):
            end, rest = self.rows.tell(), memoryview(line)
            try:
                while rest:
                    rest = rest[self.rows.write(rest) :]
            except OSError:
                with contextlib.suppress(OSError):
                    self.rows.truncate(end)
                raise

    def _unique_stem(self, stem: Path) -> str:
        """A relative path inside the folder for the files of an image, numbered if another image has the same name."""
        parts = [file_name(part) for part in stem.parts if part not in ("/", "..", ".")]
        # A folder must not have the name of another image's file: overlays/a/cat.jpg, arrays/a.npz.
        parts = [re.sub(r"\.(?=(jpg|png|npz|tif|mp4|geojson)$)", "_", part, flags=re.IGNORECASE) for part in parts]
        return free_name("/".join(parts) or "image", self.names)

    def _modalities(self, prediction: Prediction, stem: str, name: str) -> list[str]:
        drawn, captions = draw_modalities(prediction, name)
        grid = side_by_side([prediction.load_drawn(), *drawn], ["", *captions], columns=min(5, len(drawn) + 1))
        paths = [self._image(d, "modalities", stem, name, f"-{i + 1}") for i, d in enumerate(drawn)]
        return [*paths, self._image(grid, "modalities", stem, name, "-all")]

    def _video_frame(self, prediction: Prediction, frame: VideoFrame, stem: str, names: Sequence[str]) -> str:
        """Append the heatmap of the first class, and the points of all, to the video of overlays; returns its path."""
        overlay = prediction.plot(names[0])
        scale = np.asarray(overlay.size) / (prediction.width, prediction.height)
        for name in names[1:]:
            label = f"{prediction.drawn_name(name)} {prediction.probabilities[name]:.0%}"
            overlay = draw_point(overlay, scale * prediction.points[name], label)
        self._add_thumbnail(overlay, stem)
        if self.video is None or self.video[0] != frame.file:
            if self.video:
                self.video[2].close()
            relative = f"overlays/{self._unique_stem(Path(stem).parent)}.mp4"
            self.video = (frame.file, relative, OverlayVideo(self.folder / relative, overlay.size, frame.every))
        self.video[2].add(overlay, frame.time)
        return self.video[1]

    def _add_thumbnail(self, overlay: Image.Image, stem: str) -> None:
        """Keep a reduced copy of the first overlays for overview.jpg."""
        if len(self.thumbnails) < OVERVIEW:
            width = max(1, round(overlay.width * THUMBNAIL / overlay.height))
            self.thumbnails.append((overlay.resize((min(width, 4 * THUMBNAIL), THUMBNAIL)), Path(stem).name))

    def _image(self, image: Image.Image, kind: str, stem: str, name: str, ending: str = "") -> str:
        suffix = image_suffix(image)
        return self._write(f"{kind}/{stem}/{self.class_files[name]}{ending}.{suffix}", _encoded(image, suffix))

    def _masks(self, prediction: Prediction, stem: str) -> dict[str, str]:
        """Write the mask as an image, and as polygons; in the coordinates of the image, if it is georeferenced."""
        try:
            where = georeference(prediction.image)
        except MissingExtra:  # masks are images then
            where = None
        mask, files = prediction.mask(), {}
        if "masks" in self.save:
            files["masks"] = self._made(f"masks/{stem}.{'tif' if where else 'png'}")
            path, palette = self.folder / files["masks"], class_palette(min(256, len(prediction.classes) + 1))
            if where:
                write_geo_mask(path, mask, where, prediction.classes, palette)
            else:
                write_mask(path, mask, palette)
        if "polygons" in self.save and where:
            files["polygons"] = self._made(f"polygons/{stem}.geojson")
            named = {
                i: {"class": name, "probability": round(prediction.probabilities[name], 4), "image": prediction.path}
                for i, name in enumerate(prediction.classes, 1)
            }
            write_polygons(self.folder / files["polygons"], mask, where, named)
        return files

    def _arrays(self, prediction: Prediction, stem: str) -> str:
        arrays = {"scores": prediction.class_scores, "class_maps": prediction.class_maps}
        if prediction.modality_maps is not None:
            arrays["modality_maps"] = prediction.modality_maps
        buffer = io.BytesIO()
        np.savez_compressed(buffer, allow_pickle=False, **arrays)
        return self._write(f"arrays/{stem}.npz", buffer.getvalue())

    def _write(self, relative: str, content: bytes) -> str:
        write_bytes(self.folder / self._made(relative), content)
        return relative

    def _made(self, relative: str) -> str:
        """The path of a file in the folder, after making the folders around it."""
        make_parent(self.folder / relative)
        return relative


def draw_heatmap(prediction: Prediction, name: str) -> Image.Image:
    """The heatmap of a class alone, coloured from its minimum to its maximum."""
    return Image.fromarray(apply_colormap(unit_range(prediction.heatmap(name, prediction.drawn_size))))


def draw_modalities(prediction: Prediction, name: str) -> tuple[list[Image.Image], list[str]]:
    """The image with each of the M maps of a class, all on one scale, and a caption for each.

    The caption names the map's share in the regions that decide, see `Prediction.map_shares`. Maps that are alike are
    drawn once.
    """
    maps, image = prediction.modalities(name, prediction.drawn_size), prediction.load_drawn()
    shares, label = prediction.map_shares(name), prediction.drawn_name(name)
    captions = [f"{label} {i}: {share:.0%}" for i, share in enumerate(shares or (), 1)]
    if shares is None:
        captions = [f"{label}: {len(maps)} maps, all alike" if len(maps) > 1 else label]
        maps = maps.mean(axis=0, keepdims=True)
    limits = (float(maps.min()), float(maps.max()))
    return [overlay_heatmap(image, m, prediction.opacity(name), limits=limits) for m in maps], captions


def _encoded(image: Image.Image, suffix: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG" if suffix == "jpg" else "PNG", quality=92)
    return buffer.getvalue()
