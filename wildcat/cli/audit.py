"""wildcat audit: find wrong labels, copies across splits, unreadable files and rare classes of a data set."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import OmitArgPrefixes, arg

from wildcat.cli.options import Data, DataCommand, Switch, data_flags, describe, note_amp, open_data
from wildcat.config import TrainConfig
from wildcat.errors import ConfigError
from wildcat.settings import load_recipe


@dataclass(frozen=True, kw_only=True)
class Audit(DataCommand):
    """Find what is wrong with labelled images: suspect labels, copies across splits, unreadable files, rare classes."""

    data: Data
    out: Annotated[Path | None, arg(metavar="PATH")] = None
    """Folder to create, with all findings as .csv and a page with the images and their heatmaps."""
    splits: Annotated[str, arg(metavar="A,B")] = ""
    """Splits to audit, separated by commas; by default all."""
    folds: int = 5
    """Parts of the images; the labels of each are judged by a network trained on the others."""
    similarity: float = 0.8
    """How alike two images are that count as copies: 0.84 is the most that was measured for different photographs;
    raise it where all images look alike."""
    limit: int = 20
    """Number of rows of each list to print; --out and --json give all."""
    examples: int = 8
    """Maximum number of images on the page per class and kind of doubt."""
    max_mb: float = 20.0
    """Maximum size of the page in megabytes."""
    json: Switch = False
    """Print all findings as one JSON object instead of tables."""
    config: OmitArgPrefixes[TrainConfig] = field(default_factory=lambda: load_recipe("audit"))


def run_audit(command: Audit) -> int:
    """wildcat audit"""
    from wildcat.curation import audit_data, write_audit
    from wildcat.curation.audit import audited_images
    from wildcat.device import choose_device
    from wildcat.files import refuse_existing
    from wildcat.nn.backbones import check_backbone_name
    from wildcat.progress import ProgressBar
    from wildcat.report import Gallery
    from wildcat.reproduce.heads import check_head_weights
    from wildcat.reproduce.runner import changed_settings, setting_flags

    config = command.config
    config.validate()
    check_backbone_name(config.backbone)
    if config.tune != "head":
        raise ConfigError(f"tune={config.tune!r}: an audit trains heads on cached features.", "Leave it out.")
    check_head_weights(config)
    default = load_recipe("audit")
    for name in ("train_split", "val_split"):
        if (value := getattr(config, name)) != getattr(default, name):
            raise ConfigError(
                f"{name}={value!r}: an audit divides its images into folds.", "Name splits with --splits."
            )
    if command.limit < 0:
        raise ConfigError(f"limit={command.limit}: give at least 0.")
    if command.out:
        refuse_existing(command.out)
        Gallery((), "multilabel", command.examples, command.max_mb)  # refuses limits out of range
    data = open_data(command, command.data)
    splits = [name.strip() for name in command.splits.split(",") if name.strip()]
    samples, names = audited_images(data, splits)
    device = choose_device(config.device)
    describe(data, f"{len(samples)} images of {', '.join(dict.fromkeys(names))}", device.type, quiet=command.json)
    note_amp(config.amp, device)
    with ProgressBar() as progress:
        audit = audit_data(data, config, splits, command.folds, command.similarity, progress)
    found = audit.to_dict()
    print(json.dumps(found, ensure_ascii=False) if command.json else audit_table(found, command.limit))
    if command.out:
        page = write_audit(audit, command.out, config, command.examples, command.max_mb)
        left_out = f"; {page.left_out} more exceed --max-mb {command.max_mb:g}" if page.left_out else ""
        print(f"{page.path}: {page.bytes / 1e6:.1f} MB, {page.shown} examples{left_out}", file=sys.stderr)
    elif not command.json:
        words = ["wildcat", "audit", command.data, "--out", "DIR"]
        words += data_flags(command, "splits", "folds", "similarity")
        words += setting_flags(changed_settings(config, default))
        print(f"Next: {shlex.join(words)}   for all rows and a page")
    return 0


def audit_table(found: Mapping[str, Any], limit: int) -> str:
    """The findings as text, at most `limit` rows of each list."""
    files, copies = found["unreadable"], found["duplicates"]
    images = sum(found["images"].values())
    lines = [f"unreadable: {len(files)} of {images} images"]
    lines += [f"  {row['error']}" for row in files[:limit]]
    across = sum(row["split"] != row["copy_of_split"] for row in copies)
    lines.append(f"pairs of similar images: {len(copies)}, across splits: {across}")
    for row in copies[:limit]:
        labels = "" if row["same_labels"] else ", other labels"
        pair = f"{row['image']} ({row['split']}) = {row['copy_of']} ({row['copy_of_split']})"
        lines.append(f"  {row['similarity']:.2f}  {pair}{labels}")
    suspects = [row for row in found["suspects"] if row["suspect"]]
    lines.append(f"labels: {len(suspects)} of {len(found['suspects'])} images have a suspect label")
    lines += [f"  {row['quality']:.3f}  {row['image']} ({row['split']}): {doubts(row)}" for row in suspects[:limit]]
    splits = list(found["images"])
    lines.append(f"{'images per class':24}{''.join(f'{name[:12]:>13}' for name in splits)}{'suspect':>13}")
    for row in sorted(found["classes"], key=lambda row: sum(row[s] for s in splits))[: limit or None]:
        counts = "".join(f"{row[name]:>13}" for name in (*splits, "suspect"))
        lines.append(f"  {row['class'][:22]:22}{counts}")
    return "\n".join(lines)


def doubts(row: Mapping[str, Any]) -> str:
    """What may be wrong with the labels of an image, in words."""
    texts = [f"remove {name} ({p:.0%})" for name, p in row["remove"].items()]
    texts += [f"add {name} ({p:.0%})" for name, p in row["add"].items()]
    return f"{', '.join(texts)}; labelled {', '.join(row['labels']) or 'with nothing'}"
