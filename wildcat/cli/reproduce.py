"""wildcat reproduce: an experiment of the paper on your data, with the paper's numbers beside yours."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import OmitArgPrefixes, Positional, arg

from wildcat.cli.options import DataCommand, describe, open_data, parse_sizes
from wildcat.config import TrainConfig, load_recipe

if TYPE_CHECKING:
    from wildcat.progress import ProgressBar


@dataclass(frozen=True, kw_only=True)
class Reproduce(DataCommand):
    """Run a table or figure of the paper: table2 to table8, figure4, figure5."""

    experiment: Positional[Annotated[str, arg(metavar="TABLE")]]
    """table2, table3, table4, table5, table6, table7, table8, figure4 or figure5."""
    data: str
    """A folder, a .csv, or the name of a packaged data set."""
    out: Path = Path("reproduced")
    """Folder for tables, plots and finished cells; what is in it is used, not run again."""
    seeds: int = 3
    """How many seeds, from --seed on; on 15-Scene each draws another split."""
    sizes: Annotated[str, arg(metavar="S,S,...")] = ""
    """One network for each of these input sizes, combined, as in the paper's tables 2 to 4 and 8; such as 320,448."""
    combine: Literal["linear", "average"] = "linear"
    """How several sizes are combined: a linear classifier on their scores (Object Bank), or their average."""
    test_split: str | None = None
    """Split to measure on; the protocol's otherwise (val, or test)."""
    title: str = ""
    """What to call the data in tables, where it is a subset."""
    config: OmitArgPrefixes[TrainConfig] = field(default_factory=lambda: load_recipe("reproduce"))


def run_reproduce(command: Reproduce) -> int:
    """wildcat reproduce"""
    from wildcat.device import choose_device
    from wildcat.progress import ProgressBar
    from wildcat.reproduce.experiments import find_experiment
    from wildcat.reproduce.runner import Plan, Telling, check_plan, protocol, reproduce
    from wildcat.reproduce.tables import markdown, slug

    class Shown(Telling):
        """A line a cell, and a bar for the training in hand."""

        def cell(self, name: str, number: int, total: int, figures: Mapping[str, float]) -> None:
            shown = ", ".join(f"{k} {100 * v:.1f}" for k, v in figures.items())
            print(f"[{number}/{total}] {name}: {shown}", file=sys.stderr, flush=True)

        def progress(self) -> ProgressBar:
            return progress

    command.config.validate()
    experiment = find_experiment(command.experiment)
    data = open_data(command, command.data)
    sizes = parse_sizes(command.sizes)
    if len(sizes) == 1:  # one size is not several: it is the size
        command = replace(command, config=replace(command.config, image_size=sizes[0]))
    plan = Plan(
        experiment=command.experiment,
        config=command.config,
        seeds=command.seeds,
        sizes=sizes if len(sizes) > 1 else (),
        combine=command.combine,
        test_split=command.test_split,
        title=command.title,
    )
    check_plan(plan, experiment, data)
    train_split, test_split = protocol(plan, data, command.config.seed)
    learned, measured = (f"{len(data.split(name))} images of {name}" for name in (train_split, test_split))
    describe(data, f"{learned}, measured on {measured}", choose_device(command.config.device).type)
    stem = command.out / f"{command.experiment}-{slug(command.title or data.name)}"
    print(f"{command.experiment}: {experiment.title}\nWriting {stem}.md, .csv and .json", flush=True)
    try:
        with ProgressBar() as progress:
            summary = reproduce(plan, data, command.out, Shown())
    except KeyboardInterrupt:
        print("Interrupted; the finished cells are kept: type the same command to go on.", file=sys.stderr)
        return 1
    print(f"\n{markdown(summary)}")
    return 0
