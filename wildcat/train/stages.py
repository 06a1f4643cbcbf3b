"""The stages of a training, and the run that it starts from."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from wildcat.config import TrainConfig
from wildcat.errors import ConfigError, RunError
from wildcat.methods import NETWORK_SETTINGS
from wildcat.models.run import WEIGHTS, Run, load_weights, open_run
from wildcat.nn.model import Wildcat


class Stage(NamedTuple):
    """A part of the training: its settings, and its epochs as in `range(first_epoch, stop_epoch)` over all stages."""

    config: TrainConfig
    first_epoch: int
    stop_epoch: int


def stages(config: TrainConfig, has_parent: bool) -> list[Stage]:
    """The head on cached features, then the layers that `config.tune` names.

    Args:
        has_parent: whether the training starts from the weights of another run.

    A head that is fitted first does not push the pretrained features away from where they generalise (linear probing,
    then fine-tuning: Kumar et al., ICLR 2022). A network that starts from random weights has no features worth that,
    one that starts from a run has its head, and a training of the head alone needs nothing else: these have one stage.
    """
    has_head = config.tune == "head" or config.weights == "none" or has_parent
    if has_head or not config.head_epochs:
        return [Stage(config, 0, config.epochs)]
    of_head = replace(config, tune="head", epochs=config.head_epochs)
    end = config.head_epochs + config.epochs
    return [Stage(of_head, 0, config.head_epochs), Stage(config, config.head_epochs, end)]


def parent_run(run: Run) -> Run | None:
    """The run whose weights this one starts from, if `weights` names a run folder.

    Raises:
        RunError: the other run has other classes.
    """
    folder = run.config.parent
    if folder is None:
        return None
    parent = open_run(folder)
    if parent.classes != run.classes:
        raise RunError(
            f"{folder} was trained on other classes than the data has.",
            "Start from a run with the same classes, or from imagenet.",
        )
    return parent


def load_parent(model: Wildcat, parent: Run, config: TrainConfig) -> None:
    """Load the weights of the run that a training starts from.

    Raises:
        RunError: they are missing or damaged.
        ConfigError: they do not fit a network of these settings.
    """
    try:
        load_weights(model, parent.folder / WEIGHTS)
    except RunError as error:
        parent.load_model()  # raises if the run itself is damaged
        names = [k for k in (*NETWORK_SETTINGS, "image_size") if getattr(parent.config, k) != getattr(config, k)]
        theirs, ours = (", ".join(f"{k}={getattr(c, k)}" for k in names) for c in (parent.config, config))
        raise ConfigError(f"{parent.folder} has {theirs}; its weights do not fit {ours}.", f"Give {theirs}.") from error
