"""MIT67 (Quattoni and Torralba, CVPR 2009): photographs of 67 classes of indoor scenes."""

from __future__ import annotations

from pathlib import Path

from wildcat.data.dataset import DataSet, grouped_splits
from wildcat.data.layout import subfolders
from wildcat.data.readers.lists import read_class_list
from wildcat.errors import DataError

# Split -> the authors' list: 80 images per class to train, 20 to test; the other 8,920 are not used.
LISTS = {"train": "TrainImages.txt", "test": "TestImages.txt"}
SIZES = 67, 67 * 80, 67 * 20  # classes, images to train, images to test


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
    if not recognise_indoor(root):
        raise DataError(
            f"{root} is not MIT67: it lacks one of Images, {', '.join(LISTS.values())}.",
            "Put Images/ of indoorCVPR_09.tar beside both lists; wildcat datasets says where to get them.",
        )
    classes = tuple(folder.name for folder in subfolders(root / "Images"))
    samples = {split: read_class_list(root / "Images", root / name, classes) for split, name in LISTS.items()}
    if both := {s.name for s in samples["train"]} & {s.name for s in samples["test"]}:
        raise DataError(
            f"{min(both)!r} is in TrainImages.txt and in TestImages.txt of {root}, as are {len(both) - 1} others.",
            "Restore the authors' lists: a test image must not be trained on.",
        )
    if untrained := sorted(set(classes) - {s.name.partition("/")[0] for s in samples["train"]}):
        raise DataError(
            f"Class {untrained[0]!r} of {root / 'Images'} has no image in TrainImages.txt.",
            "Restore the list if it was cut, or remove the folder if it is no class.",
        )
    sizes = len(classes), len(samples["train"]), len(samples["test"])
    note = (
        f"This is not the whole of MIT67: {sizes[0]} classes, {sizes[1]} images to train and {sizes[2]} to test "
        "(67, 5360 and 1340 in the original)."
    )
    notes = () if sizes == SIZES else (note,)
    return DataSet("MIT67", "indoor", root, classes, "multiclass", grouped_splits(samples), notes)
