"""Start the M maps of each class at different kinds of regions, so that maps that compete specialise and stay in use.

From small random weights, the map that is ahead after the first steps wins all regions of its class.
"""

from __future__ import annotations

import torch
from scipy.cluster.vq import kmeans2
from torch import Tensor
from torch.nn import functional

from wildcat.data.dataset import ABSENT, PRESENT
from wildcat.nn.model import Labelled, Wildcat
from wildcat.nn.pooling import region_count

SPREAD = 2.0  # standard deviation of the maps over the clustered regions
SHARE = 0.1  # of the regions of an image with the class, those that are clustered
REGIONS = 50_000  # most regions that are clustered, of all classes together


@torch.no_grad()
def start_at_clusters(model: Wildcat, images: Labelled, seed: int = 0) -> None:
    """Add to the weights of the M maps of each class what tells apart M clusters of the regions that show the class.

    The difference between the mean features of the images with and without a class ranks the regions of those with it;
    k-means clusters the highest ones. Map m starts as the linear function that is highest for regions nearest to centre
    m; over the clustered regions the standard deviation of the maps is `SPREAD`, and their sum is zero. A class with
    fewer regions than maps stays as it is.

    Args:
        images: gives the training images, in the same order whenever called.
    """
    transfer, num_maps = model.transfer, model.num_maps
    pairs = [(transfer.standardized(f).mean(dim=(2, 3)).cpu(), y) for f, y in images()]
    means, labels = (torch.cat(parts) for parts in zip(*pairs, strict=True))  # (N, D), (N, C)
    present, absent = (labels == PRESENT).float(), (labels == ABSENT).float()
    directions = (present / present.sum(dim=0).clamp(min=1) - absent / absent.sum(dim=0).clamp(min=1)).T @ means
    limit = max(num_maps, REGIONS // model.num_classes)
    regions: list[list[Tensor]] = [[] for _ in range(model.num_classes)]
    for features, targets in images():
        standardised = transfer.standardized(features).flatten(2).cpu()  # (B, D, n)
        count = region_count(SHARE, standardised.shape[-1])
        for c, rows in enumerate(regions):
            chosen = standardised[targets[:, c] == PRESENT]
            if len(chosen) and sum(map(len, rows)) < limit:
                top = torch.einsum("bdn,d->bn", chosen, directions[c]).topk(count, dim=-1).indices
                rows.append(chosen.gather(2, top[:, None].expand(-1, chosen.shape[1], -1)).mT.flatten(0, 1))
    for c, rows in enumerate(regions):
        if rows and sum(map(len, rows)) >= num_maps:
            weight, offset = discriminants(torch.cat(rows), num_maps, seed)
            maps = slice(c * num_maps, (c + 1) * num_maps)
            transfer.weight[maps, :, 0, 0] += weight.to(transfer.weight)
            transfer.bias[maps] += offset.to(transfer.bias)


def discriminants(regions: Tensor, clusters: int, seed: int) -> tuple[Tensor, Tensor]:
    """(N, D) features of regions -> (M, D) weights and (M,) offsets of maps of M clusters, see `start_at_clusters`."""
    directions = functional.normalize(regions, dim=1).double().numpy()
    centres, assigned = kmeans2(directions, clusters, minit="++", seed=seed % 2**32, missing="warn")
    assigned = torch.from_numpy(assigned)
    centres = torch.stack([regions[assigned == m].mean(dim=0) for m in range(clusters)]).nan_to_num()
    weight = centres - centres.mean(dim=0)
    values = regions @ weight.T  # (N, M)
    scale = SPREAD / values.sub(values.mean(dim=0)).std().clamp(min=1e-6)
    return scale * weight, -scale * values.mean(dim=0)
