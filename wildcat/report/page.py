"""Evaluate a model, arrange metrics and examples for the template report.html.j2, and write the HTML file.

Class, file and data set names are untrusted: the template escapes every value, the JSON escapes <, > and &, and a
Content-Security-Policy allows only the page's own style and script, by their hashes.
"""

from __future__ import annotations

import base64
import hashlib
import json
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cache, partial
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jinja2 import Environment, StrictUndefined, Template
from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup
from numpy.typing import NDArray

from wildcat._version import __version__
from wildcat.data.dataset import PRESENT, DataSet, label_matrix
from wildcat.errors import ConfigError, RunError
from wildcat.evaluation import GAME_TOLERANCE, evaluate, match_classes, ranked_scores, ranking_task
from wildcat.files import make_parent, next_free, remove_leftovers, write_bytes
from wildcat.metrics import ApVariant, confusion_matrix, precision_recall_curve
from wildcat.models.hub import model_folder
from wildcat.models.manifest import kind_of
from wildcat.models.run import open_run
from wildcat.prediction import Prediction
from wildcat.predictor import Predictor
from wildcat.progress import SILENT, Progress
from wildcat.report.charts import confusion_table, draw_curves, draw_training
from wildcat.report.gallery import Example, Gallery, Kind, printable
from wildcat.viz.colors import encode_colormaps

HEADINGS: dict[Kind, tuple[str, str]] = {
    "hit": ("Highest scores where present", "confident hits"),
    "miss": ("Lowest scores where present", "worst misses"),
    "false positive": ("Highest scores where absent", "false positives"),
    "unlabelled": ("Highest scores", "no ground truth"),
    "remove": ("Labelled, but unlikely", "remove the label?"),
    "add": ("Likely, but not labelled", "add the label?"),
}


@dataclass(frozen=True)
class ModelInfo:
    """What the report says about the model.

    Attributes:
        facts: name -> value, shown under the title.
        notes: warnings for the reader of the metrics.
        history: rows of the run's metrics.jsonl; empty for packaged models and ensembles.
    """

    facts: Mapping[str, str]
    notes: tuple[str, ...] = ()
    history: Sequence[Mapping[str, Any]] = ()


class TableImage(NamedTuple):
    """An image in a cell of a `Table`: its data URL, and its text for screen readers."""

    src: str
    alt: str


class Table(NamedTuple):
    """A section of a report with a table.

    Attributes:
        key: of the section, for links.
        rows: texts and images; headings: of the columns.
    """

    key: str
    title: str
    text: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str | TableImage]]


@dataclass(frozen=True)
class ReportFile:
    """A written report: path, size in bytes, number of examples shown, and of those that exceeded `max_mb`."""

    path: Path
    bytes: int
    shown: int
    left_out: int


def report_split(
    path: Path,
    predictor: Predictor,
    data: DataSet,
    split: str,
    *,
    variant: ApVariant = "voc10",
    examples: int = 8,
    max_mb: float = 20.0,
    info: ModelInfo | None = None,
    progress: Progress = SILENT,
) -> ReportFile:
    """Evaluate a model on a split of a data set and write its metrics, hits and misses into one HTML file.

    Predicts each image once; keeps the scores and points of all images, and the maps of the examples only.

    Args:
        examples: maximum number of images per kind (hits, misses, false positives) and class.
        max_mb: maximum size of the file; the lowest-ranked examples of each class are left out first.
        info: see `model_info`.

    Raises:
        RunError: `path` exists, or cannot be written.
        DataError: the data set has none of the model's classes.
        ImageError: an image cannot be read.
        ConfigError: `max_mb` is too small for the page without images.
    """
    data = match_classes(predictor, data)
    gallery = Gallery(data.classes, ranking_task(predictor.task, data), examples, max_mb)
    check_target(path)
    samples = data.split(split)
    scores: list[NDArray[np.float32]] = []

    def predictions() -> Iterator[Prediction]:
        stream = predictor.stream([s.path for s in samples], modalities=True)
        for sample, prediction in zip(samples, stream, strict=True):
            scores.append(prediction.class_scores)
            gallery.add(prediction, sample)
            yield prediction

    metrics = evaluate(predictor, data, split, variant, progress=progress, predictions=predictions())
    labels, all_scores, confusion = label_matrix(samples), np.stack(scores), None
    if data.task == "multiclass":
        truth = (labels == PRESENT).argmax(axis=1)
        confusion = confusion_table(confusion_matrix(truth, all_scores.argmax(axis=1), len(data.classes)))
    ranked = ranked_scores(all_scores, predictor.task, data)
    curves = {c: precision_recall_curve(ranked[:, i], labels[:, i]) for i, c in enumerate(data.classes)}
    facts = {"Data": f"{data.name}, {split}: {len(samples):,} images, {len(data.classes):,} classes"}
    context = {
        "title": f"{_short(predictor.name)} on {data.name}, {split}",
        "metrics": metrics,
        "curves": draw_curves(curves, metrics["classification"]["ap"]),
        "confusion": confusion,
    }
    info = info or ModelInfo({})
    info = replace(info, notes=(*info.notes, *data.notes, *metrics.get("notes", ())))
    return _write(path, gallery, context, facts, info)


def write_report(
    path: Path, gallery: Gallery, title: str, info: ModelInfo | None = None, tables: Sequence[Table] = ()
) -> ReportFile:
    """Write a report of predictions without metrics: their images, and before them `tables`.

    Raises:
        RunError: `path` exists, or cannot be written.
        ConfigError: `gallery.max_mb` is too small for the page without images.

    Example:
        gallery = Gallery(predictor.classes, predictor.task)
        for prediction in predictor.stream(paths):
            gallery.add(prediction)
        write_report(Path("report.html"), gallery, "dog.jpg and others")
    """
    check_target(path)
    context: dict[str, Any] = {"title": title, "metrics": None, "curves": [], "confusion": None, "tables": tables}
    return _write(path, gallery, context, {"Images": f"{gallery.images:,}"}, info)


def check_target(path: Path) -> None:
    """Check that a report can be written to `path`.

    Raises:
        RunError: `path` exists.
    """
    if path.exists():
        raise RunError(
            f"{path} exists and is never overwritten.", f"Give another --out, for example {next_free(path)}."
        )


def model_info(source: str, split: str = "", data: DataSet | None = None, views: str = "") -> ModelInfo:
    """Settings and training history of a run folder; for a packaged model or an ensemble, its name.

    Args:
        split, data: the images of the report; adds a note if the model was trained or selected on them.
        views: test-time augmentation in words; empty for a single view at the training size.
    """
    folder = model_folder(source)
    extra = {"Views": views} if views else {}
    if kind_of(folder) != "run":
        return ModelInfo({"Model": _short(source)} | extra)
    run = open_run(folder)
    config, trained_on = run.config, run.manifest["data"].get("name", "")
    kmin = config.kmax if config.kmin is None else config.kmin
    facts = {
        "Model": f"{_short(source)}: {config.backbone}, {config.image_size} px",
        "Pooling": config.head
        or f"M = {config.num_maps}, kmax = {config.kmax:g}, kmin = {kmin:g}, alpha = {config.alpha:g}",
        "Trained on": f"{trained_on}, {config.train_split}, {config.epochs} epochs",
    }
    notes: tuple[str, ...] = ()
    if data is not None and data.name == trained_on:
        if split == config.train_split:
            notes = (f"The model was trained on {split}: these metrics do not predict its accuracy on new images.",)
        elif split == config.val_split:
            notes = (f"The best epoch was chosen on {split}: these metrics are slightly optimistic.",)
    return ModelInfo(facts | extra, notes, run.history())


def _write(
    path: Path, gallery: Gallery, context: dict[str, Any], facts: Mapping[str, str], info: ModelInfo | None
) -> ReportFile:
    """Render the page with as many examples as fit into `gallery.max_mb` megabytes, and write it."""
    info = info or ModelInfo({})
    context |= {
        "tables": context.get("tables", ()),
        "facts": {**facts, **info.facts},
        "notes": info.notes,
        "training": draw_training(info.history),
    }
    ranked, budget = _by_rank(gallery), int(gallery.max_mb * 1e6)

    def render(count: int) -> bytes:
        return _render(gallery, context, ranked[:count], len(ranked) - count)

    count = len(ranked)
    page = render(count)
    if len(page) > budget:
        count = bisect_right(range(count), budget, key=lambda n: len(render(n))) - 1
        if count < 0:
            size = len(render(0)) / 1e6
            raise ConfigError(
                f"--max-mb {gallery.max_mb:g}: the page without images takes {size:.2f} MB.",
                f"Give at least {1.2 * size + 0.01:.2f}.",
            )
        page = render(count)
    make_parent(path)
    remove_leftovers(path)
    write_bytes(path, page)
    return ReportFile(path, len(page), count, len(ranked) - count)


def _by_rank(gallery: Gallery) -> list[Example]:
    """All examples: the first of each kind and class, then the second of each, ..."""
    lists = [gallery.examples_of(name, kind) for kind in HEADINGS for name in gallery.classes]
    longest = max((len(examples) for examples in lists), default=0)
    return [examples[i] for i in range(longest) for examples in lists if i < len(examples)]


def _render(gallery: Gallery, context: Mapping[str, Any], examples: Sequence[Example], left_out: int) -> bytes:
    """The page with these examples, as UTF-8 HTML."""
    style = _asset("wildcat.report", "report.css")
    script = _asset("wildcat.viz", "static/maps.js") + _asset("wildcat.report", "report.js")
    classes, cards = _classes(gallery, examples, labelled=context["metrics"] is not None)
    images = {id(card.image): card.image for card in cards}
    number = {key: i for i, key in enumerate(images)}
    store = {
        "colormaps": encode_colormaps() if cards else {},
        "images": [vars(image) for image in images.values()],
        "cards": [vars(c) | {"image": number[id(c.image)], "description": c.description} for c in cards],
    }
    page = _template().render(
        **context,
        gallery=gallery,
        headings=HEADINGS,
        game_tolerance=GAME_TOLERANCE,
        classes=classes,
        shown=len(cards),
        images=len(images),
        left_out=left_out,
        style=Markup(style),  # noqa: S704  # files of this package
        style_hash=_hash(style),
        script=Markup(script),  # noqa: S704
        script_hash=_hash(script),
        store=htmlsafe_json_dumps(store, partial(json.dumps, separators=(",", ":"), allow_nan=False)),
        version=__version__,
        now=f"{datetime.now(UTC):%Y-%m-%d %H:%M}",
    )
    return page.encode()


@cache
def _template() -> Template:
    environment = Environment(autoescape=True, finalize=_finalize, undefined=StrictUndefined, trim_blocks=True)
    environment.filters |= {"percent": _percent, "thousands": "{:,}".format}
    return environment.from_string(_asset("wildcat.report", "report.html.j2"))


def _asset(package: str, name: str) -> str:
    return files(package).joinpath(name).read_text(encoding="utf-8")


def _hash(content: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}"


def _finalize(value: object) -> object:
    """Every value of the template passes through here before it is escaped."""
    return value if isinstance(value, Markup) else printable(str(value))


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"  # noqa: RUF001  # an en dash: undefined


def _short(name: str) -> str:
    """A model's name without its parent folders."""
    return Path(name).name or name


def _classes(
    gallery: Gallery, examples: Sequence[Example], labelled: bool
) -> tuple[list[tuple[int, str, list[Any]]], list[Example]]:
    """(number, name, rows of examples) of each class, and all examples in the order of the page.

    Without ground truth, only classes that were predicted, the most frequent first. A row is a kind, and the examples
    with their positions in the second list.
    """
    chosen = {id(example) for example in examples}
    order = list(enumerate(gallery.classes))
    if not labelled:
        order = [(i, name) for i, name in order if gallery.shown_without_truth(name)]
        order.sort(key=lambda pair: -gallery.shown_without_truth(pair[1]))
    classes: list[tuple[int, str, list[Any]]] = []
    cards: list[Example] = []
    for i, name in order:
        rows = []
        for kind in HEADINGS:
            if shown := [example for example in gallery.examples_of(name, kind) if id(example) in chosen]:
                rows.append((kind, list(enumerate(shown, len(cards)))))
                cards += shown
        classes.append((i, name, rows))
    return classes, cards
