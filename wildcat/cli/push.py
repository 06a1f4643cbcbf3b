"""wildcat push: publish a model on the Hugging Face Hub."""

from __future__ import annotations

import io
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional, arg

from wildcat.cli.options import ImageCommand, Switch, require_maps
from wildcat.errors import ConfigError, RunError

if TYPE_CHECKING:
    from wildcat.prediction import Prediction


@dataclass(frozen=True, kw_only=True)
class Push(ImageCommand):
    """Publish a model on the Hugging Face Hub, with a generated model card."""

    run: Positional[Annotated[str, arg(metavar="RUN")]]
    """A model folder."""
    repo: Positional[Annotated[str, arg(metavar="USER/NAME")]]
    """Its name on the hub; a wildcat model that is already there gets a new commit."""
    license: Annotated[str | None, arg(metavar="NAME")] = None
    """Licence of the model for its card, such as apache-2.0."""
    metrics: Annotated[tuple[Path, ...], arg(help_behavior_hint="")] = ()
    """Files with the output of wildcat evaluate --json, for the card."""
    image: Annotated[Path | None, arg(metavar="PATH")] = None
    """Publish this image with the heatmap of its likeliest class, for the card."""
    private: Switch = False
    """Make a new repository private."""


def run_push(command: Push) -> int:
    """wildcat push"""
    from wildcat.export.card import model_card
    from wildcat.export.hub import push_model
    from wildcat.models.folder import open_model
    from wildcat.models.hub import is_hub
    from wildcat.models.packaged import PACKAGED
    from wildcat.predictor import load

    if command.run in PACKAGED or is_hub(command.run):
        raise RunError(f"{command.run} is published already.", "Give a model folder.")
    folder = Path(command.run).expanduser()
    model, predictor = open_model(folder), load(folder, "cpu")
    evaluations = [read_evaluation(path, predictor.classes) for path in command.metrics]
    example = None
    if command.image is not None:
        require_maps(predictor)
        example = predictor.predict(command.image, modalities=False)
    card = model_card(command.repo, model, predictor, evaluations, command.license, example)
    drawn = None if example is None else example_image(example)
    address, written = push_model(folder, command.repo, card, drawn, command.private)
    if not written:
        print(f"note: {command.repo} has a card of your own, which stays as it is.", file=sys.stderr)
    print(f"{address}\nNext: wildcat predict hf://{command.repo} IMAGE --out DIR")
    return 0


def read_evaluation(path: Path, classes: tuple[str, ...]) -> tuple[dict[str, Any], str]:
    """The output of wildcat evaluate --json, and its table as text."""
    from wildcat.cli.evaluate import evaluation_table
    from wildcat.files import read_json

    hint = "Type: wildcat evaluate RUN DATA --json > FILE."
    result = read_json(path, hint)
    try:
        table, known = evaluation_table(result), set(result["classification"]["ap"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ConfigError(f"{path} is not the output of wildcat evaluate --json.", hint) from error
    if unknown := sorted(known - set(classes)):
        raise ConfigError(f"{path} is of another model: this one has no class {unknown[0]!r}.", hint)
    return result, table


def example_image(example: Prediction) -> bytes:
    """A drawing of the likeliest class as JPEG, at most 1024 pixels a side, without the metadata of the image."""
    drawing = example.plot()
    drawing.thumbnail((1024, 1024))
    buffer = io.BytesIO()
    drawing.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()
