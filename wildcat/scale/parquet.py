"""Parquet tables with a column of images: bytes, or a struct of bytes and path as Hugging Face datasets writes it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from wildcat.data.remote import open_file
from wildcat.errors import DataError, MissingExtra, did_you_mean

CHUNK = 16
"""Rows that are read together: their images are in memory at once."""

Cell = tuple[bytes | None, str]
"""The bytes of an image; or None, and why there are none."""


def count_rows(table: str, column: str | None = None) -> int:
    """The rows of a table that has a column of images.

    Raises:
        DataError: it has none, or several and `column` does not say which; or it is damaged.
        MissingExtra: pyarrow is not installed.
    """
    with _opened(table) as file:
        image_column(table, file.schema_arrow, column)
        return int(file.metadata.num_rows)


def read_cells(table: str, rows: Sequence[int], column: str | None = None) -> Iterator[Cell]:
    """The images of some rows, which must rise, a few at a time.

    Only row groups that hold one of them are read, each from its first row on: row groups much longer than a part
    are read again for each part.

    Raises:
        DataError: the table is damaged, or was changed since its rows were counted.
        MissingExtra: pyarrow is not installed.
    """
    with _opened(table) as file:
        path = image_column(table, file.schema_arrow, column)
        wanted, first = iter(rows), 0
        row = next(wanted, None)
        for group in range(file.metadata.num_row_groups):
            end = first + file.metadata.row_group(group).num_rows
            if row is None:
                return
            if row < end:
                for batch in file.iter_batches(CHUNK, row_groups=[group], columns=[path], use_threads=False):
                    while row is not None and row < first + len(batch):
                        yield _cell(batch.column(0)[row - first].as_py())
                        row = next(wanted, None)
                    first += len(batch)
                    if row is None or row >= end:
                        break
            first = end
        if row is not None:
            raise DataError(f"{table} has no row {row} any more.", "Give the table it was, or another --out.")


def image_column(table: str, schema: Any, column: str | None) -> str:
    """The name of the column with the images.

    Raises:
        DataError: there is none, or there are several.
    """
    fitting = [str(field.name) for field in schema if _holds_bytes(field.type)]
    if column is not None:
        if column in fitting:
            return column
        fault = "holds no bytes" if column in schema.names else "does not exist"
        raise DataError(
            f"{table}: column {column!r} {fault}.", did_you_mean(column, fitting) or _columns(schema, fitting)
        )
    if len(fitting) == 1:
        return fitting[0]
    if "image" in fitting:
        return "image"
    if fitting:
        raise DataError(
            f"{table} has several columns of bytes: {', '.join(fitting)}.", f"Name one: --image-column {fitting[0]}."
        )
    raise DataError(f"{table} has no column of images.", _columns(schema, fitting))


def _columns(schema: Any, fitting: Sequence[str]) -> str:
    if fitting:
        return f"Columns of bytes are: {', '.join(fitting)}."
    names = ", ".join(schema.names[:20]) or "no columns"
    return f"It has: {names}. A column of images holds their bytes, or a struct with a field bytes."


def _holds_bytes(kind: Any) -> bool:
    import pyarrow as pa  # noqa: PLC0415  # an extra

    if pa.types.is_struct(kind):
        index = kind.get_field_index("bytes")
        return index >= 0 and _holds_bytes(kind.field(index).type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def _cell(value: Any) -> Cell:
    if isinstance(value, dict):
        content = value.get("bytes")
        if content is None and value.get("path"):
            return None, f"names the file {value['path']!r} instead of holding its bytes"
        value = content
    return (bytes(value), "") if value is not None else (None, "holds no image")


@contextmanager
def _opened(table: str) -> Iterator[Any]:
    try:
        import pyarrow as pa  # noqa: PLC0415  # an extra
        import pyarrow.parquet as pq  # noqa: PLC0415
    except ImportError as error:
        raise MissingExtra("pyarrow", "scale") from error
    with open_file(table) as raw:
        try:
            with pq.ParquetFile(raw, pre_buffer=False, buffer_size=1 << 20) as file:
                yield file
        except (pa.ArrowException, OSError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
            raise DataError(
                f"{table} is cut or damaged: {reason}.", "Copy it again from its source, then go on with --resume."
            ) from error
