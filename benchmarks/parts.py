r"""Do the M maps of a class find parts? Compare class-wise poolings on the same features and schedule.

    python benchmarks/parts.py --data DIR/VOCdevkit --name "VOC 2012 mini" --out benchmarks/results/parts.json

For each pooling, over several seeds: mAP, point AP and mean IoU of the class map, and for the maps of each class on the
images that have it:

- overlap: IoU between the top fifth of regions of two maps;
- coverage: share of the true mask inside the top fifth of the best single map, and of any map;
- purity of k-means clusters of the features at the maps' highest regions against the index of the map; 1/M: chance;
- maps in use: exp of the entropy of the shares of the maps (`wildcat.metrics.map_shares`) over all images.

Every training uses its last epoch, so nothing is chosen on the measured split.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from script import (
    add_training_arguments,
    argument_parser,
    data_text,
    head_config,
    log,
    save_result,
    settings_of,
)

from wildcat.cli.allocator import keep_freed_memory
from wildcat.data import DataSet, open_dataset
from wildcat.data.cache import cache_folder
from wildcat.data.dataset import PRESENT, label_matrix
from wildcat.evaluation import evaluate
from wildcat.methods import METHODS
from wildcat.metrics import cluster_purity, map_shares, mask_coverage, top_region_iou
from wildcat.predictor import Predictor
from wildcat.reproduce.heads import predictions_from_features, train_head
from wildcat.reproduce.tables import spread
from wildcat.train.feature_cache import cached_features

POOLS: dict[str, dict[str, Any]] = {
    "mean": dict(METHODS["wildcat"].settings),
    "max": dict(METHODS["wildcat"].settings) | {"class_pool": "max"},
    "wildcat-parts": dict(METHODS["wildcat-parts"].settings),
}


def measure_maps(predictor: Predictor, data: DataSet, split: str, amp: bool) -> dict[str, float]:
    """The measures of the modality maps of a network, means over all classes in all images that have them."""
    samples, (member,) = data.split(split), predictor.members
    labels, num_maps = label_matrix(samples), member.model.num_maps
    folder = cache_folder() / "features"
    features = cached_features(member.model.backbone, samples, member.preprocess, "none", folder, amp=amp)
    values: dict[str, list[float]] = defaultdict(list)
    shares: dict[int, list[NDArray[np.float64]]] = defaultdict(list)
    selected: dict[int, list[NDArray[np.float32]]] = defaultdict(list)  # class -> (M, D) of each image
    for i, sample in enumerate(samples):
        inputs = features.batch([i])
        with torch.inference_mode():
            output = member.model.head(inputs)
        standardised = member.model.transfer.standardized(inputs)[0].flatten(1).numpy()  # (D, n)
        truth = sample.read_mask()
        for c in np.flatnonzero(labels[i] == PRESENT).tolist():
            maps = output.maps[0, c].numpy()
            values["overlap"].append(top_region_iou(maps))
            if truth is not None and (truth == c + 1).any():
                together, best = mask_coverage(maps, truth == c + 1)
                values["coverage_best"].append(best)
                values["coverage_all"].append(together)
            shares[c].append(map_shares(maps, output.class_maps[0, c].numpy()))
            selected[c].append(standardised[:, maps.reshape(num_maps, -1).argmax(axis=1)].T)
    for c, of_images in shares.items():
        mean = np.mean(of_images, axis=0)
        values["maps_in_use"].append(float(np.exp(-(mean[mean > 0] * np.log(mean[mean > 0])).sum())))
        rows = np.concatenate(selected[c])
        values["purity"].append(cluster_purity(rows, np.tile(np.arange(num_maps), len(of_images)), num_maps))
    return {name: float(np.mean(found)) for name, found in values.items()}


def compare(data: DataSet, arguments: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Pooling -> measure -> its mean and standard deviation over the seeds."""
    measured: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for seed in range(arguments.seeds):
        for name in arguments.poolings.split(","):
            start = time.perf_counter()
            config = head_config(arguments, seed, **POOLS[name])
            predictor = train_head(data, config)
            predictions = predictions_from_features(predictor, data.split(arguments.split), arguments.amp)
            found = evaluate(predictor, data, arguments.split, predictions=predictions)
            row = {"map": found["classification"]["map"], "point_ap": found["pointing"]["map"]}
            row |= {"miou": found["segmentation"]["miou"]} if "segmentation" in found else {}
            row |= measure_maps(predictor, data, arguments.split, arguments.amp)
            for key, value in row.items():
                measured[name][key].append(value)
            log(name, seed, {k: round(v, 4) for k, v in row.items()}, f"{time.perf_counter() - start:.0f} s")
    return {
        name: {key: spread(values) for key, values in of_pool.items()} | {"settings": POOLS[name]}
        for name, of_pool in measured.items()
    }


def main() -> None:
    parser = argument_parser(__doc__)
    add_training_arguments(parser, image_size=384)
    parser.set_defaults(poolings=",".join(POOLS))
    arguments = parser.parse_args()
    keep_freed_memory()
    data = open_dataset(arguments.data)
    results = compare(data, arguments)
    save_result(arguments, settings_of(arguments, ("name",)) | {"data": data_text(arguments, data)}, results)


if __name__ == "__main__":
    main()
