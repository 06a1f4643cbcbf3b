"""Write the findings of an audit: CSV tables, and a report with the images and the heatmaps behind each doubt."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from wildcat.config import TrainConfig
from wildcat.curation.audit import Audit
from wildcat.data.dataset import Sample
from wildcat.data.image_ref import load_image
from wildcat.data.transforms import parse_range
from wildcat.files import making, write_bytes
from wildcat.prediction import Prediction
from wildcat.report.gallery import Gallery, Kind, encode_image
from wildcat.report.page import ModelInfo, ReportFile, Table, TableImage, write_report
from wildcat.reproduce.heads import predictions_from_features

PAGE = "report.html"
COLUMNS = {
    "suspects": ("image", "file", "split", "suspect", "quality", "labels", "remove", "add"),
    "duplicates": ("image", "file", "split", "copy_of", "copy_of_file", "copy_of_split", "similarity", "same_labels"),
    "unreadable": ("image", "file", "split", "error"),
}
SHOWN_PAIRS = 40  # of similar images
SHOWN_FILES = 200  # unreadable ones
PAIR_SIDE = 200  # pixels of an image in the table of pairs


def write_audit(audit: Audit, folder: Path, config: TrainConfig, examples: int = 8, max_mb: float = 20.0) -> ReportFile:
    """Write suspects.csv, duplicates.csv, unreadable.csv, classes.csv and report.html into a new folder, atomically.

    Args:
        config: of the heads.
        examples: maximum number of images per class and kind of doubt on the page.
        max_mb: maximum size of the page.

    Raises:
        RunError: the folder exists and is not empty, or cannot be written.
        ConfigError: `max_mb` is too small for the page without images.
    """
    found = audit.to_dict()
    with making(folder) as unfinished:
        for name in ("suspects", "duplicates", "unreadable", "classes"):
            headings = COLUMNS[name] if name in COLUMNS else tuple(found[name][0])
            write_bytes(unfinished / f"{name}.csv", csv_table(headings, found[name]).encode(errors="surrogateescape"))
        gallery = Gallery(audit.data.classes, audit.data.task, examples, max_mb)
        for prediction, i in suspect_predictions(audit, config):
            remove, add = audit.doubtful(i)
            doubts: list[tuple[str, Kind]] = [(audit.data.classes[c], "remove") for c in remove]
            doubts += [(audit.data.classes[c], "add") for c in add]
            gallery.add(prediction, audit.samples[audit.readable[i]], doubts)
        facts = {
            "Images": f"{len(audit.samples):,}, {audit.judgement.suspect.any(axis=1).sum():,} with a suspect label",
            "Predictions": f"{len(audit.heads)} folds, {config.backbone} at {config.image_size} px",
        }
        title = f"Audit of {audit.data.name}"
        page = write_report(unfinished / PAGE, gallery, title, ModelInfo(facts), tables(audit, found, config))
    return ReportFile(folder / PAGE, page.bytes, page.shown, page.left_out)


def csv_table(headings: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as CSV with a header; several values of a cell are joined by semicolons."""
    text = io.StringIO()
    writer = csv.DictWriter(text, headings, lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: _cell(value) for key, value in row.items()} for row in rows)
    return text.getvalue()


def _cell(value: object) -> object:
    if isinstance(value, Mapping):
        return ";".join(f"{name} {share:.4f}" for name, share in value.items())
    return ";".join(map(str, value)) if isinstance(value, list) else value


def suspect_predictions(audit: Audit, config: TrainConfig) -> Iterator[tuple[Prediction, int]]:
    """The predictions of the images with a suspect label by the head that has not seen them, and their positions.

    Nothing of heads without class maps, which the page could not draw.
    """
    for head, places in audit.heads:
        chosen = [i for i in places if head.has_maps and audit.judgement.suspect[i].any()]
        samples = [audit.samples[audit.readable[i]] for i in chosen]
        yield from zip(predictions_from_features(head, samples, config.amp, config.flip), chosen, strict=True)


def tables(audit: Audit, found: Mapping[str, Any], config: TrainConfig) -> list[Table]:
    """The tables of the page: pairs of similar images, unreadable files, and the balance of the classes."""
    copies, files, classes = found["duplicates"], found["unreadable"], found["classes"]
    across = sum(row["split"] != row["copy_of_split"] for row in copies)
    more = f"; the first {SHOWN_PAIRS} are shown" if len(copies) > SHOWN_PAIRS else ""
    pairs = [
        (
            _table_image(audit.samples[pair.original], config),
            f"{row['copy_of']} ({row['copy_of_split']})",
            _table_image(audit.samples[pair.image], config),
            f"{row['image']} ({row['split']})",
            f"{row['similarity']:.3f}",
            "same" if row["same_labels"] else "different",
        )
        for row, pair in zip(copies[:SHOWN_PAIRS], audit.duplicates, strict=False)
    ]
    listed = f"; the first {SHOWN_FILES} are shown" if len(files) > SHOWN_FILES else ""
    return [
        Table(
            "copies",
            "Similar images",
            f"Pairs: {len(copies)}, across splits: {across}{more}.",
            ("image", "", "copy", "", "similarity", "labels"),
            pairs,
        ),
        Table(
            "unreadable",
            "Unreadable files",
            f"{len(files)} of {len(audit.samples)} images cannot be read{listed}.",
            ("image", "split", "reason"),
            [(row["image"], row["split"], row["error"]) for row in files[:SHOWN_FILES]],
        ),
        Table(
            "classes",
            "Images per class",
            "Images that have a class, and labels of it, present or absent, that are suspect.",
            ("class", *audit.split_names, "suspect labels"),
            [tuple(map(str, row.values())) for row in classes],
        ),
    ]


def _table_image(sample: Sample, config: TrainConfig) -> TableImage:
    image = load_image(sample.path, parse_range(config.intensity_range))
    return TableImage(encode_image(image, PAIR_SIDE), sample.name)
