"""Videos: frames at equal steps of time as images, decoded one after the other with PyAV."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from PIL import Image

from wildcat.data.image_ref import ImageRef
from wildcat.data.images import Decoded, IntensityRange, MaxDownscale, full_size, shown
from wildcat.errors import ConfigError, ImageError, import_extra

EVERY = 1.0  # seconds between frames unless another step is given
_EARLY = 1.0  # seconds by which a video may end before the duration that its header states

OnBreak = Callable[["VideoFrame", ImageError, int], object]
"""Called with the first frame that cannot be read, the reason, and the number of frames that are missing from it on."""


@dataclass(frozen=True)
class VideoFrame(ImageRef):
    """A frame of a video.

    Attributes:
        file: the path of the video.
        time: of the frame in the video, in seconds.
        every: seconds to the next frame.
        image: its pixels, upright, once they are decoded.
    """

    holds_pixels: ClassVar[bool] = True

    file: str
    time: float
    every: float
    image: Image.Image | None = None

    @property
    def name(self) -> str:
        """`file#t=12.500`."""
        return f"{self.file}#t={self.time:.3f}"

    def decode(self, max_downscale: MaxDownscale = full_size, intensity: IntensityRange | None = None) -> Decoded:
        """As `ImageRef.decode`; slow for a frame that is not decoded yet, as the video is read up to it."""
        frame = self if self.image else next(_decode_frames(self.file, [self]), self)
        if frame.image is None:
            raise ImageError(f"{shown(self.name)} does not exist: the video ends before.", "Give an earlier time.")
        return frame.image, frame.image.size


def parse_every(text: str) -> float:
    """Seconds from "0.5s", "0.5" or "250ms".

    >>> parse_every("0.5s"), parse_every("2"), parse_every("250ms")
    (0.5, 2.0, 0.25)
    """
    found = re.fullmatch(r"\s*(\d+\.?\d*|\.\d+)\s*(ms|s|)\s*", text)
    seconds = float(found[1]) / (1000 if found[2] == "ms" else 1) if found else 0.0
    if not seconds:
        raise ConfigError(f"every={text}: give the seconds between two frames, such as 0.5s.")
    return seconds


def list_frames(path: str | Path, every: float = EVERY) -> list[VideoFrame]:
    """The frames of a video every so many seconds, not decoded yet, judged by its header.

    Args:
        every: seconds between two frames; at least the interval of the video's own frames.

    Raises:
        ImageError: the file is missing, no video, or its header is damaged.
        ConfigError: `every` is not positive.
        MissingExtra: PyAV is not installed.
    """
    if not 0 < every < float("inf"):
        raise ConfigError(f"every={every}: give a positive number of seconds.")
    with _open_video(str(path)) as (container, stream):
        step = max(every, float(1 / stream.average_rate) if stream.average_rate else 0.0)
        length = _duration(container, stream)
    times = itertools.takewhile(lambda t: t < length - 1e-6 or not t, (k * step for k in itertools.count()))
    return [VideoFrame(str(path), round(time, 6), step) for time in times]


def video_frames(path: str | Path, every: float = EVERY) -> Iterator[VideoFrame]:
    """The frames of a video every so many seconds, for `Predictor.predict`; arguments and errors as `list_frames`.

    Raises:
        ImageError: also where the video breaks.
    """
    return _decode_frames(str(path), list_frames(path, every))


def load_frames(images: Iterable[Path | ImageRef], on_break: OnBreak) -> Iterator[Path | ImageRef]:
    """The same images, with the pixels of video frames decoded here, in order; others as they are.

    Args:
        on_break: called where a video breaks; its other frames are left out.
    """
    for file, group in itertools.groupby(images, lambda image: image.file if isinstance(image, VideoFrame) else None):
        if file is None:
            yield from group
            continue
        wanted = [image for image in group if isinstance(image, VideoFrame)]
        done = 0
        try:
            for frame in _decode_frames(file, wanted):
                yield frame
                done += 1
        except ImageError as error:
            on_break(wanted[done], error, len(wanted) - done)


def _decode_frames(file: str, wanted: list[VideoFrame]) -> Iterator[VideoFrame]:
    """For each wanted frame, in the order of time, the first of the video at that time or later, or its last."""
    from av.error import FFmpegError  # noqa: PLC0415  # optional

    start, time, waiting, last = None, 0.0, iter(wanted), None
    with _open_video(file) as (container, stream):
        length = _duration(container, stream)
        stream.thread_type = "AUTO"
        target = next(waiting)
        try:
            for number, frame in enumerate(container.decode(stream)):
                if frame.is_corrupt:
                    continue
                stamp = frame.time if frame.time is not None else number / float(stream.average_rate or 25)
                start = stamp if start is None else start
                time, last = stamp - start, frame
                if time < target.time - 1e-6:
                    continue
                image = _upright(frame)
                while time >= target.time - 1e-6:  # several targets lie in the gap before a frame
                    yield replace(target, image=image)
                    if (following := next(waiting, None)) is None:
                        return
                    target = following
        except FFmpegError as error:
            raise _broken(file, time, length, error.strerror or str(error)) from error
        if last is None or length - time > _EARLY + target.every:
            raise _broken(file, time, length, "it is cut")
        image = _upright(last)  # shown to the end
    for late in itertools.takewhile(lambda one: one.time < length, itertools.chain([target], waiting)):
        yield replace(late, image=image)


def _upright(frame: Any) -> Image.Image:
    image: Image.Image = frame.to_image().rotate(frame.rotation, expand=True)
    return image


def _broken(file: str, time: float, length: float, reason: str) -> ImageError:
    return ImageError(
        f"{shown(file)} breaks at {time:.1f} s of {length:.1f} s ({reason}).",
        "The frames before are read; copy it again from its source for the rest.",
    )


@contextmanager
def _open_video(file: str) -> Iterator[tuple[Any, Any]]:
    """The container and its first video stream."""
    av = import_extra("av", "PyAV", "video")
    try:
        container = av.open(file)
    except FileNotFoundError as error:
        raise ImageError(f"{shown(file)} does not exist.", "Check the spelling.") from error
    except (av.error.FFmpegError, OSError) as error:
        hint = "If it is one, copy it again: its index may be cut."
        raise ImageError(f"{shown(file)} cannot be read as a video: {error.strerror}.", hint) from error
    with container:
        if not container.streams.video:
            others = ", ".join(sorted({stream.type for stream in container.streams})) or "nothing"
            raise ImageError(f"{shown(file)} holds no video, only {others}.", "Leave it out.")
        yield container, container.streams.video[0]


def _duration(container: Any, stream: Any) -> float:
    """Seconds, as the header says, or to the last packet of the stream."""
    if stream.duration:
        return float(stream.duration * stream.time_base)
    if container.duration:  # in microseconds; Matroska counts from time 0, not from the first frame
        start = container.start_time or 0 if "matroska" in container.format.name else 0
        return float(container.duration - start) / 1e6
    times = [packet.pts for packet in container.demux(stream) if packet.pts is not None]
    container.seek(0)
    return float((max(times) - min(times) + 1) * stream.time_base) if times else 0.0
