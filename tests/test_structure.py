"""The shape of the house: imports run one way, and no room has a name that invites everything (DESIGN: The rooms)."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent

FLOORS = (
    {"errors", "config", "settings", "methods", "files", "device", "progress", "_version"},
    {"nn", "data", "metrics", "regions", "viz"},
    {"prediction", "models", "engines", "train"},
    {"fitting", "evaluation", "predictor"},
    {"reproduce", "report", "serve", "scale", "export", "curation", "integrations"},
    {"cli", "__main__", ""},  # "" is the package itself, which hands out what users import
)
"""The layers of the package, lowest first. A package may import from its own layer and from those below."""

SEPARATE = {"nn", "data", "metrics", "regions", "viz"}
"""Rooms that never import each other: they meet on the floors above."""

FORBIDDEN = {"utils", "util", "helpers", "helper", "common", "misc"}

Sources = Mapping[str, str]
"""Dotted module name -> its source. A package is named without `.__init__`, and its source is that of the latter."""


def read_sources(root: Path) -> dict[str, str]:
    sources = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root.parent).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        sources[name] = path.read_text(encoding="utf-8")
    return sources


def imported(module: str, is_package: bool, sources: Sources) -> Iterator[str]:
    """The modules of `sources` that `module` imports, in functions and under TYPE_CHECKING as well."""
    for node in ast.walk(ast.parse(sources[module])):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = module.split(".")
                above = parts[: len(parts) - node.level + is_package]
                base = ".".join([*above, base] if base else above)
            names = [f"{base}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            parts = name.split(".")
            above = [".".join(parts[:n]) for n in range(len(parts), 0, -1)]
            found = next((m for m in above if m in sources), module)  # of a class or function: its module
            if found != module:
                yield found


def imports(sources: Sources) -> dict[str, set[str]]:
    packages = {name.rpartition(".")[0] for name in sources}
    return {name: set(imported(name, name in packages, sources)) for name in sources}


def room_of(module: str) -> str:
    """`wildcat.report` -> `viz.report`, `wildcat.nn.pooling` -> `nn`, `wildcat` -> ``."""
    parts = module.split(".")[1:]
    return ".".join(parts[:2]) if any(".".join(parts[:2]) in floor for floor in FLOORS) else "".join(parts[:1])


def floor_of(module: str) -> int:
    found = [i for i, rooms in enumerate(FLOORS) if room_of(module) in rooms]
    assert found, f"{module}: give its room a floor in FLOORS, and say why it is needed"
    return found[0]


def wrong_edges(sources: Sources) -> list[str]:
    wrong = []
    for module, targets in imports(sources).items():
        for target in sorted(targets):
            if floor_of(target) > floor_of(module):
                wrong.append(f"{module} imports {target}, which is above it")
            elif room_of(module) != room_of(target) and {room_of(module), room_of(target)} <= SEPARATE:
                wrong.append(f"{module} imports {target}, which is beside it")
    return wrong


def cycle(sources: Sources) -> list[str]:
    """A chain of imports that comes back to its beginning, or an empty list."""
    graph, done = imports(sources), set()

    def visit(module: str, path: list[str]) -> list[str]:
        if module in path:
            return [*path[path.index(module) :], module]
        if module in done:
            return []
        for target in sorted(graph[module]):
            if found := visit(target, [*path, module]):
                return found
        done.add(module)
        return []

    return next((found for module in graph if (found := visit(module, []))), [])


def forbidden_names(paths: list[Path]) -> list[str]:
    return [str(path) for path in paths if {Path(part).stem.strip("_").lower() for part in path.parts} & FORBIDDEN]


# --- the house as it is -------------------------------------------------------------------------------------------


def test_imports_run_one_way() -> None:
    assert wrong_edges(read_sources(REPOSITORY / "wildcat")) == []


def test_no_cycle() -> None:
    assert cycle(read_sources(REPOSITORY / "wildcat")) == []


def test_no_room_for_everything() -> None:
    folders = [REPOSITORY / name for name in ("wildcat", "tests", "examples", "benchmarks")]
    paths = [path.relative_to(REPOSITORY) for folder in folders for path in folder.rglob("*")]
    assert forbidden_names(paths) == []


def test_the_reader_sees_the_real_imports() -> None:
    graph = imports(read_sources(REPOSITORY / "wildcat"))
    assert {"wildcat.nn.pooling", "wildcat.nn.backbones", "wildcat.errors"} <= graph["wildcat.nn.model"]
    assert "wildcat.nn" in graph["wildcat"], "imports inside functions count"


# --- each check fails on a bad example --------------------------------------------------------------------------------

GOOD = {
    "wildcat": "def __getattr__(name):\n    import wildcat.nn",
    "wildcat.errors": "import math",
    "wildcat.nn": "from wildcat.nn.pooling import spatial_pool",
    "wildcat.nn.pooling": "import torch\nfrom wildcat.errors import ConfigError",
    "wildcat.data": "",
    "wildcat.data.images": "from wildcat.errors import ImageError",
    "wildcat.viz": "",
    "wildcat.report": "from wildcat.predictor import Predictor",
    "wildcat.train": "",
    "wildcat.train.loop": "from wildcat.nn.pooling import spatial_pool\nfrom wildcat.data import images",
    "wildcat.predictor": "from wildcat.train import loop",
}


def test_a_good_example_passes() -> None:
    assert wrong_edges(GOOD) == []
    assert cycle(GOOD) == []


@pytest.mark.parametrize(
    ("module", "source", "target", "where"),
    [
        ("wildcat.nn.pooling", "import wildcat.train.loop", "wildcat.train.loop", "above"),
        ("wildcat.nn.pooling", "from wildcat import predictor", "wildcat.predictor", "above"),
        ("wildcat.nn.pooling", "from wildcat import create_model", "wildcat", "above"),
        ("wildcat.train.loop", "def f():\n    from wildcat.predictor import load", "wildcat.predictor", "above"),
        ("wildcat.errors", "if TYPE_CHECKING:\n    from wildcat.nn import Wildcat", "wildcat.nn", "above"),
        ("wildcat.viz", "from .report import write", "wildcat.report", "above"),
        ("wildcat.nn.pooling", "from wildcat.data.images import read", "wildcat.data.images", "beside"),
        ("wildcat.nn.pooling", "from ..data import images", "wildcat.data.images", "beside"),
        ("wildcat.data", "from wildcat.nn import *", "wildcat.nn", "beside"),
    ],
)
def test_upward_and_sideways_edges_are_found(module: str, source: str, target: str, where: str) -> None:
    side = "which is above it" if where == "above" else "which is beside it"
    assert f"{module} imports {target}, {side}" in wrong_edges(GOOD | {module: source})


def test_a_room_without_a_floor_is_found() -> None:
    with pytest.raises(AssertionError, match=r"wildcat\.attic\.box: give its room a floor"):
        wrong_edges(GOOD | {"wildcat.attic": "", "wildcat.attic.box": "import wildcat.errors"})


@pytest.mark.parametrize(
    "changes",
    [
        {"wildcat.nn.pooling": "from wildcat.nn import model", "wildcat.nn.model": "from wildcat.nn.pooling import a"},
        {"wildcat.nn.pooling": "from . import spatial_pool"},  # its package imports it
        {
            "wildcat.train.a": "from wildcat.train import b",
            "wildcat.train.b": "def f():\n    import wildcat.train.c",
            "wildcat.train.c": "from .a import x",
        },
    ],
)
def test_cycles_are_found(changes: dict[str, str]) -> None:
    found = cycle(GOOD | changes)
    assert len(found) > 2
    assert found[0] == found[-1]


@pytest.mark.parametrize(
    "name", ["wildcat/utils.py", "wildcat/nn/_helpers.py", "tests/common/test_a.py", "a/Misc/b.py"]
)
def test_forbidden_names_are_found(name: str) -> None:
    assert forbidden_names([Path("wildcat/nn/pooling.py"), Path(name)]) == [str(Path(name))]
