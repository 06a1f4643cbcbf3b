"""One folder per class: `root/class/*.jpg`, or `root/{train,val,test}/class/*.jpg`, and other orders of the two."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import count
from pathlib import Path

from wildcat.data.dataset import DataSet, Sample, default_splits, grouped_splits, one_label
from wildcat.data.formats import skipped_note
from wildcat.data.layout import (
    IMAGE_FOLDERS,
    TRUTH_FOLDERS,
    check_not_written,
    find_images,
    is_unlabelled,
    name_splits,
    output_type,
    split_name,
    subfolders,
)
from wildcat.data.listing import holds_images, list_images
from wildcat.errors import DataError, did_you_mean

# Files that may lie in a folder without images beside the class folders; others may be images that cannot be read.
_DOCUMENTS = frozenset(
    {
        *(".txt", ".md", ".rst", ".pdf", ".doc", ".docx", ".csv", ".tsv", ".xls"),
        *(".xlsx", ".json", ".jsonl", ".xml", ".yaml", ".yml", ".py", ".ipynb", ".html"),
        *(".mat", ".log"),
    }
)

Parts = list[str]  # a relative path
Classes = dict[str, list[Parts]]  # class name -> images


def recognise_folder(root: Path) -> bool:
    """Whether `root` has a folder that holds images."""
    return root.is_dir() and any(map(holds_images, subfolders(root)))


def read_folder(root: Path, *, classes: Sequence[str] | None = None) -> DataSet:
    """A multi-class data set with one folder per class: `root/class/*.jpg`, or `root/{train,val,test}/class/*.jpg`.

    Images at any depth below a class folder belong to it; hidden and other files are ignored. Classes are sorted by
    name, or are the folders that `classes` lists. Split folders have a name like train,
    Training, test_set, seg_val, valid_images, and may lie inside the class folders. A folder that only holds the next
    one counts as a wrapper. Without split folders, `train` and `val` are a fixed stratified 80/20 and `all` is
    everything.

    Raises:
        DataError: an empty class folder, no class, split folders beside class folders, two folders for
            one split, folders that are named like splits or folders of all images but would be classes, or a class in
            val or test that train lacks.
    """
    if not root.is_dir():
        raise DataError(f"{root} is not a folder.", "Give a folder that holds one folder per class.")
    check_not_written(root)
    chosen = tuple(classes or ())
    images, notes = find_images(root)
    files = [image.split("/") for image in images]
    depth = _unwrap(files, 0) if files else 0
    base = root.joinpath(*files[0][:depth]) if files else root
    folders = _by_folder(files, depth)
    loose = folders.pop("", [])
    splits = _split_folders(base, folders, depth, chosen, notes) or _splits_in_classes(folders, depth)
    if loose and not splits and folders:
        notes.append(f"{len(loose)} images beside the class folders of {base} are ignored.")
    if depth:
        notes.append(f"Reading {base}, as {root} holds no other images.")
    if not splits:
        splits = {"all": (base, _without_copies(folders, depth, notes))}
    main = "train" if "train" in splits else next(iter(splits))
    names = _class_names(*splits[main], chosen, notes)
    samples: dict[str, list[Sample]] = {}
    for split, (folder, inside) in splits.items():
        found = inside if chosen or split == main else _rename(inside, names, notes)
        if not chosen and (other := sorted(found.keys() - set(names))):
            raise DataError(
                f"Class {other[0]!r} is in {folder} and not in {splits[main][0]}, so it cannot be learnt; the "
                f"classes there are {_some(names)}.",
                f"Put images of it into {splits[main][0] / other[0]}, or list the classes: --classes A,B.",
            )
        if missing := [name for name in names if not found.get(name)]:
            notes.append(f"{folder} has no images of the classes {_some(missing)}.")
        samples[split] = [
            Sample("/".join(parts), root.joinpath(*parts), one_label(index, len(names)))
            for index, name in enumerate(names)
            for parts in found.get(name, ())
        ]
    if "all" in splits:
        single = [name for name in names if len(splits["all"][1][name]) == 1]
        notes += [f"Class {name!r} has a single image, which is in train and not in val." for name in single]
    readers = default_splits(samples["all"], names) if "all" in samples else grouped_splits(samples)
    title = _unicode_name(root.resolve().name, [])
    names = tuple(_unicode_name(name, notes) for name in names)
    return DataSet(title, "folder", root, names, "multiclass", readers, tuple(notes))


def _unicode_name(name: str, notes: list[str]) -> str:
    """A folder's name as text: one that is not UTF-8 is read as Latin-1."""
    try:
        name.encode()
    except UnicodeEncodeError:
        text = os.fsencode(name).decode("latin-1")
        notes.append(f"The name of the class folder {text!r} is not UTF-8 and is read as Latin-1.")
        return text
    return name


def _by_folder(files: Sequence[Parts], depth: int) -> Classes:
    """Images by the folder at `depth` of their path, sorted; those without one under ""."""
    found: Classes = defaultdict(list)
    for parts in files:
        found[parts[depth] if len(parts) > depth + 1 else ""].append(parts)
    return dict(sorted(found.items()))


def _unwrap(files: Sequence[Parts], depth: int) -> int:
    """The depth of the first folder that is a split or has siblings; `depth` if the folders end in a single class."""
    for level in count(depth):
        folders = _by_folder(files, level)
        if len(folders) > 1:
            return depth if "" in folders else level
        name = next(iter(folders))
        if name_splits([name]):
            return level
        if not name:
            return depth
    raise AssertionError


def _split_folders(
    base: Path, folders: Classes, depth: int, chosen: Sequence[str], notes: list[str]
) -> dict[str, tuple[Path, Classes]]:
    """Split -> its folder and classes, where folders named as splits hold class folders; else empty."""
    named = {name: split for name, split in name_splits(folders).items() if name not in chosen}
    splits: dict[str, tuple[Path, Classes]] = {}
    flat = []
    for name, split in named.items():
        level = depth + 1
        found = _by_folder(folders[name], level)
        while len(found) == 1 and (inner := next(iter(found))) and (inner == name or split_name(inner)[1] == ""):
            level += 1  # seg_train/seg_train/, train/images/
            found = _by_folder(folders[name], level)
        folder = base.joinpath(*folders[name][0][depth:level])
        outside = found.pop("", [])
        if not found:
            flat.append(name)
            continue
        if split in splits:
            raise DataError(
                f"{base} has two folders for one split: {splits[split][0].relative_to(base)} and {name}.",
                "Give the data set that one of them belongs to, or merge the two.",
            )
        if outside:
            notes.append(f"{len(outside)} images beside the class folders of {folder} are ignored.")
        splits[split] = (folder, found)
    if splits:
        _check_other_folders(base, folders, splits, flat, depth, notes)
    elif flat and not chosen:
        _check_flat(base, folders, flat, notes)
    return splits


def _check_other_folders(
    base: Path, folders: Classes, splits: dict[str, tuple[Path, Classes]], flat: list[str], depth: int, notes: list[str]
) -> None:
    """Refuse class folders beside the split folders; note the images without labels."""
    notes += [f"{name}/ holds no class folders and is ignored (images without labels)." for name in flat]
    split_names = {path.relative_to(base).parts[0] for path, _ in splits.values()}
    for name in sorted(folders.keys() - split_names - set(flat)):
        inner = name_splits(_by_folder(folders[name], depth + 1))
        if is_unlabelled(name):
            notes.append(f"{name}/ is ignored (images without labels).")
        elif inner and set(inner.values()) <= set(splits):
            notes.append(f"{name}/ repeats the splits and is ignored.")
        else:
            raise DataError(
                f"{base} holds splits ({', '.join(sorted(split_names))}) and, beside them, a folder of images "
                f"({name}).",
                f"If {name} is a class, move it into the splits; if not, give a folder without it.",
            )


def _check_flat(base: Path, folders: Classes, flat: list[str], notes: list[str]) -> None:
    """Refuse folders that are named as splits and would be classes, as they hold images directly."""
    others = [name for name in folders if name not in flat]
    if not others:
        counts = ", ".join(f"{name} ({len(folders[name])} images)" for name in folders)
        raise DataError(
            f"{base} has the folders {counts}, which are splits; nothing in them gives the labels of the images.",
            f"Put the images of each class into a folder, {flat[0]}/cat/1.jpg; or add a table {flat[0]}.csv with the "
            f"columns image,labels; if the folders are classes, type --classes {','.join(folders)}.",
        )
    if wrong := [name for name in flat if name != "train"]:
        raise DataError(
            f"{base / wrong[0]} is named like a split and holds images without class folders, beside the folders "
            f"{_some(others)}.",
            f"To train on those alone, type --classes {','.join(others)}; add {wrong[0]} if it is a class.",
        )
    notes.append(f"{base / 'train'} is read as a class called 'train', as it holds images and no class folders.")


def _splits_in_classes(folders: Classes, depth: int) -> dict[str, tuple[Path, Classes]]:
    """The splits of `class/{train,test}/*.jpg`: where every class folder holds split folders only; else empty."""
    splits: dict[str, tuple[Path, Classes]] = {}
    for name, files in folders.items():
        inner = _by_folder(files, depth + 1)
        named = name_splits(inner)
        if named.keys() != inner.keys() or len(set(named.values())) < len(inner):
            return {}
        for folder, split in named.items():
            splits.setdefault(split, (Path(f"*/{folder}"), {}))[1][name] = inner[folder]
    return splits if len(splits) > 1 else {}


def _without_copies(folders: Classes, depth: int, notes: list[str]) -> Classes:
    """The folders without one that holds the others again: `flowers/{rose,tulip,flowers/{rose,tulip}}`."""
    copies = []
    for name, files in folders.items():
        inner = _by_folder(files, depth + 1).keys()
        if len(inner) > 1 and inner <= folders.keys() - {name}:
            copies.append(name)
            notes.append(f"{name}/ repeats the class folders and is ignored.")
    return {name: files for name, files in folders.items() if name not in copies}


def _class_names(folder: Path, found: Classes, chosen: Sequence[str], notes: list[str]) -> tuple[str, ...]:
    """The classes of the split that is learnt from."""
    if chosen:
        for name in chosen:
            if name not in found:
                raise DataError(
                    f"--classes: {folder} has no folder {name!r} with images.",
                    did_you_mean(name, found) or f"It has {_some(list(found))}.",
                )
        if ignored := [name for name in found if name not in chosen]:
            notes.append(f"The folders {_some(ignored)} are not in --classes and are ignored.")
    else:
        _check_no_class(folder, found, notes)
    if not found:
        raise DataError(f"{folder} has no class folder.", "Put the images of each class into a folder of its name.")
    return tuple(chosen or found)


def _check_no_class(folder: Path, found: Classes, notes: list[str]) -> None:
    """Refuse folders of all images or masks among the classes, and class folders without images."""
    general = [name for name in found if name.lower() in IMAGE_FOLDERS | TRUTH_FOLDERS]
    if general:
        raise DataError(
            f"{folder} holds the folders {_some(list(found))}; {general[0]!r} looks like a folder of all images or of "
            "their annotations, not a class, and nothing else gives labels.",
            "Put the images of each class into a folder of its name, or add a table with the columns image,labels; "
            "if these are classes, list them: --classes A,B.",
        )
    inside = subfolders(folder) if folder.is_dir() else []
    for path in (p for p in inside if p.name not in found and not holds_images(p)):
        skipped: Counter[str] = Counter()
        list_images(path, skipped=skipped)
        types = {kind for kind in skipped if not kind.startswith("hidden")}
        if what := output_type(path):
            notes.append(f"{path} is {what} and is ignored.")
        elif types and types <= _DOCUMENTS:
            notes.append(f"{path} holds no images and is ignored.")
        elif found:
            raise DataError(
                f"Class folder {path} holds no images{f'; {note}' if (note := skipped_note('', skipped)) else '.'}",
                "Put images of the class there"
                + (f", or name the classes to read: --classes {','.join(found)}." if len(found) > 1 else "."),
            )


def _rename(found: Classes, names: Sequence[str], notes: list[str]) -> Classes:
    """The folders of a split under the names of the classes that differ in case or Unicode form alone."""
    plain = {unicodedata.normalize("NFC", name).casefold(): name for name in names}
    renamed: Classes = {}
    for name, files in found.items():
        same = name if name in names else plain.get(unicodedata.normalize("NFC", name).casefold(), name)
        if same != name:
            notes.append(f"Folder {name!r} is read as class {same!r}.")
        renamed.setdefault(same, []).extend(files)
    return renamed


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} others" if len(names) > 8 else "")
