"""The wheel is complete and works in an empty environment; the oldest tested dependencies are the declared bounds."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
from PIL import Image

import wildcat

REPOSITORY = Path(__file__).resolve().parent.parent


def output_of(*command: object, cwd: Path) -> str:
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(list(map(str, command)), cwd=cwd, env=inherited, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from a copy of the files in git: what lies around in the checkout must not get into it."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    listed = output_of("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=REPOSITORY)
    for name in filter(None, listed.split("\0")):
        if (REPOSITORY / name).is_file() and name.split("/")[0] in (
            "wildcat",
            "pyproject.toml",
            "README.md",
            "LICENSE",
        ):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((REPOSITORY / name).read_bytes())
    pip = (sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index")
    output_of(*pip, "--wheel-dir", folder, source, cwd=folder)
    (built,) = folder.glob("*.whl")
    return built


def test_the_wheel_holds_every_file_of_the_package(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    listed = output_of("git", "ls-files", "--cached", "--others", "--exclude-standard", "wildcat", cwd=REPOSITORY)
    missing = {name for name in listed.split() if (REPOSITORY / name).is_file()} - names
    assert not missing
    assert {"wildcat/py.typed", "wildcat/recipes/head.yaml", "wildcat/serve/static/page.js"} <= names
    assert not [name for name in names if name.startswith(("tests/", "benchmarks/", "docs/"))]


def test_the_wheel_works_in_an_empty_environment(wheel: Path, tmp_path: Path) -> None:
    """Dependencies are imported from the site-packages of the tests, which come after those of the new environment."""
    venv.create(tmp_path / "env", with_pip=False)
    python = tmp_path / "env" / "bin" / "python"
    install = (sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index")
    output_of(*install, wheel, cwd=tmp_path)
    paths = output_of(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=tmp_path).strip()
    (Path(paths) / "dependencies.pth").write_text("\n".join({sysconfig.get_path(k) for k in ("purelib", "platlib")}))

    imported = output_of(python, "-c", "import wildcat; print(wildcat.__file__)", cwd=tmp_path).strip()
    assert Path(imported).is_relative_to(paths)
    command = tmp_path / "env" / "bin" / "wildcat"
    assert output_of(command, "--version", cwd=tmp_path) == f"wildcat {wildcat.__version__}\n"
    Image.new("RGB", (64, 48), (200, 30, 30)).save(tmp_path / "photo.png")
    printed = output_of(
        command, "predict", "imagenet-lite0", "photo.png", "--out", "out", "--device", "cpu", cwd=tmp_path
    )
    assert "1 predictions in" in printed
    assert len((tmp_path / "out" / "predictions.jsonl").read_text().splitlines()) == 1


def test_lower_bounds_are_the_oldest_versions_tested() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    bounds = dict(text.split(">=") for text in project["dependencies"])
    pinned = dict(re.findall(r"^([\w-]+)==([\d.]+)$", (REPOSITORY / "tests" / "oldest.txt").read_text(), re.MULTILINE))
    assert {name: pinned.get(name) for name in bounds} == {
        name: version + ".0" * (2 - version.count(".")) for name, version in bounds.items()
    }
