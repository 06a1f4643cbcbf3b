"""The images of a command line: files, folders, globs, or a split of a data set."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from wildcat.cli.options import DataCommand, open_data
from wildcat.errors import ConfigError, DataError, WildcatError, did_you_mean

if TYPE_CHECKING:
    from wildcat.data.image_ref import ImageRef
    from wildcat.prediction import Prediction
    from wildcat.predictor import Predictor


def check_amounts(batch_size: int, limit: int) -> None:
    """Refuse a batch size below 1 or a negative limit.

    Raises:
        ConfigError: names both.
    """
    if batch_size < 1 or limit < 0:
        raise ConfigError(f"batch_size={batch_size}, limit={limit}: give at least 1, and at least 0.")


def find_images(
    paths: Sequence[str], split: str | None, limit: int, data: DataCommand
) -> list[tuple[Path | ImageRef, str]]:
    """The images of a command line, each with the relative path that names its output files.

    Args:
        paths: images, folders of images, or globs; with `split`, one data set, opened with the options of `data`.
        limit: maximum number of images; 0: all.

    Raises:
        ConfigError: no path, or a split of several.
        DataError: a path that does not exist, a folder or glob without images.
    """
    found: list[tuple[Path | ImageRef, str]]
    if not paths:
        raise ConfigError("no images are given.", "Name images, folders of images, or globs in quotes.")
    if split is not None:
        if len(paths) != 1:
            raise ConfigError(f"--split {split}: give one data set, not {len(paths)} paths.")
        samples = open_data(data, paths[0]).split(split)
        found = [(s.path, s.path.name if isinstance(s.path, Path) else s.name.replace(".tar#", "/")) for s in samples]
    else:
        found = [pair for text in paths for pair in _images_at(text)]
    unique = list(dict(found).items())
    return unique[:limit] if limit else unique


def predict_each(
    predictor: Predictor, images: Sequence[tuple[Path | ImageRef, str]], task: str, modalities: bool, batch_size: int
) -> Iterator[tuple[Prediction, str]]:
    """Predict images behind a progress bar, each with its name; report and skip the unreadable ones.

    Raises:
        DataError: the whole folder of an image is gone: a disk was removed.
    """
    from tqdm import tqdm

    from wildcat.progress import ProgressBar

    names = {str(image): name for image, name in images}
    skipped = 0

    def skip(image: object, error: WildcatError) -> None:
        nonlocal skipped
        if isinstance(image, Path) and not image.parent.is_dir():
            raise DataError(
                f"{image.parent} has vanished.",
                "Restore it and give another --out; or predict with --shard-rows 1000, which --resume continues.",
            )
        skipped += 1
        tqdm.write(f"skipped {error.message}", file=sys.stderr)
        progress.advance()

    with ProgressBar() as progress:
        progress.start(task, len(images))
        paths = [image for image, _ in images]
        for prediction in predictor.stream(paths, modalities=modalities, batch_size=batch_size, on_error=skip):
            yield prediction, names[prediction.path]
            progress.advance()
    if skipped:
        print(f"{skipped} of {len(images)} images could not be read and were skipped.", file=sys.stderr)


def _images_at(text: str) -> list[tuple[Path, str]]:
    import glob

    from wildcat.data.images import list_images
    from wildcat.data.remote import glob_files

    path = Path(text).expanduser()
    if path.is_dir():
        if found := list_images(path):
            return [(p, str(p.relative_to(path))) for p in found]
        raise DataError(
            f"{path} holds no images.", "Give a folder with .jpg, .png, ... files, or the files themselves."
        )
    if path.exists():
        return [(path, path.name)]
    if glob.has_magic(text):
        if matches := glob_files(text):
            return [(Path(match), Path(match).name) for match in matches]
        raise DataError(f"no file matches {text}.", "Check the pattern; ** stands for any depth of folders.")
    near = did_you_mean(path.name, [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else [])
    raise DataError(f"{path} does not exist.", near or "Give an image, a folder of images, or a glob in quotes.")
