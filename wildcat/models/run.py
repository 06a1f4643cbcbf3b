"""The run folder: settings, classes, weights and history of one training. A run folder IS a model.

    config.yaml        the settings, as given
    run.json           what the weights need to be used: classes, task, preprocessing; and where they came from
    model.safetensors  the best weights so far
    state.pt           everything needed to go on exactly where training stopped
    metrics.jsonl      one line an epoch

Every file is written beside itself and moved into place, so a reader never sees half of one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import math
import platform
import reprlib
import shutil
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args

import numpy
import PIL
import safetensors
import safetensors.torch
import timm
import torch
import torchvision
from torch import Tensor, nn

from wildcat._version import __version__
from wildcat.config import TrainConfig, config_text, read_config, to_dict
from wildcat.data.dataset import DataSet, Task
from wildcat.data.transforms import Preprocess
from wildcat.errors import ConfigError, RunError, did_you_mean
from wildcat.files import next_free, read_json, refuse_existing, remove_leftovers, write_bytes, write_json, writing
from wildcat.nn.backbones import create_backbone
from wildcat.nn.model import Wildcat, model_from_config

SCHEMA = 1
"""Version of the run folder's layout."""

CONFIG, MANIFEST, WEIGHTS, STATE, METRICS = "config.yaml", "run.json", "model.safetensors", "state.pt", "metrics.jsonl"

ENSEMBLE, REFINED = "ensemble.json", "refined.json"
"""What makes a folder an ensemble (`wildcat.models.ensemble`) or a refined model (`wildcat.models.refined`)."""

RESTORE = "Restore it from a copy, or train again."

RESUMABLE = ("device", "workers", "save_minutes")
"""Settings that may differ when a run goes on: they do not change what is computed."""


@dataclass(frozen=True)
class Run:
    """A run folder that has been opened and checked."""

    folder: Path
    config: TrainConfig
    classes: tuple[str, ...]
    task: Task
    preprocess: Preprocess
    manifest: Mapping[str, Any]

    def load_model(self, output_stride: int | None = None) -> Wildcat:
        """The network with the run's best weights, on the CPU, ready to predict.

        Args:
            output_stride: of the maps; None for that of training. Strides change no weight.

        Raises:
            RunError: no weights yet, or they are damaged or of another network.
            ConfigError: an output stride the network cannot give.
        """
        path = self.folder / WEIGHTS
        if not path.is_file():
            raise RunError(
                f"{self.folder} has no {WEIGHTS}: its training stopped before the first epoch ended.",
                f"Go on with: wildcat train {self.manifest['data']['source']} --out {self.folder} --resume",
            )
        rows = len(self.classes) * self.config.num_maps
        if weight_shapes(path).get("transfer.weight", ())[:1] != (rows,):  # before anything of that size is made
            raise _unfitting(path, ["transfer.weight"])
        with torch.random.fork_rng(devices=[]):  # weights are drawn before they are read
            config = dataclasses.replace(self.config, output_stride=output_stride or self.config.output_stride)
            model = model_from_config(config, len(self.classes), weights="none")
        load_weights(model, path)
        return model.eval()

    def history(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl.

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
    """Make a new run folder for a training on `data`.

    Args:
        source, options: the data set and its reader options as given on the command line, for the record.
        launch: the torchrun launch that creates the run, see `wildcat.train.distributed.launch_name`.

    Raises:
        RunError: the folder exists and is not empty; nothing in it is touched.
        ConfigError: no such backbone, or a setting out of range.
    """
    config.validate()
    if config.background and data.task == "multiclass":
        raise ConfigError(
            f"background is for independent classes; those of {data.name} exclude each other.",
            "Leave --background out.",
        )
    refuse_taken(folder)
    samples, val_samples = data.training_split(config.train_split, config.val_split)
    with torch.random.fork_rng(devices=[]):
        backbone = create_backbone(config.backbone, "none", config.output_stride, config.image_size)
    preprocess = Preprocess(config.image_size, backbone.mean, backbone.std, backbone.interpolation)
    manifest = {
        "schema": SCHEMA,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "classes": list(data.classes),
        "task": data.task,
        "preprocess": dataclasses.asdict(preprocess),
        "data": {
            "source": source or str(data.root),
            "options": list(options),
            "name": data.name,
            "format": data.format,
            "images": {"train": len(samples), "val": len(val_samples)},
        },
        "versions": versions(),
        "launch": launch,
    }
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        write_bytes(folder / CONFIG, config_text(config).encode())
        write_json(folder / MANIFEST, manifest)
    return open_run(folder)


def refuse_taken(folder: Path) -> None:
    """Refuse to make a run where something is already.

    Raises:
        RunError: the folder exists and is not empty, or is a file.
    """
    resumable = (folder / MANIFEST).is_file()
    refuse_existing(
        folder,
        f"Add --resume to continue it, or give another --out (for example {next_free(folder)})." if resumable else "",
    )


def discard_unused(run: Run) -> None:
    """Remove a run folder that holds nothing but its settings, so that the same --out can be given again."""
    if run.folder.is_dir() and {p.name for p in run.folder.iterdir()} <= {CONFIG, MANIFEST}:
        shutil.rmtree(run.folder)


def tidy_run(folder: Path) -> None:
    """Remove what a training that was killed has left half-written in its run folder, before it goes on.

    Settings without a manifest go as well: they are of a run that was killed while it was made.
    """
    with writing(folder):
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
    """Open a run folder and check what it says of itself.

    Raises:
        RunError: not a run folder, a damaged file, or a layout of another version.
    """
    if not folder.is_dir():
        near = did_you_mean(folder.name, _siblings(folder))
        raise RunError(f"there is no run folder {folder}.", near or "Give a folder that wildcat train wrote.")
    if (folder / ENSEMBLE).is_file():
        raise RunError(
            f"{folder} is an ensemble, not a single run.",
            f"Name one of its members, such as {folder / 'members' / '1'}.",
        )
    if (folder / REFINED).is_file():
        raise RunError(f"{folder} is a refined model, not a run.", f"Name the run in it: {folder / 'base'}.")
    for name in (MANIFEST, CONFIG):
        if not (folder / name).is_file():
            raise RunError(
                f"{folder} is not a run folder: it has no {name}.", "Give the folder named with --out in wildcat train."
            )
    manifest = _read_manifest(folder / MANIFEST)
    preprocess = manifest["preprocess"]
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
    except (TypeError, ValueError, OverflowError) as error:
        said = reprlib.repr(preprocess)
        raise RunError(f"{folder / MANIFEST} is damaged: its preprocess is {said}.", RESTORE) from error


def _read_preprocess(said: Mapping[str, Any], image_size: int, folder: Path) -> Preprocess:
    size, interpolation = int(said["size"]), str(said["interpolation"])
    mean, std = (tuple(map(float, said[name])) for name in ("mean", "std"))
    sound = len(mean) == len(std) == 3 and all(map(math.isfinite, (*mean, *std))) and min(std) > 0
    if not sound or interpolation not in ("bicubic", "bilinear"):
        raise ValueError("out of range")
    if size != image_size:
        raise RunError(
            f"{folder / MANIFEST} is of images of {size} px and {folder / CONFIG} of {image_size}: one is damaged.",
            RESTORE,
        )
    return Preprocess(size, mean, std, interpolation)


def _read_manifest(path: Path) -> dict[str, Any]:
    manifest = read_json(path, RESTORE)
    if not isinstance(manifest, dict):
        raise RunError(f"{path} is damaged: it holds no settings.", RESTORE)
    schema = manifest.get("schema")
    if schema != SCHEMA:
        writer = _entries(manifest, "versions").get("wildcat")
        raise RunError(
            f"{path} has layout version {schema!r}; this is wildcat {__version__}, which reads version {SCHEMA}.",
            f"It was written by wildcat {writer}: use that one." if writer else RESTORE,
        )
    sound = {
        "classes": are_classes(manifest.get("classes")),
        "task": manifest.get("task") in get_args(Task),
        "preprocess": {"size", "mean", "std", "interpolation"} <= set(_entries(manifest, "preprocess")),
        "data": "source" in _entries(manifest, "data"),
    }
    if not all(sound.values()):
        raise RunError(f"{path} is damaged: look at {', '.join(k for k in sound if not sound[k])}.", RESTORE)
    return manifest


def _entries(manifest: dict[str, Any], name: str) -> dict[str, Any]:
    value = manifest.get(name)
    return value if isinstance(value, dict) else {}


def are_classes(value: object) -> bool:
    """Whether a value read from a file can be the names of classes: texts, none of them twice."""
    return isinstance(value, list) and {type(c) for c in value} == {str} and len(set(value)) == len(value)


def _siblings(path: Path) -> list[str]:
    return [p.name for p in path.parent.iterdir() if p.is_dir()] if path.parent.is_dir() else []


def check_resumable(run: Run, config: TrainConfig, source: str, classes: tuple[str, ...]) -> None:
    """Refuse to continue a run with settings or data that would make another result.

    Raises:
        RunError: names each difference.
    """
    old, new = to_dict(run.config), to_dict(config)
    changed = [f"{k} {old[k]} -> {new[k]}" for k in old if old[k] != new[k] and k not in RESUMABLE]
    if classes != run.classes:
        same = len(classes) == len(run.classes)
        changed.append(f"classes {len(run.classes)} -> {len(classes)}{' of other names or order' if same else ''}")
    if changed:
        raise RunError(
            f"{run.folder} was begun with other settings: {'; '.join(changed)}.",
            f"Type: wildcat train {source} --out {run.folder} --resume (its own settings are taken), "
            "or give another --out.",
        )


def versions() -> dict[str, str]:
    """What decides numbers: this package and what it computes with."""
    return {
        "wildcat": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "timm": timm.__version__,
        "numpy": numpy.__version__,
        "pillow": PIL.__version__,
    }


# --- files -----------------------------------------------------------------------------------------------------


def write_history(path: Path, lines: list[dict[str, Any]]) -> None:
    """Write metrics.jsonl, atomically."""
    write_bytes(path, "".join(json.dumps(line) + "\n" for line in lines).encode())


def save_weights(model: nn.Module, path: Path) -> None:
    """Write a network's weights as safetensors, atomically."""
    write_weights(copied_weights(model), path)


def copied_weights(model: nn.Module) -> dict[str, Tensor]:
    """A network's weights as they are now, on the CPU."""
    return {k: v.detach().to("cpu", copy=True).contiguous() for k, v in model.state_dict().items()}


def write_weights(state: dict[str, Tensor], path: Path) -> None:
    """Write weights as safetensors, atomically."""
    write_bytes(path, safetensors.torch.save(state))


def load_weights(model: nn.Module, path: Path) -> None:
    """Read a network's weights; every key and shape must fit.

    Raises:
        RunError: the file is damaged, or of another network.
    """
    own, found = {k: tuple(v.shape) for k, v in model.state_dict().items()}, weight_shapes(path)
    if wrong := [k for k in {**own, **found} if own.get(k) != found.get(k)]:
        raise _unfitting(path, wrong)  # before they are read
    with _reading_weights(path):
        state = safetensors.torch.load_file(path)
    adopt_state(model, state, path)


def weight_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of a safetensors file, of which only the header is read.

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
    """Load a state dict whose keys and shapes must all fit.

    Raises:
        RunError: names the first key that does not fit.
    """
    own = model.state_dict()
    wrong = [
        k
        for k in {**own, **state}
        if k not in own or not isinstance(state.get(k), Tensor) or own[k].shape != state[k].shape
    ]
    if wrong:
        raise _unfitting(path, wrong)
    model.load_state_dict(dict(state))


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
    """Read the trainer's state without unpickling objects, nor unpacking anything: it is never compressed.

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
        raise RunError(
            f"{path} is damaged or half-written ({type(error).__name__}).",
            "The best weights in the run folder are still usable; to train on, give another --out.",
        ) from error
    return state
