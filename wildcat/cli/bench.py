"""wildcat bench: compare the engines on this machine."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from tyro.conf import Positional, arg

from wildcat.cli.images import find_images
from wildcat.cli.options import DataCommand, Model, Switch, ViewCommand, parse_sizes


@dataclass(frozen=True, kw_only=True)
class Bench(ViewCommand, DataCommand):
    """Time the engines that can run a model here, compare their outputs with torch's, and create int8 graphs."""

    run: Model
    paths: Positional[Annotated[tuple[str, ...], arg(metavar="[PATH...]", help_behavior_hint="")]] = ()
    """Typical images, folders or globs; with --split, one data set. A few hundred are best: int8 is calibrated with
    them, and scores are compared on them. Without any, engines are only timed."""
    split: Annotated[str | None, arg(metavar="NAME")] = None
    """Use the images of this split of a data set, such as its training images."""
    rounds: int = 10
    """Number of times each engine is timed."""
    batch_size: int = 8
    """Images per forward pass."""
    compile: Switch = False
    """Also time torch.compile; compiling takes minutes and needs a C++ compiler."""
    json: Switch = False
    """Print one JSON object instead of a table."""


def run_bench(command: Bench) -> int:
    """wildcat bench"""
    from wildcat.fitting.benchmark import bench_engines
    from wildcat.predictor import load
    from wildcat.progress import ProgressBar

    given = command.paths or command.split is not None
    found = find_images(command.paths, command.split, 0, command, run=command.run) if given else []
    sizes = parse_sizes(command.sizes)
    predictor = load(command.run, command.device, command.flip, sizes, output_stride=command.output_stride)
    images = [path for path, _ in found]
    with ProgressBar() as progress:
        result = bench_engines(predictor, images, command.rounds, command.batch_size, command.compile, progress)
    print(json.dumps(result, ensure_ascii=False) if command.json else engine_table(result))
    return 0


def engine_table(result: Mapping[str, Any]) -> str:
    """Format the result as a table, followed by the flags of the fastest engine."""
    from wildcat.fitting.benchmark import ACCEPTED, fastest

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
            columns = ("same_class", "same_point")  # of a method without class maps there are no points
            shares = "".join(f"{100 * row[key]:>7.1f}%" if key in row else f"{'-':>8}" for key in columns)
            line += f"{row['score_error']:>13.4f}{shares}"
        lines.append(line)
    lines += [f"left out: {name}: {reason}" for name, reason in result["left_out"].items()]
    if compared:
        lines.append(f"error, class and point against torch fp32 on {compared} images")
    name, precision = fastest(result).split()
    condition = f"with a score error of at most {ACCEPTED}" if compared else "in fp32"
    lines.append(f"Fastest {condition}: add --engine {name} --precision {precision} to the command.")
    return "\n".join(lines)
