"""Tar shards in the layout of WebDataset, with labels: `key.jpg` beside `key.json`, `key.cls` or `key.txt`.

Shards are not streamed but indexed: of each member the place in its shard is known, so that an epoch is a permutation
of all images, whatever the shards and however many processes, each image once.
"""

from __future__ import annotations

import glob
import io
import json
import re
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from os.path import commonpath
from pathlib import Path, PurePosixPath
from typing import Any, get_args

import numpy as np

from wildcat.data.dataset import ABSENT, IGNORED, PRESENT, DataSet, Sample, Task
from wildcat.data.image_ref import ImageLocation, ImageRef
from wildcat.data.images import IMAGE_SUFFIXES, holds_images
from wildcat.data.readers.folder import SPLIT_FOLDERS, default_splits
from wildcat.data.remote import expand_braces, file_name, glob_files, is_url, local_path, open_file, path_type
from wildcat.data.shards import list_members
from wildcat.errors import ConfigError, DataError, did_you_mean

CLASSES = "classes.txt"
"""Beside the shards: the classes, one a line, in the order that numbers in labels count them from 0."""

LABEL_SUFFIXES = (".json", ".cls", ".txt")
"""Of the members that hold labels; the first that an image has is taken."""

NAMES = ("labels", "label", "cls", "class")
"""Under which a JSON object holds the labels; those that are unknown ("difficult") are its "ignored"."""

MAX_LABEL = 1 << 20
"""Bytes of a member with labels."""

Label = str | int


@dataclass(frozen=True)
class Tagged:
    """An image of a shard with what was written about it.

    Attributes:
        name: unique in the data set.
        image: where it lies.
        present, ignored: class names, or their numbers.
    """

    name: str
    image: ImageLocation
    present: tuple[Label, ...]
    ignored: tuple[Label, ...] = ()


def names_shards(text: str) -> bool:
    """Whether a source is a pattern or an address of shards, rather than a file or folder of this machine."""
    return is_url(text) or (("{" in text or glob.has_magic(text)) and not Path(text).expanduser().exists())


def recognise_webdataset(path: Path) -> bool:
    """Whether `path` is a tar file, or a folder that holds some and no images."""
    if path.is_file():
        return path.suffix.lower() == ".tar"
    return path.is_dir() and any(path.glob("*.tar")) and not holds_images(path)


def read_webdataset(source: str | Path, *, classes: str | None = None, task: str | None = None) -> DataSet:
    """A data set of tar shards: a shard, a folder of them, a pattern (`shards/{train,val}-{000..099}.tar`), an address.

    Files with the same path up to the first dot of their name belong together (WebDataset's key). Labels are

        key.json  {"labels": ["cat", "dog"], "ignored": ["cow"]}, {"label": "cat"} or ["cat", "dog"]; numbers as well
        key.cls   a number or a name
        key.txt   names, one a line or separated by ";"

    A split is what a shard's name says (`train-000.tar`, `imagenet-val-07.tar`); where no name says one, `train` and
    `val` are a fixed stratified 80/20 and `all` is everything. Images with exactly one label each are multi-class.

    Args:
        classes: a file of their names, one a line; by default `classes.txt` beside the shards, or the names that occur.
        task: "multilabel" or "multiclass".

    Raises:
        ConfigError: an unknown `task`.
        DataError: no shard, a damaged one, an image without labels, a label that is none of the classes.
    """
    if task is not None and task not in get_args(Task):
        raise ConfigError(f"task={task!r}: give multilabel or multiclass.", did_you_mean(task, get_args(Task)))
    shards = find_shards(str(source))
    folder = _folder_of(shards)
    tagged = {shard: list(_tagged(shard, folder)) for shard in shards}
    every = list(chain.from_iterable(tagged.values()))
    if not every:
        raise DataError(f"{source} holds no images.", "Its members should be key.jpg, key.json, ...")
    names = _classes(every, _class_file(folder, classes))
    index = {label: i for i, name in enumerate(names) for label in (name, i)}
    single = all(len(t.present) == 1 and not t.ignored for t in every)
    kind: Task = "multiclass" if task == "multiclass" or (task is None and single) else "multilabel"
    if kind == "multiclass" and not single:
        wrong = next(t for t in every if len(t.present) != 1 or t.ignored)
        raise DataError(
            f"{wrong.image} has {len(wrong.present)} labels and {len(wrong.ignored)} ignored ones; multi-class needs "
            "exactly one.",
            "Mend it, or choose task multilabel.",
        )
    samples = {shard: [_sample(t, index, len(names)) for t in found] for shard, found in tagged.items()}
    return DataSet(_name_of(source, folder), "webdataset", Path(folder), names, kind, _splits(samples))


def find_shards(source: str) -> list[str]:
    """The shards a source means, in order, each once.

    Raises:
        DataError: a place with none, or a file that is no plain tar.
    """
    found: list[str] = []
    for place in map(local_path, expand_braces(source)):
        kind = path_type(place)
        files = [place] if kind == "file" else glob_files(f"{place.rstrip('/')}/*.tar" if kind == "folder" else place)
        if not files:
            raise DataError(f"{place} holds no tar shards.", "Give shards, a folder of them or a pattern in quotes.")
        found += files
    if other := next((place for place in found if not place.lower().endswith(".tar")), None):
        raise DataError(f"{other} is no plain .tar.", "Name the shards alone; unpack compressed ones.")
    return list(dict.fromkeys(found))


def _tagged(shard: str, folder: str) -> Iterator[Tagged]:
    """The images of a shard with their labels, in its order."""
    images: dict[str, ImageLocation] = {}
    labels: dict[str, dict[str, ImageLocation]] = {}
    for member in list_members(shard, IMAGE_SUFFIXES | set(LABEL_SUFFIXES)):
        key, suffix = _key_and_suffix(member.member)
        if suffix in LABEL_SUFFIXES:
            labels.setdefault(key, {})[suffix] = member
        elif suffix in IMAGE_SUFFIXES:
            if key in images:
                raise DataError(f"{member} is a second image of {key!r}.", "Give each a key of its own.")
            images[key] = member
    prefix = shard[len(folder) :].lstrip("/")
    with open_file(shard) as file:
        for key, image in images.items():
            kind = next((s for s in LABEL_SUFFIXES if s in labels.get(key, {})), None)
            if kind is None:
                raise DataError(f"{image} has no labels.", f"Put {key}.json, {key}.cls or {key}.txt beside it.")
            label = labels[key][kind]
            if label.size > MAX_LABEL or label.error:
                fault = label.error or f"has {label.size:,} bytes, and labels have {MAX_LABEL:,} at most"
                raise DataError(f"{label} {fault}.", "Write the labels of the image there.")
            file.seek(label.start)
            present, ignored = _parse(file.read(label.size), kind, f"{label}")
            yield Tagged(f"{prefix}#{image.member}", image, present, ignored)


def _key_and_suffix(name: str) -> tuple[str, str]:
    """What names a sample, and what comes after: `a/b.seg.png` -> (`a/b`, `.seg.png`)."""
    folder, _, file = name.rpartition("/")
    stem, dot, rest = file.partition(".")
    return f"{folder}/{stem}" if folder else stem, f"{dot}{rest}".lower()


def _parse(content: bytes, suffix: str, where: str) -> tuple[tuple[Label, ...], tuple[Label, ...]]:
    """Present and ignored labels of a member."""
    try:
        text = content.decode("utf-8-sig").strip()
        if suffix == ".json":
            value = json.loads(text)
            found = value if isinstance(value, dict) else {"labels": value}
            name = next((n for n in NAMES if n in found), None)
            if name is None:
                raise ValueError(f"it has none of {', '.join(NAMES)}")
            return _labels(found[name]), _labels(found.get("ignored", []))
        parts = [text] if suffix == ".cls" else re.split(r"[;\n]", text)
        return _labels([int(p) if p.strip().isdecimal() else p.strip() for p in parts if p.strip()]), ()
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where} holds no labels: {error}.", 'Write {"labels": ["cat", "dog"]}.') from error


def _labels(value: Any) -> tuple[Label, ...]:
    values = value if isinstance(value, list) else [value]
    if not all(isinstance(v, str | int) and not isinstance(v, bool) for v in values):
        raise ValueError(f"{str(value)[:60]} is no list of names or numbers")
    return tuple(dict.fromkeys(values))


def _class_file(folder: str, given: str | None) -> tuple[str, ...] | None:
    """The class names of the file that was named, or of the one beside the shards, where there is one."""
    place = local_path(given) if given is not None else f"{folder}/{CLASSES}"
    if given is None and path_type(place) != "file":
        return None
    with open_file(place) as file:
        names = tuple(line.strip() for line in file.read().decode("utf-8-sig").splitlines() if line.strip())
    if not names or len(set(names)) < len(names):
        raise DataError(f"{place} names {'a class twice' if names else 'no class'}.", "Write one class a line.")
    return names


def _classes(every: Sequence[Tagged], given: tuple[str, ...] | None) -> tuple[str, ...]:
    """The classes, in order; every label must be one of them."""
    occurring = dict.fromkeys(label for t in every for label in (*t.present, *t.ignored))
    if given is None:
        numbers = [label for label in occurring if isinstance(label, int)]
        if numbers and len(numbers) < len(occurring):
            raise DataError("labels are numbers in some members and names in others.", f"Add {CLASSES}, one a line.")
        if len(occurring) > max(20, len(every) / 2):
            raise DataError(
                f"{len(every)} images have {len(occurring)} labels, such as {str(next(iter(occurring)))[:40]!r}.",
                f"Captions are no labels; where they are, list the classes in {CLASSES}.",
            )
        highest = max(numbers, default=-1)
        given = tuple(map(str, range(highest + 1))) if numbers else tuple(sorted(map(str, occurring)))
    if not given:
        raise DataError("no image has any label.", "Write the labels of each image beside it.")
    known = {*given, *range(len(given))}
    if (unknown := next((label for label in occurring if label not in known), None)) is not None:
        where = next(t.image for t in every if unknown in (*t.present, *t.ignored))
        raise DataError(
            f"{where}: label {unknown!r} is none of the {len(given)} classes.",
            did_you_mean(str(unknown), given) or f"Classes are {', '.join(given[:8])}, numbered from 0.",
        )
    return given


def _sample(tagged: Tagged, index: dict[Label, int], num_classes: int) -> Sample:
    labels = np.full(num_classes, ABSENT, np.int8)
    labels[[index[label] for label in tagged.ignored]] = IGNORED
    labels[[index[label] for label in tagged.present]] = PRESENT
    return Sample(tagged.name, tagged.image, labels)


def _splits(samples: dict[str, list[Sample]]) -> dict[str, Callable[[], Sequence[Sample]]]:
    """By what the names of shards say; without that, a fixed 80/20."""
    parts: dict[str, list[Sample]] = {}
    for shard, found in samples.items():
        words = re.split(r"[^a-z]+", file_name(shard).lower())
        split = next((SPLIT_FOLDERS[word] for word in words if word in SPLIT_FOLDERS), "")
        parts.setdefault(split, []).extend(found)
    if set(parts) == {""}:
        strata = [int(np.argmax(s.labels == PRESENT)) if (s.labels == PRESENT).any() else -1 for s in parts[""]]
        return default_splits(parts[""], strata)
    if "" in parts:
        raise DataError(
            f"{parts[''][0].path} is in a shard whose name says no split, unlike others.",
            "Call shards train-..., val-..., test-..., or none of them.",
        )
    return {name: partial(tuple, parts[name]) for name in ("train", "val", "test") if name in parts}


def _folder_of(shards: Sequence[str]) -> str:
    """The folder all shards are in, at any depth."""
    folders = [shard.rpartition("/")[0] for shard in shards]
    if len(set(folders)) == 1:
        return folders[0] or "."
    if any(map(is_url, shards)):
        same = [parts[0] for parts in zip(*(f.split("/") for f in folders), strict=False) if len(set(parts)) == 1]
        return "/".join(same)
    return commonpath(folders)


def _name_of(source: str | Path, folder: str) -> str:
    """What to call the data set: its folder."""
    return file_name(folder) if folder not in (".", "") else Path(str(source)).resolve().parent.name


# --- writing ----------------------------------------------------------------------------------------------------------


def write_webdataset(data: DataSet, folder: Path, images: int = 1000) -> list[Path]:
    """Write train, val and test of a data set as shards of so many images, `train-000000.tar` ..., and `classes.txt`.

    Files go into the shards as they are; boxes and masks are left behind. The same data gives the same bytes.

    Raises:
        ConfigError: fewer than one image a shard.
        DataError: the folder exists and is not empty, or an image cannot be read.
    """
    if images < 1:
        raise ConfigError(f"images={images}: give at least 1.")
    if folder.exists() and any(folder.iterdir()):
        raise DataError(f"{folder} exists and is not empty.", "Give a new folder.")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CLASSES).write_text("".join(f"{name}\n" for name in data.classes), encoding="utf-8")
    written = []
    for split in [name for name in ("train", "val", "test") if name in data.splits]:
        samples = data.split(split)
        for number, start in enumerate(range(0, len(samples), images)):
            path = folder / f"{split}-{number:06d}.tar"
            part = path.with_suffix(".part")
            with tarfile.open(part, "w") as file:
                for i, sample in enumerate(samples[start : start + images], start):
                    _add(file, f"{i:08d}", sample, data)
            part.replace(path)
            written.append(path)
    return written


def _add(file: tarfile.TarFile, key: str, sample: Sample, data: DataSet) -> None:
    if isinstance(sample.path, ImageRef):
        raise DataError(f"{sample.path} is in a shard already.", "Give data that lies in files.")
    suffix = PurePosixPath(sample.path.name).suffix.lower()
    labels = {
        name: [data.classes[i] for i in np.flatnonzero(sample.labels == value)]
        for name, value in (("labels", PRESENT), ("ignored", IGNORED))
    }
    try:
        content = sample.path.read_bytes()
    except OSError as error:
        raise DataError(f"{sample.path} cannot be read ({error.strerror or error}).", "Check the data set.") from error
    for name, part in (
        (f"{key}{suffix if suffix in IMAGE_SUFFIXES else '.jpg'}", content),
        (f"{key}.json", json.dumps(labels, ensure_ascii=False).encode()),
    ):
        info = tarfile.TarInfo(name)
        info.size = len(part)
        file.addfile(info, io.BytesIO(part))
