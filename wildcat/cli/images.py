"""The images of a command line: files, folders, globs, or a split of a data set."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from wildcat.cli.options import DataCommand, data_flags, note_dark, open_data
from wildcat.errors import ConfigError, DataError, ImageError, WildcatError

if TYPE_CHECKING:
    from wildcat.data import Sample
    from wildcat.data.image_ref import ImageRef
    from wildcat.prediction import Prediction
    from wildcat.predictor import Predictor
    from wildcat.progress import Progress

Skip = Callable[..., object]  # an image that cannot be read, the reason, and for how many images it holds; by default 1


def check_amounts(batch_size: int, limit: int, top_k: int = 0) -> None:
    """Refuse a batch size below 1, and a negative limit or number of classes."""
    if batch_size < 1:
        raise ConfigError(f"batch_size={batch_size}: give at least 1.", "8 is usual.")
    if limit < 0:
        raise ConfigError(f"limit={limit}: give at least 1, or 0 for all images.")
    if top_k < 0:
        raise ConfigError(f"top_k={top_k}: give at least 1, or 0 for all classes.")


def refuse_reading(data: DataCommand, format: str = "--format") -> None:
    """Refuse flags that say how a data set is read, where no split of one is given."""
    if words := data_flags(replace(data, max_pixels=None)):
        name = format if words[0] == "--format" else words[0]
        raise ConfigError(f"{name} {words[1]} is for a data set, and no split is given.", "Add --split, such as val.")


def samples_of_split(paths: Sequence[str], split: str, data: DataCommand, run: str | Path | None) -> tuple[Sample, ...]:
    """The samples of a split of the one data set that `paths` must name, read as for `run`, see `open_data`."""
    if len(paths) != 1:
        raise ConfigError(f"--split {split}: give one data set, not {len(paths)} paths.")
    return open_data(data, paths[0], run).split(split)


def find_images(
    paths: Sequence[str],
    split: str | None,
    limit: int,
    data: DataCommand,
    every: float | None = None,
    run: str | Path | None = None,
    format: str = "--format",
) -> list[tuple[Path | ImageRef, str]]:
    """The images of a command line, each once, with the relative path that names its output files.

    Args:
        paths: images, folders of images, or globs; with `split`, one data set, opened with the options of `data` or,
            without any, as the data that the model `run` was trained on.
        limit: maximum number of images; 0: all.
        every: seconds between the frames of videos, which are images then; None: videos are refused.
        format: the flag that gives the format of `data`.
    """
    from wildcat.data.remote import is_url
    from wildcat.data.video import VideoFrame, list_frames
    from wildcat.scale.inputs import find_sources, image_locations

    found: dict[Path | ImageRef, str] = {}
    skipped: Counter[str] = Counter()
    if split is not None:
        for sample in samples_of_split(paths, split, data, run):
            path = sample.path
            found[path] = path.name if isinstance(path, Path) else sample.name.replace(".tar#", "/")
    else:
        refuse_reading(data, format)
        for source in find_sources(paths):
            if source.kind == "video" and every is not None:
                try:
                    frames = list_frames(source.path, every)
                except ImageError:  # reading its first frame raises it again, and is skipped as an image would be
                    frames = [VideoFrame(source.path, 0.0, every)]
                for frame in frames:
                    found[frame] = f"{Path(source.path).stem}/{frame.time:08.3f}s.jpg"
                continue
            if source.kind in ("tar", "table") or is_url(source.path):
                raise ConfigError(
                    f"{source.path} needs output in shards.", "Type: wildcat predict ... --shard-rows 1000 --out DIR."
                )
            for image in image_locations([source], skipped=skipped):
                path = Path(image.file)
                name = path.relative_to(source.path) if source.kind == "folder" else Path(path.name)
                if image.page:
                    found[image] = str(name.with_name(f"{name.stem}-page{image.page}{name.suffix}"))
                else:
                    found[path] = str(name)
    note_skipped(skipped)
    return list(found.items())[: limit or None]


def note_skipped(skipped: Counter[str]) -> None:
    """Print what was skipped among the images of a command line."""
    from wildcat.data.formats import skipped_note

    if note := skipped_note("", skipped):
        print(f"note: {note}", file=sys.stderr)


def predict_each(
    predictor: Predictor, images: Sequence[tuple[Path | ImageRef, str]], task: str, modalities: bool, batch_size: int
) -> Iterator[tuple[Prediction, str]]:
    """Predict images behind a progress bar, each with its name; report and skip the unreadable ones."""
    from wildcat.data.video import load_frames
    from wildcat.progress import ProgressBar

    names = {str(image): name for image, name in images}
    note_dark([image for image, _ in images], predictor.preprocess.intensity_range, "train the model with")
    with ProgressBar() as progress, skipping(len(images), progress) as skip:
        progress.start(task, len(images))
        paths = load_frames([image for image, _ in images], skip)
        for prediction in predictor.stream(paths, modalities=modalities, batch_size=batch_size, on_error=skip):
            yield prediction, names[prediction.path]
            progress.advance()


@contextmanager
def skipping(total: int, progress: Progress) -> Iterator[Skip]:
    """A function that reports an unreadable image and counts it; the block ends with how many of `total` there were."""
    from tqdm import tqdm

    skipped = 0

    def skip(image: object, error: WildcatError, count: int = 1) -> None:
        nonlocal skipped
        if isinstance(image, Path) and not image.parent.is_dir():
            raise DataError(
                f"{image.parent} has vanished.",
                "Restore it and give another --out; or predict with --shard-rows 1000, which --resume continues.",
            )
        skipped += count
        tqdm.write(f"skipped {error.one_line}", file=sys.stderr)
        progress.advance(count)

    yield skip
    if skipped:
        print(f"{skipped} of {total} images could not be read and were skipped.", file=sys.stderr)
