"""Videos: which frames are read, upright, until they break; their rows and the annotated video."""

from __future__ import annotations

import json
import pickle
import struct
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.test_predictor import colour_finder
from wildcat.cli import images as cli_images
from wildcat.cli import main
from wildcat.cli.options import DataCommand
from wildcat.data import video_frames
from wildcat.data.image_ref import load_image
from wildcat.data.video import VideoFrame, list_frames, load_frames, parse_every
from wildcat.errors import ConfigError, ImageError, MissingExtra
from wildcat.export.predictions import PredictionWriter

av = pytest.importorskip("av")

RATE = 10
COLOURS = ((255, 0, 0), (0, 255, 0), (0, 0, 255))  # of the three seconds of the clip
Clip = list[Image.Image]


def colour_clip() -> Clip:
    return [Image.new("RGB", (64, 48), colour) for colour in COLOURS for _ in range(RATE)]


def write_clip(path: Path, frames: Clip, codec: str = "mpeg4", start: int = 0) -> Path:
    """A video of 10 frames per second; each is a key frame."""
    options = {"movflags": "+faststart"} if path.suffix == ".mp4" else {}
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream(codec, rate=RATE)
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = *frames[0].size, "yuv420p", 1
        for number, image in enumerate(frames):
            frame = av.VideoFrame.from_image(image)
            frame.pts, frame.time_base = start + number, Fraction(1, RATE)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return write_clip(tmp_path / "clip.mp4", colour_clip())


def brightest(image: Image.Image) -> int:
    return int(np.asarray(image).mean((0, 1)).argmax())


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.avi"])
def test_a_frame_at_each_step(tmp_path: Path, name: str) -> None:
    path = write_clip(tmp_path / name, colour_clip())
    frames = list(video_frames(path, every=0.5))
    assert [frame.time for frame in frames] == [0.0, 0.5, 1.0, 1.5, 2.0, 2.5]
    assert [frame.name for frame in frames][1] == f"{path}#t=0.500"
    assert [brightest(load_image(frame)) for frame in frames] == [0, 0, 1, 1, 2, 2]


def test_gaps_between_frames_and_the_end_lose_no_step(tmp_path: Path) -> None:
    """Frames at 0, 1, 5 and 5.1 s: the steps in the gap have the frame after it, those after the last frame that."""
    path = tmp_path / "gap.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=RATE)
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = 64, 48, "yuv420p", 1
        for pts, colour in ((0, 0), (10, 1), (50, 2), (51, 0)):
            frame = av.VideoFrame.from_image(Image.new("RGB", (64, 48), COLOURS[colour]))
            frame.pts, frame.time_base = pts, Fraction(1, RATE)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    found = [(frame.time, brightest(load_image(frame))) for frame in video_frames(path, 1.0)]
    assert found == [(0, 0), (1, 1), (2, 2), (3, 2), (4, 2), (5, 2)]
    late = [VideoFrame(str(path), time, 0.5) for time in (5.0, 5.15)]
    assert [brightest(load_image(frame)) for frame in load_frames(late, lambda *_: None)] == [2, 0]


def test_steps_are_at_least_one_frame(clip: Path) -> None:
    assert len(list_frames(clip, 0.001)) == 30
    assert len(list_frames(clip, 100)) == 1
    assert [frame.time for frame in list_frames(clip, 0.25)][:3] == [0.0, 0.25, 0.5]


def test_a_video_that_does_not_start_at_zero(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mkv", colour_clip(), start=55)
    assert [brightest(load_image(frame)) for frame in video_frames(path, 1.0)] == [0, 1, 2]


def test_a_frame_can_be_read_alone_and_pickled(clip: Path) -> None:
    frame = pickle.loads(pickle.dumps(list_frames(clip, 0.5)[4]))
    assert frame.image is None
    assert brightest(load_image(frame)) == 2
    with pytest.raises(ImageError, match=r"clip\.mp4#t=9\.000 does not exist: the video ends before"):
        load_image(VideoFrame(str(clip), 9.0, 1.0))


def test_a_phone_held_upright(clip: Path) -> None:
    content = bytearray(write_clip(clip, [Image.new("RGB", (64, 48), "blue")] * 3).read_bytes())
    left = Image.new("RGB", (64, 48), "blue")
    left.paste((255, 0, 0), (0, 0, 32, 48))
    content = bytearray(write_clip(clip, [left] * 3).read_bytes())
    matrix = content.index(b"tkhd") + 44
    content[matrix : matrix + 36] = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30)  # 90 degrees
    clip.write_bytes(content)
    (frame,) = video_frames(clip, 1.0)
    shown = np.asarray(load_image(frame))
    assert shown.shape == (64, 48, 3)
    assert shown[10, 24].argmax() == 0, "what was left is on top"
    assert shown[50, 24].argmax() == 2


@pytest.mark.parametrize(
    ("text", "seconds"), [("0.5s", 0.5), ("2", 2.0), ("250ms", 0.25), (".5", 0.5), (" 3 s ", 3.0), ("1.s", 1.0)]
)
def test_every(text: str, seconds: float) -> None:
    assert parse_every(text) == seconds


@pytest.mark.parametrize("text", ["0", "0s", "-1", "fast", "1m", "", "1e3", "nan"])
def test_a_wrong_step(text: str) -> None:
    with pytest.raises(ConfigError, match=r"give the seconds between two frames, such as 0\.5s"):
        parse_every(text)


def break_clip(path: Path, kind: str) -> None:
    content = bytearray(path.read_bytes())
    half = len(content) // 2
    if kind == "cut":
        path.write_bytes(content[:half])
    else:
        content[half:] = np.random.default_rng(0).bytes(len(content) - half)
        path.write_bytes(content)


@pytest.mark.parametrize("kind", ["cut", "noise"])
def test_a_video_that_breaks_keeps_the_frames_before(clip: Path, kind: str) -> None:
    noisy = [Image.fromarray(np.random.default_rng(i).integers(0, 256, (48, 64, 3), dtype=np.uint8)) for i in range(60)]
    write_clip(clip, noisy, "libx264" if "libx264" in av.codecs_available else "mpeg4")
    break_clip(clip, kind)
    broken: list[tuple[float, str, int]] = []
    listed = list_frames(clip, 0.5)
    read = list(load_frames(listed, lambda frame, error, count: broken.append((frame.time, error.message, count))))
    ((time, message, missing),) = broken
    assert 4 <= len(read) <= 7
    assert (time, missing) == (len(read) / 2, 12 - len(read))
    assert message.startswith(f"{clip} breaks at ")
    assert " of 6.0 s (" in message
    with pytest.raises(ImageError, match="breaks at"):
        list(video_frames(clip, 0.5))


def test_files_that_are_no_videos(clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "text.mp4").write_text("a text")
    with av.open(str(tmp_path / "sound.mkv"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), layout="mono")
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))
        container.mux(stream.encode())
    for name, said in (
        ("text.mp4", "cannot be read as a video: Invalid data"),
        ("no.mp4", "does not exist"),
        ("sound.mkv", "holds no video, only audio"),
    ):
        with pytest.raises(ImageError, match=rf"{name} {said}"):
            list_frames(tmp_path / name)
    with pytest.raises(ImageError, match="is video, which cannot be read") as caught:
        load_image(clip)
    assert "wildcat.data.video_frames" in caught.value.hint
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MissingExtra, match="PyAV is needed here") as missing:
        list_frames(clip)
    assert missing.value.hint == "Type: pip install 'wildcat-vision[video]'"


def test_the_predictor_takes_frames(clip: Path) -> None:
    found = list(colour_finder().predict(video_frames(clip, 1.0)))
    assert [p.path for p in found] == [f"{clip}#t={n}.000" for n in range(3)]
    assert [p.top for p in found] == ["red", "green", "blue"]
    assert [p.image.time for p in found if isinstance(p.image, VideoFrame)] == [0.0, 1.0, 2.0]


def test_rows_and_the_annotated_video(clip: Path, tmp_path: Path) -> None:
    other = tmp_path / "more" / "clip.mp4"
    other.parent.mkdir()
    write_clip(other, colour_clip()[:10])
    Image.new("RGB", (64, 48), "red").save(tmp_path / "a.png")
    paths = [str(clip), str(tmp_path / "a.png"), str(other)]
    images = cli_images.find_images(paths, None, 0, DataCommand(), 0.5)
    with PredictionWriter(tmp_path / "out", ("overlays", "masks")) as writer:
        for prediction, name in cli_images.predict_each(colour_finder(), images, "predicting", False, 4):
            writer.add(prediction, name)
    rows = [json.loads(line) for line in (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()]
    assert [row.get("time") for row in rows] == [0.0, 0.5, 1.0, 1.5, 2.0, 2.5, None, 0.0, 0.5]
    assert {row["files"]["overlays"] for row in rows[:6]} == {"overlays/clip.mp4"}
    assert rows[6]["files"]["overlays"] == {"red": "overlays/a/red.jpg"}
    assert {row["files"]["overlays"] for row in rows[7:]} == {"overlays/clip-2.mp4"}
    assert rows[1]["files"]["masks"] == "masks/clip/0000.500s.png"
    with av.open(str(tmp_path / "out" / "overlays" / "clip.mp4")) as container:
        frames = list(container.decode(video=0))
        assert [float(frame.time) for frame in frames] == [0.0, 0.5, 1.0, 1.5, 2.0, 2.5]
        assert (frames[0].width, frames[0].height) == (64, 48)
    assert sorted(path.name for path in (tmp_path / "out" / "overlays").iterdir()) == ["a", "clip-2.mp4", "clip.mp4"]


def test_a_broken_video_is_skipped(clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = tmp_path / "broken.mp4"
    broken.write_text("a text")
    command = ["predict", "imagenet-lite0", "--device", "cpu", "--save", "none", "--out"]
    assert main([*command, str(tmp_path / "out"), str(broken), str(clip)]) == 0
    assert len((tmp_path / "out" / "predictions.jsonl").read_text().splitlines()) == 3
    said = capsys.readouterr().err
    assert f"skipped {broken} cannot be read as a video: Invalid data" in said
    assert "1 of 4 images could not be read" in said
    assert main([*command, str(tmp_path / "none"), str(broken)]) == 1


def test_the_command(clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["predict", "imagenet-lite0", str(clip), "--device", "cpu"]
    assert main([*command, "--save", "none", "--out", str(tmp_path / "out")]) == 0
    assert len((tmp_path / "out" / "predictions.jsonl").read_text().splitlines()) == 3, "every second"
    for flags, said in (
        (["--every", "soon"], "--every soon: give the seconds between two frames"),
        (["--shard-rows", "10", "--out", str(tmp_path / "a")], f"{clip} is a video, not an image."),
        (["--every", "1s", "--shard-rows", "10", "--out", str(tmp_path / "a")], "--every 1s is for videos, which sh"),
    ):
        assert main([*command, *flags]) in (1, 2)
        assert said in capsys.readouterr().err
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    assert main(["predict", "imagenet-lite0", str(tmp_path / "a.png"), "--every", "1s"]) in (1, 2)
    assert "--every 1s is for videos, and none is given." in capsys.readouterr().err
    assert main(["export", "imagenet-lite0", str(clip), "--format", "coco", "--out", str(tmp_path / "b")]) in (1, 2)
    assert f"{clip} is a video, not an image." in capsys.readouterr().err
    assert not (tmp_path / "a").exists()
    assert not (tmp_path / "b").exists()
