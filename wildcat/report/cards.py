"""The images of a report: a card for each example as HTML, and the data the page's script draws it from."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wildcat.report.charts import text
from wildcat.report.contents import Contents
from wildcat.report.examples import Example, Gallery, Kind, Photo
from wildcat.report.figures import percent
from wildcat.viz.colors import colormap_table

COLORMAPS = ("inferno", "viridis", "cividis")

SHELVES: dict[Kind, tuple[str, str]] = {
    "hit": ("Highest scores where present", "confident hits"),
    "miss": ("Lowest scores where present", "worst misses"),
    "alarm": ("Highest scores where absent", "false alarms"),
    "found": ("Highest scores", "nothing is known of the truth"),
}


_TOOLS = """<div id="tools-home"><div id="tools" role="group" aria-label="What is drawn on the images">
<fieldset><legend class="visually-hidden">Overlay</legend>
<label><input type="radio" name="layer" value="heat" checked><span>Heatmap</span></label>
<label><input type="radio" name="layer" value="mask"><span>Mask</span></label>
<label><input type="radio" name="layer" value="none"><span>None</span></label></fieldset>
<label class="range">Opacity<input id="opacity" type="range" min="0" max="100" value="75"></label>
<label class="check"><input type="checkbox" data-show="points" checked><i class="key-point"></i>Point</label>
<label class="check"><input type="checkbox" data-show="boxes" checked><i class="key-box"></i>Boxes</label>
<label class="check"><input type="checkbox" data-show="truth"><i class="key-truth"></i>True boxes</label>
<label>Colours<select id="colormap"></select></label></div></div>"""


def gallery_blocks(contents: Contents, examples: Sequence[Example], left_out: int) -> str:
    """The images of each class under a bar of tools; `examples` come in the order of `as_listed`."""
    gallery = contents.gallery
    numbers = {id(example): i for i, example in enumerate(examples)}
    shelves: dict[tuple[str, str], list[Example]] = {}
    for example in examples:
        shelves.setdefault((example.class_name, example.kind), []).append(example)
    labelled = contents.figures is not None
    known = [(i, name) for i, name in enumerate(gallery.classes) if labelled or gallery.counts[name, "found"]]
    if not labelled:  # the commonest first
        known.sort(key=lambda pair: -gallery.counts[pair[1], "found"])
    blocks = "".join(_class_block(i, name, contents, shelves, numbers) for i, name in known)
    cut = f" {left_out:,} more were chosen and do not fit the size of this file (--max-mb)." if left_out else ""
    options = "".join(f'<option value="class-{i}">{text(name)}</option>' for i, name in known)
    jump = f'<label>Go to<select id="jump"><option value="">class …</option>{options}</select></label>'
    return (
        f"<p>{len(examples):,} views of {len({id(e.photo) for e in examples}):,} images, out of "
        f"{gallery.images:,} looked at, at most {gallery.examples:,} of a kind and class.{cut} "
        f"Open one to see it large, with the maps behind the class"
        f"{' and the truth beside it' if labelled else ''}; the arrow keys move.</p>"
        "<noscript><p class='note'>The images are drawn by the script inside this file; allow it to see them.</p>"
        f'</noscript><div class="bar-tools">{_TOOLS}<div class="find">{jump}</div></div>{blocks}'
    )


def as_listed(examples: Sequence[Example], gallery: Gallery) -> list[Example]:
    """In the order of the page."""
    place = {name: i for i, name in enumerate(gallery.classes)}
    kinds = list(SHELVES)
    return sorted(examples, key=lambda e: (place[e.class_name], kinds.index(e.kind)))


def _class_block(
    i: int,
    name: str,
    contents: Contents,
    shelves: Mapping[tuple[str, str], Sequence[Example]],
    numbers: Mapping[int, int],
) -> str:
    counts = contents.gallery.counts
    rows = []
    if contents.figures is None:
        kinds: tuple[Kind, ...] = ("found",)
        count = counts[name, "found"]
        line = f"{count:,} {'image' if count == 1 else 'images'}"
    else:
        kinds = ("hit", "miss", "alarm")
        present, found = counts[name, "hit"], counts[name, "hit predicted"]
        ap = contents.figures["classification"]["ap"].get(name)
        line = (
            f"present in {present:,}: {found:,} found, {present - found:,} missed · "
            f"{counts[name, 'alarm predicted']:,} false alarms · AP {percent(ap)} %"
        )
    for kind in kinds:
        cards = shelves.get((name, kind), [])
        heading, meaning = SHELVES[kind]
        if not cards:
            continue
        listed = "".join(f"<li>{card(e, numbers[id(e)])}</li>" for e in cards)
        rows.append(
            f'<h4>{heading} <span class="soft">{meaning}</span></h4>'
            f'<ul class="shelf" aria-label="{text(f"{name}: {heading}")}">{listed}</ul>'
        )
    empty = "" if rows else "<p class='soft'>No images of this class are shown.</p>"
    return (
        f'<section class="class" id="class-{i}" aria-labelledby="c-{i}"><h3 id="c-{i}"><bdi>{text(name)}</bdi></h3>'
        f'<p class="soft">{line}</p>{"".join(rows)}{empty}</section>'
    )


def card(example: Example, number: int) -> str:
    """The button of an example; the script draws the image into its frame."""
    photo = example.photo
    good = example.verdict in ("found", "rightly rejected", "predicted")
    sign = "✓" if good else "✗" if example.kind != "found" else "○"
    return (
        f'<button type="button" class="card" data-card="{number}" aria-label="{text(describe(example))}">'
        f'<span class="frame"></span><span class="name"><bdi>{text(photo.name)}</bdi></span>'
        f'<span class="verdict {"good" if good else "bad"}"><b aria-hidden="true">{sign}</b> {text(example.verdict)}'
        f'<span class="num">{100 * example.probability:.0f} %</span></span></button>'
    )


def describe(example: Example) -> str:
    """An example in words, for who cannot see it."""
    photo = example.photo
    parts = [
        f"{photo.name}, {photo.width} by {photo.height} pixels",
        f"{example.class_name}: {example.verdict}, probability {100 * example.probability:.0f} percent, "
        f"score {example.score:.2f}",
    ]
    place = f"point at x {example.point[0]:.0f}, y {example.point[1]:.0f}"
    if example.point_inside is not None:
        place += ", inside a true box" if example.point_inside else ", outside the true boxes"
    parts.append(place)
    if example.boxes:
        parts.append(f"{len(example.boxes)} predicted {'box' if len(example.boxes) == 1 else 'boxes'}")
    return "; ".join(parts)


def store(examples: Sequence[Example]) -> dict[str, Any]:
    """What the script draws from; cards and photos refer to each other by their positions."""
    order: dict[int, int] = {}  # photo -> its position
    photos: list[Photo] = []
    cards = []
    for example in examples:
        if id(example.photo) not in order:
            order[id(example.photo)] = len(photos)
            photos.append(example.photo)
        cards.append(card_data(example, order[id(example.photo)]))
    return {
        "colormaps": {name: _base64(colormap_table(name)) for name in COLORMAPS} if examples else {},
        "photos": [photo_data(photo) for photo in photos],
        "cards": cards,
    }


def photo_data(photo: Photo) -> dict[str, Any]:
    """An image for the script."""
    return {
        "src": f"data:{photo.media_type};base64,{base64.b64encode(photo.image).decode()}",
        "size": [photo.width, photo.height],
        "name": _clean(photo.name),
        "mask": _png(photo.mask),
        "truth": _png(photo.truth_mask),
        "legend": [[_clean(name), "#{:02x}{:02x}{:02x}".format(*color)] for name, color in photo.legend.items()],
        "predicted": [[_clean(name), round(probability, 3)] for name, probability in photo.predicted],
        "present": None if photo.present is None else [_clean(name) for name in photo.present],
    }


def card_data(example: Example, photo: int) -> dict[str, Any]:
    """An example for the script; `photo` is the position of its image."""
    maps = example.modalities
    return {
        "photo": photo,
        "class": _clean(example.class_name),
        "words": _clean(describe(example)),
        "verdict": example.verdict,
        "score": round(example.score, 3),
        "probability": round(example.probability, 4),
        "grid": list(example.heat.shape),
        "heat": _base64(example.heat),
        "maps": [] if maps is None else [_base64(m) for m in maps],
        "opacity": round(example.opacity, 3),
        "point": [round(v, 1) for v in example.point],
        "inside": example.point_inside,
        "boxes": [[round(v, 1) for v in box] for box in example.boxes],
        "truth": None
        if example.truth_boxes is None
        else [[*(round(v, 1) for v in box), int(difficult)] for box, difficult in example.truth_boxes],
    }


def _clean(name: str) -> str:
    """A name without lone surrogates, which JSON would carry into the page."""
    return name.encode("utf-8", "backslashreplace").decode()


def _png(content: bytes | None) -> str | None:
    return None if content is None else f"data:image/png;base64,{base64.b64encode(content).decode()}"


def _base64(array: NDArray[np.uint8]) -> str:
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()
