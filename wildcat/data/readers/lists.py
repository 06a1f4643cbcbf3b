"""Read text files that list images, one per line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from wildcat.data.dataset import Sample, one_label
from wildcat.errors import DataError


def read_lines(path: Path) -> dict[str, int]:
    """Stripped line -> its number in the file, without blank lines.

    Raises:
        DataError: the file is missing or not UTF-8, or has a line twice.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not a text file (byte {error.start} is not UTF-8).", "Restore the list.") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.", "Restore the list.") from error
    lines: dict[str, int] = {}
    for number, line in enumerate(map(str.strip, text.splitlines()), 1):
        if line in lines:
            raise DataError(
                f"{path}, line {number}: {line!r} appears already in line {lines[line]}.",
                "Remove one of the two lines.",
            )
        if line:
            lines[line] = number
    return lines


def missing_image(path: Path, number: int, name: str, folder: Path) -> DataError:
    """The error for line `number` of the list `path`, which names an image that `folder` does not have."""
    return DataError(
        f"{path}, line {number}: image {name!r} is not in {folder}.", "Restore the image, or the list if it was cut."
    )


def read_class_list(folder: Path, path: Path, classes: Sequence[str]) -> list[Sample]:
    """The samples of a list of lines `<class>/<image>`, in its order; images are relative to `folder`.

    Raises:
        DataError: the list is not UTF-8, or names an image twice, a missing image or an unknown class.
    """
    samples = []
    for line, number in read_lines(path).items():
        name = line.partition("/")[0]
        if name not in classes or not (folder / line).is_file():
            raise missing_image(path, number, line, folder)
        samples.append(Sample(line, folder / line, one_label(classes.index(name), len(classes))))
    return samples
