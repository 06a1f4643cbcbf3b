"""An output folder of row shards that is written once and can be resumed.

    manifest.json              the model, the sources and the settings; a resumed command must have the same
    shard-00000.jsonl, ...     rows 0 to N-1, N to 2N-1, ...; each file is written atomically
    summary.json               written last: the folder is complete

Shard k holds the images from k*N on, in the order of the sources. So a shard has the same rows whoever writes it, and
on resume the images of existing shards are left out.
"""

from __future__ import annotations

import itertools
import json
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from wildcat.config import ShardFormat
from wildcat.data.image_ref import ImageLocation
from wildcat.errors import RunError
from wildcat.files import PART, next_free, read_json, refuse_existing, write_bytes, write_json, writing
from wildcat.models.manifest import RESTORE, versions
from wildcat.prediction import SCHEMA
from wildcat.predictor import Predictor
from wildcat.progress import SILENT, Progress
from wildcat.scale.parquet import import_parquet
from wildcat.scale.rows import NumberedImage, Row, encode_rows, predict_rows, read_rows, unicode_text

MANIFEST, SUMMARY = "manifest.json", "summary.json"

OTHER_IMAGES = "Images were added, removed or renamed: restore the sources, or give another --out."
LISTED_ERRORS = 20  # in summary.json; every unreadable image also has its row


@dataclass(frozen=True)
class Shard:
    """The images of one output file, in order."""

    number: int
    images: Sequence[NumberedImage]


@dataclass
class Summary:
    """What an output folder holds.

    Attributes:
        shards, rows: how many there are.
        failed: rows of images that could not be read.
        errors: messages of the first of these.
    """

    shards: int = 0
    rows: int = 0
    failed: int = 0
    errors: list[str] = field(default_factory=list)

    def add(self, errors: Sequence[str]) -> None:
        """Count a shard by the errors of its rows, empty for a prediction."""
        failed = [error for error in errors if error]
        self.shards += 1
        self.rows += len(errors)
        self.failed += len(failed)
        self.errors += failed[: LISTED_ERRORS - len(self.errors)]


def split_shards(images: Iterable[ImageLocation], rows: int) -> Iterator[Shard]:
    """The images in shards of `rows`; the last may have fewer."""
    numbered = itertools.starmap(NumberedImage, enumerate(images))
    for number in itertools.count():
        if chunk := list(itertools.islice(numbered, rows)):
            yield Shard(number, chunk)
        if len(chunk) < rows:
            return


class ShardFolder:
    """An output folder, new or to be resumed. Only one command at a time may write into it.

    It stays empty until the first shard is written, so that the same one can be given again after an error before that.

    Args:
        folder: created if it does not exist.
        plan: everything that decides the rows: model, sources, settings, rows of a shard, and "format".
        resume: accept a folder that another command has started with the same plan.

    Attributes:
        started: whether it has a manifest, which is written before the first shard.
        complete_rows: how many it had when it was last complete; None: it never was.

    Raises:
        RunError: the folder is not empty and not to be resumed, has another plan, is damaged or cannot be written.
        MissingExtra: Parquet, and pyarrow is not installed.
    """

    def __init__(self, folder: Path, plan: Mapping[str, Any], resume: bool) -> None:
        self.folder, self.plan = folder, json.loads(json.dumps(dict(plan)))
        self.format: ShardFormat = self.plan["format"]
        if self.format == "parquet":
            import_parquet()
        self.started = (folder / MANIFEST).is_file()
        if self.started and not resume:
            refuse_existing(folder, f"Add --resume to continue, or give another --out, such as {next_free(folder)}.")
        if self.started:
            self._check_plan()
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            if resume:  # a killed command leaves the file that it was writing
                for name in (MANIFEST, SUMMARY, "shard-*"):
                    for left in folder.glob(f".{name}.*{PART}"):
                        left.unlink(missing_ok=True)
            tempfile.TemporaryFile(dir=folder).close()  # a folder that is read-only fails here, not after a shard
        if not self.started:
            refuse_existing(folder)
        self.complete_rows = self._rows_when_complete()

    def path_of(self, number: int) -> Path:
        """The file of a shard."""
        return self.folder / f"shard-{number:05d}.{self.format}"

    def read_errors(self, shard: Shard) -> list[str] | None:
        """The errors of a shard that exists, one per row, empty for a prediction; None: it has to be written.

        Raises:
            RunError: the file holds other images, or is damaged; or the folder was complete without the images.
        """
        path = self.path_of(shard.number)
        if not path.is_file():
            if self.complete_rows is not None and shard.images[-1].number >= self.complete_rows:
                raise RunError(
                    f"{self.folder} was started with other images: it was complete with {self.complete_rows} rows, "
                    f"and the sources have more now.",
                    OTHER_IMAGES,
                )
            return None
        try:
            rows = read_rows(path)
            names, errors = [row["image"] for row in rows], [row.get("error", "") for row in rows]
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise RunError(f"{path} is damaged: {error}.", "Delete it and continue with --resume.") from error
        expected = [image.name for _, image in shard.images]
        if names != (expected if self.format == "jsonl" else [unicode_text(name) for name in expected]):
            raise RunError(
                f"{self.folder} was started with other images: {path.name} ({len(names)} rows) does not hold the "
                f"{len(expected)} images from {expected[0]} on.",
                OTHER_IMAGES,
            )
        return errors

    def write(self, shard: Shard, rows: Iterable[Row]) -> list[str]:
        """Write a shard atomically, and the manifest before the first; the errors of its rows, empty for a prediction.

        Raises:
            RunError: the file cannot be written.
        """
        found = list(rows)
        if not self.started:
            write_json(self.folder / MANIFEST, {"schema": SCHEMA, **self.plan, "versions": versions()})
        try:
            write_bytes(self.path_of(shard.number), encode_rows(found, self.format))
        except RunError:
            if not self.started:
                (self.folder / MANIFEST).unlink(missing_ok=True)
            raise
        self.started = True
        return [row.error for row in found]

    def complete(self, summary: Summary) -> None:
        """Write summary.json.

        Raises:
            RunError: the folder has rows of images that the sources do not have.
        """
        if self.complete_rows not in (None, summary.rows) or len(list(self.folder.glob("shard-*"))) > summary.shards:
            raise RunError(
                f"{self.folder} was started with other images: the sources have {summary.rows} now.", OTHER_IMAGES
            )
        write_json(self.folder / SUMMARY, asdict(summary))

    def _rows_when_complete(self) -> int | None:
        path = self.folder / SUMMARY
        summary = read_json(path, "Delete it and continue with --resume.") if path.is_file() else None
        rows = summary.get("rows") if isinstance(summary, dict) else None
        return rows if isinstance(rows, int) else None

    def _check_plan(self) -> None:
        path = self.folder / MANIFEST
        old = read_json(path, RESTORE)
        if not isinstance(old, dict):
            raise RunError(f"{path} is damaged: it holds no settings.", RESTORE)
        if changed := [name for name, value in self.plan.items() if old.get(name) != value]:
            first = changed[0]
            raise RunError(
                f"{self.folder} was started with other settings: {', '.join(changed)} "
                f"({first} {_shortened(old.get(first))} -> {_shortened(self.plan[first])}).",
                "Give the same command as before and --resume, or another --out.",
            )


def write_shards(
    shards: Iterable[Shard],
    folder: ShardFolder,
    predict: Callable[[Iterator[Shard]], Iterator[tuple[Shard, Iterable[Row]]]],
    progress: Progress = SILENT,
) -> Summary:
    """Predict and write all shards that do not exist yet.

    Args:
        predict: the rows of each shard, by this process or others; `progress` counts the rows as they come.

    Raises:
        DataError, RunError: from the sources, the workers or the folder; shards that are written stay.
    """
    summary = Summary()

    def missing() -> Iterator[Shard]:
        for shard in shards:
            errors = folder.read_errors(shard)
            if errors is None:
                yield shard
            else:
                summary.add(errors)

    def counted(rows: Iterable[Row]) -> Iterator[Row]:
        for row in rows:
            yield row
            progress.advance()

    progress.start("predicting", None)
    for shard, rows in predict(missing()):
        summary.add(folder.write(shard, counted(rows)))
    folder.complete(summary)
    return summary


def predict_here(
    predictor: Predictor, column: str | None, batch_size: int, top_k: int, shards: Iterable[Shard]
) -> Iterator[tuple[Shard, Iterator[Row]]]:
    """The rows of each shard, predicted by this process; see `predict_rows`."""
    for shard in shards:
        yield shard, predict_rows(predictor, shard.images, column, batch_size, top_k)


def _shortened(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
