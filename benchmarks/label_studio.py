"""A round trip through Label Studio: label images, train, pre-annotate others, correct them, export, and train again.

    LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED=true LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT=DIR \
    ML_BLOCK_LOCAL_IP=false SSRF_PROTECTION_ENABLED=false label-studio start
    LABEL_STUDIO_API_KEY=... python benchmarks/label_studio.py --url http://localhost:8080 --root DIR \
        --data DIR/VOCdevkit --name "VOC 2012 mini" --out benchmarks/results/label-studio.json

The annotator is the ground truth: the first images of `train` get its classes, and those of `val` get predictions from
`wildcat serve` through Label Studio. A predicted box needs no correction if its IoU with an object of its class is
above 0.5, and no box before it has that object. Both models are measured on the rest of `val`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import requests
from PIL import Image
from script import argument_parser, save_result, settings_of

import wildcat
from wildcat.data import DataSet, Sample, open_dataset
from wildcat.data.dataset import PRESENT
from wildcat.evaluation import evaluate
from wildcat.metrics.wsol import box_iou
from wildcat.serve.task_images import TOKEN

Region = dict[str, Any]


class Project:
    """A project of Label Studio, used through its API."""

    def __init__(self, url: str, classes: Sequence[str], photos: Path) -> None:
        self.url = url.rstrip("/")
        choices = "".join(f'<Choice value="{name}"/>' for name in classes)
        labels = "".join(f'<Label value="{name}"/>' for name in classes)
        config = (
            '<View><Image name="image" value="$image"/>'
            f'<Choices name="classes" toName="image" choice="multiple">{choices}</Choices>'
            f'<RectangleLabels name="box" toName="image">{labels}</RectangleLabels></View>'
        )
        self.id = self.post("projects", title=f"Round trip {time.strftime('%H:%M:%S')}", label_config=config)["id"]
        storage = {"project": self.id, "path": str(photos), "use_blob_urls": True, "regex_filter": ".*jpg"}
        self.post(f"storages/localfiles/{self.post('storages/localfiles', **storage)['id']}/sync")

    def request(self, method: str, path: str, **options: Any) -> requests.Response:
        refresh = {"refresh": os.environ[TOKEN]}
        access = requests.post(f"{self.url}/api/token/refresh/", json=refresh, timeout=60).json()["access"]
        headers = {"Authorization": f"Bearer {access}"}
        response = requests.request(method, f"{self.url}/api/{path}", headers=headers, timeout=300, **options)
        response.raise_for_status()
        return response

    def post(self, path: str, /, **body: Any) -> Any:
        return self.request("POST", path, json=body).json()

    def tasks(self) -> dict[str, Any]:
        """Name of the image -> task, with its predictions."""
        query = f"tasks?project={self.id}&page_size=100000&fields=all"
        found = self.request("GET", query).json()["tasks"]
        return {task["data"]["image"].rpartition("/")[2]: task for task in found}

    def annotate(self, task: Any, classes: Sequence[str], boxes: Sequence[Region]) -> None:
        value = {"from_name": "classes", "to_name": "image", "type": "choices", "value": {"choices": list(classes)}}
        self.post(f"tasks/{task['id']}/annotations", result=[value, *boxes])

    def export(self, path: Path) -> None:
        path.write_bytes(self.request("GET", f"projects/{self.id}/export?exportType=CSV").content)


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--url", required=True, help="address of Label Studio")
    parser.add_argument("--root", type=Path, required=True, help="its LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT")
    parser.add_argument("--data", required=True, help="a VOC devkit")
    parser.add_argument("--name", default="", help="name of the data in tables, for example of a subset")
    parser.add_argument("--labelled", type=int, default=300)
    parser.add_argument("--next", type=int, default=50)
    parser.add_argument(
        "--train", default="--tune head --backbone lite0 --image-size 320", help="flags of wildcat train"
    )
    arguments = parser.parse_args()
    data, root = open_dataset(arguments.data), arguments.root.resolve()
    labelled, val = data.split("train")[: arguments.labelled], data.split("val")
    chosen, rest = val[: arguments.next], val[arguments.next :]
    photos = root / "photos"
    photos.mkdir(exist_ok=True)
    for sample in (*labelled, *chosen):
        shutil.copyfile(str(sample.path), photos / file_of(sample))

    project = Project(arguments.url, data.classes, photos)
    tasks = project.tasks()
    for sample in labelled:
        project.annotate(tasks[file_of(sample)], classes_of(sample, data), ())
    first = train(project, root, "first", arguments.train)
    seconds = pre_annotate(project, first, arguments.url, [tasks[file_of(sample)]["id"] for sample in chosen])
    tasks = project.tasks()
    counts = {"boxes": 0, "boxes_right": 0, "objects": 0, "classes": 0, "classes_right": 0, "classes_missing": 0}
    for sample in chosen:
        task = tasks[file_of(sample)]
        (prediction,) = task["predictions"]
        regions = [region for region in prediction["result"] if region["type"] == "rectanglelabels"]
        right, missing = compare(regions, sample, data)
        said = {c for r in prediction["result"] if r["type"] == "choices" for c in r["value"]["choices"]}
        true = set(classes_of(sample, data))
        counts["boxes"] += len(regions)
        counts["boxes_right"] += len(right)
        counts["objects"] += len(right) + len(missing)
        counts["classes"] += len(said)
        counts["classes_right"] += len(said & true)
        counts["classes_missing"] += len(true - said)
        project.annotate(task, sorted(true), [*right, *missing])
    second = train(project, root, "second", arguments.train)
    held_out = replace(data, readers={"val": lambda: tuple(rest)}, _cache={})
    maps = {}
    for run in (first, second):
        measured = evaluate(wildcat.load(run), held_out, "val", measures=("classification",))
        maps[f"map_{run.name}"] = measured["classification"]["map"]
    settings = settings_of(arguments, without=("url", "root", "name"))
    settings |= {"data": arguments.name or data.name, "held_out": len(rest)}
    save_result(arguments, settings, {**counts, "seconds": round(seconds, 1), **maps})


def file_of(sample: Sample) -> str:
    return Path(str(sample.path)).name


def classes_of(sample: Sample, data: DataSet) -> list[str]:
    return [name for name, label in zip(data.classes, sample.labels, strict=True) if label == PRESENT]


def train(project: Project, root: Path, name: str, flags: str) -> Path:
    """Train on the annotations that the project has now; returns the run."""
    table, run = root / f"{name}.csv", root / "runs" / name
    project.export(table)
    command = [sys.executable, "-m", "wildcat", "train", str(table), "--labels-column", "classes", "--out", str(run)]
    subprocess.run([*command, *flags.split()], check=True)
    return run


def pre_annotate(project: Project, run: Path, url: str, tasks: Sequence[int]) -> float:
    """Connect `wildcat serve` to the project and have it predict the tasks; returns the seconds."""
    command = [sys.executable, "-m", "wildcat", "serve", str(run), "--port", "0", "--label-studio", url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            project.post("ml", project=project.id, url=process.stdout.readline().strip(), title="wildcat")
            start = time.perf_counter()
            selected = {"all": False, "included": list(tasks)}
            project.post(
                f"dm/actions?id=retrieve_tasks_predictions&project={project.id}",
                selectedItems=selected,
                project=project.id,
            )
            return time.perf_counter() - start
        finally:
            process.terminate()


def compare(regions: Sequence[Region], sample: Sample, data: DataSet) -> tuple[list[Region], list[Region]]:
    """The boxes that need no correction, and regions for the objects that no such box has."""
    objects = [(data.classes[i], box) for i, box in zip(sample.box_classes, sample.boxes, strict=True)]
    right = []
    for region in regions:
        value, (name,) = region["value"], region["value"]["rectanglelabels"]
        scale = np.array([region["original_width"], region["original_height"]] * 2) / 100
        box = np.array([value["x"], value["y"], value["x"] + value["width"], value["y"] + value["height"]]) * scale
        ious = [box_iou(box, other).item() if label == name else 0.0 for label, other in objects]
        if max(ious, default=0.0) > 0.5:
            del objects[int(np.argmax(ious))]
            right.append(region)
    with Image.open(sample.path) as image:
        scale = 100 / np.array([*image.size, *image.size])
    missing = []
    for name, box in objects:
        x1, y1, x2, y2 = (box * scale).tolist()
        value = {"x": x1, "y": y1, "width": x2 - x1, "height": y2 - y1, "rotation": 0, "rectanglelabels": [name]}
        missing.append({"from_name": "box", "to_name": "image", "type": "rectanglelabels", "value": value})
    return right, missing


if __name__ == "__main__":
    main()
