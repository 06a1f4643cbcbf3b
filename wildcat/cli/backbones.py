"""wildcat backbones: list the backbones, or check one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from tyro.conf import Positional, arg

from wildcat.cli.options import Command
from wildcat.config import TrainConfig
from wildcat.errors import ConfigError, did_you_mean


@dataclass(frozen=True, kw_only=True)
class Backbones(Command):
    """List the backbones that `train --backbone` accepts, or check one."""

    pattern: Positional[Annotated[str, arg(metavar="[TEXT]", help_behavior_hint="")]] = ""
    """Show only names that contain this text; * matches any text."""
    check: Annotated[str, arg(metavar="NAME")] = ""
    """Build this backbone without weights, run it on an image of --image-size and print the size of its map."""
    image_size: int = TrainConfig.image_size
    """With --check: side in pixels of the image."""
    output_stride: int = TrainConfig.output_stride
    """With --check: input pixels per cell of the map, 32, 16 or 8."""


def run_backbones(command: Backbones) -> int:
    """Print one backbone per line, or the size of the map of one."""
    if command.check:
        return check_backbone(command)
    from wildcat.nn import list_backbones

    names = list_backbones(command.pattern)
    if not names:
        raise ConfigError(
            f"no backbone has {command.pattern!r} in its name.", did_you_mean(command.pattern, list_backbones())
        )
    print("\n".join(names))
    return 0


def check_backbone(command: Backbones) -> int:
    """Build a backbone, run it and print what it gives."""
    import torch

    from wildcat.nn.backbones import create_backbone, next_multiple

    name, side = command.check, command.image_size
    TrainConfig(image_size=side, output_stride=command.output_stride).validate()
    backbone = create_backbone(name, "none", command.output_stride, side).eval()
    with torch.inference_mode():
        channels, rows, columns = backbone(torch.zeros(1, 3, side, side)).shape[1:]
    weights = sum(p.numel() for p in backbone.parameters()) / 1e6
    print(f"{name}: {rows} x {columns} cells with {channels} features at {side} px; {weights:.1f} million weights")
    if (taken := next_multiple(side, backbone.multiple)) != side:
        print(f"note: it takes multiples of {backbone.multiple} px: images are resampled to {taken} px.")
    return 0
