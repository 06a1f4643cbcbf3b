"""The command line, `wildcat COMMAND ...`: results go to stdout, progress and logs to stderr.

Each command has its own file: a dataclass that defines its flags and help, and the function that runs it. The modules
import torch only inside these functions, so that `wildcat --help` answers quickly.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import os
import sys
import textwrap
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import tyro
import tyro._strings

from wildcat._version import __version__
from wildcat.cli.allocator import keep_freed_memory
from wildcat.cli.audit import Audit, run_audit
from wildcat.cli.backbones import Backbones, run_backbones
from wildcat.cli.bench import Bench, run_bench
from wildcat.cli.calibrate import Calibrate, run_calibrate
from wildcat.cli.compare import Compare, run_compare
from wildcat.cli.datasets import Datasets, run_datasets
from wildcat.cli.ensemble import Ensemble, run_ensemble
from wildcat.cli.evaluate import Evaluate, run_evaluate
from wildcat.cli.export import Export, run_export
from wildcat.cli.methods import Methods, run_methods
from wildcat.cli.options import Command, flag, flag_names, limit_pixels_of, with_flags
from wildcat.cli.predict import Predict, run_predict
from wildcat.cli.push import Push, run_push
from wildcat.cli.rank import Rank, run_rank
from wildcat.cli.refine import Refine, run_refine
from wildcat.cli.report import Report, run_report
from wildcat.cli.reproduce import Reproduce, run_reproduce
from wildcat.cli.serve import Serve, run_serve
from wildcat.cli.train import Train, run_train
from wildcat.config import TrainConfig
from wildcat.errors import MEMORY_HINT, ConfigError, OutOfMemory, did_you_mean, known_error
from wildcat.methods import NETWORK_SETTINGS
from wildcat.progress import stop_code, stopped_by_signal, terminable
from wildcat.settings import load_recipe, method_settings, read_config

# Name -> flags and the function that runs the command, grouped and ordered as in the help.
GROUPS: dict[str, dict[str, tuple[type[Command], Callable[[Any], int]]]] = {
    "train and measure": {
        "train": (Train, run_train),
        "compare": (Compare, run_compare),
        "evaluate": (Evaluate, run_evaluate),
        "report": (Report, run_report),
        "audit": (Audit, run_audit),
    },
    "use a model": {
        "predict": (Predict, run_predict),
        "rank": (Rank, run_rank),
        "export": (Export, run_export),
        "serve": (Serve, run_serve),
        "push": (Push, run_push),
    },
    "improve a model": {
        "calibrate": (Calibrate, run_calibrate),
        "refine": (Refine, run_refine),
        "ensemble": (Ensemble, run_ensemble),
        "bench": (Bench, run_bench),
    },
    "research and lists": {
        "reproduce": (Reproduce, run_reproduce),
        "datasets": (Datasets, run_datasets),
        "backbones": (Backbones, run_backbones),
        "methods": (Methods, run_methods),
    },
}
COMMANDS = {name: command for group in GROUPS.values() for name, command in group.items()}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code: 0 done, 1 failed, 2 misuse, 130 or 143 stopped by Ctrl-C or SIGTERM."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    warnings.filterwarnings("ignore", category=UserWarning, module="torch")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # file names need not be valid Unicode
    keep_freed_memory()
    with contextlib.ExitStack() as stack:
        stack.enter_context(terminable())
        if os.environ.get("RANK", "0") != "0":  # of torchrun: only rank 0 prints; tracebacks are printed outside
            devnull = stack.enter_context(Path(os.devnull).open("w"))
            stack.enter_context(contextlib.redirect_stdout(devnull))
            stack.enter_context(contextlib.redirect_stderr(devnull))
        return run_command(arguments)


def run_command(arguments: list[str]) -> int:
    """Run a command and print errors that the user can fix as one sentence; returns the exit code."""
    command = None
    try:
        command = parse(arguments)
        if not isinstance(command, Serve):  # which answers larger images with a status of their own
            limit_pixels_of(command)
        code = COMMANDS[arguments[0]][1](command)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt as stop:
        print(f"wildcat: {stop}" if stop.args else "wildcat: interrupted.", file=sys.stderr)
        return stop_code()
    except BrokenPipeError:  # the reader of stdout (head, less) has exited
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # discard what is still buffered
        return 1
    except Exception as error:
        known = known_error(error)
        if "--debug" in arguments or (known is None and not stopped_by_signal()):
            raise
        if known is None:  # a process that got the same signal has ended
            print("wildcat: interrupted.", file=sys.stderr)
            return stop_code()
        kind = COMMANDS[arguments[0]][0] if arguments and arguments[0] in COMMANDS else Command
        names = flag_names(kind)
        message, hint = known.message, known.hint
        if isinstance(known, ConfigError):
            message, hint = with_flags(message, names), with_flags(hint, names)
        elif isinstance(known, OutOfMemory):
            fixed = {"batch_size"} if kind is Train and "--resume" in hint else set()  # in a run that has begun
            if isinstance(command, Predict) and command.engine != "ray":
                fixed = {"workers"}
            less = [name for name in ("batch_size", "workers") if name in names - fixed]
            remedy = f", or reduce {' or '.join(map(flag, less))}" if less else ""
            hint = hint.replace(MEMORY_HINT, f"Close other programs{remedy}.")
        print(f"wildcat: {message}", file=sys.stderr)
        if hint:
            print(f"  {hint.replace('did you mean', 'Did you mean', 1)}", file=sys.stderr)
        return 2 if isinstance(known, ConfigError) else 1


def parse(arguments: Sequence[str]) -> Any:
    """Parse a command line into the dataclass of its command."""
    name, *flags = arguments or ["--help"]
    if name in ("-h", "--help"):
        print(help_text())
        raise SystemExit(0)
    if name == "--version":
        print(f"wildcat {__version__}")
        raise SystemExit(0)
    if name not in COMMANDS:
        near = did_you_mean(name, COMMANDS)
        raise ConfigError(f"there is no command {name!r}.", near or f"Commands are: {', '.join(COMMANDS)}.")
    kind, _ = COMMANDS[name]
    tyro._strings.remove_single_line_breaks = _one_line_paragraphs  # its own keeps the breaks before indented lines
    default = _train_defaults(flags) if kind is Train else None
    parsed = tyro.cli(kind, prog=f"wildcat {name}", args=flags, default=default)
    if isinstance(parsed, Train):
        parsed.config.validate()
    return parsed


def _one_line_paragraphs(helptext: str) -> str:
    """A docstring for tyro, which wraps long lines."""
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in helptext.split("\n\n"))


def help_text() -> str:
    """The text of `wildcat --help`: all commands with the first paragraph of their help."""
    lines = [
        "usage: wildcat COMMAND ...",
        "",
        "Classes, points, boxes and masks from one model trained on image-level labels.",
    ]
    for group, commands in GROUPS.items():
        lines += ["", f"{group}:"]
        for name, (kind, _) in commands.items():
            summary = " ".join((kind.__doc__ or "").split("\n\n")[0].split())
            lines += textwrap.wrap(
                summary, 100, initial_indent=f"  {name:11}", subsequent_indent=" " * 13, break_on_hyphens=False
            )
    return "\n".join([*lines, "", "wildcat COMMAND --help lists the flags of a command; wildcat --version."])


def _train_defaults(flags: Sequence[str]) -> Train:
    """The defaults of wildcat train that its flags --recipe, --weights, --method and --resume imply.

    A run that starts from the weights of another one has its backbone and method. A resumed run starts from its own
    settings. A recipe or method given again is applied over them, so that a different one is refused as a changed
    setting instead of being ignored.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in ("--recipe", "--method", "--out", "--weights"):
        parser.add_argument(name, nargs="?")
    parser.add_argument("--resume", action="store_true")
    given, _ = parser.parse_known_args(flags)
    config = TrainConfig()
    if given.resume and given.out and (settings := Path(given.out) / "config.yaml").is_file():
        config = read_config(settings)
    if given.recipe:
        config = load_recipe(given.recipe, config)
    parent = TrainConfig(weights=given.weights).parent if given.weights and not given.resume else None
    if parent and (parent / "config.yaml").is_file():
        network = read_config(parent / "config.yaml")
        config = dataclasses.replace(config, **{name: getattr(network, name) for name in NETWORK_SETTINGS})
    if given.method:
        config = dataclasses.replace(config, **method_settings(given.method))
    return Train(data=tyro.MISSING, out=tyro.MISSING, config=config)
