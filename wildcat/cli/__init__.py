"""The command line, `wildcat COMMAND ...`: results to stdout, progress and logs to stderr; torch is imported late.

One file a command: a dataclass that is its flags and its help, and the function that runs it.
"""

from __future__ import annotations

import dataclasses
import io
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from functools import reduce
from operator import or_
from pathlib import Path
from typing import Annotated, Any

import tyro
from tyro.conf import FlagCreatePairsOff, OmitArgPrefixes, subcommand

from wildcat.cli.allocator import first_speaks, keep_freed_memory
from wildcat.cli.backbones import Backbones, run_backbones
from wildcat.cli.bench import Bench, run_bench
from wildcat.cli.calibrate import Calibrate, run_calibrate
from wildcat.cli.datasets import Datasets, run_datasets
from wildcat.cli.ensemble import Ensemble, run_ensemble
from wildcat.cli.evaluate import Evaluate, run_evaluate
from wildcat.cli.export import Export, run_export
from wildcat.cli.options import Command
from wildcat.cli.predict import Predict, run_predict
from wildcat.cli.refine import Refine, run_refine
from wildcat.cli.report import Report, run_report
from wildcat.cli.reproduce import Reproduce, run_reproduce
from wildcat.cli.serve import Serve, run_serve
from wildcat.cli.train import Train, run_train
from wildcat.config import TrainConfig, load_recipe, method_settings, read_config
from wildcat.errors import ConfigError, WildcatError, did_you_mean, out_of_memory

COMMANDS: dict[str, tuple[type[Command], Callable[[Any], int]]] = {
    "train": (Train, run_train),
    "evaluate": (Evaluate, run_evaluate),
    "predict": (Predict, run_predict),
    "calibrate": (Calibrate, run_calibrate),
    "refine": (Refine, run_refine),
    "export": (Export, run_export),
    "serve": (Serve, run_serve),
    "ensemble": (Ensemble, run_ensemble),
    "report": (Report, run_report),
    "reproduce": (Reproduce, run_reproduce),
    "bench": (Bench, run_bench),
    "datasets": (Datasets, run_datasets),
    "backbones": (Backbones, run_backbones),
}
"""Name -> flags and runner, in the order of the help."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code: 0 done, 1 failed, 2 misuse."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments
    warnings.filterwarnings("ignore", category=UserWarning, module="torch")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # file names need not be Unicode
    keep_freed_memory()
    with first_speaks():
        return run_command(arguments, debug)


def run_command(arguments: list[str], debug: bool) -> int:
    """Run a command and turn what users can mend into a sentence; returns the exit code."""
    try:
        command = parse(arguments)
        code = next(run for kind, run in COMMANDS.values() if isinstance(command, kind))(command)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        print("wildcat: interrupted.", file=sys.stderr)
        return 1
    except BrokenPipeError:  # the reader of our output (head, less) has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left in the buffer goes there
        return 1
    except Exception as error:
        told = error if isinstance(error, WildcatError) else out_of_memory(error)
        if debug or told is None:
            raise
        print(f"wildcat: {told.message}", file=sys.stderr)
        if told.hint:
            print(f"  {told.hint.replace('did you mean', 'Did you mean', 1)}", file=sys.stderr)
        return 2 if isinstance(told, ConfigError) else 1


def parse(arguments: list[str]) -> Any:
    """The command line as one of the command dataclasses.

    The recipe with the method over it, or the settings of a run that is resumed, are read first: they are the defaults
    that flags override.

    Raises:
        SystemExit: 2 for misuse, 0 after --help.
        ConfigError: an unknown recipe or method, or a value out of range.
    """
    if "--version" in arguments[:1]:
        from wildcat._version import __version__

        print(f"wildcat {__version__}")
        raise SystemExit(0)
    if arguments and not arguments[0].startswith("-") and arguments[0] not in COMMANDS:
        near = did_you_mean(arguments[0], COMMANDS)
        raise ConfigError(f"there is no command {arguments[0]!r}.", near or f"Commands are: {', '.join(COMMANDS)}.")
    base = TrainConfig()
    if arguments[:1] == ["train"] and not {"-h", "--help"} & set(arguments):
        recipe, method, out = (_value_of(arguments, flag) for flag in ("--recipe", "--method", "--out"))
        head = method_settings(method) if method else {}
        if "--resume" in arguments and out and (Path(out) / "config.yaml").is_file():
            base = read_config(Path(out) / "config.yaml")
        else:
            base = dataclasses.replace(load_recipe(recipe) if recipe else base, **head)
    train = dataclasses.make_dataclass(
        "Train", [("config", OmitArgPrefixes[TrainConfig], base)], bases=(Train,), frozen=True, kw_only=True
    )
    train.__doc__ = Train.__doc__
    kinds = {name: kind for name, (kind, _) in COMMANDS.items()} | {"train": train}
    commands: Any = reduce(or_, (Annotated[kind, subcommand(name)] for name, kind in kinds.items()))
    parsed = tyro.cli(
        commands,
        prog="wildcat",
        description="Classes, points, boxes and heatmaps from one model trained on image-level tags.",
        args=arguments or ["--help"],
        config=(FlagCreatePairsOff,),
    )
    if isinstance(parsed, Train):
        parsed.config.validate()
    return parsed


def _value_of(arguments: Sequence[str], flag: str) -> str | None:
    for i, argument in enumerate(arguments):
        if argument == flag and i + 1 < len(arguments):
            return arguments[i + 1]
        if argument.startswith(f"{flag}="):
            return argument.split("=", 1)[1]
    return None
