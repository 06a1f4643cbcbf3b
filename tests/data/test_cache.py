"""The cache limit: least recently used folders are removed, held ones stay."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from wildcat.data import cache
from wildcat.data.cache import cache_limit, hold, make_room
from wildcat.errors import ConfigError


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    """Three folders of 1,000 bytes, least recently used first."""
    made = []
    for i, name in enumerate(("old", "older", "new")):
        folder = tmp_path / "cache" / name
        (folder / "below").mkdir(parents=True)
        (folder / "below" / "file").write_bytes(bytes(1000))
        os.utime(folder, (i, i))
        made.append(folder)
    return made


def there(folders: list[Path]) -> list[bool]:
    return [folder.exists() for folder in folders]


@pytest.mark.parametrize(("limit", "left"), [(3000, 3), (2999, 2), (2000, 2), (1999, 1), (0, 0)])
def test_the_least_recently_used_is_removed_first(folders: list[Path], limit: int, left: int) -> None:
    assert make_room(folders[0].parent, limit) == folders[: 3 - left]
    assert there(folders) == [False] * (3 - left) + [True] * left
    assert make_room(folders[0].parent, limit) == []


def test_a_held_folder_counts_as_used_and_stays(folders: list[Path]) -> None:
    held = hold(folders[0])
    assert held is not None
    assert make_room(folders[0].parent, 0) == folders[1:]
    held.close()
    assert make_room(folders[0].parent, 0) == folders[:1]


def test_a_released_folder_is_removed_last(folders: list[Path]) -> None:
    for _ in range(2):  # several may hold it
        held = hold(folders[0])
        assert held is not None
    held.close()
    assert make_room(folders[0].parent, 1000) == folders[1:]


def test_a_folder_held_by_another_process_stays_until_it_ends(folders: list[Path]) -> None:
    holding = (
        "import sys; from pathlib import Path; from wildcat.data.cache import hold; held = hold(Path(sys.argv[1]))"
    )
    waiting = "; print('held', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", holding + waiting, str(folders[1])], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert make_room(folders[0].parent, 0) == [folders[0], folders[2]]
        process.kill()
    assert make_room(folders[0].parent, 0) == [folders[1]]


def test_a_folder_may_be_held_before_it_exists(tmp_path: Path) -> None:
    held = hold(tmp_path / "cache" / "coming")
    assert held is not None
    (tmp_path / "cache" / "coming").mkdir()
    (tmp_path / "cache" / "coming" / "file").write_bytes(bytes(9))
    assert make_room(tmp_path / "cache", 0) == []


def test_a_folder_that_cannot_be_locked_is_usable(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert hold(tmp_path / "file" / "folder") is None
    (tmp_path / "cache" / "folder").mkdir(parents=True)
    (tmp_path / "cache" / "folder" / "file").write_bytes(bytes(9))
    (tmp_path / "cache" / "folder.lock").mkdir()  # nobody can lock it, and so nobody removes it
    assert hold(tmp_path / "cache" / "folder") is None
    make_room(tmp_path / "cache", 0)
    assert (tmp_path / "cache" / "folder" / "file").is_file()


def test_the_limit_is_that_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WILDCAT_CACHE_GB", raising=False)
    assert cache_limit() == 100_000_000_000
    monkeypatch.setenv("WILDCAT_CACHE_GB", "0.5")
    assert cache_limit() == 500_000_000
    for wrong in ("-1", "nan", "inf", "10 GB"):
        monkeypatch.setenv("WILDCAT_CACHE_GB", wrong)
        with pytest.raises(ConfigError, match=f"WILDCAT_CACHE_GB={wrong}: give a number of gigabytes"):
            cache_limit()


def test_a_folder_that_another_process_removes_meanwhile(folders: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def removing(path: Path) -> int:
        if path == folders[0]:
            shutil.rmtree(path)
        return 1

    monkeypatch.setattr(cache, "_size", removing)
    assert folders[0] not in cache.make_room(folders[0].parent, 0)
