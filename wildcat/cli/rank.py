"""wildcat rank: choose the images to label next."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import Positional, UseAppendAction, arg

from wildcat.cli.images import check_amounts, find_images, skipping
from wildcat.cli.options import DataCommand, Model, Switch, ViewCommand, parse_sizes
from wildcat.errors import ConfigError

if TYPE_CHECKING:
    from wildcat.data.image_ref import ImageRef

SUFFIXES = (".csv", ".jsonl")


@dataclass(frozen=True, kw_only=True)
class Rank(ViewCommand, DataCommand):
    """Choose the images to label next: where a model is unsure or contradicts itself, or that are unlike the others."""

    run: Model
    paths: Positional[Annotated[tuple[str, ...], arg(metavar="PATH...", help_behavior_hint="(required)")]]
    """Images without labels: files, folders, or globs; with --split, one data set."""
    by: Literal["uncertainty", "disagreement", "novelty"] = "uncertainty"
    """uncertainty: of the predicted probabilities; disagreement: between the networks of an ensemble, between several
    --sizes, or between an image and its mirror image; novelty: distance to the nearest image that is labelled or chosen
    before."""
    count: int = 100
    """Number of images to choose; 0: rank all."""
    labelled: Annotated[tuple[str, ...], UseAppendAction, arg(metavar="PATH")] = ()
    """Images that are labelled already, for --by novelty; may be repeated."""
    split: Annotated[str | None, arg(metavar="NAME")] = None
    """Choose from this split of a data set."""
    out: Annotated[Path | None, arg(metavar="PATH")] = None
    """File to write: .csv, or .jsonl with one JSON object per line; without it, they are printed."""
    limit: int = 0
    """Consider this many images at most, without those that are labelled; 0: all."""
    batch_size: int = 8
    """Images per forward pass."""
    json: Switch = False
    """Print one JSON object per line instead of a table."""


def run_rank(command: Rank) -> int:
    """wildcat rank"""
    from wildcat.curation.page import csv_table
    from wildcat.curation.rank import check_criterion, rank_images
    from wildcat.data.images import shown
    from wildcat.files import make_parent, write_bytes
    from wildcat.predictor import load
    from wildcat.progress import ProgressBar
    from wildcat.report import check_target

    check_amounts(command.batch_size, command.limit)
    check_criterion(command.by, command.count, bool(command.labelled))
    if command.out is not None:
        if command.out.suffix not in SUFFIXES:
            raise ConfigError(f"{command.out}: a ranking is written as {' or '.join(SUFFIXES)}.")
        check_target(command.out)
        make_parent(command.out)
    images = dict(find_images(command.paths, command.split, 0, command, run=command.run))
    labelled = dict(find_images(command.labelled, None, 0, DataCommand())) if command.labelled else {}
    known = {resolved(image) for image in labelled}
    candidates = [image for image in images if resolved(image) not in known][: command.limit or None]
    sizes, stride = parse_sizes(command.sizes), command.output_stride
    predictor = load(command.run, command.device, command.flip, sizes, output_stride=stride)
    names = {str(image): name for image, name in images.items()}
    with ProgressBar() as progress, skipping(len(candidates) + len(labelled), progress) as skip:
        chosen = rank_images(
            predictor, candidates, command.by, command.count, [*labelled], command.batch_size, skip, progress
        )
    rows = [
        {"rank": number, "image": names[one.image], "file": one.image, command.by: round(one.score, 6)}
        for number, one in enumerate(chosen, 1)
    ]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    if command.out is not None:
        text = csv_table(("rank", "image", "file", command.by), rows) if command.out.suffix == ".csv" else lines
        write_bytes(command.out, text.encode(errors="surrogateescape"))
        print(f"{len(rows)} of {len(candidates)} images in {command.out}")
    elif command.json:
        print(lines, end="")
    else:
        print(f"{'rank':>6}  {command.by:>12}  image")
        for row in rows:
            print(f"{row['rank']:>6}  {row[command.by]:>12.4f}  {shown(row['image'])}")
    return 0 if rows else 1


def resolved(image: Path | ImageRef) -> Path | ImageRef:
    """The image by the one absolute path of its file without symbolic links."""
    return image.resolve() if isinstance(image, Path) else image
