"""The page itself: HTML, style and script in one file, with a budget of bytes that the gallery is cut to.

Whatever was read from a file (names of classes, images, data sets) passes through `text` on its way into the page,
and through `script_json` on its way into the data of its script; a Content-Security-Policy that allows nothing but the
page's own style and script, by their hashes, stands behind that.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.resources import files

from wildcat._version import __version__
from wildcat.errors import ConfigError
from wildcat.report import cards, figures
from wildcat.report.charts import text
from wildcat.report.contents import Contents
from wildcat.report.examples import Example, Gallery
from wildcat.viz.colors import colormap_table, readable_on


@dataclass(frozen=True)
class Page:
    """A finished page.

    Attributes:
        content: UTF-8 HTML.
        shown: examples in it.
        left_out: examples that were chosen and did not fit the budget.
    """

    content: bytes
    shown: int
    left_out: int


def make_page(contents: Contents, max_mb: float, now: datetime | None = None) -> Page:
    """The report in at most `max_mb` megabytes (of 1,000,000 bytes): of each class the most telling images that fit.

    Raises:
        ConfigError: the figures alone need more.
    """
    now = now or datetime.now(UTC)
    chosen = list(_in_turn(contents.gallery))
    budget = int(max_mb * 1e6)
    frame = len(_render(contents, [], len(chosen), now))
    kept, spent, photos = [], frame, set()
    for example in chosen:
        cost = _cost(example, id(example.photo) not in photos)
        if spent + cost > budget:
            continue  # a smaller one may still fit
        spent += cost
        photos.add(id(example.photo))
        kept.append(example)
    content = _render(contents, cards.as_listed(kept, contents.gallery), len(chosen) - len(kept), now)
    while len(content) > budget and kept:  # long names in headings can cost more than was reckoned
        kept = kept[: len(kept) * 95 // 100]
        content = _render(contents, cards.as_listed(kept, contents.gallery), len(chosen) - len(kept), now)
    if len(content) > budget:
        raise ConfigError(
            f"--max-mb {max_mb:g}: the figures alone take {frame / 1e6:.2f} MB.",
            f"Give at least {frame / 1e6 * 1.2 + 0.01:.2f}.",
        )
    return Page(content, len(kept), len(chosen) - len(kept))


def script_json(value: object) -> str:
    """JSON that can stand in a script element: nothing in it opens or closes a tag.

    >>> script_json({"name": "</script><b>"})
    '{"name":"\\\\u003c/script\\\\u003e\\\\u003cb\\\\u003e"}'
    """
    plain = json.dumps(value, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return plain.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


# --- the budget ---------------------------------------------------------------------------------------------------


def _in_turn(gallery: Gallery) -> Iterator[Example]:
    """All examples: the first of each shelf of each class, then the second of each, ..."""
    shelves = [gallery.shelf(name, kind) for kind in cards.SHELVES for name in gallery.classes]
    for i in range(max((len(s) for s in shelves), default=0)):
        yield from (shelf[i] for shelf in shelves if i < len(shelf))


def _cost(example: Example, with_photo: bool) -> int:
    """An upper bound of what an example adds to the page, in bytes."""
    numbers = 14  # for indices, commas and headings that come with it
    size = len(cards.card(example, 999_999).encode()) + len(script_json(cards.card_data(example, 999_999))) + numbers
    return size + (len(script_json(cards.photo_data(example.photo))) + 1 if with_photo else 0) + 300


# --- the page -----------------------------------------------------------------------------------------------------


def _render(contents: Contents, examples: Sequence[Example], left_out: int, now: datetime) -> bytes:
    style = files("wildcat.report").joinpath("report.css").read_text(encoding="utf-8") + _shade_rules()
    scripts = (("wildcat.viz", "static/maps.js"), ("wildcat.report", "report.js"))
    script = "".join(files(package).joinpath(name).read_text(encoding="utf-8") for package, name in scripts)
    policy = (
        f"default-src 'none'; img-src data:; style-src '{_hash(style)}'; script-src '{_hash(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    sections = [
        ("figures", "Figures", figures.figure_tiles(contents)),
        ("training", "Training", figures.training(contents.history)),
        ("classes", "Classes", figures.class_table(contents)),
        ("curves", "Precision and recall", figures.curves(contents)),
        ("confusion", "Confusion", figures.confusion(contents)),
        ("gallery", "Images", cards.gallery_blocks(contents, examples, left_out)),
    ]
    present = [(key, name, body) for key, name, body in sections if body]
    links = "".join(f'<li><a href="#{key}">{text(name)}</a></li>' for key, name, _ in present)
    body = "".join(
        f'<section id="{key}" aria-labelledby="h-{key}"><h2 id="h-{key}">{text(name)}</h2>{inner}</section>'
        for key, name, inner in present
    )
    facts = "".join(f"<div><dt>{text(k)}</dt><dd>{text(v)}</dd></div>" for k, v in contents.facts.items())
    notes = "".join(f'<p class="note">{text(note)}</p>' for note in contents.notes)
    page = f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="generator" content="wildcat {__version__}">
<title>{text(contents.title)}</title>
<style>{style}</style>
</head>
<body data-layer="heat" class="show-points show-boxes">
<a class="skip" href="#main">Skip to the content</a>
<header class="top"><h1>{text(contents.title)}</h1><dl class="facts">{facts}</dl>{notes}</header>
<nav aria-label="Sections"><ul>{links}</ul><button id="theme" type="button" hidden>Dark</button></nav>
<main id="main">{body}</main>
<footer><p>Made by wildcat {__version__} on {now:%Y-%m-%d %H:%M} UTC. This file needs no network and asks for none.
Stored numbers are raw; only the display rescales them.</p></footer>
{_VIEWER}
<script type="application/json" id="store">{script_json(cards.store(examples))}</script>
<script>{script}</script>
</body>
</html>
"""
    return page.encode()


_VIEWER = """<dialog id="viewer" aria-labelledby="viewer-title"><div class="viewer-head"><h2 id="viewer-title"></h2>
<div class="viewer-buttons"><button type="button" id="previous" aria-label="Previous image">&#8592;</button>
<button type="button" id="next" aria-label="Next image">&#8594;</button>
<button type="button" id="close" aria-label="Close">Close</button></div></div>
<div id="viewer-tools"></div><div id="viewer-body"></div></dialog>"""


def _hash(content: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}"


def _shade_rules() -> str:
    """Style of the heat table: equal steps of lightness in one blue, away from the page's own ground in both themes."""
    half = colormap_table("blue_red")[:129]
    light: list[str] = []
    dark: list[str] = []
    for i in range(1, figures.SHADES + 1):
        for rules, index in ((light, round(124 - 122 * i / figures.SHADES)), (dark, round(110 * i / figures.SHADES))):
            color = [int(v) for v in half[index]]
            ink = readable_on(color)
            rules.append(f"--q{i}:rgb({','.join(map(str, color))});--i{i}:rgb({','.join(map(str, ink))});")
    uses = "".join(f".q{i}{{background:var(--q{i});color:var(--i{i})}}" for i in range(1, figures.SHADES + 1))
    night = "".join(dark)
    return (
        f":root{{{''.join(light)}}}@media (prefers-color-scheme:dark){{:root:not([data-theme=light]){{{night}}}}}"
        f":root[data-theme=dark]{{{night}}}{uses}\n"
    )
