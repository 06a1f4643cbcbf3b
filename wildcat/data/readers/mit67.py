"""MIT67 (Quattoni and Torralba, CVPR 2009): photographs of 67 classes of indoor scenes."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from wildcat.data.dataset import DataSet, grouped_splits
from wildcat.data.readers.folder import subfolders
from wildcat.data.readers.lists import read_class_list
from wildcat.errors import DataError

# Split -> the authors' list: 80 images per class to train, 20 to test; the other 8,920 are not used.
LISTS = {"train": "TrainImages.txt", "test": "TestImages.txt"}
NUM_CLASSES, PER_CLASS = 67, {"train": 80, "test": 20}


def recognise_indoor(root: Path) -> bool:
    """Whether `root` has both lists and the folder `Images`."""
    return (root / "Images").is_dir() and all((root / name).is_file() for name in LISTS.values())


def read_indoor(root: Path) -> DataSet:
    """MIT67 at `root` as a multi-class data set: `Images/<class>/*.jpg`, `TrainImages.txt` and `TestImages.txt`.

    Splits `train` and `test` are the two lists, of lines `<class>/<image>`. Classes are the folders of `Images`,
    sorted. A note says if classes or images are fewer or more than in the original.

    Raises:
        DataError: a list or `Images` is missing, a list names a missing image or one twice, an image is in both, or
            a class has no image in `train`.
    """
    missing = [name for name in ("Images", *LISTS.values()) if not (root / name).exists()]
    if missing:
        raise DataError(
            f"{root} lacks {', '.join(missing)} of MIT67.",
            "Put Images/ of indoorCVPR_09.tar beside both lists; wildcat datasets says where to get them.",
        )
    classes = tuple(folder.name for folder in subfolders(root / "Images"))
    samples = {split: read_class_list(root / "Images", root / name, classes) for split, name in LISTS.items()}
    both = {s.name for s in samples["train"]} & {s.name for s in samples["test"]}
    if both:
        raise DataError(
            f"{min(both)!r} is in TrainImages.txt and in TestImages.txt of {root}, as are {len(both) - 1} others.",
            "Restore the authors' lists: a test image must not be trained on.",
        )
    counts = Counter(Path(s.name).parent.name for s in samples["train"])
    untrained = [name for name in classes if not counts[name]]
    if untrained:
        raise DataError(
            f"Class {untrained[0]!r} of {root / 'Images'} has no image in TrainImages.txt"
            + (f" (nor have {len(untrained) - 1} others)." if len(untrained) > 1 else "."),
            "Restore the list if it was cut, or remove the folder if it is no class.",
        )
    sizes = {split: len(found) for split, found in samples.items()}
    notes: tuple[str, ...] = ()
    if len(classes) != NUM_CLASSES or sizes != {split: NUM_CLASSES * count for split, count in PER_CLASS.items()}:
        notes = (
            f"This is not the whole of MIT67: {len(classes)} classes, {sizes['train']} images to train and "
            f"{sizes['test']} to test (67, 5360 and 1340 in the original).",
        )
    return DataSet("MIT67", "indoor", root, classes, "multiclass", grouped_splits(samples), notes)
