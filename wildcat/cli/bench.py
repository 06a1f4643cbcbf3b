"""wildcat bench: which engine is fastest on this machine."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from tyro.conf import Positional, arg

from wildcat.cli.images import find_images
from wildcat.cli.options import DataCommand, parse_sizes
from wildcat.config import Flip
from wildcat.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Bench(DataCommand):
    """Time the engines that can run a model here, in turn, and compare what they say with torch."""

    run: Positional[Annotated[str, arg(metavar="RUN")]]
    """A run folder, or a packaged model such as imagenet-lite0."""
    paths: Positional[Annotated[tuple[str, ...], arg(metavar="PATH...")]] = ()
    """Images of the kind to come, folders or globs; with --split, one data set. Some hundred are best: int8 is made
    with them, and scores are compared on them. Without any, only times are taken."""
    split: str | None = None
    """Take the images of this split of a data set; those of training are right."""
    rounds: int = 10
    """Times each engine is timed, in turn with the others."""
    batch_size: int = 8
    """Images that go through the network together."""
    compile: bool = False
    """Time torch.compile too; compiling takes minutes, and a C++ compiler."""
    pick: bool = False
    """Keep the fastest engine within --tolerance: --engine auto takes it from then on."""
    tolerance: float = 0.1
    """Largest error of scores that --pick accepts, as a part of their standard deviation; 0.001: rounding only."""
    flip: Flip = "none"
    """Average the maps of mirrored views, as the commands to come will."""
    sizes: Annotated[str, arg(metavar="S,S,...")] = ""
    """Input sizes in pixels, as the commands to come will use; empty: the size of training."""
    output_stride: Literal[32, 16, 8] | None = None
    """Input pixels per cell of the maps, as the commands to come will use."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    json: bool = False
    """Print one JSON object instead of a table."""


def run_bench(command: Bench) -> int:
    """wildcat bench"""
    from wildcat.fitting.benchmark import bench_engines, check_tolerance, pick
    from wildcat.predictor import load

    if command.pick and not command.paths:
        raise ConfigError("--pick judges engines by what they say of images.", "Name images of the kind to come.")
    check_tolerance(command.tolerance)
    found = find_images(command.paths, command.split, 0, command) if command.paths else []
    sizes = parse_sizes(command.sizes)
    predictor = load(command.run, command.device, command.flip, sizes, output_stride=command.output_stride)
    result = bench_engines(
        predictor,
        [path for path, _ in found],
        command.rounds,
        command.batch_size,
        command.compile,
        lambda what: print(what, file=sys.stderr, flush=True),
    )
    if command.pick:
        result["picked"] = pick(predictor, result, command.tolerance)
    print(json.dumps(result, ensure_ascii=False) if command.json else engine_table(result))
    return 0


def engine_table(result: Mapping[str, Any]) -> str:
    """What was measured, for a person."""
    settings, host = result["settings"], result["machine"]
    compared = settings["images_compared"]
    sizes = ", ".join(f"{b} {s} px" for b, s in zip(settings["backbones"], settings["sizes"], strict=True))
    lines = [
        f"{settings['model']} ({sizes}), batches of {settings['batch_size']}, {settings['rounds']} rounds on "
        f"{settings['device']}: {host['processor']}, {host['threads']} threads",
        f"{'':18}{'ms/image':>12}{'speed':>8}{'(quartiles)':>18}"
        + (f"{'score error':>13}{'class':>8}{'point':>8}" if compared else ""),
    ]
    for name, row in result["engines"].items():
        low, high = row["quartiles"]
        line = f"{name:18}{1000 * row['seconds']:>12.1f}{row['speedup']:>7.2f}x{f'({low:.2f} to {high:.2f})':>18}"
        if compared:
            shares = "".join(f"{100 * row[key]:>7.1f}%" for key in ("same_class", "same_point"))
            line += f"{row['score_error']:>13.4f}{shares}"
        lines.append(line)
    lines += [f"left out: {name}: {reason}" for name, reason in result["left_out"].items()]
    if compared:
        lines.append(f"error, class and point against torch fp32 on {compared} images")
    if "picked" in result:
        lines.append(f"picked {result['picked']}: --engine auto takes it for these weights on this machine")
    return "\n".join(lines)
