"""Names in any script on drawings: a font that has the characters, or a number; never boxes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, features

from tests.test_predictor import colour_finder
from wildcat.export.predictions import PredictionWriter
from wildcat.predictor import Predictor
from wildcat.viz import draw_point, fonts, side_by_side

NAMES = ("cat", "\u043a\u043e\u0448\u043a\u0430", "\u732b")  # Latin, Cyrillic, Chinese


@pytest.fixture
def system(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A function that sets the fonts of the system."""

    def install(*files: str) -> None:
        monkeypatch.setattr(fonts, "system_fonts", lambda: files)
        fonts.font_file.cache_clear()

    install()
    yield install
    fonts.font_file.cache_clear()


@pytest.fixture(scope="module")
def dejavu() -> str:
    matplotlib = pytest.importorskip("matplotlib")
    return str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf")


def prediction(names: tuple[str, ...] = NAMES) -> Any:
    source = colour_finder()
    return Predictor("x", source.members, names, "multilabel", "cpu").predict(Image.new("RGB", (320, 240), (9, 9, 255)))


def test_the_font_has_every_character(system: Any, dejavu: str) -> None:
    assert [fonts.font_file(name) for name in NAMES] == ["", None, None]
    assert fonts.font_file("cat_2 (red): 93% #") == ""
    system("/no/such/font.ttf", dejavu)
    assert [fonts.font_file(name) for name in NAMES] == ["", dejavu, None]
    assert fonts.font_file("caf\u00e9") == dejavu
    assert fonts.font_file("\u043a\u732b") is None
    shaping = features.check_feature("raqm") and features.check_feature("fribidi")
    assert fonts.font_file("\u0642\u0637\u0629") == (dejavu if shaping else None)


def test_letters_that_change_their_form_need_shaping(system: Any, dejavu: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "check_feature", lambda _: False)
    system(dejavu)
    assert fonts.font_file("\u0642\u0637\u0629") is None
    assert fonts.font_file(NAMES[1]) == dejavu


def test_invisible_characters_have_no_font_or_one(system: Any, dejavu: str) -> None:
    system(dejavu, str(Path(dejavu).with_name("DejaVuSansDisplay.ttf")))
    for text in ("\ufeff\u4e2d", "\u200b\u4e2d", "\xad\u4e2d"):  # Raqm raises for some of them in some fonts
        assert fonts.font_file(text) is None and not fonts.drawable(text)


def test_texts_without_a_font_are_numbers(system: Any, dejavu: str) -> None:
    image, point, numbers = Image.new("RGB", (300, 200)), (20.0, 30.0), ["cat", "#2", "#3"]
    for name, drawn in zip(NAMES, ("cat", "#1", "#1"), strict=True):
        assert draw_point(image, point, name).tobytes() == draw_point(image, point, drawn).tobytes()
    assert side_by_side([image] * 3, NAMES).tobytes() == side_by_side([image] * 3, numbers).tobytes()
    system(dejavu)
    assert draw_point(image, point, NAMES[1]).tobytes() != draw_point(image, point, "#1").tobytes()


def test_numbers_are_those_of_the_classes_and_written_beside(system: Any, tmp_path: Path) -> None:
    found = prediction()
    assert found.legend == {"#2": NAMES[1], "#3": NAMES[2]}
    latin = prediction(("cat", "#2", "#3"))
    assert latin.legend == {}
    for name, number in zip(NAMES, latin.classes, strict=True):
        assert found.plot(name).tobytes() == latin.plot(number).tobytes()
    with PredictionWriter(tmp_path / "out", ["overlays"]) as writer:
        writer.add(found, "a.jpg")
    assert json.loads((tmp_path / "out" / "legend.json").read_text()) == found.legend
    with PredictionWriter(tmp_path / "rows", ["arrays"]) as writer:
        writer.add(found, "a.jpg")
    assert not (tmp_path / "rows" / "legend.json").exists()
    assert json.loads((found.save(tmp_path / "one") / "prediction.json").read_text())["legend"] == found.legend


def test_curves_have_no_boxes_either(system: Any, dejavu: str, recwarn: pytest.WarningsRecorder) -> None:
    from wildcat.viz.curves import draw_precision_recall

    line = (np.array([0.0, 1.0]), np.array([1.0, 0.5]))
    drawn = draw_precision_recall(dict.fromkeys(NAMES, line), NAMES[2])
    assert drawn == draw_precision_recall(dict.fromkeys(("cat", "#2", "#3"), line), "?")
    system(dejavu)
    assert draw_precision_recall(dict.fromkeys(NAMES, line), "x") != drawn
    assert not [w for w in recwarn if "Glyph" in str(w.message)]  # matplotlib's warning about a box
