"""Fonts for text on images: Pillow's own font, otherwise one of the system that has every character of the text."""

from __future__ import annotations

import importlib.util
import itertools
import os
import re
import sys
import unicodedata
from functools import cache, lru_cache
from pathlib import Path
from typing import cast

from PIL import ImageFont, features

MAX_FONTS = 2000  # files of the system that are searched

# Scripts whose letters change their form or order (right to left, Indic, Thai, Khmer, ...).
_SHAPED = re.compile("[\u0590-\u08ff\u0900-\u109f\u1780-\u18af\ufb1d-\ufdff\ufe70-\ufeff]")
_STYLES = re.compile(r"bold|italic|oblique|mono|condensed|thin|light|black|serif|math|narrow", re.IGNORECASE)
_NO_LETTERS = ("lastresort", "adobeblank")  # fonts that draw a box, or nothing, for every character


def text_font(text: str, size: int) -> ImageFont.FreeTypeFont:
    """A font of `size` pixels for one of `drawn_texts`, which all can be drawn."""
    return cast(ImageFont.FreeTypeFont, _load(font_file(text) or "", size))


def drawable(name: str) -> bool:
    """Whether a name can be drawn, with a number behind it."""
    return font_file(f"{name}0123456789%#") is not None


def drawn_texts(texts: list[str]) -> list[str]:
    """The texts, with `#1`, `#2`, ... (their position) for those that cannot be drawn."""
    return [text if font_file(text) is not None else f"#{i}" for i, text in enumerate(texts, 1)]


@lru_cache(maxsize=4096)
def font_file(text: str) -> str | None:
    """The file of a font with every character of a text; empty: Pillow's own; None: there is none on this system."""
    shaped = _SHAPED.search(text) is not None
    if shaped and not (features.check_feature("raqm") and features.check_feature("fribidi")):
        return None
    fonts = itertools.chain([""], system_fonts())
    return next((font for font in fonts if all(_has_glyph(font, c) for c in text)), None)


@cache
def system_fonts() -> tuple[str, ...]:
    """The font files of the system, and of matplotlib if it is installed; plain sans-serif faces first."""
    home = Path.home()
    if sys.platform == "win32":
        local = Path(os.environ.get("LOCALAPPDATA", home))
        folders = [Path(os.environ.get("WINDIR", "C:/Windows")) / "Fonts", local / "Microsoft/Windows/Fonts"]
    elif sys.platform == "darwin":
        folders = [Path("/System/Library/Fonts"), Path("/Library/Fonts"), home / "Library/Fonts"]
    else:
        shared = os.environ.get("XDG_DATA_DIRS") or "/usr/local/share:/usr/share"
        folders = [Path(folder) / "fonts" for folder in shared.split(":") if folder]
        folders += [home / ".local/share/fonts", home / ".fonts"]
    if (plots := importlib.util.find_spec("matplotlib")) is not None and plots.origin:  # brings a font
        folders.append(Path(plots.origin).parent / "mpl-data" / "fonts" / "ttf")
    walked = (Path(root) / name for folder in folders for root, _, names in os.walk(folder) for name in sorted(names))
    fonts = (p for p in walked if p.suffix.lower() in (".ttf", ".otf", ".ttc", ".otc"))
    usable = [p for p in itertools.islice(fonts, MAX_FONTS) if not p.stem.lower().startswith(_NO_LETTERS)]
    return tuple(map(str, sorted(usable, key=_rank)))


def _rank(path: Path) -> tuple[bool, bool, str]:
    name = path.stem.replace("Sans", "sans").replace("sansSerif", "sans")
    return bool(_STYLES.search(name)), "sans" not in name.lower(), str(path)


@lru_cache(maxsize=64)
def _load(file: str, size: int) -> ImageFont.FreeTypeFont | None:
    try:  # all wheels of Pillow have FreeType, and so its own font can be scaled
        return ImageFont.truetype(file, size) if file else cast(ImageFont.FreeTypeFont, ImageFont.load_default(size))
    except (OSError, ValueError):  # a damaged file, or bitmaps of another size alone, as in fonts of coloured emoji
        return None


@lru_cache(maxsize=65_536)
def _has_glyph(file: str, character: str) -> bool:
    """Whether a font draws a character as something else than what it draws for characters it does not have."""
    if (font := _load(file, 32)) is None:
        return False
    try:
        drawn, *missing = (_bitmap(font, c) for c in (character, "\U0010ffff", "\u0378"))  # the others are none
    except ValueError:  # of raqm, for invisible characters in some fonts
        return False
    if not drawn[1].strip(b"\0"):
        return unicodedata.category(character) in ("Zs", "Cf", "Mn")
    return drawn not in missing


def _bitmap(font: ImageFont.FreeTypeFont, character: str) -> tuple[tuple[int, int], bytes]:
    mask = font.getmask(character, "L")
    return mask.size, bytes(mask)
