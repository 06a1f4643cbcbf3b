"""FiftyOne: predictions as labels of the samples of a data set.

import fiftyone as fo
from wildcat.integrations.fiftyone import add_predictions

add_predictions(fo.load_dataset("photos"), "runs/mine", "wildcat")
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args

from wildcat.data.image_ref import OnError
from wildcat.errors import ConfigError, did_you_mean, import_extra, unknown_class
from wildcat.export.instances import InstanceParams, find_instances, predicted_classes
from wildcat.methods import no_maps
from wildcat.prediction import Prediction
from wildcat.predictor import BATCH_SIZE, Predictor, load

Labels = Literal["classifications", "detections", "instances", "keypoints", "heatmap"]


def add_predictions(
    dataset: Any,
    model: Predictor | str | Path,
    field: str = "predictions",
    *,
    labels: Labels = "instances",
    class_name: str | None = None,
    min_score: float | None = None,
    batch_size: int = BATCH_SIZE,
    on_error: OnError | None = None,
) -> int:
    """Predict the images of a FiftyOne data set and save the predictions in a field of its samples.

    Args:
        dataset: a `fiftyone.Dataset` or view of images.
        model: a `Predictor`, or what `wildcat.load` takes.
        field: of the samples; values that it has are replaced.
        labels: what the field holds: "classifications" (of a multi-class model one `Classification`), "detections"
            (boxes of connected regions), "instances" (these with their masks), "keypoints" (a point per class), or the
            "heatmap" of one class.
        class_name: of the heatmap; None: the likeliest class of each image.
        min_score: minimum probability of a class; None: the model's own thresholds. An image without such a class has
            an empty label, of a multi-class model no `Classification`.
        batch_size: images per forward pass.
        on_error: called with the path of an image that cannot be read and the reason; its sample is left as it is.
            Without it the error is raised, and the samples before are saved.

    Returns:
        The number of predicted samples.

    Raises:
        ConfigError: an unknown kind of labels or class, a model without class maps, or a data set without images.
        ImageError: an image cannot be read.
        RunError: no such model.
        MissingExtra: FiftyOne is not installed.

    Source: https://docs.voxel51.com/user_guide/using_datasets.html#labels
    """
    import_extra("fiftyone", "fiftyone", "fiftyone")
    if labels not in get_args(Labels):
        hint = did_you_mean(labels, get_args(Labels)) or f"Choose from: {', '.join(get_args(Labels))}."
        raise ConfigError(f"labels={labels!r}: unknown.", hint)
    if dataset.media_type != "image":
        raise ConfigError(
            f"the data set {dataset.name} holds {dataset.media_type or 'nothing'}, not images.",
            "Add images; of videos give the frames: dataset.to_frames(sample_frames=True).",
        )
    predictor = model if isinstance(model, Predictor) else load(model)
    if labels != "classifications" and not predictor.has_maps:
        raise no_maps(predictor.name)
    if class_name is not None and class_name not in predictor.classes:
        raise unknown_class(class_name, predictor.classes)
    waiting: deque[Any] = deque()  # the samples whose images are being read or predicted

    def paths() -> Iterator[str]:
        for sample in dataset.iter_samples(progress=None):
            waiting.append(sample)
            yield sample.filepath

    done = 0
    with dataset.save_context() as context:  # writes the samples in batches, also where an error ends the block
        for prediction in predictor.stream(paths(), modalities=False, batch_size=batch_size, on_error=on_error):
            while (sample := waiting.popleft()).filepath != prediction.path:
                pass  # its image could not be read
            sample[field] = to_label(prediction, labels, class_name, min_score)
            context.save(sample)
            done += 1
    return done


def to_label(
    prediction: Prediction, labels: Labels = "instances", class_name: str | None = None, min_score: float | None = None
) -> Any:
    """A prediction as a label of FiftyOne; arguments as for `add_predictions`.

    Coordinates are fractions of the width and height of the image.
    """
    fo = import_extra("fiftyone", "fiftyone", "fiftyone")
    width, height = prediction.width, prediction.height
    if labels == "heatmap":
        heatmap = prediction.maps[prediction.index_of(class_name or prediction.top)]  # the app resizes it
        return fo.Heatmap(map=heatmap, range=[float(heatmap.min()), float(heatmap.max())])
    if labels in ("detections", "instances"):
        found = []
        for instance in find_instances(prediction, InstanceParams(min_score=min_score)):
            x1, y1, x2, y2 = instance.box
            box = [x1 / width, y1 / height, (x2 - x1) / width, (y2 - y1) / height]
            mask = {"mask": instance.mask} if labels == "instances" else {}
            found.append(fo.Detection(label=instance.name, bounding_box=box, confidence=instance.score, **mask))
        return fo.Detections(detections=found)
    names = predicted_classes(prediction, min_score)
    scores = prediction.probabilities
    if labels == "keypoints":
        points = {name: prediction.points[name] for name in names}
        found = [
            fo.Keypoint(label=name, points=[(x / width, y / height)], confidence=[scores[name]])
            for name, (x, y) in points.items()
        ]
        return fo.Keypoints(keypoints=found)
    if prediction.task == "multiclass":
        if not names:  # the likeliest class is below `min_score`
            return None
        return fo.Classification(
            label=prediction.top, confidence=scores[prediction.top], logits=prediction.class_scores
        )
    return fo.Classifications(
        classifications=[fo.Classification(label=name, confidence=scores[name]) for name in names]
    )
