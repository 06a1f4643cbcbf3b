"""Plots contain their labels and lines; unknown suffixes and a missing matplotlib are errors with a remedy."""

from __future__ import annotations

import io
import sys
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from wildcat.errors import ConfigError, MissingExtra
from wildcat.viz.curves import Series, draw_precision_recall, draw_series

SVG = "{http://www.w3.org/2000/svg}"


def texts(svg: bytes) -> str:
    """The SVG source: matplotlib writes each text as a comment before its outlines."""
    return svg.decode()


def test_a_png_shows_its_lines() -> None:
    one = draw_series([Series("a", [0, 1], [1, 1])], "alpha", "mAP %", "title")
    two = draw_series([Series("a", [0, 1], [1, 1]), Series("b", [0, 1], [1, 2])], "alpha", "mAP %", "title")
    image = Image.open(io.BytesIO(one))
    assert min(image.size) > 400
    assert np.asarray(image.convert("L")).min() < 100
    assert one != two


@pytest.mark.parametrize("suffix", [".svg", ".pdf"])
def test_vector_formats(suffix: str) -> None:
    drawn = draw_series([Series("a", [1, 2, 4], [1, 2, 3], [0.1, 0.2, 0.3])], "M", "mAP %", "t", suffix, log_x=True)
    assert drawn.startswith(b"%PDF" if suffix == ".pdf" else b"<?xml")


def test_titles_and_ticks_are_in_the_svg() -> None:
    drawn = draw_series([Series("a", [1, 2, 16], [1, 2, 3])], "M, maps", "mAP %", "VOC", ".svg", log_x=True)
    ElementTree.fromstring(drawn)
    for text in ("M, maps", "mAP %", "VOC", "<!-- 16 -->"):
        assert text in texts(drawn)


def test_precision_recall_has_a_line_for_each_class() -> None:
    curves = {name: (np.array([0.0, 0.5, 1.0]), np.array([1.0, 1.0, 0.5])) for name in "abc"}
    drawn = texts(draw_precision_recall(curves, "t", ".svg"))
    assert all(f"<!-- {name} -->" in drawn for name in (*"abc", "recall", "precision"))


def test_errors_of_an_unknown_suffix_and_a_missing_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"\.bmp: give a file name that ends in \.png"):
        draw_series([], "x", "y", "t", ".bmp")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtra, match=r"wildcat-vision\[plot\]"):
        draw_series([], "x", "y", "t")
