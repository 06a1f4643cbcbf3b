"""Open a data set by path or name: the layouts that are recognised, and the packaged data sets."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple, cast, get_args

from wildcat.data.cache import cache_folder
from wildcat.data.dataset import PRESENT, DataSet, Task, few
from wildcat.data.formats import skipped_note
from wildcat.data.labels import normal_name, parse_names, similar_names
from wildcat.data.listing import image_files, list_images
from wildcat.data.readers.coco import read_coco, recognise_coco
from wildcat.data.readers.csv import read_table
from wildcat.data.readers.folder import read_folder, recognise_folder
from wildcat.data.readers.mit67 import read_indoor, recognise_indoor
from wildcat.data.readers.scene15 import read_scenes, recognise_scenes
from wildcat.data.readers.solar import read_solar
from wildcat.data.readers.synthetic import read_shapes
from wildcat.data.readers.table import find_table
from wildcat.data.readers.voc import find_devkits, read_voc, recognise_voc
from wildcat.data.readers.voc_action import read_action
from wildcat.data.readers.webdataset import names_shards, read_webdataset, recognise_webdataset
from wildcat.data.readers.yolo import read_yolo, recognise_yolo
from wildcat.data.sources import SOURCES
from wildcat.errors import ConfigError, DataError, did_you_mean


class Format(NamedTuple):
    """A layout on disk."""

    recognise: Callable[[Path], object]  # true if a path has the layout, judged by its structure alone
    read: Callable[..., DataSet]  # path and keyword options -> data set
    description: str
    tree: str  # the layout as it looks on disk, for messages


# Format name -> reader. The first that recognises a path reads it, so specific layouts come before general ones.
FORMATS: dict[str, Format] = {
    "voc": Format(
        recognise_voc,
        read_voc,
        "Pascal VOC devkit, or XML annotations of VOC",
        "VOC2012/{JPEGImages/*.jpg, ImageSets/Main/{train,val}.txt, Annotations/*.xml} or photos/{1.jpg, 1.xml, ...}",
    ),
    "voc-action": Format(
        partial(find_devkits, lists="Action"),
        read_action,
        "actions of people in a VOC devkit",
        "VOC2012/{JPEGImages/*.jpg, ImageSets/Action/<action>_{train,val}.txt, Annotations/*.xml}",
    ),
    "coco": Format(
        recognise_coco,
        read_coco,
        "MS COCO, or labels and boxes as COCO JSON",
        "coco/{annotations/instances_train2014.json, train2014/*.jpg, ...} or photos/{annotations.json, images/*.jpg}",
    ),
    "yolo": Format(
        recognise_yolo,
        read_yolo,
        "labels of YOLO, read as image-level labels",
        "photos/{data.yaml, images/{train,val}/*.jpg, labels/{train,val}/*.txt}",
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
        "tar shards in the layout of WebDataset",
        "shards/{train,val}-{000..099}.tar with key.jpg beside key.json, key.cls or key.txt",
    ),
    "csv": Format(
        find_table,
        read_table,
        "table of images and labels",
        "photos/{labels.csv, *.jpg} with columns image,labels or image,<one column per class>",
    ),
    "folder": Format(
        recognise_folder,
        read_folder,
        "one folder per class",
        "photos/{cat,dog,...}/*.jpg or photos/{train,val}/{cat,dog,...}/*.jpg",
    ),
}

# Formats whose reader chooses the classes; of others, and of numbered classes of shards, they are chosen afterwards.
READS_CLASSES = ("csv", "folder")
READS_TASK = ("csv", "webdataset")  # these decide it from the labels

# Data sets opened by name alone.
PACKAGED: dict[str, Callable[..., DataSet]] = {"shapes": read_shapes, "solar": read_solar}


class DataSetInfo(NamedTuple):
    """One row of `wildcat datasets`: name, format that reads it, description, and where it is or how to get it."""

    name: str
    format: str
    description: str
    where: str


def open_dataset(source: str | Path, format: str | None = None, **options: object) -> DataSet:
    """The data set at a path, or the packaged one of that name.

    The bare names `solar` and `shapes` are packaged data sets, also where a folder of that name exists (write
    `./shapes` for the folder). Otherwise `format` names the layout, or it is recognised in the order of `FORMATS`.
    A pattern of tar shards (`"shards/{train,val}-{000..099}.tar"`) or a URL (`s3://bucket/train-000.tar`) is a data set
    too. `options` go to the reader: see `read_voc`, `read_coco`, `read_table`, `read_webdataset`, `read_solar`.
    `classes=["cat", "dog"]` goes with every format: the classes to read, in this order; others are left out, in
    multi-class data with their images. So does `task="multiclass"` or `"multilabel"`; without it folders and columns of
    single labels are multi-class, annotations and columns of 0 and 1 multi-label.

    Raises:
        ConfigError: unknown format or task, or an option that the format does not have.
        DataError: missing path, unknown layout, or an error of the reader.
        MissingExtra: a packaged data set whose package is not installed.
    """
    chosen = find_format(source, format)
    given = options.pop("classes", None)
    classes = parse_names(given) if isinstance(given, str) else cast(Sequence[str] | None, given)
    if classes is not None and chosen in (*READS_CLASSES, "webdataset"):
        options["classes"] = classes
    task = cast(Task | None, options.get("task") if chosen in READS_TASK else options.pop("task", None))
    if task is not None and task not in get_args(Task):
        raise ConfigError(
            f"--data-option task={task}: give multilabel or multiclass.", did_you_mean(task, get_args(Task))
        )
    if chosen in PACKAGED:
        data = _call(PACKAGED[chosen], chosen, options)
    elif chosen == "webdataset" and names_shards(str(source)):
        data = _call(read_webdataset, chosen, options, source)
    else:
        data = _call(FORMATS[chosen].read, chosen, options, Path(source).expanduser())
    return _with_task(_with_names(data, None if chosen in READS_CLASSES else classes), task)


def find_format(source: str | Path, format: str | None = None) -> str:
    """The format that reads a source, or the name of a packaged data set; see `open_dataset`.

    Raises:
        ConfigError: unknown format.
        DataError: missing path or unknown layout.
    """
    if format is not None and format not in FORMATS and format not in PACKAGED:
        raise ConfigError(
            f"unknown data format {format!r}.",
            did_you_mean(format, FORMATS) or f"Choose one of: {', '.join(FORMATS)}.",
        )
    if isinstance(source, str) and source in PACKAGED and format in (None, source):
        return source
    if source == "":
        raise DataError("The data set's path is empty.", "Give a folder, a table or a name; '.' is the current folder.")
    if names_shards(str(source)) and format in (None, "webdataset"):
        return "webdataset"
    path = Path(source).expanduser()
    if not path.exists():
        raise _missing(path)
    if format is not None and format not in FORMATS:
        raise ConfigError(f"{format!r} is a packaged data set, not a format.", f"Give the name alone: {format}.")
    found = format or next((name for name, entry in FORMATS.items() if entry.recognise(path)), None)
    if found is None:
        raise _unrecognised(path)
    return found


def _with_names(data: DataSet, classes: Sequence[str] | None) -> DataSet:
    """A data set with its names in composed Unicode, reduced to `classes` if given, and notes on similar names."""
    names = {name: normal_name(name) for name in data.classes}
    target, notes = tuple(dict.fromkeys(names.values())), list(data.notes)
    if len(target) < len(names):
        twice = next(name for name in target if list(names.values()).count(name) > 1)
        notes.append(f"Classes whose names differ in Unicode form alone are joined: {twice!r}.")
    if classes is not None:
        for name in set(classes).difference(target):
            raise DataError(
                f"--classes names {name!r}, which {data.name} does not have.",
                did_you_mean(name, target) or f"It has {', '.join(target[:20])}.",
            )
        if left_out := [name for name in target if name not in classes]:
            notes.append(f"Classes that are not in --classes are left out: {few(left_out)}.")
        target = tuple(classes)
    notes += similar_names(target)
    return replace(data.for_classes(target, names), notes=tuple(notes))


def _with_task(data: DataSet, task: Task | None) -> DataSet:
    """The data set as multi-label or multi-class data; None: as it was read."""
    if task == "multiclass" != data.task:
        for sample in (sample for split in data.readers for sample in data.split(split)):
            if (count := int((sample.labels == PRESENT).sum())) != 1:
                raise DataError(
                    f"--data-option task=multiclass: {sample.name} of {data.name} has {count} labels, not one.",
                    "Leave the option out.",
                )
    return data if task is None else replace(data, task=task)


def list_datasets() -> list[DataSetInfo]:
    """The packaged data sets, the public ones, and the layouts for a user's own data."""
    install, cache = "pip install 'wildcat-vision[demo]'", f"generated in {cache_folder()}"
    packaged = [
        DataSetInfo("solar", "solar", "2,624 solar cells labelled functional or defective", install),
        DataSetInfo("shapes", "shapes", "500 synthetic scenes of shapes with boxes and masks", cache),
    ]
    public = [
        DataSetInfo(
            source.name,
            source.format,
            source.description,
            f"DIR/{source.opens}, by: wildcat datasets fetch {source.name} --to DIR, or by hand from {source.homepage}",
        )
        for source in SOURCES.values()
    ]
    formats = [(name, FORMATS[name]) for name in ("folder", "csv", "coco", "voc", "yolo", "webdataset")]
    own = [DataSetInfo("(yours)", name, entry.description, entry.tree) for name, entry in formats]
    return packaged + public + own


def _call(read: Callable[..., DataSet], name: str, options: dict[str, object], *path: Path | str) -> DataSet:
    """Refuse options that the reader does not have, then read."""
    parameters = inspect.signature(read).parameters.values()
    allowed = [parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]
    if unknown := [option for option in options if option not in allowed]:
        raise ConfigError(
            f"Format {name!r} has no option {_flag(unknown[0])}.",
            did_you_mean(unknown[0], allowed) or f"It has {', '.join(map(_flag, allowed)) or 'no options'}.",
        )
    for parameter in parameters:  # flags give text
        value = options.get(parameter.name)
        for kind in (int, float):
            if isinstance(value, str) and kind.__name__ in str(parameter.annotation):
                try:
                    options[parameter.name] = kind(value)
                except ValueError as error:
                    raise ConfigError(f"--data-option {parameter.name}={value}: give a number.") from error
    return read(*path, **options)


def _flag(option: str) -> str:
    """How an option of a reader is typed."""
    flags = ("image_column", "labels_column", "separator", "classes")
    return f"--{option.replace('_', '-')}" if option in flags else f"--data-option {option}=VALUE"


def _missing(path: Path) -> DataError:
    """The error for a missing path: names the deepest existing folder and similar names in it."""
    there = next(parent for parent in path.absolute().parents if parent.exists())
    wanted = path.absolute().relative_to(there).parts[0]
    near = did_you_mean(wanted, [p.name for p in there.iterdir()] if there.is_dir() else [])
    hint = f"In {there}: {near}" if near else f"{there} has nothing called {wanted!r}."
    packaged = did_you_mean(str(path), PACKAGED).capitalize()
    return DataError(f"{path} does not exist.", f"{hint} {packaged}".strip())


def _unrecognised(path: Path) -> DataError:
    accepted = "\n".join(f"  {name:10} {entry.tree}" for name, entry in FORMATS.items())
    if path.is_file():
        return DataError(
            f"{path} is a file of an unknown format.", f"Give a folder or a table, laid out as one of:\n{accepted}"
        )
    skipped: Counter[str] = Counter()
    if not any(image_files(str(path), skipped)) and (note := skipped_note("", skipped)):
        if any("(" in kind for kind in skipped):  # images of a kind that Pillow does not read, with what to do
            return DataError(f"{path} has no images that can be read.", f"{note[0].upper()}{note[1:]}")
        accepted = f"{accepted}\n{note}"
    return DataError(
        f"{path} has no known layout; it holds:\n{describe_tree(path)}",
        f"Lay it out as one of:\n{accepted}\nor name one with --format.",
    )


def describe_tree(folder: Path, entries: int = 6, indent: str = "  ") -> str:
    """The content of a folder, two levels deep, as indented lines; at most `entries` names, and 3 in each subfolder."""
    found = sorted((p for p in folder.iterdir() if not p.name.startswith(".")), key=lambda p: (p.is_file(), p.name))
    lines = []
    for path in found[:entries]:
        lines.append(f"{indent}{path.name}{'/' if path.is_dir() else ''}")
        if path.is_dir() and indent == "  " and any(path.iterdir()):
            lines.append(describe_tree(path, 3, "    "))
    if len(found) > entries:
        images = len(list_images(folder, recursive=False))
        lines.append(f"{indent}... ({len(found)} entries, {images} of them images)")
    return "\n".join(lines) or f"{indent}(nothing)"
