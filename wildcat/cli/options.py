"""Flags shared by several commands, and the functions that apply them."""

from __future__ import annotations

import ast
import dataclasses
import itertools
import re
import shlex
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import FlagCreatePairsOff, Positional, UseAppendAction, arg

from wildcat.config import EngineName, Flip, Localize, Precision
from wildcat.errors import ConfigError, DataError, OutOfMemory, WildcatError, known_error
from wildcat.methods import no_maps
from wildcat.progress import stopped_by_signal

if TYPE_CHECKING:
    import torch

    from wildcat.data import DataSet, Sample
    from wildcat.data.image_ref import ImageRef
    from wildcat.predictor import Predictor

Model = Positional[
    Annotated[
        str, arg(metavar="RUN", help="A model folder, a packaged model such as imagenet-lite0, or hf://user/name.")
    ]
]
Data = Positional[
    Annotated[str, arg(metavar="DATA", help="A folder, a .csv, or the name of a packaged data set, such as solar.")]
]
Switch = FlagCreatePairsOff[bool]  # a flag without its opposite, --no-...; settings have both, as a recipe may set them
QUOTES = ("'", '"')
Sizes = Annotated[str, arg(metavar="S,S,...")]
Options = Annotated[tuple[str, ...], UseAppendAction, arg(metavar="NAME=VALUE")]


@dataclass(frozen=True, kw_only=True)
class Command:
    """Flags of every command."""

    debug: Switch = False
    """Show the traceback of an error."""


@dataclass(frozen=True, kw_only=True)
class ImageCommand(Command):
    """Flags of every command that reads images."""

    max_pixels: Annotated[int | None, arg(metavar="PIXELS")] = None
    """Refuse images of more pixels; by default 178,956,970."""


@dataclass(frozen=True, kw_only=True)
class ViewCommand(ImageCommand):
    """Flags of every command that times or uses a trained model."""

    flip: Flip = "none"
    """Average the maps of mirrored views, at twice (horizontal) or four times (both) the cost."""
    sizes: Sizes = ""
    """Average over these input sizes, such as 320,448,576; empty: the size of training."""
    output_stride: Literal[32, 16, 8] | None = None
    """Input pixels per cell of the maps, if the backbone supports it: finer maps, same weights, more cost."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""


@dataclass(frozen=True, kw_only=True)
class ModelCommand(ViewCommand):
    """Flags of every command that uses a trained model."""

    tile: Annotated[int | None, arg(metavar="PIXELS")] = None
    """Cut images with a side above this into overlapping tiles, for small objects in large images."""
    engine: EngineName = "torch"
    """What computes the features, see wildcat bench; compile: torch.compile, which takes minutes to compile."""
    precision: Precision = "fp32"
    """bf16 (not onnx) and int8 (onnx and openvino, after wildcat bench) are faster and less exact."""
    crf: Switch = False
    """Sharpen masks with a dense CRF."""
    propagate: Switch = False
    """Spread masks by a random walk up to the boundaries that wildcat refine --propagate has trained."""
    plain: Switch = False
    """Masks without the CRF and the propagation that wildcat calibrate has chosen."""


@dataclass(frozen=True, kw_only=True)
class BoxCommand(ModelCommand):
    """Flags of every command that predicts boxes."""

    localize: Localize = "maps"
    """What finds points and boxes: class maps; or a beam search over windows that the network scores, which is slower
    and gives one box per predicted class, with its centre as the point."""


@dataclass(frozen=True, kw_only=True)
class ReaderCommand(ImageCommand):
    """Flags that say how a data set is read; recorded with a run, and used again with it."""

    image_column: Annotated[str | None, arg(metavar="NAME")] = None
    """Column of a table with the names of the images; recognised otherwise."""
    labels_column: Annotated[str | None, arg(metavar="NAME")] = None
    """Column of a table with the labels; recognised otherwise."""
    separator: Annotated[str | None, arg(metavar="TEXT")] = None
    """What separates labels in a cell, such as "|", comma or blank; none: each cell is one label. By default decided
    from the whole column."""
    classes: Annotated[str, arg(metavar="A,B")] = ""
    """Classes to read, in this order, separated by commas, or a .txt file with one per line; others are left out."""
    data_option: Options = ()
    """Another option of the reader, such as task=multilabel for a table or cells=mono for solar; may be repeated."""


@dataclass(frozen=True, kw_only=True)
class DataCommand(ReaderCommand):
    """Flags of every command that reads a data set."""

    format: Annotated[str | None, arg(metavar="NAME")] = None
    """Layout: voc, voc-action, coco, scenes, indoor, webdataset, yolo, csv or folder; recognised otherwise."""


@dataclass(frozen=True, kw_only=True)
class MetricsCommand(BoxCommand, DataCommand):
    """Flags of every command that measures a model on labelled images."""

    run: Model
    data: Data
    split: Annotated[str | None, arg(metavar="NAME")] = None
    """Split to evaluate on; by default val if the data has one, otherwise test."""
    ap: Literal["voc07", "voc10", "plain"] = "voc10"
    """Variant of average precision."""


def limit_pixels_of(command: Command) -> None:
    """Apply --max-pixels to this process."""
    pixels = getattr(command, "max_pixels", None)
    if pixels is None:
        return
    if pixels < 1:
        raise ConfigError(f"--max-pixels {pixels}: give a number of pixels of at least 1.")
    from wildcat.data.images import limit_pixels

    limit_pixels(pixels)


def flag(name: str) -> str:
    """A field as it is typed: --image-size."""
    return f"--{name.replace('_', '-')}"


def flag_names(kind: type) -> set[str]:
    """The fields of a command and of its settings."""
    names = set()
    for field in dataclasses.fields(kind):
        default = field.default_factory() if callable(field.default_factory) else field.default
        names |= flag_names(type(default)) if dataclasses.is_dataclass(default) else {field.name}
    return names


def with_flags(text: str, names: Collection[str]) -> str:
    """Write each setting `name=value` in a message as it is typed.

    >>> with_flags("image_size=16: give 32, or crop_scale=0.5, flip='none'", ("image_size", "flip"))
    '--image-size 16: give 32, or crop_scale=0.5, --flip none'
    """

    def typed(found: re.Match[str]) -> str:
        name, value = found.groups()
        if name not in names:
            return found[0]
        if value in ("True", "False"):
            return flag(name if value == "True" else f"no_{name}")
        return f"{flag(name)} {shlex.quote(ast.literal_eval(value)) if value[0] in QUOTES else value}"

    return re.sub(r"(?<![\w/.-])([a-z]\w*)=('[^']*'|\"[^\"]*\"|[^\s,;]*[^\s,;:.])", typed, text)


def load_model(command: ModelCommand, source: str, calibrated: bool = True, boundaries: bool = False) -> Predictor:
    """Load the model of a command with its flags; see `wildcat.predictor.load`."""
    from wildcat.predictor import load

    crf, propagate = mask_steps(command)
    predictor = load(
        source,
        command.device,
        command.flip,
        parse_sizes(command.sizes),
        output_stride=command.output_stride,
        tile=command.tile,
        engine=command.engine,
        precision=command.precision,
        calibrated=calibrated,
        propagate=propagate,
        crf=crf,
        localize=command.localize if isinstance(command, BoxCommand) else "maps",
        boundaries=boundaries,
    )
    if predictor.localize == "beam-search":
        require_maps(predictor)
    return predictor


def require_maps(predictor: Predictor) -> None:
    """Refuse a model without class maps, where points, boxes, heatmaps or masks are needed."""
    if not predictor.has_maps:
        raise no_maps(predictor.name)


def mask_steps(command: ModelCommand) -> tuple[bool | None, bool | None]:
    """--crf and --propagate; None each, as calibrated, without a flag about masks.

    Raises:
        ConfigError: --plain with another.
    """
    if command.plain and (command.crf or command.propagate):
        raise ConfigError(f"--plain excludes {'--crf' if command.crf else '--propagate'}.", "Leave one of them out.")
    if command.plain or command.crf or command.propagate:
        return command.crf, command.propagate
    return None, None


def parse_sizes(text: str) -> tuple[int, ...]:
    """Input sizes in pixels from "320,448".

    >>> parse_sizes("320, 448"), parse_sizes("")
    ((320, 448), ())
    """
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if wrong := next((part for part in parts if not part.isdecimal()), None):
        raise ConfigError(f"--sizes {text}: {wrong!r} is not a whole number of pixels.", "Write them as 320,448,576.")
    return tuple(map(int, parts))


def reader_options(command: ReaderCommand) -> tuple[str, ...]:
    """The options of the reader that the flags of a command give, as NAME=VALUE."""
    flags = {name: getattr(command, name) for name in ("image_column", "labels_column", "separator", "classes")}
    return (*command.data_option, *(f"{name}={value}" for name, value in flags.items() if value not in (None, "")))


def data_flags(command: DataCommand, *others: str) -> list[str]:
    """The flags of a command that say how its data is read, and those of `others`, as they are typed."""
    words: list[str] = []
    names = {option.name for option in fields(DataCommand)} - {"debug"} | {*others}
    for option in fields(command):
        value = getattr(command, option.name)
        if option.name in names and value != option.default:
            for one in value if isinstance(value, tuple) else (value,):
                words += [flag(option.name), str(one)]
    return words


def open_data(command: DataCommand, source: str, model: str | Path | None = None) -> DataSet:
    """Open the data set at `source` with the command's format and reader options.

    Args:
        model: a model folder; without options of its own the command reads the data as those that it was trained on.
    """
    from wildcat.data import find_format, open_dataset, parse_names

    format, given = command.format, reader_options(command)
    if model is not None and not given:
        from wildcat.models.hub import model_folder
        from wildcat.models.manifest import recorded_data

        recorded = recorded_data(model_folder(model))
        if recorded.source and Path(recorded.source).expanduser().absolute() == Path(source).expanduser().absolute():
            format, given = format or recorded.format, recorded.options
        elif recorded.options and find_format(source, format) == recorded.format:
            given = tuple(option for option in recorded.options if not option.startswith("classes="))
        if given:
            print(f"note: {source} is read as for {model}: {', '.join(given)}", file=sys.stderr)
    options: dict[str, object] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f"--data-option {text}: give NAME=VALUE, for example task=multilabel.")
        name = name.strip().replace("-", "_")
        options[name] = parse_names(value) if name == "classes" else value
    return open_dataset(source, format, **options)


@contextmanager
def resume_hint(hint: Callable[[], str]) -> Iterator[None]:
    """Add how to resume to an interruption, and to errors that the machine or the sources cause: disk, memory, images.

    Args:
        hint: returns a sentence; called when the error occurs.
    """
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"interrupted. {hint()}") from None
    except Exception as error:
        reported = known_error(error)
        lost = isinstance(reported, DataError) or isinstance(error.__cause__, OSError)
        if stopped_by_signal() and not lost:  # a process that got the same signal has ended
            raise KeyboardInterrupt(f"interrupted. {hint()}") from error
        if reported is None:
            raise
        if (lost or isinstance(reported, OutOfMemory)) and "--resume" not in reported.hint:
            reported.hint = f"{reported.hint} {hint()}"
        raise reported from error.__cause__


def evaluation_split(command_split: str | None, data: DataSet) -> str:
    """The split to evaluate on: the given one, otherwise val if the data has one, otherwise test."""
    return command_split or next((s for s in ("val", "test") if s in data.splits), "val")


def describe(data: DataSet, images: str, device: str, quiet: bool = False) -> None:
    """Print the first line of a command: the recognised data set; with `quiet` to stderr."""
    stream = sys.stderr if quiet else sys.stdout
    print(
        f"{data.name} ({data.format}, {data.task}): {len(data.classes)} classes, {images}; device {device}",
        file=stream,
        flush=True,
    )
    for note in data.notes:
        print(f"note: {note}", file=sys.stderr)


def describe_classes(data: DataSet, splits: Mapping[str, Sequence[Sample]]) -> None:
    """Print the classes with their number of images in each split, and say if the splits are random."""
    from wildcat.data.dataset import count_table

    print(count_table(data.classes, splits), flush=True)
    if "all" in data.splits and "val" in splits:
        print(f"note: {data.name} has no splits: val is a fixed random fifth of the images.", file=sys.stderr)


def note_amp(amp: bool, device: torch.device) -> None:
    """Print one line where --amp computes in float32 because the device has no instructions for bfloat16."""
    from wildcat.device import bf16_is_native

    if amp and not bf16_is_native(device):
        kind = device.type.upper()
        print(f"note: this {kind} has no bf16 instructions: --amp computes in float32, faster here.", file=sys.stderr)


def check_readable(images: Sequence[Path | ImageRef], intensity_range: str = "") -> None:
    """Check the first bytes of all images before a long computation; several processes share the images."""
    from wildcat.data.image_ref import input_error
    from wildcat.data.transforms import parse_range
    from wildcat.train.distributed import gather, rank, share_of

    intensity = parse_range(intensity_range)
    found = [(i, error) for i in share_of(len(images)) if (error := input_error(images[i]))]
    unreadable = dict(sorted(itertools.chain(*gather(found)), key=lambda pair: pair[0]))
    if unreadable:
        listed = "; ".join(
            f"{error.message.rstrip('.').removeprefix(f'{Path(str(images[i])).parent}/')}"
            for i, error in list(unreadable.items())[:5]
        )
        more = "; ..." if len(unreadable) > 5 else ""
        first, error = next(iter(unreadable.items()))
        raise DataError(
            f"{len(unreadable)} of {len(images)} images cannot be read: {listed}{more}.",
            f"The first is {images[first]}. {error.hint}",
        )
    if rank() == 0:
        note_dark(images, intensity, "add")


def note_dark(images: Sequence[Path | ImageRef], intensity: tuple[float, float] | None, remedy: str) -> None:
    """Note that 16-bit images hold 10, 12 or 14 bits, judged by 8 of them; read as 16 bits, they are nearly black."""
    from wildcat.data.image_ref import ImageLocation
    from wildcat.data.images import highest_grey

    if intensity is not None:
        return
    highest = 0
    for image in images[:: max(1, len(images) // 8)][:8]:
        path = Path(image.file) if isinstance(image, ImageLocation) and image.page else image
        if isinstance(path, Path):
            with suppress(WildcatError):
                highest = max(highest, highest_grey(path))
    bits = next((bits for bits in (10, 12, 14) if 0 < highest < 2**bits), None)
    if bits:
        print(
            f"note: the 16-bit images reach {highest:,} of 65,535 ({bits} bits) and are read as nearly black: "
            f"{remedy} --intensity-range 0,{2**bits - 1}.",
            file=sys.stderr,
        )
