"""Files of any content: every reader returns their content or a WildcatError, and never executes or over-allocates.

What Hypothesis makes follows from the tests alone. `tests/fuzz.py` goes on from the same readers with coverage.
"""

from __future__ import annotations

import io
import json
import pickle
import shutil
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz import READERS, make_places
from wildcat.errors import RunError, WildcatError
from wildcat.models.manifest import MANIFEST
from wildcat.models.run import STATE, WEIGHTS, load_state, open_run, weight_shapes

few = settings(
    max_examples=60, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Iterator[Path]:
    """A folder with a small valid file for each reader, which a test may overwrite."""
    with pytest.MonkeyPatch.context() as patch:
        place = tmp_path_factory.mktemp("fuzz")
        patch.setenv("WILDCAT_CACHE", str(place / "cache"))
        make_places(place, tiny)
        yield place


def mutations(content: bytes) -> st.SearchStrategy[bytes]:
    """Cuts, edits and odd words in a valid file, and arbitrary bytes."""
    words = st.sampled_from(
        [b"\0", b"\xff", b"1e999", b"-1", b"null", b"[]", b"{}", b'"', b"9" * 5000, b"&a", b"a" * 300]
    )
    at = st.integers(0, len(content))

    def changed(start: int, length: int, word: bytes) -> bytes:
        return content[:start] + word + content[start + length :]

    edits = st.builds(changed, at, st.integers(0, 40), st.one_of(words, st.binary(max_size=20)))
    return st.one_of(edits, st.binary(max_size=200), at.map(lambda n: content[:n]), words)


@pytest.mark.parametrize("name", READERS)
def test_any_bytes_are_read_or_refused_by_name(place: Path, name: str) -> None:
    reader = READERS[name]
    path = place / reader.file
    sound = path.read_bytes()
    reader.read(place)
    refused = 0

    @few
    @given(mutations(sound))
    def check(content: bytes) -> None:
        nonlocal refused
        path.write_bytes(content)
        try:
            reader.read(place)
        except WildcatError as error:
            refused += 1
            assert error.message.endswith((".", "?")) and len(error.message) < 3000

    try:
        check()
    finally:
        path.write_bytes(sound)
    assert refused > 10


# --- weights and states of a stranger ---------------------------------------------------------------------------------


@pytest.fixture
def run(place: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(place / "run", tmp_path / "run"))


def one_tensor(shape: list[int], name: str = "transfer.weight", kind: str = "F32") -> dict[str, Any]:
    return {name: {"dtype": kind, "shape": shape, "data_offsets": [0, 4]}}


def with_header(header: object, length: int | None = None, data: bytes = b"") -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


@pytest.mark.parametrize(
    "content",
    [
        with_header({}, length=2**63),
        with_header({}, length=10**8),
        with_header(
            {"transfer.weight": {"dtype": "F32", "shape": [2**40, 2**20], "data_offsets": [0, 4]}}, data=b"\0" * 4
        ),
        with_header({"transfer.weight": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, data=b"\0" * 4),
        with_header({"other": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, data=b"\0" * 4),
        with_header({"transfer.weight": {"dtype": "Q9", "shape": [1], "data_offsets": [0, 4]}}, data=b"\0" * 4),
        with_header([1, 2]),
        pickle.dumps({"transfer.weight": 1}),
        b"",
    ],
)
def test_weights_of_a_stranger_are_refused_by_their_header(run: Path, content: bytes) -> None:
    (run / WEIGHTS).write_bytes(content)
    with pytest.raises(RunError, match=r"is damaged|does not fit"):
        open_run(run).load_model()


def test_settings_that_ask_for_all_memory_are_refused_before_a_network_is_made(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = weight_shapes(run / WEIGHTS)["transfer.weight"][0]
    manifest = json.loads((run / MANIFEST).read_text())
    manifest["classes"] = [str(i) for i in range(100_000)]
    (run / MANIFEST).write_text(json.dumps(manifest))
    monkeypatch.setattr("wildcat.models.run.model_from_config", lambda *_, **__: pytest.fail("it was made"))
    assert rows < 1000
    with pytest.raises(RunError, match=r"first transfer\.weight"):
        open_run(run).load_model()


class Harm:
    """Runs when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


def packed(content: bytes, kind: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", kind) as file:
        file.writestr("archive/data.pkl", content)
        file.writestr("archive/version", b"3")
    return buffer.getvalue()


def test_states_of_a_stranger_are_refused_unread(tmp_path: Path) -> None:
    harm, path = tmp_path / "harm", tmp_path / STATE
    bomb = bytes(50_000_000)
    contents = [
        packed(bomb),
        packed(pickle.dumps(Harm(harm)), zipfile.ZIP_STORED),
        pickle.dumps(Harm(harm)),
        b"PK",
        bomb,
    ]
    for content in contents:
        path.write_bytes(content)
        with pytest.raises(RunError, match="damaged or half-written"):
            load_state(path)
    for value in ([1, 2], 3, "state"):
        torch.save(value, path)
        with pytest.raises(RunError, match="damaged or half-written"):
            load_state(path)
    assert not harm.exists()


Change = Callable[[dict[str, Any]], object]


@pytest.mark.parametrize(
    "change",
    [
        lambda s: s.update(position={"epoch": "many"}),
        lambda s: s["position"].update(epoch=-1),
        lambda s: s["position"].update(step=1.5),
        lambda s: s.update(optimizer={}),
        lambda s: s["optimizer"]["param_groups"].clear(),
        lambda s: s["optimizer"]["param_groups"][0].pop("peak_lr"),
        lambda s: s["optimizer"]["param_groups"][0].update(momentum="a"),
        lambda s: s["optimizer"]["state"][0].update(momentum_buffer=torch.zeros(7)),
        lambda s: s.update(generators={"cpu": torch.zeros(3)}),
        lambda s: s.update(generators=[]),
        lambda s: s["model"].update({"transfer.weight": "heavy"}),
        lambda s: s.update(model=[]),
    ],
)
def test_states_that_fit_no_training_are_refused(
    run: Path, shapes_folder: Path, change: Change, capsys: pytest.CaptureFixture[str]
) -> None:
    from wildcat.cli import main

    state = load_state(run / STATE)
    state["position"].update(epoch=0, step=1)  # a training that has steps left reads all of its state
    change(state)
    torch.save(state, run / STATE)
    assert main(["train", str(shapes_folder), "--out", str(run), "--resume"]) == 1
    told = capsys.readouterr().err
    assert "state.pt" in told and "Traceback" not in told
