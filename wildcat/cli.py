"""The command line, `wildcat COMMAND ...`: results to stdout, progress and logs to stderr; torch is imported late."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import shlex
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from tyro.conf import FlagCreatePairsOff, OmitArgPrefixes, Positional, UseAppendAction, arg, subcommand

from wildcat.config import Flip, TrainConfig, load_recipe, read_config
from wildcat.errors import ConfigError, DataError, MissingExtra, RunError, WildcatError, did_you_mean

if TYPE_CHECKING:
    from wildcat.data import DataSet

Options = Annotated[tuple[str, ...], UseAppendAction, arg(metavar="NAME=VALUE")]


@dataclass(frozen=True, kw_only=True)
class Command:
    """What every command takes."""

    debug: bool = False
    """Show the traceback of an error."""


@dataclass(frozen=True, kw_only=True)
class DataCommand(Command):
    """What every command that reads a data set takes."""

    format: str | None = None
    """Layout: voc, voc-action, coco, scenes, indoor, csv or folder; recognised from its structure otherwise."""
    data_option: Options = ()
    """A setting of the reader, such as separator="|" of a table or cells=mono of solar; may be repeated."""


@dataclass(frozen=True, kw_only=True)
class Train(DataCommand):
    """Train a model on tagged pictures."""

    data: Positional[Annotated[str, arg(metavar="DATA")]]
    """A folder, a .csv, or the name of a packaged data set (solar, shapes)."""
    out: Path
    """Run folder to make; it is never overwritten."""
    recipe: str | None = None
    """Settings to start from: a packaged recipe or a .yaml file; flags override them."""
    resume: bool = False
    """Continue the run in --out with its own settings; begin it if there is none."""
    config: OmitArgPrefixes[TrainConfig] = field(default_factory=TrainConfig)


@dataclass(frozen=True, kw_only=True)
class Evaluate(DataCommand):
    """Measure a model on labelled pictures."""

    run: Positional[Annotated[str, arg(metavar="RUN")]]
    """A run folder, or a packaged model such as imagenet-lite0."""
    data: Positional[Annotated[str, arg(metavar="DATA")]]
    """A folder, a .csv, or the name of a packaged data set."""
    split: str | None = None
    """Part of the data to measure on; val where the data has one, otherwise test."""
    ap: Literal["voc07", "voc10", "plain"] = "voc10"
    """Variant of average precision."""
    crf: bool = False
    """Sharpen masks with a dense CRF before they are measured."""
    json: bool = False
    """Print one JSON object instead of a table."""
    flip: Flip = "none"
    """Average the maps of mirrored views: steadier, at twice (horizontal) or four times (both) the cost."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""


@dataclass(frozen=True, kw_only=True)
class Predict(DataCommand):
    """Classes, points, boxes and heatmaps for pictures."""

    run: Positional[Annotated[str, arg(metavar="RUN")]]
    """A run folder, or a packaged model such as imagenet-lite0."""
    paths: Positional[Annotated[tuple[str, ...], arg(metavar="PATH...")]]
    """Pictures, folders of pictures, or globs; with --split, one data set."""
    out: Path | None = None
    """Folder to make for predictions.jsonl and pictures; without it, results are only printed."""
    save: str = "overlays"
    """Pictures to write, separated by commas: overlays, heatmaps, modalities, masks, arrays; none for no pictures."""
    crf: bool = False
    """Sharpen masks with a dense CRF."""
    classes: str = ""
    """Classes to draw, separated by commas, instead of the predicted ones."""
    split: str | None = None
    """Predict this split of a data set."""
    limit: int = 0
    """Stop after so many pictures; 0: all."""
    batch_size: int = 8
    """Pictures that go through the network together."""
    flip: Flip = "none"
    """Average the maps of mirrored views: steadier, at twice (horizontal) or four times (both) the cost."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""


@dataclass(frozen=True, kw_only=True)
class Datasets(Command):
    """List the data that can be read, and where it is expected; or fetch a public data set."""

    action: Positional[Literal["list", "fetch"]] = "list"
    """What to do."""
    name: Positional[Annotated[str, arg(metavar="NAME")]] = ""
    """The data set to fetch, such as VOC2007."""
    to: Path | None = None
    """Folder to fetch into; it may hold other data sets."""
    accept_licence: bool = False
    """Agree to the terms of use of the data set, instead of being asked."""


@dataclass(frozen=True, kw_only=True)
class Backbones(Command):
    """List the backbones."""

    pattern: Positional[Annotated[str, arg(metavar="TEXT")]] = ""
    """Show names with this text in them; * stands for any text."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code: 0 done, 1 failed, 2 misuse."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments
    warnings.filterwarnings("ignore", category=UserWarning, module="torch")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # file names need not be Unicode
    try:
        command = parse(arguments)
        code = next(run for kind, run in RUNNERS.items() if isinstance(command, kind))(command)
        sys.stdout.flush()
        return code
    except WildcatError as error:
        if debug:
            raise
        print(f"wildcat: {error.message}", file=sys.stderr)
        if error.hint:
            print(f"  {error.hint.replace('did you mean', 'Did you mean', 1)}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1
    except KeyboardInterrupt:
        print("wildcat: interrupted.", file=sys.stderr)
        return 1
    except BrokenPipeError:  # the reader of our output (head, less) has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left in the buffer goes there
        return 1


def parse(arguments: list[str]) -> Any:
    """The command line as one of the command dataclasses.

    The recipe, or the settings of a run that is resumed, are read first: they are the defaults that flags override.

    Raises:
        SystemExit: 2 for misuse, 0 after --help.
        ConfigError: an unknown recipe, or a value out of range.
    """
    if "--version" in arguments[:1]:
        from wildcat._version import __version__

        print(f"wildcat {__version__}")
        raise SystemExit(0)
    names = [run.__name__.removeprefix("run_") for run in RUNNERS.values()]
    if arguments and not arguments[0].startswith("-") and arguments[0] not in names:
        near = did_you_mean(arguments[0], names)
        raise ConfigError(f"there is no command {arguments[0]!r}.", near or f"Commands are: {', '.join(names)}.")
    base = TrainConfig()
    if arguments[:1] == ["train"] and not {"-h", "--help"} & set(arguments):
        recipe, out = _value_of(arguments, "--recipe"), _value_of(arguments, "--out")
        if "--resume" in arguments and out and (Path(out) / "config.yaml").is_file():
            base = read_config(Path(out) / "config.yaml")
        elif recipe:
            base = load_recipe(recipe)
    train = dataclasses.make_dataclass(
        "Train", [("config", OmitArgPrefixes[TrainConfig], base)], bases=(Train,), frozen=True, kw_only=True
    )
    train.__doc__ = Train.__doc__
    commands = (
        Annotated[train, subcommand("train")]  # type: ignore[valid-type]  # made above, for its defaults
        | Annotated[Evaluate, subcommand("evaluate")]
        | Annotated[Predict, subcommand("predict")]
        | Annotated[Datasets, subcommand("datasets")]
        | Annotated[Backbones, subcommand("backbones")]
    )
    parsed = tyro.cli(
        commands,
        prog="wildcat",
        description="Classes, points, boxes and heatmaps from one model trained on image-level tags.",
        args=arguments or ["--help"],
        config=(FlagCreatePairsOff,),
    )
    if isinstance(parsed, Train):
        parsed.config.validate()
    return parsed


def _value_of(arguments: Sequence[str], flag: str) -> str | None:
    for i, argument in enumerate(arguments):
        if argument == flag and i + 1 < len(arguments):
            return arguments[i + 1]
        if argument.startswith(f"{flag}="):
            return argument.split("=", 1)[1]
    return None


# --- the commands -------------------------------------------------------------------------------------------------


def run_train(command: Train) -> int:
    """wildcat train"""
    from wildcat.nn.backbones import check_backbone_name
    from wildcat.progress import TerminalListener
    from wildcat.train.loop import choose_device, train
    from wildcat.train.runs import MANIFEST, check_resumable, create_run, discard_unused, open_run, refuse_taken

    config = command.config
    check_backbone_name(config.backbone)
    source = command.data
    run = open_run(command.out) if command.resume and (command.out / MANIFEST).is_file() else None
    if run is not None:
        begun = run.manifest["data"]
        options = command.data_option or tuple(begun.get("options", ()))
        command = dataclasses.replace(command, data_option=options, format=command.format or begun.get("format"))
    else:
        refuse_taken(command.out)
    data = open_data(command)
    samples, val_samples = data.training_split(config.train_split, config.val_split)
    check_readable([s.path for s in (*samples, *val_samples)])
    device = choose_device(config.device)
    resume = run is not None
    if run is not None:
        check_resumable(run, config, source, data.classes)
    else:
        run = create_run(command.out, config, data, source, command.data_option)
    describe(data, f"{len(samples)} pictures to train on, {len(val_samples)} to choose the best epoch", device.type)
    print(f"{'Continuing' if resume else 'Writing'} {command.out}", flush=True)
    if config.device == "auto" and device.type == "cpu" and config.tune == "all" and not resume:
        print("No GPU: --tune head trains in a fraction of the time, on features computed once.", file=sys.stderr)
    go_on = f"Go on with:\n  {shlex.join(['wildcat', 'train', source, '--out', str(command.out), '--resume'])}"
    try:
        with TerminalListener() as listener:
            outcome = train(run, data, resume=resume, listener=listener)
    except KeyboardInterrupt:  # before the first step, or a second Ctrl-C
        print(f"Interrupted; what was saved is intact. {go_on}", file=sys.stderr)
        return 1
    except (ConfigError, MissingExtra, RunError):  # the settings cannot work: let the same --out be given again
        if not resume:
            discard_unused(run)
        raise
    if not outcome.finished:
        print(f"Stopped after {outcome.epochs_done} epochs; everything is saved. {go_on}", file=sys.stderr)
        return 1
    if outcome.metric is not None:
        print(f"Best epoch {outcome.best_epoch + 1}: {outcome.metric_name} {outcome.metric:.4f} on {config.val_split}")
    evaluating = shlex.join(["wildcat", "evaluate", str(command.out), source])
    predicting = shlex.join(["wildcat", "predict", str(command.out), "PICTURE", "--out", "DIR"])
    print(f"Next: {evaluating}   or   {predicting}")
    return 0


def run_evaluate(command: Evaluate) -> int:
    """wildcat evaluate"""
    from wildcat.evaluation import class_order, evaluate
    from wildcat.predictor import load
    from wildcat.progress import progress_bar

    data = open_data(command)
    split = command.split or next((s for s in ("val", "test") if s in data.splits), "val")
    predictor = load(command.run, command.device, command.flip)
    class_order(predictor, data)
    samples = data.split(split)
    describe(data, f"{len(samples)} pictures of {split}", predictor.device.type, quiet=command.json)
    with progress_bar(len(samples), "evaluating") as bar:
        result = evaluate(predictor, data, split, command.ap, command.crf, bar.update)
    print(json.dumps(result, ensure_ascii=False) if command.json else evaluation_table(result))
    return 0


def run_predict(command: Predict) -> int:
    """wildcat predict"""
    from contextlib import ExitStack

    from wildcat.export.predictions import PredictionWriter, parse_save
    from wildcat.predictor import load
    from wildcat.progress import progress_bar

    save = parse_save(command.save)
    if command.batch_size < 1 or command.limit < 0:
        raise ConfigError(f"batch_size={command.batch_size}, limit={command.limit}: give at least 1, and at least 0.")
    pictures = find_pictures(command)
    predictor = load(command.run, command.device, command.flip)
    if "masks" in save and len(predictor.classes) > 254:
        raise ConfigError(
            f"{predictor.name} has {len(predictor.classes)} classes; a mask picture numbers 254 at most.",
            "Leave masks out of --save; Prediction.mask gives them as arrays.",
        )
    drawn = named_classes(command.classes, predictor.classes)
    names = dict(pictures)
    skipped: list[str] = []
    written = 0

    def skip(picture: object, error: WildcatError) -> None:
        skipped.append(str(picture))
        bar.write(f"skipped {error.message}", file=sys.stderr)
        bar.update(1)

    with ExitStack() as stack:
        writer = stack.enter_context(PredictionWriter(command.out, save, drawn, command.crf)) if command.out else None
        print(
            f"{predictor.name}: {len(predictor.classes)} classes; {len(pictures)} pictures; device "
            f"{predictor.device.type}{f'; writing {command.out}' if command.out else ''}",
            flush=True,
        )
        bar = stack.enter_context(progress_bar(len(pictures), "predicting"))
        stream = predictor.stream(
            [path for path, _ in pictures],
            modalities=bool({"modalities", "arrays"} & set(save)),
            batch_size=command.batch_size,
            on_error=skip,
        )
        for prediction in stream:
            if writer:
                writer.add(prediction, names[Path(prediction.image)])
            if not writer or len(pictures) <= 10:
                bar.write(prediction_line(prediction), file=sys.stdout)
            written += 1
            bar.update(1)
    if skipped:
        print(f"{len(skipped)} of {len(pictures)} pictures could not be read and were skipped.", file=sys.stderr)
    if command.out:
        print(f"{written} predictions in {command.out / 'predictions.jsonl'}")
    return 0 if written else 1


def run_datasets(command: Datasets) -> int:
    """wildcat datasets"""
    from wildcat.data import list_datasets

    if command.action == "fetch":
        return run_fetch(command)
    for info in list_datasets():
        print(f"{info.name:15} {info.format:11} {info.description}\n{'':28}{info.where}")
    return 0


def run_fetch(command: Datasets) -> int:
    """wildcat datasets fetch"""
    from tqdm import tqdm

    from wildcat.data import fetch_dataset, find_source, is_fetched

    source = find_source(command.name)
    if command.to is None:
        raise ConfigError(f"fetch {source.name}: name the folder to fetch into.", "Add --to DIR.")
    if is_fetched(source, command.to):
        print(f"{command.to / source.opens} is there already; nothing was done.")
        return 0
    print(f"{source.name}, from {source.homepage}\n{source.licence}", flush=True)
    if not command.accept_licence and not (sys.stdin.isatty() and _agrees("Do you agree to these terms?")):
        raise DataError(
            f"{source.name} is not fetched: its terms of use were not agreed to.", "Add --accept-licence to agree."
        )
    with tqdm(unit="B", unit_scale=True, file=sys.stderr, mininterval=0.5, dynamic_ncols=True) as bar:

        def show(what: str, done: int, total: int | None) -> None:
            if bar.desc != f"{what}: ":
                bar.reset(total)
                bar.set_description(what, refresh=False)
                bar.unit = "B" if total else " files"
                bar.initial = bar.n = done
            bar.update(done - bar.n)

        result = fetch_dataset(source, command.to, show)
    for note in result.notes:
        print(f"note: {note}", file=sys.stderr)
    print(f"{result.path} is ready; everything that came is recorded in {command.to / 'fetched.json'}.")
    return 0


def _agrees(question: str) -> bool:
    try:
        return input(f"{question} [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        return False


def run_backbones(command: Backbones) -> int:
    """wildcat backbones"""
    from wildcat.nn import list_backbones

    names = list_backbones(command.pattern)
    if not names:
        raise ConfigError(
            f"no backbone has {command.pattern!r} in its name.", did_you_mean(command.pattern, list_backbones())
        )
    print("\n".join(names))
    return 0


RUNNERS: dict[type[Command], Callable[[Any], int]] = {
    Train: run_train,
    Evaluate: run_evaluate,
    Predict: run_predict,
    Datasets: run_datasets,
    Backbones: run_backbones,
}


# --- what commands share ------------------------------------------------------------------------------------------


def open_data(command: Train | Evaluate | Predict, source: str | None = None) -> DataSet:
    """The data set a command names, with the reader's options."""
    from wildcat.data import open_dataset

    options: dict[str, object] = {}
    for text in command.data_option:
        name, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f"--data-option {text}: give NAME=VALUE, for example separator=|.")
        options[name.strip().replace("-", "_")] = _plain(value)
    data = open_dataset(source or command.data, command.format, **options)  # type: ignore[union-attr]
    return data


def _plain(value: str) -> str | float | int:
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            pass
    return value


def describe(data: DataSet, pictures: str, device: str, quiet: bool = False) -> None:
    """The first line of a command: what was recognised; to stderr where stdout is for a program."""
    stream = sys.stderr if quiet else sys.stdout
    print(
        f"{data.name} ({data.format}, {data.task}): {len(data.classes)} classes, {pictures}; device {device}",
        file=stream,
        flush=True,
    )
    for note in data.notes:
        print(f"note: {note}", file=sys.stderr)


def check_readable(paths: Sequence[Path]) -> None:
    """Refuse data with pictures whose first bytes are no picture, before hours are spent on it.

    Raises:
        DataError: how many, and the first few.
    """
    from wildcat.data.images import fault_of

    faults = [(path, fault) for path in paths if (fault := fault_of(path))]
    if faults:
        listed = "; ".join(f"{path.name}: {fault}" for path, fault in faults[:5])
        raise DataError(
            f"{len(faults)} of {len(paths)} pictures cannot be read: {listed}{'; ...' if len(faults) > 5 else ''}.",
            f"Mend or remove them; the first is {faults[0][0]}.",
        )


def find_pictures(command: Predict) -> list[tuple[Path, str]]:
    """The pictures a command names, each with the relative path that names its files.

    Raises:
        DataError: a path that does not exist, a folder or glob without pictures.
    """
    from wildcat.data.images import list_images

    if not command.paths:
        raise ConfigError("there is nothing to predict.", "Name pictures, folders of pictures, or globs in quotes.")
    if command.split is not None:
        if len(command.paths) != 1:
            raise ConfigError(f"--split {command.split}: give one data set, not {len(command.paths)} paths.")
        samples = open_data(command, command.paths[0]).split(command.split)
        found = [(s.path, s.path.name) for s in samples]
    else:
        found = [pair for text in command.paths for pair in _pictures_at(text, list_images)]
    unique = list(dict(found).items())
    return unique[: command.limit] if command.limit else unique


def _pictures_at(text: str, list_images: Any) -> list[tuple[Path, str]]:
    import glob

    path = Path(text).expanduser()
    if path.is_dir():
        if found := list_images(path):
            return [(p, str(p.relative_to(path))) for p in found]
        raise DataError(
            f"{path} holds no pictures.", "Give a folder with .jpg, .png, ... files, or the files themselves."
        )
    if path.exists():
        return [(path, path.name)]
    if glob.has_magic(text):
        found_here = glob.glob(text, recursive=True)  # noqa: PTH207  # Path.glob takes no absolute patterns
        if matches := sorted(Path(m) for m in found_here if Path(m).is_file()):
            return [(p, p.name) for p in matches]
        raise DataError(f"no file matches {text}.", "Check the pattern; ** stands for any depth of folders.")
    near = did_you_mean(path.name, [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else [])
    raise DataError(f"{path} does not exist.", near or "Give a picture, a folder of pictures, or a glob in quotes.")


def named_classes(text: str, classes: Sequence[str]) -> tuple[str, ...]:
    """The classes a comma-separated list names; a name may itself hold commas.

    Raises:
        ConfigError: an unknown class.

    >>> named_classes("table, chair, stool", ["table", "chair, stool", "chair"])
    ('table', 'chair, stool')
    """
    parts, found = text.split(",") if text.strip() else [], []
    while parts:
        ends = [n for n in range(len(parts), 0, -1) if ",".join(parts[:n]).strip() in classes]
        if not ends:
            name = parts[0].strip()
            few = ", ".join(classes[:20]) + (", ..." if len(classes) > 20 else "")
            raise ConfigError(f"this model has no class {name!r}.", did_you_mean(name, classes) or f"It has: {few}.")
        found.append(",".join(parts[: ends[0]]).strip())
        parts = parts[ends[0] :]
    return tuple(found)


def prediction_line(prediction: Any) -> str:
    """One line for a person: the picture, its likeliest classes, and where they are."""
    names = list(prediction.labels) or [prediction.top]
    if prediction.task == "multiclass":
        names = sorted(prediction.classes, key=lambda c: -prediction.probabilities[c])[:3]
    found = [
        f"{c} {prediction.probabilities[c]:.0%} at ({prediction.points[c][0]:.0f}, {prediction.points[c][1]:.0f})"
        for c in names
    ]
    none = "" if prediction.labels else "(below 50%) "
    return f"{prediction.image}: {none}{', '.join(found)}"


def evaluation_table(result: dict[str, Any]) -> str:
    """The figures of an evaluation for a person."""
    classification, pointing = result["classification"], result.get("pointing")
    head = f"{'':20}{'AP':>8}{'point AP' if pointing else '':>10}"
    lines = [f"{result['data']} {result['split']}, {result['pictures']} pictures", head]
    for name, value in classification["ap"].items():
        lines.append(f"{name[:20]:20}{_percent(value)}{_percent(pointing['ap'][name], 10) if pointing else ''}")
    mean = f"{'mean':20}{_percent(classification['map'])}{_percent(pointing['map'], 10) if pointing else ''}"
    lines.append(f"{mean}   ({classification['variant']} AP, %)")
    for key in ("accuracy", "class_mean_accuracy", "roc_auc"):
        if key in classification:
            lines.append(f"{key.replace('_', ' '):20}{_percent(classification[key])}")
    if pointing:
        lines.append(f"{'pointing game':20}{_percent(pointing['pointing_game'])}")
    if "segmentation" in result:
        lines.append(f"{'mean IoU':20}{_percent(result['segmentation']['miou'])}")
    return "\n".join(line.rstrip() for line in lines)


def _percent(value: float | None, width: int = 8) -> str:
    return f"{'-':>{width}}" if value is None else f"{100 * value:>{width}.1f}"
