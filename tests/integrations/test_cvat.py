"""CVAT: annotations of the detection function, and a task annotated by cvat-cli on a stand-in of its server."""

from __future__ import annotations

import io
import json
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
from PIL import Image

from tests.test_predictor import block, colour_finder
from wildcat.errors import ConfigError, MissingExtra, RunError
from wildcat.integrations.cvat import DetectionFunction, create
from wildcat.predictor import load

sdk = pytest.importorskip("cvat_sdk")
cvataa = pytest.importorskip("cvat_sdk.auto_annotation")
masks = pytest.importorskip("cvat_sdk.masks")

TASK = 7
CLASSES = ("disc", "square", "triangle", "cross", "ring")


def context(conf_threshold: float | None = None, conv_mask_to_poly: bool = False) -> Any:
    return SimpleNamespace(frame_name="a.png", conf_threshold=conf_threshold, conv_mask_to_poly=conv_mask_to_poly)


def found(shapes: str, **options: Any) -> list[Any]:
    function = DetectionFunction(colour_finder(), shapes.split(","))
    return function.detect(context(**options), Image.fromarray(block(2, 3)))  # 40 x 20 red pixels at (120, 40)


# --- annotations ------------------------------------------------------------------------------------------------------


def test_each_kind_of_shape_describes_the_same_region() -> None:
    image = Image.fromarray(block(2, 3))
    expected = colour_finder().predict(image).mask() == 1
    rows, columns = np.nonzero(expected)
    box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    (rectangle,), (polygon,), (mask,) = (found(kind) for kind in ("rectangle", "polygon", "mask"))
    assert (rectangle.type.value, rectangle.label_id, rectangle.points) == ("rectangle", 0, box)
    assert polygon.type.value == "polygon"
    x, y = np.asarray(polygon.points).reshape(-1, 2).T
    assert [x.min(), y.min(), x.max(), y.max()] == box
    decoded = masks.decode_mask(mask.points, image_width=image.width, image_height=image.height)
    assert np.array_equal(decoded, expected)
    assert rectangle.score == pytest.approx(colour_finder().predict(image).probabilities["red"], abs=1e-4)


def test_points_tags_and_several_shapes() -> None:
    points, tag = found("points,tag")
    assert points.points == list(colour_finder().predict(block(2, 3)).points["red"])
    assert (points.type.value, points.frame, tag.label_id, tag.frame) == ("points", 0, 0, 0)
    assert [one.type.value for one in found("rectangle,mask")] == ["rectangle", "mask"]


def test_the_threshold_and_the_conversion_of_the_context() -> None:
    assert {one.label_id for one in found("tag", conf_threshold=0.0)} == {0, 1, 2}
    assert found("tag,points,mask", conf_threshold=1.0) == []
    assert [one.type.value for one in found("mask", conv_mask_to_poly=True)] == ["polygon"]


def test_labels_have_the_type_of_a_single_shape() -> None:
    spec = DetectionFunction(colour_finder(), ["mask"]).spec
    assert [(label.id, label.name, label.type) for label in spec.labels] == [
        (0, "red", "mask"),
        (1, "green", "mask"),
        (2, "blue", "mask"),
    ]
    assert {label.type for label in DetectionFunction(colour_finder(), ["mask", "tag"]).spec.labels} == {"any"}


def test_wrong_parameters(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="shapes=rectangel: 'rectangel' is no shape") as caught:
        create("imagenet-lite0", "rectangel")
    assert caught.value.hint == "did you mean rectangle?"
    with pytest.raises(ConfigError, match="Choose from: rectangle, polygon, mask, points, tag"):
        create("imagenet-lite0", "")
    with pytest.raises(RunError, match="there is no model folder"):
        create(str(tmp_path / "no"))
    without = load("imagenet-lite0", "cpu")
    monkeypatch.setattr(type(without), "has_maps", False)
    with pytest.raises(ConfigError, match="imagenet-lite0 gives class scores only"):
        create("imagenet-lite0", "tag,mask", device="cpu")
    assert create("imagenet-lite0", "tag", device="cpu").shapes == ("tag",)
    monkeypatch.setitem(__import__("sys").modules, "cvat_sdk.auto_annotation", None)
    with pytest.raises(MissingExtra, match="cvat-sdk is needed here"):
        create("imagenet-lite0")


# --- the command line -------------------------------------------------------------------------------------------------


class Server(ThreadingHTTPServer):
    """The part of CVAT's API that `cvat-cli task auto-annotate` uses: one task with two images."""

    def __init__(self, images: list[Image.Image], labels: list[dict[str, Any]]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.images, self.labels = images, labels
        self.annotations: list[dict[str, Any]] = []
        self.unknown: list[str] = []

    def answer(self, path: str, query: dict[str, list[str]]) -> Any:
        summary = {"url": self.url, "count": 0}
        if path == "/api/server/about":
            return {"name": "CVAT", "description": "", "version": sdk.__version__, "logo_url": "", "subtitle": ""}
        if path == f"/api/tasks/{TASK}":
            return {
                "id": TASK,
                "name": "task",
                "jobs": {**summary, "completed": 0, "validation": 0},
                "labels": summary,
                "size": len(self.images),
                "data_chunk_size": 36,
                "data_original_chunk_type": "imageset",
                "mode": "annotation",
                "dimension": "2d",
                "organization": None,
                "updated_date": "2026-01-01T00:00:00Z",
            }
        if path == "/api/labels":
            return {"count": len(self.labels), "next": None, "previous": None, "results": self.labels}
        if path == f"/api/tasks/{TASK}/data/meta":
            sizes = [{"width": image.width, "height": image.height} for image in self.images]
            frames = [{**size, "name": f"{n}.png", "related_files": 0} for n, size in enumerate(sizes)]
            end = {"start_frame": 0, "stop_frame": len(frames) - 1, "chunks_updated_date": "2026-01-01T00:00:00Z"}
            return {"size": len(frames), "image_quality": 70, "frames": frames, "deleted_frames": [], **end}
        if path == f"/api/tasks/{TASK}/data" and query.get("type") == ["chunk"]:
            content = io.BytesIO()
            with zipfile.ZipFile(content, "w") as archive:
                for number, image in enumerate(self.images):
                    encoded = io.BytesIO()
                    image.save(encoded, "PNG")
                    archive.writestr(f"{number:06d}.png", encoded.getvalue())
            return content.getvalue()
        return None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        answer = self.server.answer(parts.path.rstrip("/"), parse_qs(parts.query))
        if answer is None:
            self.server.unknown.append(self.path)
        self.reply(404 if answer is None else 200, {"detail": "unknown"} if answer is None else answer)

    def do_PATCH(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.annotations.append({"path": self.path, **body})
        self.reply(200, {"version": 0, "tags": [], "shapes": [], "tracks": []})

    def reply(self, status: int, answer: Any) -> None:
        content = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("content-type", "application/zip" if isinstance(answer, bytes) else "application/json")
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Quiet."""


def label(number: int, name: str, kind: str = "any") -> dict[str, Any]:
    return {
        "id": number,
        "name": name,
        "type": kind,
        "attributes": [],
        "sublabels": [],
        "color": "#ff0000",
        "has_parent": False,
    }


@pytest.fixture
def server(shapes_folder: Path) -> Iterator[Server]:
    paths = sorted((shapes_folder / "JPEGImages").iterdir())[:2]
    running = Server([Image.open(path) for path in paths], [label(100 + i, name) for i, name in enumerate(CLASSES)])
    thread = threading.Thread(target=running.serve_forever, daemon=True)
    thread.start()
    yield running
    running.shutdown()
    running.server_close()
    thread.join()


def auto_annotate(server: Server, run: Path, *arguments: str) -> int:
    """`cvat-cli task auto-annotate`, as a user types it."""
    from cvat_cli.__main__ import main

    line = [
        "--server-host",
        "http://127.0.0.1",
        "--server-port",
        str(server.server_port),
        "task",
        "auto-annotate",
        str(TASK),
    ]
    function = ["--function-module", "wildcat.integrations.cvat", "-p", f"model=str:{run}", "-p", "device=str:cpu"]
    return int(main([*line, *function, *arguments]))


@pytest.fixture(autouse=True)
def account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CVAT_ACCESS_TOKEN", "token")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_cvat_cli_annotates_a_task(server: Server, tiny: Path) -> None:
    assert auto_annotate(server, tiny, "-p", "shapes=str:rectangle,tag") == 0, server.unknown
    (sent,) = server.annotations
    assert sent["path"].rstrip("/") == f"/api/tasks/{TASK}/annotations/?action=create"
    predictor = load(tiny, "cpu")
    for frame, image in enumerate(server.images):
        prediction = predictor.predict(image)
        tags = {tag["label_id"] for tag in sent["tags"] if tag["frame"] == frame}
        assert tags == {100 + CLASSES.index(name) for name in prediction.labels}
        drawn = {shape["label_id"] for shape in sent["shapes"] if shape["frame"] == frame}
        assert drawn <= tags
    assert {shape["type"] for shape in sent["shapes"]} == {"rectangle"}
    assert {one["source"] for one in sent["shapes"] + sent["tags"]} == {"auto"}


def test_a_task_with_other_labels(server: Server, tiny: Path) -> None:
    server.labels = [label(i, name, "polygon") for i, name in enumerate(CLASSES, 1)]
    with pytest.raises(cvataa.BadFunctionError, match="has type 'rectangle' in the function, but 'polygon'"):
        auto_annotate(server, tiny)
    server.labels = [label(1, "disc", "polygon"), label(2, "car")]
    with pytest.raises(cvataa.BadFunctionError, match="is not in dataset"):
        auto_annotate(server, tiny, "-p", "shapes=str:polygon")
    assert not server.annotations, "nothing half-written"
    assert auto_annotate(server, tiny, "-p", "shapes=str:polygon", "--allow-unmatched-labels") == 0
    (sent,) = server.annotations
    assert {shape["label_id"] for shape in sent["shapes"]} <= {1}
