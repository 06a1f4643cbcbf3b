"""Tables of images and labels: CSV with a column of labels, or one column per class."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wildcat.data.dataset import (
    ABSENT,
    IGNORED,
    PRESENT,
    DataSet,
    Reader,
    Sample,
    Task,
    default_splits,
    few,
    grouped_splits,
    split_samples,
)
from wildcat.data.labels import NO_LABEL, parse_labels
from wildcat.data.layout import image_folders, name_splits, subfolders
from wildcat.data.readers.lists import find_anywhere, find_named
from wildcat.data.readers.table import IMAGE_COLUMNS, Table, find_tables, read_cells
from wildcat.data.remote import path_type
from wildcat.errors import DataError, did_you_mean

LABEL_COLUMNS = ("labels", "label", "tags", "tag", "classes", "class", "category", "categories", "choice")
SPLIT_COLUMN = "split"
_CELLS = {
    **dict.fromkeys(("1", "1.0", "true", "yes"), PRESENT),
    **dict.fromkeys(("0", "0.0", "false", "no"), ABSENT),
    **dict.fromkeys(map(str.lower, NO_LABEL), IGNORED),
}


def read_table(
    path: Path,
    *,
    image_column: str | None = None,
    labels_column: str | None = None,
    split_column: str = SPLIT_COLUMN,
    separator: str | None = None,
    task: Task | None = None,
    classes: Sequence[str] | None = None,
) -> DataSet:
    """The images and labels of a CSV or TSV file in UTF-8 or UTF-16.

    *Images* are named by `image_column`: `image` or a customary other name, else the only column whose first cell names
    an existing file. Names are relative to the table's folder, or to a folder in it or `images/` beside it; see
    `wildcat.data.readers.lists.find_named`. Several rows of an image are joined.

    *Labels* have two layouts. A column of labels (`labels_column`; `labels`, `label` or a customary other name, or the
    only other column) holds all labels of an image, see `wildcat.data.labels.parse_labels`; classes are the labels
    found, sorted; those of rows with 0 in a column `confidence` are absent (Open Images). *One column per class*, if
    there is no such column: 1, true or yes is present, 0, false or no absent, an empty cell ignored; classes are the
    columns, in their order. Columns of mostly other values are left out if there are at least two of classes. `classes`
    names the labels or columns to read, in their order; others are left out.

    Task: unless `task` is given, a column of labels with exactly one in every row is multi-class (a note says so),
    anything else multi-label. A row without labels is a negative image, allowed in a multi-label table only.

    Splits are the values of `split_column` ("valid", "validation" are `val`); without a column `split`, `train` and
    `val` are a fixed 80/20, stratified by each image's rarest label, and `all` is everything.

    Raises:
        DataError: unreadable or empty table, unknown or unclear column, a cell that fits no layout, a missing image,
            different labels in several rows of an image in a multi-class table, different splits in any table, or a
            row without exactly one label.
    """
    base, found = find_tables(path)
    if not found:
        raise DataError(
            f"{path} is no table, nor a folder with a single one or with one per split.",
            "Give the .csv or .tsv file itself.",
        )
    notes: list[str] = []
    table, image_column, folder, images = _read_tables(base, found, image_column, split_column, notes)
    split_column = _split_column(table, split_column)
    labels_column = _labels_column(table, labels_column, (image_column, split_column), notes)
    if labels_column is not None:
        names, labels = _joined_labels(table, labels_column, separator, classes, notes)
    else:
        names, labels = _one_hot_labels(table, (image_column, split_column), classes, notes)
    if classes is not None and task == "multiclass" and labels_column is not None:
        kept = (labels == PRESENT).any(axis=1)  # images of other classes
        images = [image for image, keep in zip(images, kept, strict=True) if keep]
        table = table.keep([int(row) for row in np.flatnonzero(kept)])
        labels = labels[kept]
    one_each = labels_column is not None and bool(((labels == PRESENT).sum(axis=1) == 1).all())
    table, images, labels = _join_rows(table, split_column, images, labels, task, one_each, notes)
    if task is None and labels_column is not None and ((labels == PRESENT).sum(axis=1) == 1).all():
        task = "multiclass"
        notes.append("Every row has exactly one label: read as multi-class (--data-option task=multilabel overrides).")
    task = task or "multilabel"
    present, unknown = (labels == PRESENT).sum(axis=1), (labels == IGNORED).sum(axis=1)
    wrong = np.flatnonzero((present != 1) | (unknown > 0))
    if task == "multiclass" and len(wrong):
        row = int(wrong[0])
        raise table.error(
            row,
            f"{present[row]} labels and {unknown[row]} empty cells; multi-class needs exactly one label ({len(wrong)} "
            f"of {len(labels)} rows are wrong).",
            "Correct the rows, or give --data-option task=multilabel.",
        )
    counts = (labels == PRESENT).sum(axis=0)
    for count, verb in ((1, "occurs once"), (0, "never occurs")):
        if rare := [name for name, number in zip(names, counts, strict=True) if number == count]:
            more = f", and so for {len(rare) - 1} others" if len(rare) > 1 else ""
            notes.append(f"Label {rare[0]!r} {verb}{more}.")
    samples = [Sample(name, folder / name, row) for name, row in zip(images, labels, strict=True)]
    if split_column in table.columns:
        readers = _splits(table, split_column, samples, names)
    else:
        readers = split_samples({"": samples}, names, notes)
    return DataSet(table.path.stem, "csv", table.path, names, task, readers, tuple(notes))


def _read_tables(
    base: Path, tables: Mapping[str, Path], image_column: str | None, split_column: str, notes: list[str]
) -> tuple[Table, str, Path, list[str]]:
    """The rows of all tables, the column of images, the folder of the images, and the name of each row's image in it.

    Several tables become one with a column of splits; tables without the columns of the first are left out with a note.
    """
    if "" in tables:
        table = read_cells(tables[""], image_column)
        column = _image_column(table, image_column, notes)
        return table, column, *_images(table, column, base, "", notes)
    parts = {split: read_cells(file, image_column) for split, file in tables.items()}
    first = next(iter(parts.values()))
    column, names = _image_column(first, image_column, notes), list[str]()
    whole = Table(base, [*first.columns, split_column], [], [], [])
    for split, table in parts.items():
        if lacking := [c for c in first.columns if c not in (*table.columns, split_column)]:
            notes.append(f"{table.path} lacks the column {lacking[0]!r} of {first.path.name} and is ignored.")
            continue
        folder, images = _images(table, column, base, split, notes)
        names += [Path(os.path.relpath(folder / name, base)).as_posix() for name in images]
        whole.rows.extend({**row, split_column: split} for row in table.rows)
        whole.lines.extend(table.lines)
        whole.files.extend(table.path for _ in table.rows)
    return whole, column, base, names


def _split_column(table: Table, name: str) -> str:
    """The column of the splits; the default name in any case, another name must be a column."""
    if name != SPLIT_COLUMN:
        table.check_column(name, "--data-option split_column=NAME")
    return name if name in table.columns else next((c for c in table.columns if c.lower() == name), name)


def _splits(table: Table, column: str, samples: Sequence[Sample], classes: Sequence[str]) -> dict[str, Reader]:
    named = name_splits(set(table.column(column)))
    splits: dict[str, list[Sample]] = {}
    for row, sample in enumerate(samples):
        split = table.rows[row][column]
        if not split:
            raise table.error(row, "the split is empty.", "Write train, val or test, or remove the column.")
        splits.setdefault(named.get(split, split.lower()), []).append(sample)
    return default_splits(samples, classes) if len(splits) == 1 and not named else grouped_splits(splits)


def _image_column(table: Table, name: str | None, notes: list[str]) -> str:
    """The column that names the images."""
    if name is not None:
        table.check_column(name, "--image-column")
        return name
    if "image" in table.columns:
        return "image"
    folders = _folders(table)
    if headless := next((c for c in table.columns if "." in c and find_named([c], folders)), None):
        raise DataError(
            f"{table.path} has no header: its first line names the image {headless!r}.",
            "Add a first line that names the columns, such as image,labels.",
        )
    exist = [c for c in table.columns if not _is_binary(table, c) and find_named([table.rows[0][c]], folders)]
    by_name = [c for known in IMAGE_COLUMNS for c in table.columns if c.lower() == known]
    chosen = [c for c in by_name if c in exist] or exist or by_name
    if len(chosen) == 1 or (chosen and chosen[0] in by_name):
        notes.append(f"Column {chosen[0]!r} names the images (--image-column).")
        return chosen[0]
    if chosen:
        raise DataError(
            f"{table.path} has several columns that name images: {', '.join(map(repr, chosen))}.",
            f"Choose one, for example --image-column {shlex.quote(chosen[0])}.",
        )
    raise DataError(
        f"{table.path} has no column of images: no first cell of {', '.join(map(repr, table.columns))} is a file in "
        f"{table.path.parent}.",
        f"{did_you_mean('image', table.columns)} Name the column with --image-column; paths are relative to the "
        "table.".strip(),
    )


def _folders(table: Table, base: Path | None = None, split: str = "") -> list[Path]:
    """Where the images of a table may be: in a folder of its split, its folder, those in it, `images/` beside it."""
    folder = table.path.parent
    split = split or name_splits([table.path.stem]).get(table.path.stem, "train")
    special = image_folders(table.path, base or folder, split)
    return list(dict.fromkeys([folder, *special, *subfolders(folder)[:100], folder.parent / "images"]))


def _images(table: Table, column: str, base: Path, split: str, notes: list[str]) -> tuple[Path, list[str]]:
    """The folder of the images, and the name of each row's image in it; each must exist."""
    names = [name.replace("\\", "/") for name in table.column(column)]
    folders = _folders(table, base, split)
    found = find_named(names, folders)
    if found is None and (anywhere := find_anywhere(names, base)):
        found = base, anywhere
    if found is None:
        folder = max(folders, key=lambda f: sum(path_type(str(f / name)) == "file" for name in names[:50]))
        missing = [i for i, name in enumerate(names) if not name or path_type(str(folder / name)) != "file"]
        row = missing[0] if missing else 0
        raise table.error(
            row,
            f"image {names[row]!r} does not exist; {len(missing)} of {len(names)} rows name missing images.",
            f"Paths are relative to {folder}: move the table, correct the paths or remove the rows.",
        )
    if changed := [(old, new) for old, new in zip(names, found[1], strict=True) if old != new]:
        notes.append(f"Image {changed[0][0]!r} is {str(found[0] / changed[0][1])!r}; {len(changed)} names differ so.")
    return found


def _labels_column(table: Table, name: str | None, others: Sequence[str], notes: list[str]) -> str | None:
    """The column of labels; None: one column per class."""
    if name is not None:
        table.check_column(name, "--labels-column")
        return name
    free = [c for c in table.columns if c not in others]
    if not free:
        raise DataError(
            f"{table.path} has no labels; its columns are {', '.join(map(repr, table.columns))}.",
            "Add a column 'labels', or one column per class.",
        )
    by_name = [c for known in LABEL_COLUMNS for c in free if c.lower() == known]
    if by_name:
        return by_name[0]
    if len(free) == 1 and not _is_binary(table, free[0]):
        notes.append(f"Column {free[0]!r} holds the labels (--labels-column).")
        return free[0]
    return None


def _is_binary(table: Table, column: str) -> bool:
    """Whether a column says of each image whether it has a class."""
    return all(cell.lower() in _CELLS for cell in table.column(column)) and any(table.column(column))


def _is_mostly_binary(table: Table, column: str) -> bool:
    """Whether most of the cells of a column that say something say whether an image has a class."""
    said = [cell.lower() for cell in table.column(column) if _CELLS.get(cell.lower()) != IGNORED]
    return 2 * sum(cell in _CELLS for cell in said) > len(said)


def _joined_labels(
    table: Table, column: str, separator: str | None, classes: Sequence[str] | None, notes: list[str]
) -> tuple[tuple[str, ...], NDArray[np.int8]]:
    """Classes and (N, C) labels from a column of labels."""
    found, said = parse_labels(table.column(column), table.error, separator, classes or ())
    notes += said
    occurring = sorted({name for parts in found for name in parts})
    if not occurring:
        raise DataError(f"{table.path} has no label in any row.", f"Fill the column {column!r}.")
    names = tuple(occurring if classes is None else classes)
    left_out = [name for name in occurring if name not in names]
    for name in names:
        if name not in occurring:
            hint = did_you_mean(name, left_out) or f"Its labels are {', '.join(occurring[:20])}."
            raise DataError(f"--classes names {name!r}, which is no label in {table.path}.", hint)
    if left_out:
        notes.append(f"Labels that are not in --classes are left out: {few(left_out)}.")
    index = {name: position for position, name in enumerate(names)}
    labels = np.full((len(found), len(names)), ABSENT, np.int8)
    for row, parts in enumerate(found):
        labels[row, [index[part] for part in parts if part in index]] = PRESENT
    verified = next((c for c in table.columns if c.lower() == "confidence" and _is_binary(table, c)), None)
    if verified is not None:  # Open Images: 0 says that the label was checked and is absent
        absent = [row for row, cell in enumerate(table.column(verified)) if _CELLS[cell.lower()] == ABSENT]
        labels[absent] = ABSENT
        notes.append(f"{len(absent)} rows with {verified} 0 name absent labels.")
    return names, labels


def _one_hot_labels(
    table: Table, others: Sequence[str], classes: Sequence[str] | None, notes: list[str]
) -> tuple[tuple[str, ...], NDArray[np.int8]]:
    """Classes and (N, C) labels from one column per class."""
    names = tuple(classes) if classes is not None else tuple(c for c in table.columns if c not in others)
    for name in names:
        table.check_column(name, "--classes")
    binary = [name for name in names if _is_binary(table, name)]
    if classes is None and 2 <= len(binary) < len(names):
        names = tuple(name for name in names if name in binary or _is_mostly_binary(table, name))
        if left_out := [name for name in table.columns if name not in (*others, *names)]:
            listed = ", ".join(map(repr, left_out))
            notes.append(f"Columns that hold no 1 and 0 are left out: {listed}; --labels-column names labels.")
    labels = np.empty((len(table.rows), len(names)), np.int8)
    for row, cells in enumerate(table.rows):
        for position, name in enumerate(names):
            value = cells[name].lower()
            if value not in _CELLS:
                raise table.error(
                    row,
                    f"column {name!r}: {cells[name]!r} is not 1, 0 or empty (present, absent, ignored).",
                    f"If the column holds labels: --labels-column {shlex.quote(name)}. If there is one column per "
                    "class, list these: --classes a,b; leave a cell empty if the label is unknown.",
                )
            labels[row, position] = _CELLS[value]
    return names, labels


def _join_rows(
    table: Table,
    split_column: str,
    images: list[str],
    labels: NDArray[np.int8],
    task: Task | None,
    one_each: bool,
    notes: list[str],
) -> tuple[Table, list[str], NDArray[np.int8]]:
    """One row per image: the labels of several rows of an image are joined.

    Different labels of an image are a mistake if the task is multi-class, and if they are rare in a table of single
    labels; otherwise the table lists each label of an image in a row of its own. Different splits always are.
    """
    first: dict[str, int] = {}
    rows: dict[int, int] = {}  # repeated row -> first row of the image
    for row, image in enumerate(images):
        if first.setdefault(image, row) != row:
            rows[row] = first[image]
    if not rows:
        return table, images, labels
    splits = table.column(split_column) if split_column in table.columns else [""] * len(images)
    if moved := [row for row, main in rows.items() if splits[row] != splits[main]]:
        row = moved[0]
        raise table.error(
            row,
            f"image {images[row]!r} is in the split {splits[row]!r}, and in {splits[rows[row]]!r} before "
            f"({len(moved)} rows repeat an image in another split).",
            "An image is in one split: remove its other rows.",
        )
    joined, different = labels.copy(), [row for row, main in rows.items() if (labels[row] != labels[main]).any()]
    if different and (task == "multiclass" or (one_each and task is None and len(different) <= 0.1 * len(first))):
        row = different[0]
        raise table.error(
            row,
            f"image {images[row]!r} has another label than in line {table.lines[rows[row]]} ({len(different)} rows "
            "contradict others).",
            "Correct them, or give --data-option task=multilabel if an image can have several labels.",
        )
    for row, main in rows.items():
        joined[main][labels[row] == PRESENT] = PRESENT
    notes.append(f"{len(rows)} rows repeat an image: the labels of its rows are joined ({len(different)} differ).")
    kept = list(first.values())
    return table.keep(kept), [images[i] for i in kept], joined[kept]
