"""Find CSV and TSV files, and read their cells."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from wildcat.data.layout import (
    IMAGE_FOLDERS,
    TRUTH_FOLDERS,
    is_unlabelled,
    name_splits,
    output_type,
    path_splits,
    subfolders,
)
from wildcat.data.listing import holds_images
from wildcat.errors import DataError, did_you_mean

IMAGE_COLUMNS = (
    *("image", "images", "filename", "file_name", "file", "filepath", "file_path", "path", "image_path", "img"),
)
TABLE_SUFFIXES = (".csv", ".tsv")
_DELIMITERS = (",", "\t", ";", "|")


class Table(NamedTuple):
    """The cells of a table as text, and the line number of each row in the file.

    `files` names the file of each row if `path` is a folder of several.
    """

    path: Path
    columns: list[str]
    rows: list[dict[str, str]]
    lines: list[int]
    files: list[Path] = []  # noqa: RUF012

    def error(self, row: int, problem: str, hint: str) -> DataError:
        return DataError(f"{self.files[row] if self.files else self.path}, line {self.lines[row]}: {problem}", hint)

    def check_column(self, name: str, flag: str) -> None:
        if name not in self.columns:
            raise DataError(
                f"{self.path} has no column {name!r}; it has {', '.join(map(repr, self.columns))}.",
                f"{did_you_mean(name, self.columns)} Name the column with {flag}.".strip(),
            )

    def keep(self, rows: Sequence[int]) -> Table:
        """The table with these rows alone."""
        return self._replace(
            rows=[self.rows[i] for i in rows],
            lines=[self.lines[i] for i in rows],
            files=[self.files[i] for i in rows] if self.files else [],
        )

    def column(self, name: str) -> list[str]:
        return [cells[name] for cells in self.rows]


def find_table(path: Path) -> Path | None:
    """The first of `find_tables`, None without."""
    return next(iter(find_tables(path)[1].values()), None)


def find_tables(path: Path) -> tuple[Path, dict[str, Path]]:
    """The folder of a data set, and split -> its table; the split "" is the only table, which names none.

    A table, a folder with a single one, with one per split (`train.csv`), or with one in each split folder. In a folder
    with two or more folders of images a table is not the data set, unless these are folders of all images or named as
    splits and without class folders.
    """
    if path.is_file():
        return path.parent, {"": path} if path.suffix.lower() in TABLE_SUFFIXES else {}
    base, inside, tables = path, subfolders(path), _files(path)
    while not tables and len(inside) == 1:  # a wrapper
        base, inside, tables = inside[0], subfolders(inside[0]), _files(inside[0])
    splits = name_splits(p.name for p in inside)
    filled = [p for p in inside if p.name.lower() not in IMAGE_FOLDERS | TRUTH_FOLDERS and holds_images(p)]
    filled = [p for p in filled if not is_unlabelled(p.name) and not output_type(p)]
    named = [p for p in filled if p.name in splits]
    nested = [q for p in named for q in subfolders(p) if q.name != p.name and q.name.lower() not in IMAGE_FOLDERS]
    if len(filled) > 1 and (len(named) < len(filled) or any(map(holds_images, nested))):
        return base, {}
    found: dict[str, Path] = {}
    if not tables:
        found = {splits[p.name]: own[0] for p in named if len(own := _files(p)) == 1}
    for table, split in zip(tables, path_splits([p.name for p in tables], own_names=True), strict=True):
        if split and len(tables) > 1:
            if split in found:
                return base, {}
            found[split] = table
    if len(tables) == 1:
        return base, {"": tables[0]}
    return base, {split: found[split] for split in ("train", "val", "test") if split in found}


def _files(folder: Path) -> list[Path]:
    """The tables in a folder, without hidden ones."""
    found = (p for p in folder.glob("*") if p.suffix.lower() in TABLE_SUFFIXES and not p.name.startswith("."))
    return sorted(found)


def read_cells(path: Path, image_column: str | None) -> Table:
    """The table in a file; its delimiter is the first with which the header has the image column.

    Raises:
        DataError: not UTF-8 or UTF-16, empty, a row that is cut, two columns of one name.
    """
    content = path.read_bytes()
    encoding = "utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise DataError(
            f"{path}, line {line}: byte {error.object[error.start]:#04x} is not {encoding[:6].upper().rstrip('-')}.",
            "Save the table as UTF-8.",
        ) from error
    first = re.match(r'"?sep=(.)"?[\s,;]*?\r?\n', text, re.IGNORECASE)  # Excel: the delimiter, in a line of its own
    text, skipped = (text[first.end() :], 1) if first else (text, 0)
    delimiter = first[1] if first else _delimiter(text, image_column)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        cells = [
            (reader.line_num + skipped, [cell.strip() for cell in row]) for row in reader if any(map(str.strip, row))
        ]
    except csv.Error as error:
        raise DataError(
            f"{path}, line {reader.line_num + skipped}: {error}.", "Check the quotes around this line."
        ) from error
    if len(cells) < 2:
        raise DataError(
            f"{path} is empty or has no rows.", "Its first line names the columns; add one row per image below."
        )
    columns = cells.pop(0)[1]
    for line, row in cells:
        if len(row) != len(columns):
            raise DataError(
                f"{path}, line {line} has {len(row)} cells; the header has {len(columns)}.",
                "Put quotes around a cell that holds the delimiter, and restore the table if it was cut.",
            )
    # Columns without a name are row numbers (pandas) or empty (Excel).
    named = [i for i, name in enumerate(columns) if name and not re.fullmatch(r"Unnamed: \d+", name)]
    columns = [columns[i] for i in named]
    if len(set(columns)) < len(columns):
        twice = max(columns, key=columns.count)
        raise DataError(f"{path} has two columns called {twice!r}.", "Rename or remove one.")
    rows = [dict(zip(columns, (row[i] for i in named), strict=True)) for _, row in cells]
    return Table(path, columns, rows, [line for line, _ in cells])


def _delimiter(text: str, image_column: str | None) -> str:
    """The first delimiter with which the header has the image column, else the most frequent one in the header."""
    header = text.partition("\n")[0]
    wanted = {image_column.lower()} if image_column else set(IMAGE_COLUMNS)
    fits = [d for d in _DELIMITERS if wanted & {cell.strip(' "\r').lower() for cell in header.split(d)}]
    return fits[0] if fits else max(_DELIMITERS, key=header.count)
