"""Solar cells: against labels.csv itself, or a small made-up one if the package is missing."""

from __future__ import annotations

import importlib.util
import sys
from collections import Counter
from pathlib import Path

import pytest

from wildcat.data.dataset import label_matrix
from wildcat.data.readers.solar import find_solar, read_solar
from wildcat.errors import ConfigError, DataError, MissingExtra

LEVELS = ["0.0", "0.3333333333333333", "0.6666666666666666", "1.0"]


@pytest.fixture
def made_up(tmp_path: Path) -> Path:
    rows = [f"images/{i:03d}.png  {LEVELS[i % 4]:20} {'mono' if i % 8 < 4 else 'poly'}\n" for i in range(160)]
    (tmp_path / "labels.csv").write_text("".join(rows))
    return tmp_path


@pytest.mark.skipif(importlib.util.find_spec("elpv_dataset") is None, reason="elpv-dataset is not installed")
def test_the_package() -> None:
    before = set(sys.modules)
    data = read_solar()
    assert "elpv_dataset" not in set(sys.modules) - before, "its code must not run"
    rows = [line.split() for line in (find_solar() / "labels.csv").read_text().splitlines()]
    wanted = {name: float(p) >= 0.5 for name, p, _ in rows}
    assert len(wanted) == 2624
    samples = data.split("train") + data.split("test")
    assert {s.name: s.labels.tolist() == [-1, 1] for s in samples} == wanted
    assert data.split("test")[0].path.is_file()
    strata = Counter((p, kind) for _, p, kind in rows)
    tested = {s.name for s in data.split("test")}
    for stratum, count in strata.items():
        assert sum((p, kind) == stratum and name in tested for name, p, kind in rows) == round(count / 4)


def test_threshold_and_cells(made_up: Path) -> None:
    full = read_solar(made_up)
    assert full.splits == ("train", "test")
    assert (len(full.split("train")), len(full.split("test"))) == (120, 40)
    for threshold, level_count in ((0.5, 2), (0.3, 3), (1.0, 1)):
        labels = label_matrix(read_solar(made_up, threshold=threshold).split("train"))
        assert (labels[:, 1] == 1).sum() == 30 * level_count
    mono, poly = read_solar(made_up, cells="mono"), read_solar(made_up, cells="poly")
    for part in full.splits:
        halves = [s.name for s in mono.split(part) + poly.split(part)]
        assert sorted(halves) == sorted(s.name for s in full.split(part)), "the split must not depend on cells"


def test_mistakes(made_up: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"threshold=0:"):
        read_solar(made_up, threshold=0)
    with pytest.raises(ConfigError, match="cells='monos'") as wrong:
        read_solar(made_up, cells="monos")
    assert "did you mean mono?" in wrong.value.hint
    (made_up / "labels.csv").write_text("images/1.png 0.0 mono\nimages/2.png 0.3\n")
    with pytest.raises(DataError, match=r"labels.csv, line 2: 'images/2.png 0.3'") as caught:
        read_solar(made_up)
    assert "again" in caught.value.hint
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"pip install 'wildcat-vision\[demo\]'"):
        read_solar()
