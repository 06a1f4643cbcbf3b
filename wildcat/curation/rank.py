"""Which images to label next: those that a model is unsure about, or that differ most from those that are labelled."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Literal, NamedTuple, cast, get_args

import numpy as np
from numpy.typing import NDArray
from scipy.special import entr
from torch import Tensor
from torch.nn import functional

from wildcat.config import Flip
from wildcat.data.dataset import Task
from wildcat.data.image_ref import ImageInput, OnError
from wildcat.errors import ConfigError, did_you_mean
from wildcat.models.member import Member, Outputs
from wildcat.prediction import score_probabilities
from wildcat.predictor import BATCH_SIZE, Predictor
from wildcat.progress import SILENT, Progress

By = Literal["uncertainty", "disagreement", "novelty"]
BLOCK = 1024  # rows of features compared at a time


class Ranked(NamedTuple):
    """The name of an image, and how useful its label would be, see `rank_images`."""

    image: str
    score: float


@dataclass(frozen=True)
class MirroredMember(Member):
    """A network that sees every image mirrored: the second opinion in the `disagreement` of a single network."""

    def features(self, images: Tensor, flip: Flip = "none") -> tuple[Tensor, ...]:
        return super().features(images.flip(-1), flip)


def rank_images(
    predictor: Predictor,
    images: Sequence[ImageInput],
    by: By = "uncertainty",
    count: int = 0,
    labelled: Sequence[ImageInput] = (),
    batch_size: int = BATCH_SIZE,
    on_error: OnError | None = None,
    progress: Progress = SILENT,
) -> list[Ranked]:
    """The images whose labels would help most, the most useful first.

    - `uncertainty`: the entropy of the predicted probabilities, in [0, 1]: over the classes where they exclude each
      other, otherwise the mean over the classes of the entropy of present against absent.
    - `disagreement`: how much the networks of an ensemble, or of several input sizes, contradict each other: the
      entropy of their mean minus the mean of their entropies (BALD: Houlsby et al., 2011), in [0, 1]. A single network
      is compared with itself on the mirrored image.
    - `novelty`: the distance, 1 - cosine similarity of the features averaged over the image, to the nearest image that
      is labelled or chosen before (k-center greedy: Sener and Savarese, ICLR 2018). Without `labelled`, the first image
      is the one nearest to the mean of all. Of several networks the first gives the features.

    Images stream through the network. One number of each is kept, for `novelty` its features in half precision (2.5 kB
    for 1,280 channels).

    Args:
        count: the number of images to choose; 0: all. `novelty` takes time proportional to it.
        labelled: images that are labelled already, for `novelty`.
        on_error: called with an image that cannot be read, which is left out; without it the error is raised.
        progress: counts images.

    Raises:
        ConfigError: an unknown criterion, a negative count, `labelled` with another criterion than `novelty`, or a
            cascade with another one than that.
    """
    check_criterion(by, count, bool(labelled))
    if predictor.cascade is not None and by != "novelty":
        raise ConfigError(
            f"{predictor.name} is a cascade; by={by!r} looks at one stage.",
            f"Rank with its first stage: {predictor.name}/{predictor.cascade.first_stage}.",
        )
    adapt, compute = CRITERIA[by]
    model = adapt(predictor)
    progress.start("ranking", len(images) + len(labelled))

    def values(source: Sequence[ImageInput]) -> tuple[list[str], NDArray[np.floating]]:
        names: list[str] = []
        found: list[NDArray[np.floating]] = []
        for loaded, outputs in model.outputs(source, batch_size=batch_size, on_error=on_error):
            names += [image.name for image in loaded]
            found.append(compute(outputs, model.task))
            progress.advance(len(loaded))
        return names, np.concatenate(found) if found else np.zeros((0, 1), np.float32)

    names, scores = values(images)
    if by == "novelty":
        chosen = k_center_greedy(scores, values(labelled)[1], count or len(names))
        return [Ranked(names[i], distance) for i, distance in chosen]
    order = np.argsort(-scores, kind="stable")[: count or None]
    return [Ranked(names[i], float(scores[i])) for i in order]


def check_criterion(by: str, count: int, labelled: bool) -> None:
    """Refuse an unknown criterion, a negative count, and labelled images where they mean nothing."""
    if by not in get_args(By):
        raise ConfigError(
            f"by={by!r}: give {', '.join(get_args(By)[:-1])} or {get_args(By)[-1]}.", did_you_mean(by, get_args(By))
        )
    if count < 0:
        raise ConfigError(f"count={count}: give at least 0.", "0 ranks all images.")
    if labelled and by != "novelty":
        raise ConfigError(f"by={by!r} does not compare images with labelled ones.", "Leave --labelled out.")


def several_opinions(predictor: Predictor) -> Predictor:
    """The predictor, or for a single network one of two: the network, and itself on mirrored images."""
    if len(predictor.members) > 1:
        return predictor
    (member,) = predictor.members
    mirrored = MirroredMember(**{field.name: getattr(member, field.name) for field in fields(member)})
    common = (predictor.name, [member, mirrored], predictor.classes, predictor.task, str(predictor.device))
    return Predictor(*common, flip="none")  # averaged over both views, both would be the same


def feature_reader(predictor: Predictor) -> Predictor:
    """A predictor of the first network alone whose outputs have its features, as the beam search needs them."""
    common = (predictor.name, predictor.members[:1], predictor.classes, predictor.task, str(predictor.device))
    return Predictor(*common, flip=predictor.flip, localize="beam-search")


def uncertainty(outputs: Outputs, task: Task) -> NDArray[np.floating]:
    """(B,) entropy of the probabilities, see `rank_images`."""
    return entropy(score_probabilities(outputs.scores, task), task)


def disagreement(outputs: Outputs, task: Task) -> NDArray[np.floating]:
    """(B,) mutual information between the prediction and the network that makes it, see `rank_images`."""
    probs = score_probabilities(outputs.member_scores, task)  # (B, S, C)
    return np.asarray(np.maximum(entropy(probs.mean(axis=1), task) - entropy(probs, task).mean(axis=1), 0))


def pooled_features(outputs: Outputs, _: Task) -> NDArray[np.floating]:
    """(B, D) features averaged over the image, of length 1."""
    features = cast(Tensor, outputs.features)  # of a `feature_reader`
    return np.asarray(functional.normalize(features.float().mean(dim=(2, 3))).half().cpu().numpy())


def entropy(probs: NDArray[np.float32], task: Task) -> NDArray[np.float64]:
    """(..., C) probabilities -> (...) entropy, relative to the highest possible.

    >>> entropy(np.asarray([[0.5, 0.5], [1.0, 0.0]]), "multiclass").tolist()
    [1.0, 0.0]
    """
    p = np.clip(probs.astype(np.float64), 0, 1)
    if task == "multiclass":
        return np.asarray(np.abs(entr(p).sum(axis=-1)) / np.log(p.shape[-1]))
    return np.asarray(np.abs(entr(p) + entr(1 - p)).mean(axis=-1) / np.log(2))


# Criterion -> how the predictor is changed for it, and what is kept of its outputs.
CRITERIA: dict[By, tuple[Callable[[Predictor], Predictor], Callable[[Outputs, Task], NDArray[np.floating]]]] = {
    "uncertainty": (lambda predictor: predictor, uncertainty),
    "disagreement": (several_opinions, disagreement),
    "novelty": (feature_reader, pooled_features),
}


def k_center_greedy(
    features: NDArray[np.floating], labelled: NDArray[np.floating], count: int
) -> Iterator[tuple[int, float]]:
    """Choose rows of (N, D) features of length 1, each the farthest from its nearest labelled or chosen row.

    Yields:
        The index of a row, and its distance, 1 - cosine similarity, when it was chosen; 2, the largest, for the first
        row without labelled ones.
    """
    nearest = distances(features, labelled)
    for number in range(min(count, len(features))):
        if number == 0 and len(labelled) == 0:
            index = int(distances(features, features.mean(axis=0, keepdims=True, dtype=np.float32)).argmin())
        else:
            index = int(nearest.argmax())
        yield index, float(nearest[index])
        np.minimum(nearest, distances(features, features[index : index + 1]), out=nearest)
        nearest[index] = -1  # never again


def distances(features: NDArray[np.floating], others: NDArray[np.floating]) -> NDArray[np.float32]:
    """(N, D) features -> (N,) 1 - cosine similarity to the nearest of (M, D) others; 2 without others."""
    nearest, wide = np.full(len(features), 2, np.float32), others.astype(np.float32).T
    for start in range(0, len(features) if len(others) else 0, BLOCK):  # half precision is slow to multiply
        similar = features[start : start + BLOCK].astype(np.float32) @ wide
        nearest[start : start + BLOCK] = 1 - similar.max(axis=1)
    return nearest
