"""Parts and workers that die: what is tried again, what with care, and what an image that kills its reader leaves."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import wildcat
from tests.scale.conftest import png
from wildcat.data.image_ref import ImageLocation
from wildcat.data.images import Decoded, MaxDownscale, full_size
from wildcat.errors import DataError, RunError, WildcatError
from wildcat.scale.scheduler import RETRIES, Died, make_parts
from wildcat.scale.shards import Done, Part, read_part
from wildcat.scale.worker import PartMaker


class Played:
    """A crew in this process: attempts at a part, by number, that end with its worker's death or an error."""

    def __init__(self, size: int, fate: dict[int, list[str]]) -> None:
        self.size, self.fate = size, fate
        self.given: list[tuple[int, bool]] = []
        self.parts: list[Part] = []
        self.replaced: list[int] = []
        self.most = 0

    def give(self, worker: int, part: Part, careful: bool) -> Any:
        self.given.append((part.number, careful))
        self.parts.append(part)
        return len(self.parts) - 1

    def wait(self, tickets: list[Any]) -> Any:
        self.most = max(self.most, len(tickets))
        return min(tickets)

    def result(self, ticket: Any) -> Done | WildcatError:
        part = self.parts[ticket]
        end = self.fate.get(part.number, [])
        match end.pop(0) if end else "done":
            case "dies":
                raise Died("killed")
            case "fails":
                return DataError("the shard is gone.")
        return Done(part.number, len(part.images), 0, part.digest)

    def replace(self, worker: int) -> None:
        self.replaced.append(worker)


def parts(count: int) -> Iterator[Part]:
    return (Part(n, 3 * n, [ImageLocation(f"{n}.png")]) for n in range(count))


def test_a_part_is_tried_again_and_at_last_with_care() -> None:
    crew = Played(2, {1: ["dies"] * RETRIES})
    assert sorted(done.part for done in make_parts(crew, parts(6))) == list(range(6))
    assert [careful for number, careful in crew.given if number == 1] == [False] * RETRIES + [True]
    assert [careful for number, careful in crew.given if number != 1] == [False] * 5
    assert len(crew.replaced) == RETRIES and crew.most == 2


def test_a_part_that_always_kills_is_named_and_what_is_under_way_is_kept() -> None:
    crew = Played(3, {1: ["dies"] * 9})
    made = []
    with pytest.raises(
        RunError, match=rf"part 1 \(1\.png and what follows\) could not be made in {RETRIES + 1} attempts"
    ):
        made.extend(done.part for done in make_parts(crew, parts(9)))
    assert {0, 2} <= set(made) and 1 not in made
    with pytest.raises(DataError, match="the shard is gone"):
        list(make_parts(Played(3, {1: ["fails"]}), parts(4)))


class Deadly(ImageLocation):
    """Ends the process that reads it."""

    def decode(self, max_downscale: MaxDownscale = full_size) -> Decoded:
        os._exit(1)


def test_with_care_an_image_that_kills_its_reader_has_a_row_and_the_others_theirs(run: Path, tmp_path: Path) -> None:
    names = [tmp_path / f"{i}.png" for i in range(5)]
    for i, path in enumerate(names):
        path.write_bytes(png(i) if i != 3 else b"no image")
    images: list[Any] = [ImageLocation(str(path)) for path in names]
    images.insert(2, Deadly("deadly-0"))
    predictor = wildcat.load(run, "cpu")
    done = PartMaker(tmp_path, "jsonl")(predictor, Part(0, 10, images), careful=True)
    rows = read_part(tmp_path / "part-00000.jsonl")
    assert (done.rows, done.failed) == (6, 2) and [row["row"] for row in rows] == list(range(10, 16))
    assert rows[2]["error"] == "deadly-0 ended the process that read it."
    assert "is not an image" in rows[4]["error"]
    for row, i in ((rows[0], 0), (rows[3], 2), (rows[5], 4)):
        assert row["scores"] == pytest.approx(predictor.predict(names[i]).to_dict()["scores"], abs=1e-4)
