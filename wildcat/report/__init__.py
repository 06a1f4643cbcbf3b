"""A report for people: one HTML file with figures, curves and the most telling images, that opens without a network.

`report_split` measures a model on labelled data and shows it; for predictions without labels, fill a `Gallery` and
hand it to `write_report`. The file holds everything itself: images made small, maps as the network's few cells that
a script of its own colours when they come into view.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wildcat.data.dataset import PRESENT, DataSet, label_matrix
from wildcat.errors import ConfigError, RunError
from wildcat.evaluation import class_order, evaluate
from wildcat.files import next_free, remove_leftovers, write_bytes, writing
from wildcat.metrics import ApVariant, confusion_matrix, precision_recall_curve
from wildcat.models.run import MANIFEST, open_run
from wildcat.prediction import Prediction, score_probabilities
from wildcat.predictor import Predictor
from wildcat.progress import SILENT, Progress
from wildcat.report.contents import Contents
from wildcat.report.examples import Example, Gallery, Photo
from wildcat.report.page import make_page

__all__ = [
    "Example",
    "Gallery",
    "Photo",
    "Story",
    "Written",
    "check_limits",
    "check_target",
    "report_split",
    "story_of_run",
    "write_report",
]

EXAMPLES, MAX_MB = 8, 20.0
"""Of each kind and class; of the whole file, in megabytes of 1,000,000 bytes."""


@dataclass(frozen=True)
class Story:
    """Where a model comes from.

    Attributes:
        facts: name -> value, shown under the title.
        notes: what a reader should know before believing a number.
        history: the lines of the run's metrics.jsonl; a packaged model has none.
    """

    facts: Mapping[str, str]
    notes: tuple[str, ...] = ()
    history: Sequence[Mapping[str, Any]] = ()


@dataclass(frozen=True)
class Written:
    """A report on disk: its size, the examples it shows, and those that were chosen and did not fit."""

    path: Path
    bytes: int
    shown: int
    left_out: int


def check_target(path: Path) -> None:
    """Refuse to write a report where something is already; cheap, to be asked before the work.

    Raises:
        RunError: `path` exists.
    """
    if path.exists():
        free = next_free(path.with_suffix("")).with_suffix(path.suffix)
        raise RunError(f"{path} exists and is never overwritten.", f"Give another --out, for example {free}.")


def report_split(
    path: Path,
    predictor: Predictor,
    data: DataSet,
    split: str,
    *,
    variant: ApVariant = "voc10",
    crf: bool = False,
    examples: int = EXAMPLES,
    max_mb: float = MAX_MB,
    story: Story | None = None,
    progress: Progress = SILENT,
) -> Written:
    """Measure a model on a split of a data set and write what it did well and badly into one HTML file.

    Each image is predicted once; of the whole split only scores, points and the chosen examples are held.

    Args:
        crf: sharpen masks with a dense CRF, in the figures and in the images.
        examples: images of each kind (hits, misses, false alarms) and class, at most.
        max_mb: of the file; of images that do not fit, the least telling are left out and counted.
        story: where the model comes from, see `story_of_run`.
        progress: counts images.

    Raises:
        RunError: `path` exists, or cannot be written.
        DataError: the data set's classes are not the model's.
        ImageError: an image cannot be read.
        ConfigError: `max_mb` is too small for the figures alone.
    """
    check_limits(examples, max_mb)
    check_target(path)
    samples = data.split(split)
    order = class_order(predictor, data)
    gallery = Gallery(data.classes, data.task, examples, crf, max_mb)
    scores: list[NDArray[np.float32]] = []

    def watched() -> Iterator[Prediction]:
        stream = predictor.stream([s.path for s in samples], modalities=True)
        for sample, prediction in zip(samples, stream, strict=True):
            scores.append(prediction.class_scores[order])
            gallery.add(prediction, sample)
            yield prediction

    figures = evaluate(predictor, data, split, variant, crf, progress, watched())
    labels, matrix = label_matrix(samples), np.stack(scores)
    ranked = score_probabilities(matrix, data.task) if data.task == "multiclass" else matrix
    confusion = None
    if data.task == "multiclass":
        truth = (labels == PRESENT).argmax(axis=1)
        confusion = confusion_matrix(truth, matrix.argmax(axis=1), len(data.classes))
    story = story or Story({})
    contents = Contents(
        title=f"{_short(predictor.name)} on {data.name}, {split}",
        gallery=gallery,
        facts={
            "Data": f"{data.name}, {split}: {len(samples):,} images, {len(data.classes):,} classes",
            **story.facts,
        },
        notes=story.notes,
        figures=figures,
        curves={c: precision_recall_curve(ranked[:, i], labels[:, i]) for i, c in enumerate(data.classes)},
        confusion=confusion,
        history=story.history,
    )
    return _write(path, contents, max_mb)


def write_report(
    path: Path, gallery: Gallery, title: str, *, max_mb: float = MAX_MB, story: Story | None = None
) -> Written:
    """Write a report of predictions nothing is known of: their images, without figures.

    Raises:
        RunError: `path` exists, or cannot be written.
        ConfigError: `max_mb` is too small for the page alone.

    Example:
        gallery = Gallery(predictor.classes, predictor.task)
        for prediction in predictor.stream(paths):
            gallery.add(prediction)
        write_report(Path("report.html"), gallery, "dog.jpg and others")
    """
    check_limits(gallery.examples, max_mb)
    check_target(path)
    story = story or Story({})
    facts = {"Images": f"{gallery.images:,}", **story.facts}
    return _write(path, Contents(title, gallery, facts, story.notes, history=story.history), max_mb)


def story_of_run(source: str, split: str = "", data: DataSet | None = None, views: str = "") -> Story:
    """Settings and history of a run folder; of a packaged model or an ensemble, its name.

    Args:
        split, data: what it is going to be measured on, to say where those images have served before.
        views: how each image is looked at, where it is not once at the size of training.
    """
    folder = Path(source).expanduser()
    seen = {"Views": views} if views else {}
    if not (folder / MANIFEST).is_file():
        return Story({"Model": _short(source)} | seen)
    run = open_run(folder)
    config, trained = run.config, run.manifest["data"]
    maps = (
        f"M = {config.num_maps}, kmax = {config.kmax:g}, kmin = {config.kmax if config.kmin is None else config.kmin:g}"
    )
    facts = {
        "Model": f"{_short(source)}: {config.backbone}, {config.image_size} px",
        "Pooling": f"{maps}, alpha = {config.alpha:g}",
        "Trained on": f"{trained.get('name', '')}, {config.train_split}, {config.epochs} epochs",
    }
    notes: tuple[str, ...] = ()
    if data is not None and data.name == trained.get("name"):
        if split == config.train_split:
            notes = (f"The model was trained on {split}: these figures say how well it remembers, not how it will do.",)
        elif split == config.val_split:
            notes = (f"The epoch that was kept was chosen on {split}: these figures are a little too good.",)
    return Story(facts | seen, notes, run.history())


def _write(path: Path, contents: Contents, max_mb: float) -> Written:
    page = make_page(contents, max_mb)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path)
    write_bytes(path, page.content)
    return Written(path, len(page.content), page.shown, page.left_out)


def check_limits(examples: int, max_mb: float) -> None:
    """Refuse limits that cannot be met.

    Raises:
        ConfigError: fewer than no examples, or a size that is no size.
    """
    if examples < 0:
        raise ConfigError(f"--examples {examples}: give 0 or more.", "8 is usual.")
    if not 0 < max_mb <= 500:
        raise ConfigError(f"--max-mb {max_mb:g}: give megabytes above 0 and up to 500.", "20 is usual.")


def _short(name: str) -> str:
    """A model's name without the folders above it."""
    return Path(name).name or name
