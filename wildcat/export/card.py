"""The model card of a published model: what it is, its data, metrics and limits, as README.md of the hub."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined, Template

from wildcat.data.sources import licence_of
from wildcat.export.hub import GENERATED
from wildcat.models.folder import Model
from wildcat.prediction import Prediction
from wildcat.predictor import Predictor

SHOWN_CLASSES = 100  # in the table of a card
KINDS = {
    "run": "one network",
    "refined": "a network, and a segmenter that computes its class maps",
    "cascade": "a network, and a second classifier that verifies crops",
}


def model_card(
    repo: str,
    model: Model,
    predictor: Predictor,
    evaluations: Sequence[tuple[Mapping[str, Any], str]] = (),
    license: str | None = None,
    example: Prediction | None = None,
) -> str:
    """The text of README.md, with metadata as the hub reads it.

    Args:
        repo: "user/name".
        evaluations: results of `wildcat.evaluation.evaluate`, each with its table as text.
        license: of the model, by the hub's name for it, such as "apache-2.0".
        example: what example.jpg shows.
    """
    run, name = model.runs[0], repo.rpartition("/")[2]
    shown = None
    if example is not None:
        shown = f"{_plain(example.top)} {example.probabilities[example.top]:.0%}: its heatmap and point"
    return _header(name, license, evaluations) + _template().render(
        generated=GENERATED,
        name=name,
        repo=repo,
        gives="a score, a point, boxes, a heatmap and a mask" if predictor.has_maps else "a score",
        has_maps=predictor.has_maps,
        example=shown,
        facts=_facts(model, predictor),
        data=_data(run.manifest["data"]),
        tables=[table for _, table in evaluations],
        validation=_validation(model),
        limits=_limits(predictor),
        license=license,
    )


def _header(name: str, license: str | None, evaluations: Sequence[tuple[Mapping[str, Any], str]]) -> str:
    from huggingface_hub import EvalResult, ModelCardData  # noqa: PLC0415  # slow

    results = []
    for found, _ in evaluations:
        variant = found["classification"]["variant"]
        metrics = [("image-classification", "mAP", f"mAP ({variant})", found["classification"]["map"])]
        metrics.append(("image-classification", "accuracy", "accuracy", found["classification"].get("accuracy")))
        if pointing := found.get("pointing"):
            metrics.append(("object-detection", "mAP", f"point mAP ({pointing['variant']})", pointing["map"]))
        if masks := found.get("segmentation"):
            metrics.append(("image-segmentation", "mean_iou", "mean IoU", masks["miou"]))
        results += [
            EvalResult(
                task_type=task,
                dataset_type=_slug(found["data"]),
                dataset_name=found["data"],
                dataset_split=found["split"],
                metric_type=metric,
                metric_name=title,
                metric_value=round(value, 4),
            )
            for task, metric, title, value in metrics
            if value is not None
        ]
    data = ModelCardData(
        license=license,
        library_name="wildcat",
        pipeline_tag="image-classification",
        tags=["wildcat", "image-classification", "weakly-supervised", "object-localization", "image-segmentation"],
        model_name=name if results else None,
        eval_results=results or None,
    )
    return f"---\n{data.to_yaml()}\n---\n"


def _facts(model: Model, predictor: Predictor) -> dict[str, str]:
    kind = KINDS.get(model.kind, f"{len(model.runs)} networks, scores combined: {model.manifest.get('combine')}")
    networks = []
    for run in model.runs:
        config = run.config
        head = config.head or f"{config.pooling}, M = {config.num_maps}"
        networks.append(f"{config.backbone}, {config.image_size} px, {head}")
    classes = ", ".join(_plain(c) for c in predictor.classes[:SHOWN_CLASSES])
    more = len(predictor.classes) - SHOWN_CLASSES
    record = predictor.calibration.record if predictor.calibration else None
    fitted = f"fitted on {record['images']} images of {_plain(record['data'])} {record['split']}" if record else ""
    return {
        "Kind": kind,
        "Network" + "s" * (len(networks) > 1): "; ".join(networks),
        "Task": "one class per image" if predictor.task == "multiclass" else "any number of classes per image",
        "Classes": f"{len(predictor.classes)}: {classes}{f' and {more} more' if more > 0 else ''}",
        "Thresholds": fitted or "the defaults",
        "Trained with": f"wildcat {model.manifest['versions']['wildcat']}",
    }


def _data(recorded: Mapping[str, Any]) -> list[str]:
    images = recorded.get("images") or {}
    counts = ", ".join(f"{count} images for {use}" for use, count in images.items() if count)
    name = str(recorded.get("name") or "")
    return [
        f"Trained on {_plain(name) or 'data without a name'}{f': {counts}' if counts else ''}.",
        f"Terms of the data: {licence_of(name) or 'not known to wildcat; ask the author.'}",
    ]


def _validation(model: Model) -> str:
    """The metric by which the best epoch of a run was chosen; empty without one."""
    best = [row for row in model.runs[0].history() if row.get("best") and row.get("val")]
    if model.kind != "run" or not best:
        return ""
    name = "accuracy" if "accuracy" in best[-1]["val"] else "map"
    value, title = best[-1]["val"].get(name), "accuracy" if name == "accuracy" else "mAP (voc10)"
    split = model.runs[0].config.val_split
    chosen = "the best epoch was chosen on these images, so that it is slightly optimistic"
    return "" if value is None else f"During training, {title} {100 * value:.1f} % on {split}; {chosen}."


def _limits(predictor: Predictor) -> list[str]:
    limits = ["Metrics and thresholds hold for images like those it was trained on; measure it on yours."]
    if predictor.task == "multiclass":
        limits.append("One class is always predicted, also for an image that shows none of them.")
    if predictor.has_maps:
        limits += [
            "Heatmaps are highest on what tells a class from the others, which may be a part of an object.",
            "Objects of the same class that touch become one region, with one box.",
        ]
    return limits


def _plain(text: str) -> str:
    """A name without characters that Markdown and HTML read as their own."""
    return "".join(" " if c in "\n\r" else c if c.isalnum() or c in " ,.:;()+-/%&'" else f"&#{ord(c)};" for c in text)


def _slug(text: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in text.lower()).strip("-") or "data"


@cache
def _template() -> Template:
    environment = Environment(undefined=StrictUndefined, trim_blocks=True, autoescape=False)  # noqa: S701  # Markdown
    return environment.from_string(files("wildcat.export").joinpath("card.md.j2").read_text(encoding="utf-8"))
