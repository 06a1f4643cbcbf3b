"""Images in Parquet tables: a column of bytes, or of structs with bytes and path as Hugging Face datasets writes it."""

from __future__ import annotations

import collections
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from wildcat.data.remote import open_file
from wildcat.errors import DataError, did_you_mean, import_extra

CHUNK = 16  # rows that are decoded at a time: their images are in memory together

Cell = tuple[bytes | None, str]  # the bytes of an image; or None, and why there are none


def count_rows(table: str, column: str | None = None) -> int:
    """The number of rows of a table with a column of images.

    Raises:
        DataError: as `image_column`, or the table is damaged.
        MissingExtra: pyarrow is not installed.
    """
    with _opened(table) as file:
        image_column(table, file.schema_arrow, column)
        return int(file.metadata.num_rows)


def read_images(table: str, rows: Sequence[int], column: str | None = None) -> Iterator[Cell]:
    """The images of some rows, in increasing order; only the row groups that hold one of them are read.

    Each of these row groups is decoded from its start, so long row groups cost time.

    Raises:
        DataError: the table is damaged, or has fewer rows than when it was listed.
        MissingExtra: pyarrow is not installed.
    """
    wanted = collections.deque(rows)
    with _opened(table) as file:
        name = image_column(table, file.schema_arrow, column)
        end = 0
        for group in range(file.metadata.num_row_groups):
            first, end = end, end + file.metadata.row_group(group).num_rows
            if not wanted or wanted[0] >= end:
                continue
            for batch in file.iter_batches(CHUNK, row_groups=[group], columns=[name], use_threads=False):
                while wanted and wanted[0] < first + len(batch):
                    yield _cell(batch.column(0)[wanted.popleft() - first].as_py())
                first += len(batch)
                if not wanted or wanted[0] >= end:
                    break
    if wanted:
        raise DataError(f"{table} no longer has row {wanted[0]}.", "Restore the table, or give another --out.")


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
    pa, pq = import_parquet()
    with open_file(table) as raw:
        try:
            with pq.ParquetFile(raw, pre_buffer=False, buffer_size=1 << 20) as file:
                yield file
        except (pa.ArrowException, OSError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
            raise DataError(
                f"{table} is cut or damaged: {reason}.", "Copy it again from its source, then continue with --resume."
            ) from error


def import_parquet() -> tuple[Any, Any]:
    """The modules pyarrow and pyarrow.parquet.

    Raises:
        MissingExtra: pyarrow is not installed.
    """
    parquet = import_extra("pyarrow.parquet", "pyarrow", "scale")
    return import_extra("pyarrow", "pyarrow", "scale"), parquet
