"""Rows in parts, each written once: what a folder of predictions holds, and how a command that was killed goes on.

    manifest.json           the model, the sources and settings, and how rows are split: a resumed command must share it
    part-00000.jsonl, ...   rows 0 to N-1, N to 2N-1, ...; written beside itself and moved into place, or not there
    done.jsonl              a line for each part that is finished: its rows, how many failed, a digest of their names
    summary.json            written at the end: the folder is complete

The rows of a part follow from the order of the sources alone: part k holds the images from k*N on. So whoever makes a
part makes the same one, a part that is made twice has the same rows, and what is on disk has no row twice at any time.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from wildcat.config import PartFormat
from wildcat.errors import MissingExtra, RunError
from wildcat.files import next_free, read_json, refuse_existing, write_bytes, write_json, writing
from wildcat.models.manifest import RESTORE, versions
from wildcat.prediction import SCHEMA

MANIFEST, DONE, SUMMARY = "manifest.json", "done.jsonl", "summary.json"

NAMED = 20
"""Failed images that are named for each part in done.jsonl, and in the summary; every one has its row."""

_BUFFERED = 64
"""Rows of a Parquet part that are held as Python values at a time."""


@dataclass(frozen=True)
class Part:
    """A part that is to be made: its number, the number of its first row, and its images."""

    number: int
    first: int
    images: Sequence[Any]

    @property
    def digest(self) -> str:
        """Of the names of its images, in order."""
        found = hashlib.sha256()
        for image in self.images:
            found.update(image.name.encode(errors="surrogateescape") + b"\0")
        return found.hexdigest()[:32]


@dataclass(frozen=True)
class Done:
    """A part that is finished.

    Attributes:
        part: its number.
        rows: how many it has.
        failed: how many of them say why their image could not be read.
        names: digest of the names of its images.
        faults: what is said of the first that failed.
    """

    part: int
    rows: int
    failed: int
    names: str
    faults: Sequence[str] = ()


@dataclass
class Totals:
    """What all parts together have."""

    parts: int = 0
    rows: int = 0
    failed: int = 0
    faults: list[str] = field(default_factory=list)

    def add(self, done: Done) -> None:
        """Count a part."""
        self.parts += 1
        self.rows += done.rows
        self.failed += done.failed
        self.faults += done.faults[: NAMED - len(self.faults)]


def split_parts(images: Iterable[Any], rows: int) -> Iterator[Part]:
    """The images in parts of `rows`; the last may have fewer."""
    source = iter(images)
    for number in itertools.count():
        few = list(itertools.islice(source, rows))
        if few:
            yield Part(number, number * rows, few)
        if len(few) < rows:
            return


class PartFolder:
    """A folder of parts, new or to be gone on with. One command at a time may write in it.

    Args:
        folder: made where it does not exist.
        plan: what decides the rows: model, sources, settings, the rows of a part and their format. A folder that was
            begun with another one is refused.
        resume: take a folder that was begun.

    Raises:
        RunError: the folder holds something and is not to be gone on with, or was begun with another plan, or is
            damaged or cannot be written.
    """

    def __init__(self, folder: Path, plan: Mapping[str, Any], resume: bool) -> None:
        self.folder, self.plan = folder, json.loads(json.dumps(dict(plan)))
        begun = (folder / MANIFEST).is_file()
        if begun and not resume:
            refuse_existing(folder, f"Add --resume to go on, or give another --out, for example {next_free(folder)}.")
        if begun:
            self._agree()
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            for left in folder.glob(".*.*") if resume else ():  # what a killed command was writing
                if left.name.startswith((f".{MANIFEST}.", f".{DONE}.", f".{SUMMARY}.", ".part-")):
                    left.unlink(missing_ok=True)
        if not begun:
            refuse_existing(folder)
            write_json(folder / MANIFEST, {"schema": SCHEMA, **self.plan, "versions": versions()})
        self.done = self._read_done()

    @property
    def format(self) -> PartFormat:
        """Of the parts."""
        return self.plan["format"]  # type: ignore[no-any-return]

    def path_of(self, number: int) -> Path:
        """Where a part lies."""
        return part_path(self.folder, number, self.format)

    def finished(self, part: Part) -> Done | None:
        """What is known of a part that need not be made; None: it has to be.

        Raises:
            RunError: the part was made of other images than these.
        """
        done = self.done.get(part.number)
        if done is None or not self.path_of(part.number).is_file():
            return None
        if (done.rows, done.names) != (len(part.images), part.digest):
            raise RunError(
                f"{self.folder} was begun with other images: those of {self.path_of(part.number).name} "
                f"({done.rows} rows) are not the {len(part.images)} from {part.images[0].name} on.",
                "Images were added, removed or renamed: bring the sources back, or give another --out.",
            )
        return done

    def add(self, done: Done) -> None:
        """Note that a part is finished, once its file is in place."""
        line = json.dumps(asdict(done)).encode() + b"\n"
        path = self.folder / DONE
        with writing(path), path.open("ab") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        self.done[done.part] = done

    def complete(self, parts: int) -> Totals:
        """Note that all parts are there, and what they have.

        Raises:
            RunError: the folder was begun with more images, or was complete with fewer.
        """
        path = self.folder / SUMMARY
        totals = Totals()
        for number in range(parts):
            totals.add(self.done[number])
        before = read_json(path, "Delete it and go on with --resume.") if path.is_file() else None
        grown = isinstance(before, dict) and before.get("rows") != totals.rows
        if grown or len(self.done) > parts:
            raise RunError(
                f"{self.folder} was begun with other images: the sources have {totals.rows} now.",
                "Images were added or removed: bring the sources back, or give another --out.",
            )
        write_json(path, asdict(totals))
        return totals

    def _agree(self) -> None:
        path = self.folder / MANIFEST
        old = read_json(path, RESTORE)
        if not isinstance(old, dict):
            raise RunError(f"{path} is damaged: it holds no settings.", RESTORE)
        if changed := [name for name, value in self.plan.items() if old.get(name) != value]:
            first = changed[0]
            raise RunError(
                f"{self.folder} was begun with other settings: {', '.join(changed)} "
                f"({first} {_short(old.get(first))} -> {_short(self.plan[first])}).",
                "Give the same command as before and --resume, or another --out.",
            )

    def _read_done(self) -> dict[int, Done]:
        """Of each part the last line; a line that was being written when the command was killed is cut off."""
        path = self.folder / DONE
        if not path.is_file():
            return {}
        content = path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if whole != content:
            write_bytes(path, whole)
        try:
            found = [Done(**json.loads(line)) for line in whole.splitlines()]
            if any(type(done.part) is not int or type(done.rows) is not int for done in found):
                raise ValueError("a number is none")
        except (ValueError, TypeError, RecursionError) as error:
            raise RunError(
                f"{path} is damaged: {error}.", f"Delete it and go on with --resume: {self.folder} is made again."
            ) from error
        return {done.part: done for done in found}


def part_path(folder: Path, number: int, part_format: PartFormat) -> Path:
    """Where a part lies."""
    return folder / f"part-{number:05d}.{part_format}"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


# --- rows ------------------------------------------------------------------------------------------------------


class JsonLines:
    """Rows as JSON, one a line."""

    def __init__(self) -> None:
        self.lines: list[bytes] = []

    def add(self, row: Mapping[str, Any]) -> None:
        """Take a row."""
        # A file name that is not Unicode is written as JSON escapes, which read back as Python knows the name.
        self.lines.append(json.dumps(row, ensure_ascii=False).encode(errors="backslashreplace") + b"\n")

    def content(self) -> bytes:
        """The file."""
        return b"".join(self.lines)


class ParquetRows:
    """Rows as a Parquet file: dictionaries by class are maps, what a failed row lacks is null.

    Raises:
        MissingExtra: pyarrow is not installed.
    """

    def __init__(self) -> None:
        pa = _pyarrow()
        from pyarrow import parquet  # noqa: PLC0415  # an extra

        numbers = pa.list_(pa.float64())
        by_class = {
            "scores": pa.float64(),
            "probabilities": pa.float64(),
            "points": numbers,
            "boxes": pa.list_(numbers),
        }
        self.schema = pa.schema(
            [
                ("row", pa.int64()),
                ("image", pa.string()),
                ("width", pa.int32()),
                ("height", pa.int32()),
                ("labels", pa.list_(pa.string())),
                *((name, pa.map_(pa.string(), kind)) for name, kind in by_class.items()),
                ("error", pa.string()),
            ]
        )
        self.batch = pa.RecordBatch
        self.buffer, self.rows = io.BytesIO(), list[dict[str, Any]]()
        self.writer = parquet.ParquetWriter(self.buffer, self.schema, compression="zstd")

    def add(self, row: Mapping[str, Any]) -> None:
        """Take a row."""
        self.rows.append({name: _arrow_value(value) for name, value in row.items()})
        if len(self.rows) == _BUFFERED:
            self._flush()

    def content(self) -> bytes:
        """The file."""
        self._flush()
        self.writer.close()
        return self.buffer.getvalue()

    def _flush(self) -> None:
        if self.rows:
            self.writer.write_batch(self.batch.from_pylist(self.rows, schema=self.schema))
            self.rows.clear()


def _arrow_value(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode(errors="backslashreplace").decode()
    return list(value.items()) if isinstance(value, dict) else value


def _pyarrow() -> Any:
    try:
        import pyarrow  # noqa: PLC0415  # an extra
    except ImportError as error:
        raise MissingExtra("pyarrow", "scale") from error
    return pyarrow


def rows_of(part_format: PartFormat) -> JsonLines | ParquetRows:
    """What collects the rows of a part.

    Raises:
        MissingExtra: Parquet, and pyarrow is not installed.
    """
    return ParquetRows() if part_format == "parquet" else JsonLines()


def read_part(path: Path) -> list[dict[str, Any]]:
    """The rows of a part as `Prediction.to_dict` has them, with `row`, and `error` instead where an image failed.

    Raises:
        MissingExtra: a Parquet part, and pyarrow is not installed.
    """
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    _pyarrow()
    from pyarrow import parquet  # noqa: PLC0415  # an extra

    by_class = {"scores", "probabilities", "points", "boxes"}
    return [
        {name: dict(value) if name in by_class else value for name, value in row.items() if value is not None}
        for row in parquet.ParquetFile(path).read().to_pylist()
    ]
