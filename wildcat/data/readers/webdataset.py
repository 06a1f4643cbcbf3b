"""Tar shards in the layout of WebDataset, with labels: `key.jpg` beside `key.json`, `key.cls` or `key.txt`.

Shards are indexed, not streamed: the byte range of each member is known, so that an epoch is a permutation of all
images, each once, for any number of shards and processes.
"""

from __future__ import annotations

import glob
import io
import json
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from os.path import commonprefix
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from wildcat.data.dataset import (
    ABSENT,
    IGNORED,
    PRESENT,
    DataSet,
    Sample,
    Task,
    default_splits,
    grouped_splits,
)
from wildcat.data.formats import IMAGE_SUFFIXES, skipped_note
from wildcat.data.image_ref import ImageLocation, ImageRef
from wildcat.data.labels import normal_name, parse_labels
from wildcat.data.layout import name_splits, path_splits, split_name, subfolders
from wildcat.data.listing import holds_images
from wildcat.data.remote import (
    expand_braces,
    file_name,
    file_suffix,
    glob_files,
    is_url,
    local_path,
    open_file,
    path_type,
)
from wildcat.data.shards import list_members
from wildcat.errors import ConfigError, DataError, did_you_mean
from wildcat.files import making, writing

CLASSES = "classes.txt"  # beside the shards: one class per line, in the order of label numbers, from 0
LABEL_SUFFIXES = (".json", ".cls", ".txt")  # of the members with labels; the first that holds labels is read
JSON_KEYS = ("labels", "label", "cls", "class")  # hold the labels of a JSON object; "ignored" those that are unknown
MAX_LABEL_BYTES = 1 << 20


class _Labelled(NamedTuple):
    """An image of a shard, and its labels as text: names or numbers. `cell` is text that may hold several."""

    image: ImageLocation
    present: list[str]
    ignored: list[str]
    cell: str = ""


def names_shards(text: str) -> bool:
    """Whether a source is a pattern or a URL of shards, rather than a local file or folder."""
    return is_url(text) or (("{" in text or glob.has_magic(text)) and not Path(text).expanduser().exists())


def recognise_webdataset(path: Path) -> bool:
    """Whether `path` is a tar file, or a folder that holds some, perhaps in split folders, and no images."""
    if path.is_file():
        return path.suffix.lower() == ".tar"
    if not path.is_dir():
        return False
    folders = [path, *(path / name for name in name_splits(p.name for p in subfolders(path)))]
    return any(any(folder.glob("*.tar")) for folder in folders) and not any(map(holds_images, folders))


def read_webdataset(
    source: str | Path,
    *,
    classes: Sequence[str] | None = None,
    separator: str | None = None,
    task: Task | None = None,
) -> DataSet:
    """A data set of tar shards: a shard, a folder of them, a pattern (`shards/{train,val}-{000..099}.tar`), a URL.

    Members with the same path up to the first dot of their name belong together (WebDataset's key); `a.b.jpg` and
    `a.b.json` too. Members that are neither images nor labels are skipped, with a note. Labels are

        key.json  {"labels": ["cat", "dog"], "ignored": ["cow"]}, {"label": "cat"} or ["cat", "dog"]; numbers as well
        key.cls   a number or a name
        key.txt   names, one per line or as in the column of a table, see `wildcat.data.labels.parse_labels`

    A number is the position of a class in `classes`, from 0; without them it is a name like any other: the classes are
    the numbers that occur, and "01" is not "1".

    The name of a shard gives its split (`train-000.tar`, `imagenet-val-07.tar`), or its folder (`train/000.tar`); if
    none does, `train` and `val` are a fixed stratified 80/20 and `all` is everything. Images with exactly one label
    each are multi-class.

    Args:
        classes: names of the classes; default: those in `classes.txt` beside the shards, or the labels that occur.
        separator: between the names of a text, see `parse_labels`.
        task: "multilabel" or "multiclass".

    Raises:
        DataError: no shard, a damaged one, an image without labels, a label that is none of the classes.
    """
    shards = find_shards(str(source))
    given = local_path(str(source)).rstrip("/")
    folder = given if all(shard.startswith(f"{given}/") for shard in shards) else _folder_of(shards)
    skipped: Counter[str] = Counter()
    found = [labelled for shard in shards for labelled in _read_shard(shard, skipped)]
    note = skipped_note(source, skipped)
    if not found:
        raise DataError(f"{source} holds no images.", f"{note} Members should be key.jpg, key.json, ...".strip())
    notes = [note] if note else []
    found = _split_cells(found, separator, notes)
    names, index = _classes(found, folder, classes)
    unclear = next((one for one in found if len(set(one.present)) != 1 or one.ignored), None)
    if task == "multiclass" and unclear:
        raise DataError(
            f"{unclear.image} has {len(unclear.present)} labels and {len(unclear.ignored)} ignored ones; multi-class "
            "needs exactly one.",
            "Correct it, or give --data-option task=multilabel.",
        )
    chosen: Task = "multilabel" if task == "multilabel" or unclear else "multiclass"
    by_folder = dict(zip(shards, path_splits([shard.removeprefix(f"{folder}/") for shard in shards]), strict=True))
    splits: dict[str, list[Sample]] = {}
    for one in found:
        labels = np.full(len(names), ABSENT, np.int8)
        labels[[index[label] for label in one.ignored]] = IGNORED
        labels[[index[label] for label in one.present]] = PRESENT
        name = one.image.name.removeprefix(f"{folder}/")
        split = split_name(Path(file_name(one.image.file)).stem)[0] or by_folder[one.image.file]
        splits.setdefault(split, []).append(Sample(name, one.image, labels))
    if "" in splits and len(splits) > 1:
        raise DataError(
            f"{splits[''][0].path} is in a shard whose name and folder give no split, unlike others.",
            "Call shards train-..., val-..., test-..., or none of them.",
        )
    readers = default_splits(splits[""], names) if "" in splits else grouped_splits(splits)
    title = file_name(folder) if folder not in (".", "") else Path(str(source)).resolve().parent.name
    return DataSet(title, "webdataset", Path(folder), names, chosen, readers, tuple(notes))


def find_shards(source: str) -> list[str]:
    """The shards of a source, in order, each once.

    Raises:
        DataError: a path or pattern without shards, or a file that is no plain tar.
    """
    found: list[str] = []
    for path in map(local_path, expand_braces(source)):
        kind = path_type(path)
        inside = (path if is_url(path) else glob.escape(path)).rstrip("/")
        patterns = [f"{inside}/*.tar", f"{inside}/*/*.tar"] if kind == "folder" else [path]
        files = [path] if kind == "file" else next(filter(None, map(glob_files, patterns)), [])
        if not files:
            raise DataError(f"{path} holds no tar shards.", "Give shards, a folder of them or a pattern in quotes.")
        found += files
    if other := next((path for path in found if not path.lower().endswith(".tar")), None):
        raise DataError(f"{other} is no plain .tar.", "Name the shards alone; unpack compressed ones.")
    return list(dict.fromkeys(found))


def _folder_of(shards: Sequence[str]) -> str:
    """The folder that all shards are in, at any depth."""
    folders = [f"{shard.rpartition('/')[0] or '.'}/" for shard in shards]
    # commonpath() does not take URLs.
    return commonprefix(folders).rpartition("/")[0] or "."  # noqa: RUF071


def _group_members(
    shard: str, skipped: Counter[str]
) -> tuple[dict[str, ImageLocation], dict[str, dict[str, ImageLocation]]]:
    """The images of a shard by key, and for each key its labels by suffix; counts other members by their type."""
    images: dict[str, ImageLocation] = {}
    dotted: dict[str, tuple[str, ImageLocation]] = {}  # a/b.seg: (a/b, a/b.seg.png)
    labels: dict[str, dict[str, ImageLocation]] = {}
    for member in list_members(shard, LABEL_SUFFIXES, skipped):
        folder, slash, file = member.member.rpartition("/")
        key, suffix = folder + slash + file.partition(".")[0], file_suffix(file)
        whole = member.member[: len(member.member) - len(suffix)]  # up to the last dot
        if suffix in LABEL_SUFFIXES:
            labels.setdefault(whole, {})[suffix] = member
        elif whole != key:
            dotted[whole] = key, member
        elif key in images:
            raise DataError(f"{member} is a second image of {key!r}.", "Give each image its own key.")
        else:
            images[key] = member
    versions = Counter(key for key, _ in dotted.values())
    for whole, (key, member) in dotted.items():
        # A name with dots is a key if it has labels; b.rgb.jpg is the image of b if it is the only one.
        if whole in labels:
            images[whole] = member
        elif key in labels and key not in images and versions[key] == 1:
            images[key] = member
        else:
            kind = file_name(member.member).partition(".")[2]
            skipped[f".{kind} without labels of that name"] += 1
    if orphans := len(labels.keys() - images.keys()):
        skipped["labels without an image"] += orphans
    return images, labels


def _read_shard(shard: str, skipped: Counter[str]) -> Iterator[_Labelled]:
    """The images of a shard with their labels, in its order."""
    images, labels = _group_members(shard, skipped)
    with open_file(shard) as content:
        for key, image in images.items():
            found = [labels[key][s] for s in LABEL_SUFFIXES if s in labels.get(key, {})]
            if not found:
                raise DataError(f"{image} has no labels.", f"Put {key}.json, {key}.cls or {key}.txt beside it.")
            yield _Labelled(image, *_read_labels(content, *found))


def _read_labels(content: IO[bytes], label: ImageLocation, *others: ImageLocation) -> tuple[list[str], list[str], str]:
    """As `_parse`, of the first of these members that holds labels."""
    if label.size > MAX_LABEL_BYTES or label.error:
        problem = label.error or f"has {label.size:,} bytes; labels have at most {MAX_LABEL_BYTES:,}"
        raise DataError(f"{label} {problem}.", "Write the labels of the image there.")
    content.seek(label.start)
    try:
        return _parse(content.read(label.size), file_suffix(label.member))
    except (KeyError, ValueError, RecursionError) as error:
        if isinstance(error, KeyError) and others:  # JSON of other things than labels
            return _read_labels(content, *others)
        said = error.args[0] if isinstance(error, KeyError) else error
        raise DataError(f"{label} holds no labels: {said}.", 'Write {"labels": ["cat", "dog"]}.') from error


def _parse(content: bytes, suffix: str) -> tuple[list[str], list[str], str]:
    """Present and ignored labels of a member, and text that may hold several.

    Raises:
        KeyError: JSON without any of `JSON_KEYS`.
        ValueError, RecursionError: no labels.
    """
    text = content.decode("utf-8-sig").strip()
    if suffix != ".json":
        return ([normal_name(text)], [], "") if suffix == ".cls" and text else ([], [], text)
    value = json.loads(text)
    found = value if isinstance(value, dict) else {"labels": value}
    key = next((key for key in JSON_KEYS if key in found), None)
    if key is None:
        raise KeyError(f"it has none of {', '.join(JSON_KEYS)}")
    both = [v if isinstance(v, list) else [v] for v in (found[key], found.get("ignored", []))]
    for label in [*both[0], *both[1]]:
        if not isinstance(label, str | int) or isinstance(label, bool):
            raise ValueError(f"{str(label)[:60]} is neither a name nor a number")
    present, ignored = ([normal_name(str(label)) for label in labels] for labels in both)
    return ([], ignored, present[0]) if isinstance(found[key], str) else (present, ignored, "")


def _split_cells(found: Sequence[_Labelled], separator: str | None, notes: list[str]) -> list[_Labelled]:
    """The images with the labels that their texts hold."""
    texts = [one for one in found if one.cell]

    def error(row: int, problem: str, hint: str) -> DataError:
        return DataError(f"{texts[row].image}: {problem}", hint)

    rows, said = parse_labels([one.cell for one in texts], error, separator)
    notes += said
    split = {id(one): names for one, names in zip(texts, rows, strict=True)}
    return [one._replace(present=split.get(id(one), one.present)) for one in found]


def _classes(
    found: Sequence[_Labelled], folder: str, given: Sequence[str] | None
) -> tuple[tuple[str, ...], dict[str, int]]:
    """The classes, in order, from a file or the labels that occur, and the class of each label."""
    occurring = {label: one.image for one in found for label in (*one.present, *one.ignored)}
    path = f"{folder}/{CLASSES}"
    numbers = [label for label in occurring if label.isdecimal()]
    if path_type(path) == "file":
        with open_file(path) as content:
            lines = [normal_name(line) for line in content.read().decode("utf-8-sig").splitlines()]
        names = tuple(line for line in lines if line)
        if not names or len(set(names)) < len(names):
            raise DataError(f"{path} names {'a class twice' if names else 'no class'}.", "Write one class per line.")
    elif given is not None and len(numbers) == len(occurring) and not set(given).intersection(numbers):
        names = tuple(given)
    else:
        if not occurring:
            raise DataError("no image has any label.", "Write the labels of each image beside it.")
        if numbers and len(numbers) < len(occurring):
            raise DataError("labels are numbers in some members and names in others.", f"Add {CLASSES}.")
        if len(occurring) > max(20, len(found) / 2):
            raise DataError(
                f"{len(found)} images have {len(occurring)} labels, such as {str(next(iter(occurring)))[:40]!r}.",
                f"Captions are no labels; if these are labels, list the classes in {CLASSES}.",
            )
        names = tuple(sorted(occurring, key=lambda label: (int(label) if numbers else 0, label)))
    index = {str(i): i for i in range(len(names))} | {name: i for i, name in enumerate(names)}
    if unknown := [label for label in occurring if label not in index]:
        raise DataError(
            f"{occurring[unknown[0]]}: label {unknown[0]!r} is none of the {len(names)} classes.",
            did_you_mean(unknown[0], names) or f"Classes are {', '.join(names[:8])}, numbered from 0.",
        )
    return names, index


def write_webdataset(data: DataSet, folder: Path, images: int = 1000) -> list[Path]:
    """Write train, val and test of a data set as shards of `images` images, `train-000000.tar` ..., and `classes.txt`.

    Image files are copied unchanged; boxes and masks are not written. The same data gives the same bytes. The folder
    is written atomically.

    Raises:
        ConfigError: fewer than one image per shard.
        DataError: an image cannot be read or is in a shard already.
        RunError: the folder exists and is not empty, or cannot be written.
    """
    if images < 1:
        raise ConfigError(f"images={images}: give at least 1.")
    written = []
    with making(folder) as draft, writing(folder):
        (draft / CLASSES).write_text("".join(f"{name}\n" for name in data.classes), encoding="utf-8")
        for split in [name for name in ("train", "val", "test") if name in data.splits]:
            samples = data.split(split)
            for number, start in enumerate(range(0, len(samples), images)):
                written.append(folder / f"{split}-{number:06d}.tar")
                with tarfile.open(draft / written[-1].name, "w") as shard:
                    for i, sample in enumerate(samples[start : start + images], start):
                        _add(shard, f"{i:08d}", sample, data.classes)
    return written


def _add(shard: tarfile.TarFile, key: str, sample: Sample, classes: tuple[str, ...]) -> None:
    if isinstance(sample.path, ImageRef):
        raise DataError(f"{sample.path} is in a shard already.", "Give a data set of image files.")
    suffix = sample.path.suffix.lower()
    labels = {
        name: [classes[i] for i in np.flatnonzero(sample.labels == value)]
        for name, value in (("labels", PRESENT), ("ignored", IGNORED))
    }
    try:
        image = sample.path.read_bytes()
    except OSError as error:
        raise DataError(f"{sample.path} cannot be read ({error.strerror or error}).", "Check the data set.") from error
    for name, content in (
        (f"{key}{suffix if suffix in IMAGE_SUFFIXES else '.jpg'}", image),
        (f"{key}.json", json.dumps(labels, ensure_ascii=False).encode()),
    ):
        info = tarfile.TarInfo(name)
        info.size = len(content)
        shard.addfile(info, io.BytesIO(content))
