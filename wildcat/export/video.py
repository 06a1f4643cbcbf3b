"""Write drawings of the frames of a video as a video, with PyAV."""

from __future__ import annotations

import contextlib
import os
import tempfile
from fractions import Fraction
from pathlib import Path
from typing import Any

from PIL import Image

from wildcat.files import PART, writing

LONGEST_SIDE = 1920  # of the written video; players of hardware decoders refuse much larger ones
_CLOCK = Fraction(1, 1000)  # of the times in the file, in seconds
_CODECS = ("libx264", "mpeg4")  # the first that this build of FFmpeg has; browsers play only the first


class OverlayVideo:
    """An MP4 that is written image by image and appears under its name when it is closed.

    Args:
        path: of the file.
        size: (width, height) of the images, downscaled to `LONGEST_SIDE` and even numbers.
    """

    def __init__(self, path: Path, size: tuple[int, int], every: float) -> None:
        import av  # noqa: PLC0415  # optional

        self.path = path
        scale = min(1.0, LONGEST_SIDE / max(size))
        width, height = (max(2, 2 * round(side * scale / 2)) for side in size)
        self.size = (width, height)
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, self.part = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=PART)
            os.close(handle)
        self.container = av.open(self.part, "w", format="mp4", options={"movflags": "+faststart"})
        codec = next(name for name in _CODECS if name in av.codecs_available)
        self.stream = self.container.add_stream(codec, rate=Fraction(1 / every).limit_denominator(1000))
        self.stream.width, self.stream.height, self.stream.pix_fmt = width, height, "yuv420p"
        self.stream.time_base = self.stream.codec_context.time_base = _CLOCK

    def add(self, image: Image.Image, time: float) -> None:
        """Append an image that is shown from `time` (seconds) on."""
        from av import VideoFrame  # noqa: PLC0415  # optional

        frame = VideoFrame.from_image(image.resize(self.size))
        frame.pts, frame.time_base = round(time / _CLOCK), _CLOCK
        self._encode(frame)

    def close(self) -> None:
        """Finish the file."""
        try:
            self._encode(None)
            with writing(self.path):
                self.container.close()
                Path(self.part).chmod(0o644)
                Path(self.part).replace(self.path)
        except BaseException:
            with contextlib.suppress(OSError):
                Path(self.part).unlink()
            raise

    def _encode(self, frame: Any) -> None:
        with writing(self.path):
            for packet in self.stream.encode(frame):
                self.container.mux(packet)
