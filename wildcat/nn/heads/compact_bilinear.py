"""Compact bilinear pooling: second-order statistics of the features by Tensor Sketch (Gao et al., CVPR 2016)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from wildcat.nn.backbones import Backbone
from wildcat.nn.heads.descriptor import Descriptor, DescriptorNetwork
from wildcat.nn.model import Wildcat

SIZE = 8192  # dimensions of the sketch
EPSILON = 1e-3  # smooths the square root at zero, relative to the mean absolute value of the sketch


class TensorSketch(Descriptor):
    """A sketch of the sum of the outer products of the regions' features: (B, D, h, w) -> (B, d).

    A count sketch adds feature i with a random sign s(i) to a random bin h(i) of d. The circular convolution of two
    independent count sketches of x is a count sketch of the outer product of x with itself (Pham & Pagh, KDD 2013), and

        <sketch(x), sketch(y)> has the mean <x, y>^2 and a standard deviation of at most |x|^2 |y|^2 sqrt(8 / d)

    The sketches of the regions are averaged (the paper sums), then y -> sign(y) sqrt(|y|), then divided by the length.

    Adapted: the features are standardised, so that the outer products hold how channels vary together, not their
    means. The convolutions are summed before the inverse FFT, which is linear: one per image instead of one per region.
    The square root is y / sqrt(|y| + epsilon), whose gradient is finite at zero; given the sketch of the image, the
    vector is then the mean of one vector per region, and a class map has what each region adds to the score.

    Attributes:
        bins, signs: (2, D), h and s of the two count sketches.
    """

    bins: Tensor
    signs: Tensor

    def __init__(self, num_features: int, size: int = SIZE) -> None:
        super().__init__()
        self.size = size
        self.register_buffer("bins", torch.randint(size, (2, num_features)))
        self.register_buffer("signs", torch.randint(2, (2, num_features)).float() * 2 - 1)

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.spectra(x)
        pooled: Tensor = torch.fft.irfft((first * second).mean(dim=1), n=self.size)  # (B, d)
        return pooled * self.scale(pooled, x.shape[1])

    def regions(self, x: Tensor) -> Tensor:
        """(B, D, h, w) -> (B, d, h, w), whose mean is `forward`."""
        first, second = self.spectra(x)
        sketches: Tensor = torch.fft.irfft(first * second, n=self.size)  # (B, n, d)
        scale = self.scale(sketches.mean(dim=1), x.shape[1])
        return (sketches * scale[:, None]).mT.reshape(len(x), self.size, *x.shape[2:])

    def spectra(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, D, h, w) -> two (B, n, d/2 + 1), the Fourier transforms of the count sketches of each region."""
        rows = x.flatten(2).mT.to(torch.promote_types(x.dtype, torch.float32))  # (B, n, D); there is no FFT of bfloat16

        def spectrum(bins: Tensor, signs: Tensor) -> Tensor:
            counts = rows.new_zeros(*rows.shape[:2], self.size).index_add(2, bins, rows * signs)
            found: Tensor = torch.fft.rfft(counts)
            return found

        return spectrum(self.bins[0], self.signs[0]), spectrum(self.bins[1], self.signs[1])

    def scale(self, pooled: Tensor, num_features: int) -> Tensor:
        """(B, d) sketch -> (B, d), by what its values are multiplied: signed square root and length sqrt(D)."""
        magnitude = pooled.abs()
        root = (magnitude + EPSILON * magnitude.mean(dim=1, keepdim=True) + 1e-12).rsqrt()
        length = (pooled * root).square().sum(dim=1, keepdim=True).sqrt().clamp(min=1e-6)
        return root * math.sqrt(num_features) / length


def create(backbone: Backbone, num_classes: int, size: int) -> Wildcat:
    """A network with a sketch of `size` dimensions."""
    return DescriptorNetwork(backbone, num_classes, TensorSketch(backbone.num_features, size))
