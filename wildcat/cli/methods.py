"""wildcat methods: list the published methods of `wildcat train` and of `wildcat refine`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Annotated, Any

from tyro.conf import Positional, arg

from wildcat.cli.options import Command
from wildcat.fitting.methods import REFINE_METHODS
from wildcat.methods import METHODS, find_method

UNITS = {"map": "mAP", "point_ap": "point AP", "miou": "mean IoU", "miou_crf": "mean IoU with CRF"}


@dataclass(frozen=True, kw_only=True)
class Methods(Command):
    """List the methods of `train --method` and `refine --method`: what each gives, its paper, and its result where one
    was measured."""

    name: Positional[Annotated[str, arg(metavar="[NAME]", help_behavior_hint="")]] = ""
    """Show only this method, with its settings."""


def run_methods(command: Methods) -> int:
    """Print two lines per method, or all about one."""
    text = (resources.files("wildcat") / "method_results.json").read_text(encoding="utf-8")
    measured = json.loads(text)
    if command.name and command.name not in REFINE_METHODS:
        find_method(command.name)
    for name, method in METHODS.items():
        if command.name not in ("", name):
            continue
        gives = "scores, maps, masks" if method.has_maps else "scores"
        print(f"{name:17} {gives:20} {result_text(measured['results'].get(name, {}))}")
        print(f"{'':17} {method.description} ({method.paper})")
        if command.name:
            print(f"{'':17} {', '.join(f'{key}: {value}' for key, value in method.settings.items())}")
    if not command.name or command.name in REFINE_METHODS:
        print("\nOf wildcat refine, a second stage for a run:")
        for name, refining in REFINE_METHODS.items():
            if command.name not in ("", name):
                continue
            print(f"{name:17} {refining.gives:20} {result_text(measured['results'].get(f'refine {name}', {}))}")
            print(f"{'':17} {refining.description}")
            if command.name:
                print(f"{'':17} settings: {', '.join(refining.settings)}")
    print(f"\n{measured['setting']}")
    return 0


def result_text(result: Mapping[str, Any]) -> str:
    """The results of a method in per cent, or a dash.

    >>> result_text({"map": {"mean": 0.873, "std": 0.001}})
    '87.3 mAP'
    """
    return ", ".join(f"{100 * result[key]['mean']:.1f} {unit}" for key, unit in UNITS.items() if key in result) or "-"
