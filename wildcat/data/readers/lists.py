"""Read text files that list images, one per line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from wildcat.data.dataset import Sample, one_label
from wildcat.errors import DataError


def read_lines(path: Path) -> list[tuple[int, str]]:
    """(line number, stripped text) of the lines that are not blank.

    Raises:
        DataError: the file is not UTF-8.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not a text file (byte {error.start} is not UTF-8).", "Restore the list.") from error
    return [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1) if line.strip()]


def add_once(
    lines: dict[str, int], name: str, path: Path, number: int, hint: str = "Remove one of the two lines."
) -> None:
    """Record in `lines` that line `number` of `path` names an image.

    Raises:
        DataError: an earlier line names it.
    """
    if name in lines:
        raise DataError(f"{path}, line {number}: image {name!r} appears already in line {lines[name]}.", hint)
    lines[name] = number


def read_class_list(folder: Path, path: Path, classes: Sequence[str]) -> list[Sample]:
    """The samples of a list of lines `<class>/<image>`, in its order; images are relative to `folder`.

    Raises:
        DataError: the list is not UTF-8, or names an image twice, a missing image or an unknown class.
    """
    lines: dict[str, int] = {}
    for number, line in read_lines(path):
        if line.partition("/")[0] not in classes or not (folder / line).is_file():
            raise DataError(
                f"{path}, line {number}: there is no image {line!r} in {folder}.",
                "Restore the image, or the list if it was cut.",
            )
        add_once(lines, line, path, number)
    index = {name: position for position, name in enumerate(classes)}
    return [Sample(line, folder / line, one_label(index[line.partition("/")[0]], len(classes))) for line in lines]
