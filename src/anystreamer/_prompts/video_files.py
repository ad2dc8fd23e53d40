"""Videos in the place of paths, whose frames a processor chooses. Files need PyAV."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from anyio import from_thread

from .._installing import NotInstalled
from .untrusted import NotText

if TYPE_CHECKING:
    from .media_files import Budget

__all__ = ["CODECS", "MAX_FRAME", "Video", "VideoFile", "VideoFrames", "decodes_video_files"]

#: What others can send. FFmpeg has many more, of which some are seldom tested.
CODECS = ("av1", "h264", "hevc", "mjpeg", "mpeg4", "vp8", "vp9")
MAX_FRAME = 9_000_000  # pixels of one frame, which has 8.8 million in 4K
# How such a file begins, and FFmpeg's name for it. Some of its other formats are lists of paths and
# addresses, which it would open.
_FORMATS = (
    (slice(4, 8), b"ftyp", "mp4"),
    (slice(0, 4), b"\x1aE\xdf\xa3", "matroska"),
    (slice(8, 12), b"AVI ", "avi"),
)


def decodes_video_files() -> bool:
    """Whether PyAV is installed."""
    try:
        import av  # noqa: F401
    except ImportError:
        return False
    return True


class Video(NotText):
    """A video in the place of its path.

    Only the processor knows which frames it needs, and some write their times into the prompt. So a
    video goes through it as a string, as paths do, until its frames are asked for.
    """

    def frames(self, choose: Callable[..., Any] | None) -> tuple[Any, Any]:
        """The chosen frames, and transformers' `VideoMetadata` of the video.

        Args:
            choose: from the metadata to the numbers of frames; None for all of them.

        Returns:
            an array of shape (frames, height, width, 3), and the metadata.

        Raises:
            ValueError: the video is damaged, or its frames are too large.
        """
        raise NotImplementedError


class VideoFrames(Video):
    """A video that is given as its frames, together with others that are files.

    Args:
        array: of shape (frames, height, width, 3).
    """

    _array: Any

    def __new__(cls, array: Any) -> VideoFrames:
        """A string that says nothing."""
        self = super().__new__(cls, "video")
        self._array = array
        return self

    def frames(self, choose: Callable[..., Any] | None) -> tuple[Any, Any]:
        """As a processor chooses them where it is given the array itself."""
        from transformers.video_utils import make_batched_metadata

        unknown: Any = None
        (metadata,) = make_batched_metadata([self._array], video_metadata=unknown)
        if choose is None:
            return self._array, metadata
        metadata.frames_indices = choose(metadata=metadata)
        return self._array[metadata.frames_indices], metadata


class VideoFile(Video):
    """A video's file.

    Args:
        source: the bytes of the file, or its path.
        budget: how much the file can become.

    Raises:
        ValueError: it is not a video.
        ImportError: PyAV is not installed.
    """

    _source: bytes | str
    _budget: Budget

    def __new__(cls, source: bytes | str, budget: Budget) -> VideoFile:
        """Read the file's header."""
        self = super().__new__(cls, source if isinstance(source, str) else "video")
        self._source = source
        self._budget = budget
        with self._open():
            return self

    def frames(self, choose: Callable[..., Any] | None) -> tuple[Any, Any]:
        """Decode the chosen frames."""
        import numpy as np

        with self._open() as (container, stream):
            metadata = _metadata(container, stream)
            count = metadata.total_num_frames
            chosen = range(count) if choose is None else choose(metadata=metadata)
            numbers = [int(number) for number in chosen]
            self._budget.take_frames(len(numbers) * stream.width * stream.height)
            decoded = self._decode(container, stream, set(numbers))
        metadata.frames_indices = numbers
        # A header can name more frames than the file has: the last one stands for them.
        last = max(decoded)
        return np.stack([decoded[min(number, last)] for number in numbers]), metadata

    def _decode(self, container: Any, stream: Any, wanted: set[int]) -> dict[int, Any]:
        import av
        import numpy as np

        found: dict[int, Any] = {}
        try:
            for number, frame in enumerate(container.decode(stream)):
                self._budget.take_decoded(frame.width * frame.height)
                if number in wanted:
                    # A size can change within a file, and an array cannot.
                    picture = frame.to_ndarray(
                        format="rgb24", width=stream.width, height=stream.height
                    )
                    found[number] = np.rot90(picture, frame.rotation // 90)
                if len(found) == len(wanted) or (found and _is_cancelled()):
                    break
        except av.FFmpegError as exc:
            raise ValueError("the video is damaged") from exc
        if not found:
            raise ValueError("the video is damaged")
        return found

    @contextmanager
    def _open(self) -> Iterator[tuple[Any, Any]]:
        try:
            import av
        except ImportError as exc:
            raise NotInstalled("video files need PyAV", "video") from exc
        is_bounded, source = self._budget.is_bounded, self._source
        settings: dict[str, Any] = {}
        if isinstance(source, bytes):
            self._budget.take_bytes(len(source))
            settings = {"format": _format_of(source)} if is_bounded else {}
        try:
            container = av.open(
                io.BytesIO(source) if isinstance(source, bytes) else source, **settings
            )
        except (av.FFmpegError, OSError) as exc:
            raise ValueError("it is not a video in a known format, such as MP4 or WebM") from exc
        with container:
            stream = next(iter(container.streams.video), None)
            if stream is None or not stream.width or not stream.height:
                raise ValueError("the file has no video that can be decoded")
            if is_bounded:
                self._check_codec(stream)
            yield container, stream

    def _check_codec(self, stream: Any) -> None:
        name = stream.codec.canonical_name
        if name not in CODECS:
            raise ValueError(f"the video has the codec {name}: it can be {', '.join(CODECS)}")
        # FFmpeg keeps several frames in memory while it decodes.
        if stream.width * stream.height > MAX_FRAME:
            raise ValueError(
                f"a frame of the video has more than {MAX_FRAME // 10**6} million pixels"
            )
        stream.codec_context.options = {"max_pixels": str(MAX_FRAME)}


def _is_cancelled() -> bool:
    """Whether no task waits for the frames any more. The task sees it when the thread returns."""
    try:
        from_thread.check_cancelled()
    except RuntimeError:  # in a thread that is not anyio's
        return False
    except BaseException:  # of the event loop
        return True
    return False


def _format_of(data: bytes) -> str:
    for place, mark, name in _FORMATS:
        if data[place] == mark:
            return name
    raise ValueError("it is not a video in a known format: MP4, QuickTime, WebM, Matroska or AVI")


def _metadata(container: Any, stream: Any) -> Any:
    from transformers.video_utils import VideoMetadata

    count = stream.frames
    if not count:  # Matroska does not say it; packets are counted without decoding them
        count = sum(1 for packet in container.demux(stream) if packet.size)
        container.seek(0)
    if not count:
        raise ValueError("the video has no frames")
    rate = float(stream.average_rate) if stream.average_rate else None
    return VideoMetadata(
        total_num_frames=count,
        fps=rate,
        duration=count / rate if rate else None,
        width=stream.width,
        height=stream.height,
        video_backend="pyav",
    )
