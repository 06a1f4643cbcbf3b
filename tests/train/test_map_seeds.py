"""The maps of a class start at different kinds of the regions that show it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from wildcat.nn.factory import create_model
from wildcat.nn.heads.descriptor import cluster_centres
from wildcat.train.map_seeds import SPREAD, discriminants, start_at_clusters

DIMENSIONS = 96  # features of test_resnet


def images_of_parts() -> Iterator[tuple[Tensor, Tensor]]:
    """Images of 5 x 5 regions; those with class 0 have one region of each of three parts, the others only noise."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(6):
        features = 0.1 * torch.randn(8, DIMENSIONS, 5, 5, generator=generator)
        labels = torch.tensor([[1, -1]] * 4 + [[-1, 1]] * 4, dtype=torch.int8)
        for image in range(4):
            for part in range(3):
                row, column = divmod(int(torch.randint(0, 8, (), generator=generator)) + 8 * part, 5)
                features[image, part, row, column] += 4.0
        yield features, labels


def test_each_map_is_highest_at_one_part() -> None:
    model = create_model("test_resnet", 2, num_maps=3, pretrained=False, class_pool="max")
    torch.nn.init.zeros_(model.transfer.weight)
    torch.nn.init.zeros_(model.transfer.bias)
    start_at_clusters(model, images_of_parts)
    for features, _ in images_of_parts():
        maps = model.head(features[:4]).maps[:, 0].flatten(2)  # (4, M, n)
        parts = features[:4, :3].flatten(2).argmax(dim=-1)  # (4, 3) the region of each part
        winners = maps.gather(2, parts[:, None].expand(-1, 3, -1)).argmax(dim=1)
        assert all(sorted(row) == [0, 1, 2] for row in winners.tolist()), "each part belongs to one map"
        assert torch.equal(winners, winners[:1].expand_as(winners)), "the same in every image"


def test_the_mean_of_the_maps_stays() -> None:
    rows = torch.randn(60, 7, generator=torch.Generator().manual_seed(1)) * torch.tensor([9.0, 5, 3, 1, 1, 1, 1])
    weight, offset = discriminants(rows, 4, seed=0)
    values = rows @ weight.T + offset
    torch.testing.assert_close(values.mean(dim=1), torch.zeros(60), atol=1e-5, rtol=0)
    torch.testing.assert_close(values.mean(dim=0), torch.zeros(4), atol=1e-5, rtol=0)
    assert abs(float(values.std()) - SPREAD) < 1e-5
    again = discriminants(rows, 4, seed=0)
    assert torch.equal(weight, again[0])
    assert torch.equal(offset, again[1])


def test_any_seed_of_a_run_is_a_seed_of_the_clusters() -> None:
    rows = torch.randn(60, 7, generator=torch.Generator().manual_seed(1))
    one, other = (discriminants(rows, 4, seed) for seed in (5, 2**62 + 5))
    assert torch.equal(one[0], other[0])
    assert torch.equal(cluster_centres(rows, 4, 5), cluster_centres(rows, 4, 2**62 + 5))


def test_classes_without_images_keep_their_weights() -> None:
    model = create_model("test_resnet", 3, num_maps=2, pretrained=False, class_pool="softmax")
    before = model.transfer.weight.detach().clone()

    def images() -> Iterator[tuple[Tensor, Tensor]]:
        generator = np.random.default_rng(0)
        for _ in range(2):
            yield (
                torch.from_numpy(generator.normal(size=(4, DIMENSIONS, 3, 3))).float(),
                torch.tensor([[1, -1, 0]] * 2 + [[-1, -1, 1]] * 2, dtype=torch.int8),
            )

    start_at_clusters(model, images)
    changed = (model.transfer.weight != before).flatten(1).any(dim=1)
    assert changed.tolist() == [True, True, False, False, True, True]
