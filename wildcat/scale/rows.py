"""Rows of predictions, one for each image, and the JSON lines and Parquet files that hold them."""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from wildcat.config import ShardFormat
from wildcat.data.image_ref import ImageLocation, ImageRef
from wildcat.data.images import Decoded, IntensityRange, MaxDownscale, full_size
from wildcat.errors import ImageError
from wildcat.predictor import BATCH_SIZE, Predictor
from wildcat.scale.inputs import load_cells
from wildcat.scale.parquet import import_parquet

PARQUET_ROWS = 64  # rows that are converted to Arrow at a time

BY_CLASS = ("scores", "probabilities", "points", "boxes")  # columns with one value per class


class Row(NamedTuple):
    """The row of one image.

    Attributes:
        number: position of the image in the sources, from 0.
        line: the row as a line of JSON.
        error: why the image could not be read; empty: it was.
    """

    number: int
    line: bytes
    error: str = ""


class NumberedImage(NamedTuple):
    """An image and its position in the sources, from 0."""

    number: int
    image: ImageLocation


def predict_rows(
    predictor: Predictor,
    images: Sequence[NumberedImage],
    column: str | None = None,
    batch_size: int = BATCH_SIZE,
    top_k: int = 0,
) -> Iterator[Row]:
    """One row per image, in order; an image that cannot be read gets a row with `error`.

    Args:
        column: the column of Parquet tables with the images; None: the only possible one.
        top_k: see `Prediction.to_dict`.

    Raises:
        DataError: the file that holds the images is gone or damaged.
    """
    errors: dict[int, ImageError] = {}

    def note(image: Any, error: ImageError) -> None:
        errors[image.number] = error

    refs = load_cells([one.image for one in images], column)
    numbered = (_NumberedRef(one.number, ref) for one, ref in zip(images, refs, strict=True))
    waiting = iter(images)
    # Predictions come in order, and `note` has been called for every unreadable image before the next prediction.
    for prediction in predictor.stream(numbered, modalities=False, batch_size=batch_size, on_error=note):
        for number, image in waiting:
            if number not in errors:
                yield Row(number, json_line({"row": number, **prediction.to_dict(top_k)}))
                break
            yield error_row(number, image, errors.pop(number).one_line)
    for number, image in waiting:
        yield error_row(number, image, errors.pop(number).one_line)


def error_row(number: int, image: ImageRef, message: str) -> Row:
    """The row of an image that could not be read."""
    return Row(number, json_line({"row": number, "image": image.name, "error": message}), message)


def json_line(row: Mapping[str, Any]) -> bytes:
    """A row as a line of JSON."""
    # A file name that is not Unicode is written as JSON escapes, which read back as the name Python uses.
    return json.dumps(row, ensure_ascii=False).encode(errors="backslashreplace") + b"\n"


@dataclass(frozen=True)
class _NumberedRef(ImageRef):
    """An image that `on_error` can identify: names may repeat."""

    number: int
    ref: ImageRef

    @property
    def name(self) -> str:
        return self.ref.name

    def decode(self, max_downscale: MaxDownscale = full_size, intensity: IntensityRange | None = None) -> Decoded:
        return self.ref.decode(max_downscale, intensity)


# --- files ------------------------------------------------------------------------------------------------------------


def encode_rows(rows: Iterable[Row], shard_format: ShardFormat) -> bytes:
    """The content of a shard file.

    In Parquet, values per class are maps, and what a row lacks is null.

    Raises:
        MissingExtra: Parquet, and pyarrow is not installed.
    """
    if shard_format == "jsonl":
        return b"".join(row.line for row in rows)
    pa, parquet = import_parquet()
    schema = _parquet_schema(pa)
    buffer, lines = io.BytesIO(), iter(rows)
    with parquet.ParquetWriter(buffer, schema, compression="zstd") as writer:
        while values := [_arrow_values(row.line) for row in itertools.islice(lines, PARQUET_ROWS)]:
            writer.write_batch(pa.RecordBatch.from_pylist(values, schema=schema))
    return buffer.getvalue()


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a shard file: `Prediction.to_dict` and `row`; or `row`, `image` and `error`.

    Raises:
        MissingExtra: Parquet, and pyarrow is not installed.
    """
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_bytes().splitlines()]
    _, parquet = import_parquet()
    return [
        {name: dict(value) if name in BY_CLASS else value for name, value in row.items() if value is not None}
        for row in parquet.ParquetFile(path).read().to_pylist()
    ]


def _parquet_schema(pa: Any) -> Any:
    numbers = pa.list_(pa.float64())
    return pa.schema(
        {
            "row": pa.int64(),
            "image": pa.string(),
            "width": pa.int32(),
            "height": pa.int32(),
            "labels": pa.list_(pa.string()),
            "scores": pa.map_(pa.string(), pa.float64()),
            "probabilities": pa.map_(pa.string(), pa.float64()),
            "points": pa.map_(pa.string(), numbers),
            "boxes": pa.map_(pa.string(), pa.list_(numbers)),
            "error": pa.string(),
        }
    )


def _arrow_values(line: bytes) -> dict[str, Any]:
    return {name: _arrow_value(value) for name, value in json.loads(line).items()}


def _arrow_value(value: Any) -> Any:
    if isinstance(value, str):
        return unicode_text(value)
    return list(value.items()) if isinstance(value, dict) else value


def unicode_text(text: str) -> str:
    """A text with escapes for what is not Unicode (bytes of file names), as Parquet stores it."""
    return text.encode(errors="backslashreplace").decode()
