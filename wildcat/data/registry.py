"""Every data set by path or name: the layouts that are recognised, and the sets that come packaged."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from wildcat.data.cache import cache_folder
from wildcat.data.dataset import DataSet
from wildcat.data.images import list_images
from wildcat.data.readers.coco import read_coco, recognise_coco
from wildcat.data.readers.csv import read_table, recognise_table
from wildcat.data.readers.folder import read_folder, recognise_folder
from wildcat.data.readers.mit67 import read_indoor, recognise_indoor
from wildcat.data.readers.scene15 import read_scenes, recognise_scenes
from wildcat.data.readers.solar import read_solar
from wildcat.data.readers.synthetic import read_shapes
from wildcat.data.readers.voc import read_voc, recognise_voc
from wildcat.data.readers.voc_action import read_action, recognise_action
from wildcat.data.readers.webdataset import names_shards, read_webdataset, recognise_webdataset
from wildcat.data.sources import SOURCES
from wildcat.errors import ConfigError, DataError, did_you_mean


@dataclass(frozen=True)
class Format:
    """A layout on disk that can be read.

    Attributes:
        recognise: whether a path has the layout, from its structure alone.
        read: path and options -> data set.
        description: what it is, in a few words.
        tree: the layout as it looks on disk, for messages.
    """

    recognise: Callable[[Path], bool]
    read: Callable[..., DataSet]
    description: str
    tree: str


FORMATS: dict[str, Format] = {
    "voc": Format(
        recognise_voc,
        read_voc,
        "Pascal VOC devkit",
        "VOC2012/{JPEGImages/*.jpg, ImageSets/Main/{train,val}.txt, Annotations/*.xml}",
    ),
    "voc-action": Format(
        recognise_action,
        read_action,
        "actions of people in a VOC devkit",
        "VOC2012/{JPEGImages/*.jpg, ImageSets/Action/<action>_{train,val}.txt, Annotations/*.xml}",
    ),
    "coco": Format(
        recognise_coco,
        read_coco,
        "MS COCO, or tags and boxes as COCO json",
        "coco/{annotations/instances_train2014.json, train2014/*.jpg, ...} or photos/{annotations.json, images/*.jpg}",
    ),
    "scenes": Format(recognise_scenes, read_scenes, "15-Scene", "15-Scene/{CALsuburb,MITcoast,...,store}/*.jpg"),
    "indoor": Format(
        recognise_indoor,
        read_indoor,
        "MIT67",
        "MIT67/{Images/{airport_inside,...}/*.jpg, TrainImages.txt, TestImages.txt}",
    ),
    "webdataset": Format(
        recognise_webdataset,
        read_webdataset,
        "tar shards as WebDataset has them",
        "shards/{train,val}-{000..099}.tar with key.jpg beside key.json, key.cls or key.txt",
    ),
    "csv": Format(
        recognise_table,
        read_table,
        "table of images and tags",
        "photos/{tags.csv, *.jpg} with columns image,labels or image,<one column per class>",
    ),
    "folder": Format(
        recognise_folder,
        read_folder,
        "one folder per class",
        "photos/{cat,dog,...}/*.jpg or photos/{train,val}/{cat,dog,...}/*.jpg",
    ),
}
"""Format name -> reader. The first that recognises a path reads it: from the particular to the general."""

PACKAGED: dict[str, Callable[..., DataSet]] = {"shapes": read_shapes, "solar": read_solar}
"""Data sets known by name alone."""


@dataclass(frozen=True)
class DataSetInfo:
    """One row of `wildcat datasets`: a name, the format that reads it, what it is, and where it is or how to get it."""

    name: str
    format: str
    description: str
    where: str


def open_dataset(source: str | Path, format: str | None = None, **options: object) -> DataSet:
    """The data set at a path, or the packaged one of that name.

    The bare names `solar` and `shapes` mean the packaged data sets, also where a folder of that name exists
    (write `./shapes` for the folder). Otherwise the layout is recognised from its structure, in the order of `FORMATS`,
    unless `format` names it. A pattern of tar shards, such as `"shards/{train,val}-{000..099}.tar"`, or an address of
    some, such as `s3://bucket/train-000.tar`, is a data set too. `options` go to the reader: see `read_voc`,
    `read_coco`, `read_table`, `read_webdataset`, `read_solar`.

    Raises:
        ConfigError: unknown format, or an option that the format does not have.
        DataError: nothing there, no known layout, or the reader's own complaints.
        MissingExtra: a packaged data set whose package is not installed.
    """
    if format is not None and format not in FORMATS and format not in PACKAGED:
        raise ConfigError(
            f"{format!r} is no data format.", did_you_mean(format, FORMATS) or f"Choose one of: {', '.join(FORMATS)}."
        )
    if isinstance(source, str) and source in PACKAGED and format in (None, source):
        return _call(PACKAGED[source], source, options)
    if source == "":
        raise DataError("The data set's path is empty.", "Give a folder, a table or a name; '.' is the current folder.")
    if names_shards(str(source)) and format in (None, "webdataset"):
        return _call(read_webdataset, "webdataset", options, source)
    path = Path(source).expanduser()
    if not path.exists():
        raise _missing(path)
    if format is None:
        format = next((name for name, entry in FORMATS.items() if entry.recognise(path)), None)
        if format is None:
            raise _unrecognised(path)
    elif format not in FORMATS:
        raise ConfigError(f"{format!r} is a packaged data set, not a format.", f"Give the name alone: {format}.")
    return _call(FORMATS[format].read, format, options, path)


def list_datasets() -> list[DataSetInfo]:
    """What can be opened: the packaged data sets, the public ones whose layout is known, and layouts for one's own."""
    return [
        DataSetInfo(
            "solar", "solar", "2,624 solar cells tagged functional or defective", "pip install 'wildcat-vision[demo]'"
        ),
        DataSetInfo(
            "shapes", "shapes", "500 synthetic scenes of shapes with boxes and masks", f"generated in {cache_folder()}"
        ),
        _public("VOC2007", "voc", "9,963 photographs, 20 classes, boxes; 632 with masks"),
        _public("VOC2012", "voc", "11,540 photographs, 20 classes, boxes; 2,913 with masks"),
        _public("VOC2012-Action", "voc-action", "photographs of people, 10 actions (--format voc-action)"),
        _public("COCO2014", "coco", "82,783 photographs to train, 40,504 to validate, 80 classes, boxes"),
        _public("COCO2017", "coco", "118,287 photographs to train, 5,000 to validate, 80 classes, boxes"),
        _public("MIT67", "indoor", "5,360 + 1,340 photographs of 67 kinds of indoor places"),
        _public("15-Scene", "scenes", "4,485 grey photographs of 15 kinds of places"),
        *(
            DataSetInfo("(yours)", name, FORMATS[name].description, FORMATS[name].tree)
            for name in ("folder", "csv", "coco", "webdataset")
        ),
    ]


def _public(name: str, format: str, description: str) -> DataSetInfo:
    source = SOURCES[name]
    where = f"DIR/{source.opens}, by: wildcat datasets fetch {name} --to DIR, or by hand from {source.homepage}"
    return DataSetInfo(name, format, description, where)


def _call(read: Callable[..., DataSet], name: str, options: dict[str, object], *path: Path | str) -> DataSet:
    allowed = list(inspect.signature(read).parameters)[len(path) :]
    if not path:  # a packaged data set knows where it is
        allowed = [option for option in allowed if option != "root"]
    for option in options:
        if option not in allowed:
            raise ConfigError(
                f"Format {name!r} has no option {option!r}.",
                did_you_mean(option, allowed) or (f"It has {', '.join(allowed)}." if allowed else "It has no options."),
            )
    return read(*path, **options)


def _missing(path: Path) -> DataError:
    """Nothing at `path`: name the part that is there, and what lies near."""
    there = next(parent for parent in path.absolute().parents if parent.exists())
    wanted = path.absolute().relative_to(there).parts[0]
    near = did_you_mean(wanted, [p.name for p in there.iterdir()] if there.is_dir() else [])
    packaged = did_you_mean(str(path), PACKAGED)
    hints = [f"In {there}: {near}" if near else f"{there} has nothing called {wanted!r}.", packaged]
    return DataError(f"{path} does not exist.", " ".join(f"{hint[:1].upper()}{hint[1:]}" for hint in hints if hint))


def _unrecognised(path: Path) -> DataError:
    accepted = "\n".join(f"  {name:10} {entry.tree}" for name, entry in FORMATS.items())
    if path.is_file():
        return DataError(
            f"{path} is a file of no known data format.", f"Give a folder or a table, laid out as one of:\n{accepted}"
        )
    return DataError(
        f"{path} has no layout that can be read; it holds:\n{describe_tree(path)}",
        f"Lay it out as one of:\n{accepted}\nor name one with format.",
    )


def describe_tree(root: Path, entries: int = 6) -> str:
    """What a folder holds, two levels deep, at most `entries` names a level, as indented lines."""
    lines = _tree_lines(root, entries, "  ")
    for position, folder in reversed([(i + 1, root / line.strip().rstrip("/")) for i, line in enumerate(lines)]):
        if lines[position - 1].endswith("/"):
            lines[position:position] = _tree_lines(folder, 3, "    ")
    return "\n".join(lines) or "  (nothing)"


def _tree_lines(folder: Path, entries: int, indent: str) -> list[str]:
    found = sorted((p for p in folder.iterdir() if not p.name.startswith(".")), key=lambda p: (p.is_file(), p.name))
    lines = [f"{indent}{p.name}{'/' if p.is_dir() else ''}" for p in found[:entries]]
    if len(found) > entries:
        images = len(list_images(folder, recursive=False))
        lines.append(f"{indent}... ({len(found)} entries, {images} of them images)")
    return lines
