"""Labels as people write them: what the cells of a label column mean, and which names are one class."""

from __future__ import annotations

import ast
import csv
import json
import re
import shlex
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

from wildcat.errors import ConfigError, DataError

# Cells of a missing value, as pandas, R, SQL and Excel write it. Lower-case "none" is a name people give to a class.
NO_LABEL = frozenset({"", "nan", "NaN", "NAN", "None", "NULL", "null", "<NA>", "N/A", "n/a", "#N/A", "[]", "{}"})

CLASSES_HINT = "Write --classes a,b or give a .txt file, one per line."
WHOLE = "none"  # the separator that keeps every cell as one name
_CERTAIN = re.compile(r"[;|\n\t]")  # no name of a class holds these
_LIKELY = (",", "#", "/", "+", "&", " ")  # separate labels only where the other cells of the column confirm it
_NEGATED = re.compile(r"(no|not|non|without|with)\b", re.IGNORECASE)  # "no helmet" beside "helmet" is one name
_LIST_KEYS = re.compile(r"(choices?|tags?|class(es)?|categor(y|ies)|name|\w*labels?)$")  # of Label Studio, VIA, ...

Error = Callable[[int, str, str], DataError]  # number of a cell, problem, hint -> the error that names the place


def normal_name(text: str) -> str:
    """A name without outer blanks and invisible marks, in Unicode's composed form (NFC).

    >>> normal_name(" cafe\\u0301\\ufeff ") == "caf\\u00e9"
    True
    """
    return unicodedata.normalize("NFC", text.strip(" \t\r\n\f\v\u00a0\u200b\ufeff"))


def similar_names(names: Iterable[str]) -> list[str]:
    """A note on each group of names that differ only in case, blanks, leading zeros or a trailing `.0`.

    >>> similar_names(["Cat", "cat", "dog", "01", "1"])[0]
    "Classes 'Cat', 'cat' differ in case, blanks or zeros alone: they stay separate; write them alike if they are one."
    """
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(name_key(name), []).append(name)
    return [
        f"Classes {', '.join(map(repr, group))} differ in case, blanks or zeros alone: they stay separate; write them "
        "alike if they are one."
        for group in groups.values()
        if len(group) > 1
    ]


def name_key(name: str) -> str:
    """A key that names have in common if they are probably meant to be the same."""
    number = re.fullmatch(r"0*(\d+)(\.0+)?", name)
    return number[1] if number else " ".join(re.split(r"[\s_]+", normal_name(name).casefold()))


def parse_names(text: str) -> tuple[str, ...]:
    """Class names from `a,b`, a name with a comma in double quotes, or from a .txt file with one per line.

    Raises:
        ConfigError: no name, one twice, or a .txt file that does not exist.

    >>> parse_names('cat, "crane, bird"')
    ('cat', 'crane, bird')
    """
    path = Path(text).expanduser()
    if path.suffix == ".txt":
        if not path.is_file():
            raise ConfigError(f"--classes {text}: there is no such file.", CLASSES_HINT)
        found = path.read_text(encoding="utf-8-sig", errors="replace").splitlines()
    else:
        found = next(csv.reader([text], skipinitialspace=True), [])
    names = [name for name in map(normal_name, found) if name]
    if not names or len(set(names)) < len(names):
        problem = f"{Counter(names).most_common(1)[0][0]!r} is named twice" if names else "it names no class"
        raise ConfigError(f"--classes {text}: {problem}.", CLASSES_HINT)
    return tuple(names)


def parse_labels(
    cells: Sequence[str], error: Error, separator: str | None = None, classes: Collection[str] = ()
) -> tuple[list[list[str]], list[str]]:
    """The names in each cell of a label column, and notes on how they were read.

    A cell is a name, several names joined by a separator, a list in the form of JSON, Python or NumPy, or an object of
    Label Studio (`{"choices": ["a"]}`). Text stays text: "01" is another name than "1". Empty cells and missing values
    ("NaN") hold no name.

    Args:
        separator: between names; "none": every cell is one name; None: decided from all cells. ";", "|", tabs and
            line breaks always separate. A comma does if the names it separates occur elsewhere in the column; "#", "/",
            "+", "&" if each of these names also stands alone, a blank if they occur in several combinations.
        classes: names that are known to be classes; they are never split.

    Raises:
        DataError: a list or object that cannot be read, or commas or blanks of unclear meaning.
    """
    if separator is not None:
        separator = {r"\t": "\t", r"\n": "\n", "tab": "\t", "comma": ",", "blank": " "}.get(separator, separator)
    if separator == "":
        raise ConfigError("--separator is empty.", f"Give the text between labels, or {WHOLE} if each cell is one.")
    notes: list[str] = []
    texts = [cell if cell in classes else normal_name(cell) for cell in cells]
    missing = [text for text in texts if text in NO_LABEL and text not in classes]
    if written := Counter(text for text in missing if text not in ("", "[]", "{}")):
        word, count = written.most_common(1)[0]
        notes.append(f"{count} of {len(cells)} cells hold {word!r}: read as no label.")
    texts = ["" if text in NO_LABEL and text not in classes else text for text in texts]
    listed = {} if separator == WHOLE else _listed_rows(texts, error)
    plain = {row: text for row, text in enumerate(texts) if text and row not in listed}
    if separator is None:
        # Beside lists a plain cell is one name: what wrote the column writes several as a list.
        split, note = (None, "") if listed else _find_separator(plain, error, classes)
    else:
        split, note = (None if separator == WHOLE else re.compile(re.escape(separator))), ""
    notes += [note] if note else []
    rows = []
    for row in range(len(texts)):
        whole = [plain[row]] if row in plain else listed.get(row, [])
        parts = split.split(whole[0]) if split and row in plain and whole[0] not in classes else whole
        rows.append(list(dict.fromkeys(name for name in map(normal_name, parts) if name)))
    if any(unicodedata.normalize("NFC", cell) != cell for cell in cells):
        notes.append("Labels in decomposed Unicode are read in composed form (NFC): equal names are one class.")
    names = {name for names in rows for name in names}
    suspicious = [name for name in sorted(names) if re.search(r"[;|,]", name) and name not in classes]
    if suspicious and separator != WHOLE and not listed:
        notes.append(f"Label {suspicious[0]!r} may be several: name what separates them with --separator.")
    return rows, notes


def _listed_rows(texts: Sequence[str], error: Error) -> dict[int, list[str]]:
    """Number of each cell that holds a list or an object -> its names."""
    found = {}
    for row, text in enumerate(texts):
        try:
            names = _listed(text)
        except (ValueError, RecursionError) as problem:
            raise error(
                row,
                f"{text[:60]!r} is no list of labels ({str(problem)[:80]}).",
                'Write ["cat", "dog"] or cat;dog, or add --separator none if each cell is one label.',
            ) from problem
        if names is not None:
            found[row] = names
    return found


def _listed(text: str) -> list[str] | None:
    """The names in a cell that holds a list or an object; None for any other cell.

    >>> _listed("['a' 'b']"), _listed('{"choices": ["a"]}'), _listed("[01, 2]"), _listed("(a)")
    (['a', 'b'], ['a'], ['01', '2'], None)
    """
    if len(text) < 2 or text[0] + text[-1] not in ("[]", "{}", "()"):
        return None
    with_commas = re.sub(r"""(?<=['"])\s+(?=['"])""", ", ", text)  # NumPy prints no commas; Python would join the two
    for parse in (_from_json, ast.literal_eval):
        try:
            value = parse(with_commas)
        except (ValueError, SyntaxError, TypeError, MemoryError):
            continue
        return _names_in(value) if text[0] != "(" or isinstance(value, tuple) else None
    if text[0] == "(":
        return None
    if re.search(r"[\[\]{}:]", text[1:-1]):
        raise ValueError("it is damaged or nested")
    return [part.strip(" '\"") for part in text[1:-1].split(",") if part.strip(" '\"") not in NO_LABEL]


def _from_json(text: str) -> Any:
    return json.loads(text, parse_int=str, parse_float=str)


def _names_in(value: Any) -> list[str]:
    """The names in a parsed list or object; raises ValueError where it is not certain which they are."""
    if value is None or str(value) == "nan":
        return []
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        return [str(value)]
    if isinstance(value, list | tuple | set | frozenset):
        parts = sorted(value, key=str) if isinstance(value, set | frozenset) else value
        if any(isinstance(part, list | tuple) for part in parts):
            raise ValueError("a list within a list")
        return [name for part in parts for name in _names_in(part)]
    if isinstance(value, dict):
        if value and all(flag in ("0", "1", 0, 1) for flag in value.values()):  # {"cat": true, "dog": false}
            return [str(name) for name, flag in value.items() if flag in ("1", 1)]
        keys = [key for key in value if _LIST_KEYS.match(str(key).lower())]
        if len(keys) == 1:
            return _names_in(value[keys[0]])
    raise ValueError("an object without choices or labels" if isinstance(value, dict) else "neither names nor numbers")


def _find_separator(
    cells: dict[int, str], error: Error, classes: Collection[str]
) -> tuple[re.Pattern[str] | None, str]:
    """What separates labels in a column, and a note; None: nothing does."""
    texts = set(cells.values()) - set(classes)
    if any(map(_CERTAIN.search, texts)):
        marks = sorted({mark for text in texts for mark in _CERTAIN.findall(text)})
        return _CERTAIN, "" if marks == [";"] else _split_note(marks, texts)
    for mark in _LIKELY:
        parts = {text: [part for part in map(normal_name, text.split(mark)) if part] for text in {*texts, *classes}}
        joined = {text: names for text, names in parts.items() if len(names) > 1 and text not in classes}
        if not joined:
            continue
        inside = {name for names in joined.values() for name in names}
        alone = {names[0] for names in parts.values() if len(names) == 1} & inside
        uses = Counter(name for names in parts.values() for name in set(names))
        recurring = {name for name in inside if uses[name] > 1}
        varied = len(set(map(len, joined.values()))) > 1
        confirmed = {",": bool(recurring), "#": bool(recurring), " ": recurring == inside and varied}
        if confirmed.get(mark, inside == alone) or inside <= set(classes):
            return re.compile(re.escape(mark)), _split_note([mark], joined)
        example, flag = min(joined), "--separator " + ("blank" if mark == " " else shlex.quote(mark))
        described = sum(bool(alone & set(names)) for text, names in joined.items() if not _NEGATED.match(text))
        if mark == "," or (mark == " " and described > 1 and len(alone) > 1):
            raise error(
                next(row for row, text in cells.items() if text == example),
                f"label {example!r} may be one name or several.",
                f"Add {flag} if it is several, or --separator none if each cell is one label.",
            )
        if recurring and (mark != " " or alone or recurring == inside):
            return None, f"Label {example!r} is read as one name; {flag} splits it."
    return None, ""


def _split_note(marks: Iterable[str], texts: Iterable[str]) -> str:
    example = min(text for text in texts if any(mark in text for mark in marks))
    names = " and ".join(repr(mark) for mark in marks)
    return f"Labels are separated by {names}, as in {example[:60]!r} (--separator none: each cell is one label)."
