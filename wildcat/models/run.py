"""The run folder: settings, manifest, weights and history of one training. It is a model folder.

    config.yaml        the settings of the training
    model.json         the manifest, see `wildcat.models.manifest`; a run adds
                       preprocess: size, mean, std, interpolation and intensity_range of its input
                       data: source, reader options, name, format and number of images of the training data
                       launch: the torchrun launch that created it, or ""
                       has_parent: whether it starts from the weights of another run, which may be gone later
    model.safetensors  the best weights so far
    state.pt           the state of the training, from which it resumes exactly
    metrics.jsonl      one line per epoch

Every file is written atomically.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import math
import os
import reprlib
import shlex
import shutil
import sys
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from wildcat.config import TrainConfig
from wildcat.data.dataset import DataSet, Task, check_learnable
from wildcat.data.transforms import Preprocess, parse_range
from wildcat.errors import ConfigError, RunError
from wildcat.files import next_free, refuse_existing, remove_folder, remove_leftovers, write_bytes, writing
from wildcat.models.manifest import MANIFEST, RESTORE, kind_of, read_manifest, write_manifest
from wildcat.nn.backbones import Backbone, create_backbone
from wildcat.nn.factory import check_fits, model_from_config
from wildcat.nn.model import Wildcat
from wildcat.settings import config_text, read_config

if sys.platform != "win32":
    import fcntl

CONFIG, WEIGHTS, STATE, METRICS = "config.yaml", "model.safetensors", "state.pt", "metrics.jsonl"
LOGS = ("metrics.csv", "tensorboard", "wandb")  # of `wildcat.train.loggers`

RESUMABLE = ("device", "workers", "save_minutes")  # settings that --resume may change


@dataclass(frozen=True)
class Run:
    """An opened run folder."""

    folder: Path
    config: TrainConfig
    classes: tuple[str, ...]
    task: Task
    preprocess: Preprocess
    manifest: Mapping[str, Any]

    @property
    def has_parent(self) -> bool:
        """Whether the run starts from the weights of another run."""
        return bool(self.manifest.get("has_parent", self.config.parent))

    def load_model(self, output_stride: int | None = None) -> Wildcat:
        """Build the network and load the best weights; on the CPU, in evaluation mode.

        Args:
            output_stride: input pixels per cell of the maps; None: as in training. It does not change the weights.

        Raises:
            RunError: no weights yet, or they are damaged or of another network.
            ConfigError: the backbone does not support the output stride.
        """
        path, source = self.folder / WEIGHTS, self.manifest["data"]["source"]
        if not path.is_file():
            how = f": {shlex.join(resume_words(self.folder, source))}" if source else " as it was started"
            raise RunError(
                f"{self.folder} has no {WEIGHTS}: its training stopped before the first epoch ended.",
                f"Continue it{how}",
            )
        rows = len(self.classes) * self.config.num_maps
        if weight_shapes(path).get("transfer.weight", ())[:1] != (rows,):  # before memory of that size is allocated
            raise _unfitting(path, ["transfer.weight"])
        with torch.random.fork_rng(devices=[]):  # the random initialisation is overwritten
            config = dataclasses.replace(self.config, output_stride=output_stride or self.config.output_stride)
            model = model_from_config(config, len(self.classes), weights="none")
        load_weights(model, path)
        return model.eval()

    def history(self) -> list[dict[str, Any]]:
        """The records of metrics.jsonl.

        Raises:
            RunError: the file is damaged.
        """
        path = self.folder / METRICS
        if not path.is_file():
            return []
        try:
            return [dict(json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise RunError(f"{path} is damaged: {error}.", "Restore it from a copy, or delete it.") from error


def create_run(
    folder: Path,
    config: TrainConfig,
    data: DataSet,
    source: str = "",
    options: Sequence[str] = (),
    launch: str = "",
) -> Run:
    """Create the run folder of a new training on `data`.

    Args:
        source, options: the data set and its reader options as given on the command line; "" without one.
        launch: the torchrun launch that creates the run, see `wildcat.train.distributed.launch_name`.

    Raises:
        RunError: the folder exists and is not empty; nothing in it is touched.
        DataError: there is nothing to learn, see `wildcat.data.dataset.check_learnable`.
        ConfigError: no such backbone, or a setting out of range.
    """
    config.validate()
    if config.background and data.task == "multiclass":
        raise ConfigError(
            f"background=True is for independent classes; those of {data.name} exclude each other.", "Leave it out."
        )
    refuse_taken(folder)
    if config.parent and set(start := open_run(config.parent).classes) == set(data.classes):
        data = data.for_classes(start)
    samples, val_samples = data.training_split(config.train_split, config.val_split)
    check_learnable(data, config.train_split, samples)
    with torch.random.fork_rng(devices=[]):
        backbone = create_backbone(config.backbone, "none", config.output_stride, config.image_size)
        check_fits(config, len(data.classes), backbone, len(samples))
    preprocess = preprocess_of(config, backbone)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        write_bytes(folder / CONFIG, config_text(config).encode())
        write_manifest(
            folder,
            "run",
            data.classes,
            data.task,
            preprocess=dataclasses.asdict(preprocess),
            data={
                "source": source,
                "options": list(options),
                "name": data.name,
                "format": data.format,
                "images": {"train": len(samples), "val": len(val_samples)},
            },
            launch=launch,
            has_parent=config.parent is not None,
        )
    return open_run(folder)


def preprocess_of(config: TrainConfig, backbone: Backbone) -> Preprocess:
    """The preprocessing of a run's settings, with the normalisation that the weights of its backbone expect."""
    return Preprocess(
        config.image_size, backbone.mean, backbone.std, backbone.interpolation, parse_range(config.intensity_range)
    )


def refuse_taken(folder: Path) -> None:
    """Refuse to create a run in a folder that is in use.

    Raises:
        RunError: the folder exists and is not empty, or is a file.
    """
    hint = f"Add --resume to continue it, or give another --out (for example {next_free(folder)})."
    refuse_existing(folder, hint if kind_of(folder) == "run" else "")


def is_unused(folder: Path) -> bool:
    """Whether a run folder holds only settings and logs: its training saved nothing."""
    return folder.is_dir() and {p.name for p in folder.iterdir()} <= {CONFIG, MANIFEST, *LOGS}


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes from training in a run folder, or removing it, until the block ends.

    The lock is on its config.yaml, which stays as it was created; without this file, and where files cannot be locked,
    there is none.

    Raises:
        RunError: another process trains in the folder.
    """
    with contextlib.ExitStack() as stack:
        if sys.platform != "win32":
            try:
                file = stack.enter_context((folder / CONFIG).open("r+b", buffering=0))
                os.register_at_fork(after_in_child=file.close)  # workers may outlive a process that was killed
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                hint = f"Wait until it has ended, or give another --out (for example {next_free(folder)})."
                raise RunError(f"another process trains in {folder}.", hint) from error
            except OSError:  # there is no such file, or the file system has no locks
                pass
        yield


def discard_unused(folder: Path) -> bool:
    """Remove a run folder that `is_unused`, so that the same --out can be given again; whether it was.

    Raises:
        RunError: another process trains in the folder.
    """
    with locked(folder):
        unused = is_unused(folder)
        if unused:
            remove_folder(folder)
    return unused


def resume_words(folder: Path, source: str) -> list[str]:
    """The words of the command that continues a run with its own settings and reader options."""
    return ["wildcat", "train", source, "--out", str(folder), "--resume"]


def tidy_run(folder: Path) -> None:
    """Remove the half-written files of a training that was killed, before it is resumed.

    A config without a manifest is removed as well: the run was killed while it was created.

    Raises:
        RunError: another process trains in the folder.
    """
    with locked(folder), writing(folder):
        for name in (CONFIG, MANIFEST, WEIGHTS, STATE, METRICS):
            remove_leftovers(folder / name, seconds=0)
        if folder.is_dir() and [p.name for p in folder.iterdir()] == [CONFIG]:
            (folder / CONFIG).unlink()


def copy_run(run: Run, folder: Path) -> None:
    """Copy what a run needs to predict, and its history, into a new folder."""
    folder.mkdir(parents=True)
    for name in (CONFIG, MANIFEST, WEIGHTS, METRICS):
        if (run.folder / name).is_file():
            shutil.copyfile(run.folder / name, folder / name)


def open_run(folder: Path) -> Run:
    """Open a run folder.

    Raises:
        RunError: not a run folder, a damaged file, or a layout of another version.
    """
    manifest = read_manifest(folder)
    if manifest["kind"] == "ensemble":
        raise RunError(
            f"{folder} is an ensemble, not a single run.",
            f"Give one of its members, such as {folder / 'members' / '1'}.",
        )
    if manifest["kind"] in ("refined", "cascade"):
        kind = "refined model" if manifest["kind"] == "refined" else "cascade"
        raise RunError(f"{folder} is a {kind}, not a run.", f"Give the run in it: {folder / 'base'}.")
    if not (folder / CONFIG).is_file():
        raise RunError(f"{folder} is not a run folder: it has no {CONFIG}.", RESTORE)
    path, preprocess = folder / MANIFEST, manifest.get("preprocess")
    if not isinstance(manifest.get("data"), dict) or "source" not in manifest["data"]:
        raise RunError(f"{path} is damaged: missing or invalid data.", RESTORE)
    try:
        config = read_config(folder / CONFIG)
        return Run(
            folder=folder,
            config=config,
            classes=tuple(manifest["classes"]),
            task=manifest["task"],
            preprocess=_read_preprocess(preprocess, config.image_size, folder),
            manifest=manifest,
        )
    except ConfigError as error:
        raise RunError(error.message, error.hint) from error
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise RunError(f"{path} is damaged: its preprocess is {reprlib.repr(preprocess)}.", RESTORE) from error


def _read_preprocess(entry: Any, image_size: int, folder: Path) -> Preprocess:
    size, interpolation = int(entry["size"]), str(entry["interpolation"])
    mean, std = (tuple(map(float, entry[name])) for name in ("mean", "std"))
    intensity = None if entry.get("intensity_range") is None else tuple(map(float, entry["intensity_range"]))
    if intensity is not None and not (len(intensity) == 2 and -math.inf < intensity[0] < intensity[1] < math.inf):
        raise ValueError("out of range")
    valid = len(mean) == len(std) == 3 and all(map(math.isfinite, (*mean, *std))) and min(std) > 0
    if not valid or interpolation not in ("bicubic", "bilinear"):
        raise ValueError("out of range")
    if size != image_size:
        raise RunError(
            f"{folder / MANIFEST} is of images of {size} px and {folder / CONFIG} of {image_size}: one is damaged.",
            RESTORE,
        )
    return Preprocess(size, mean, std, interpolation, intensity)


def check_resumable(run: Run, config: TrainConfig, source: str, classes: tuple[str, ...], task: Task) -> None:
    """Refuse to resume a run with settings or data that would change its result.

    Raises:
        RunError: lists each difference.
    """
    old, new = asdict(run.config), asdict(config)
    shown = [{k: "default" if v is None else v for k, v in settings.items()} for settings in (old, new)]
    names = [k for k in old if old[k] != new[k] and k not in RESUMABLE]
    changed = [f"--{k.replace('_', '-')} {shown[0][k]} -> {shown[1][k]}" for k in names]
    if set(classes) != set(run.classes):
        same = len(classes) == len(run.classes)
        changed.append(f"classes {len(run.classes)} -> {len(classes)}{' of other names' if same else ''}")
    if task != run.task:
        changed.append(f"task {run.task} -> {task}")
    if changed:
        raise RunError(
            f"{run.folder} was begun with other settings: {'; '.join(changed)}.",
            f"Type: {shlex.join(resume_words(run.folder, source))} (its own settings are used), or give another --out.",
        )


# --- weights and training state --------------------------------------------------------------------------------------


def write_history(path: Path, lines: list[dict[str, Any]]) -> None:
    """Write metrics.jsonl, atomically."""
    write_bytes(path, "".join(json.dumps(line) + "\n" for line in lines).encode())


def save_weights(model: nn.Module, path: Path) -> None:
    """Write a network's weights as safetensors, atomically."""
    write_weights(copied_weights(model), path)


def copied_weights(model: nn.Module) -> dict[str, Tensor]:
    """A copy of a network's weights, on the CPU."""
    return {k: v.detach().to("cpu", copy=True).contiguous() for k, v in model.state_dict().items()}


def write_weights(state: dict[str, Tensor], path: Path) -> None:
    """Write weights as safetensors, atomically."""
    write_bytes(path, safetensors.torch.save(state))


def load_weights(model: nn.Module, path: Path) -> None:
    """Load a network's weights; every key and shape must match.

    Raises:
        RunError: the file is damaged, or of another network.
    """
    _check_shapes(model, weight_shapes(path), path)  # before the tensors are read
    with _reading_weights(path):
        model.load_state_dict(safetensors.torch.load_file(path))


def weight_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of a safetensors file, from its header alone.

    Raises:
        RunError: the file is damaged.
    """
    with _reading_weights(path), safetensors.safe_open(path, "pt") as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118  # not a dict


@contextlib.contextmanager
def _reading_weights(path: Path) -> Iterator[None]:
    try:
        yield
    except (safetensors.SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(
            f"{path} is damaged or half-written ({(str(error).splitlines() or ['no reason given'])[0][:200]}).",
            RESTORE,
        ) from error


def adopt_state(model: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """Load a state dict; every key and shape must match.

    Raises:
        RunError: names the first key that does not match.
    """
    _check_shapes(model, {k: v.shape if isinstance(v, Tensor) else (-1,) for k, v in state.items()}, path)
    model.load_state_dict(dict(state))


def _check_shapes(model: nn.Module, found: Mapping[str, tuple[int, ...]], path: Path) -> None:
    own = {k: tuple(v.shape) for k, v in model.state_dict().items()}
    if wrong := [k for k in {**own, **found} if own.get(k) != found.get(k)]:
        raise _unfitting(path, wrong)


def _unfitting(path: Path, wrong: Sequence[object]) -> RunError:
    return RunError(
        f"{path} does not fit the network of its own config.yaml: {len(wrong)} weights differ, first "
        f"{str(wrong[0])[:100]}.",
        "Was a file of another run copied here?",
    )


def save_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write the trainer's state, atomically."""
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    write_bytes(path, buffer.getvalue())


def load_state(path: Path) -> dict[str, Any]:
    """Read the trainer's state; neither arbitrary objects nor compressed data are unpacked.

    Raises:
        RunError: missing, damaged or half-written.
    """
    try:
        with zipfile.ZipFile(path) as file:
            members = file.infolist()
        if any(m.compress_type for m in members) or sum(m.file_size for m in members) > path.stat().st_size:
            raise ValueError("it is compressed")
        state = dict(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:  # torch raises anything on damaged files
        usable = "The best weights in the run folder are still usable. " if path.with_name(WEIGHTS).is_file() else ""
        raise RunError(
            f"{path} is damaged or half-written ({type(error).__name__}).",
            f"{usable}To train further, give another --out.",
        ) from error
    return state
