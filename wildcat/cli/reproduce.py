"""wildcat reproduce: run an experiment of the paper on your data, with the paper's numbers beside the measured ones."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import OmitArgPrefixes, Positional, arg

from wildcat.cli.options import DataCommand, Sizes, describe, note_amp, open_data, parse_sizes
from wildcat.config import TrainConfig
from wildcat.settings import load_recipe

if TYPE_CHECKING:
    from wildcat.data.dataset import DataSet
    from wildcat.reproduce.runner import Plan


@dataclass(frozen=True, kw_only=True)
class Reproduce(DataCommand):
    """Run a table or figure of the paper, or all of them: table2 to table9, figure4, figure5."""

    experiment: Positional[Annotated[str, arg(metavar="TABLE")]]
    """table2, table3, table4, table5, table6, table7, table8, table9, figure4, figure5; or all for which the data has
    the ground truth."""
    data: str
    """A folder, a .csv, or the name of a packaged data set."""
    out: Path = Path("reproduced")
    """Folder for tables, plots and finished cells; cells that are there already are not run again."""
    seeds: int = 3
    """Number of seeds, starting at --seed; on 15-Scene each seed has another random split."""
    sizes: Sizes = ""
    """One network for each of these input sizes, combined, as in the paper's tables 2 to 4, 8 and 9: 320,448. Rows for
    one network (refined ones, beam search) are left out."""
    combine: Literal["linear", "average"] = "linear"
    """How several sizes are combined: a linear classifier on their scores (Object Bank), or their average."""
    test_split: Annotated[str | None, arg(metavar="NAME")] = None
    """Split to measure on; by default that of the paper's protocol (val or test)."""
    title: str = ""
    """Name of the data in tables, for example of a subset."""
    config: OmitArgPrefixes[TrainConfig] = field(default_factory=lambda: load_recipe("reproduce"))


def run_reproduce(command: Reproduce) -> int:
    """wildcat reproduce"""
    from wildcat.device import choose_device
    from wildcat.errors import DataError
    from wildcat.reproduce.experiments import EXPERIMENTS, find_experiment
    from wildcat.reproduce.runner import Plan, check_out, check_plan, protocol

    command.config.validate()
    check_out(command.out)
    names = [*EXPERIMENTS] if command.experiment == "all" else [command.experiment]
    find_experiment(names[0])
    data = open_data(command, command.data)
    sizes = parse_sizes(command.sizes)
    if len(sizes) == 1:
        command = replace(command, config=replace(command.config, image_size=sizes[0]))
    plans, refused = [], list[DataError]()
    for name in names:
        plan = Plan(
            experiment=name,
            config=command.config,
            seeds=command.seeds,
            sizes=sizes if len(sizes) > 1 else (),
            combine=command.combine,
            test_split=command.test_split,
            title=command.title,
        )
        try:
            check_plan(plan, find_experiment(name), data)
        except DataError as error:
            refused.append(error)
        else:
            plans.append(plan)
    if not plans:
        raise refused[0]
    train_split, test_split = protocol(plans[0], data, command.config.seed)
    train_text, test_text = (f"{len(data.split(name))} images of {name}" for name in (train_split, test_split))
    device = choose_device(command.config.device)
    describe(data, f"{train_text}, measured on {test_text}", device.type)
    note_amp(command.config.amp, device)
    for left_out in refused:
        print(f"Left out: {left_out.message}")
    for plan in plans:
        _run_plan(plan, data, command.out)
    return 0


def _run_plan(plan: Plan, data: DataSet, out: Path) -> None:
    """Run an experiment and print its table."""
    from wildcat.progress import ProgressBar
    from wildcat.reproduce.experiments import find_experiment
    from wildcat.reproduce.runner import run_cells, summary_path
    from wildcat.reproduce.tables import markdown

    path = summary_path(plan, data, out)
    title = find_experiment(plan.experiment).title
    print(f"{plan.experiment}: {title}\nWriting {path.with_suffix('.md')}, .csv and .json", flush=True)
    try:
        with ProgressBar() as progress:
            for cell in run_cells(plan, data, out, progress):
                metrics = ", ".join(f"{name} {100 * value:.1f}" for name, value in cell.record["metrics"].items())
                print(f"[{cell.number}/{cell.total}] {cell.row}, seed {cell.seed}: {metrics}", file=sys.stderr)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("interrupted. Give the same command again: it continues where it was.") from None
    print(f"\n{markdown(json.loads(path.read_text(encoding='utf-8')))}")
