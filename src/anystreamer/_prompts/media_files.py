"""Decodes pictures and recordings, with limits: a small file can become a large picture."""

from __future__ import annotations

import io
import math
import wave
from collections.abc import Sequence
from typing import Any

from .._installing import NotInstalled

__all__ = [
    "FORMATS",
    "MAX_BYTES",
    "MAX_ITEMS",
    "Budget",
    "decode_picture",
    "decode_recording",
    "frames_of",
]

# Of files that others have sent. All are of one prompt together, except the bytes.
MAX_ITEMS = 32  # pictures, recordings and videos
MAX_BYTES = 20 * 1024 * 1024  # of one file
MAX_PIXELS = 64_000_000  # 190 MB of memory; a picture of 8K has 33 million
MAX_SAMPLES = 48_000_000  # 190 MB of memory; 16 minutes of one channel at 48 kHz
MAX_FRAME_PIXELS = 128_000_000  # 380 MB of memory; a minute of 720p at two frames per second
MAX_DECODED_PIXELS = 10_000_000_000  # of all frames of files, also of those that are not chosen

#: What others can send. Some of Pillow's other formats start programs, or are seldom tested.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")

# Slower or faster recordings are not of sound that a model hears (samples per second).
_RATES = range(4_000, 400_000)


class Budget:
    """How large the files of one prompt can become in memory. The caller's own have no limit.

    Args:
        is_bounded: whether others have sent the files.
    """

    def __init__(self, *, is_bounded: bool) -> None:
        self.is_bounded = is_bounded
        self._items, self._pixels, self._samples = MAX_ITEMS, MAX_PIXELS, MAX_SAMPLES
        self._frame_pixels, self._decoded_pixels = MAX_FRAME_PIXELS, MAX_DECODED_PIXELS

    def take_item(self) -> None:
        """Count a picture, a recording or a video. Raises ValueError if there are too many."""
        self._items -= 1
        if self.is_bounded and self._items < 0:
            raise ValueError(
                f"a prompt can have at most {MAX_ITEMS} pictures, recordings and videos"
            )

    def take_bytes(self, count: int) -> None:
        """Count the bytes of a file. Raises ValueError if they are too many."""
        if self.is_bounded and count > MAX_BYTES:
            raise ValueError(f"the file is larger than {MAX_BYTES // 1024**2} MiB")

    def take_pixels(self, count: int) -> None:
        """Count the pixels of a picture. Raises ValueError if they are too many."""
        self._pixels -= count
        if self.is_bounded and self._pixels < 0:
            raise ValueError(
                f"the pictures of a prompt can have at most {MAX_PIXELS // 10**6} million pixels "
                "together"
            )

    def take_frames(self, pixels: int) -> None:
        """Count the pixels of frames that are kept. Raises ValueError if they are too many."""
        self._frame_pixels -= pixels
        if self.is_bounded and self._frame_pixels < 0:
            raise ValueError(
                f"the frames of a prompt's videos can have at most {MAX_FRAME_PIXELS // 10**6} "
                "million pixels together"
            )

    def take_decoded(self, pixels: int) -> None:
        """Count the pixels of a frame that is decoded. Raises ValueError if they are too many."""
        self._decoded_pixels -= pixels
        if self.is_bounded and self._decoded_pixels < 0:
            raise ValueError("the videos of a prompt take too long to decode")

    def take_samples(self, count: float) -> None:
        """Count the samples of a recording. Raises ValueError if they are too many."""
        self._samples -= math.ceil(count)
        if self.is_bounded and self._samples < 0:
            raise ValueError(
                f"the recordings of a prompt can have at most {MAX_SAMPLES // 10**6} million "
                "samples together"
            )


def decode_picture(data: bytes, budget: Budget, *, is_frame: bool = False) -> Any:
    """A picture of Pillow's, upright and in RGB, as transformers itself loads files.

    Args:
        data: the bytes of the file.
        budget: how much it can become.
        is_frame: whether it is a frame of a video.

    Raises:
        ValueError: it is not a picture, is damaged, or is too large.
        ImportError: Pillow is not installed.
    """
    try:
        from PIL import Image, ImageOps
    except ImportError as exc:
        raise NotInstalled("pictures need Pillow", "media") from exc
    budget.take_bytes(len(data))
    try:
        # Its header alone is read.
        picture = Image.open(io.BytesIO(data), formats=FORMATS if budget.is_bounded else None)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as exc:
        raise ValueError("the picture is larger than Pillow's limit") from exc
    except Exception as exc:
        kinds = f" {', '.join(FORMATS[:-1])} or {FORMATS[-1]}" if budget.is_bounded else ""
        raise ValueError(f"it is not a picture in a known format{kinds and ':' + kinds}") from exc
    width, height = picture.size
    (budget.take_frames if is_frame else budget.take_pixels)(width * height)
    try:
        return ImageOps.exif_transpose(picture).convert("RGB")
    except Exception as exc:  # each format has errors of its own
        raise ValueError("the picture is damaged") from exc


def frames_of(frames: Any) -> Any:
    """The frames of a video in one array, as transformers itself makes it.

    Args:
        frames: an array with four axes, a picture of Pillow's, or several pictures or arrays.

    Raises:
        ValueError: it is not a video, or its frames do not have one size.
    """
    import numpy as np

    if not isinstance(frames, Sequence):
        if len(getattr(frames, "shape", ())) == 4:
            return frames
        if not hasattr(frames, "getbands"):  # a picture
            raise ValueError(
                "a video must be its frames (a list of pictures, or an array with four axes) or "
                "its file (the path, the bytes, or a data: URL)"
            )
        frames = [frames]
    if not frames:
        raise ValueError("the video has no frames")
    arrays = [np.asarray(frame) for frame in frames]
    if any(array.ndim not in (2, 3) for array in arrays):
        raise ValueError("each frame of a video must be a picture, or an array of one")
    if len({array.shape for array in arrays}) > 1:
        raise ValueError("the frames of a video must have one size")
    return np.stack(arrays)


def decode_recording(data: bytes, rate: int, budget: Budget) -> Any:
    """The samples of a recording: an array of floats, one channel, at *rate* samples per second.

    Raises:
        ValueError: it is not a recording, is damaged, or is too long.
        ImportError: soundfile is not installed, and it is not a WAV file that Python reads itself;
            or soxr is not, and the recording has another rate.
    """
    budget.take_bytes(len(data))
    samples, own_rate = _read(data, budget)
    if own_rate not in _RATES:
        raise ValueError(f"the recording has {own_rate} samples per second")
    if len(samples) == 0:
        raise ValueError("the recording is empty")
    budget.take_samples(len(samples) * rate / own_rate)
    return resampled(samples, own_rate, rate)


def resampled(samples: Any, own_rate: int, rate: int) -> Any:
    """The samples at another rate, as transformers itself does it. Raises ImportError."""
    import numpy as np

    if own_rate == rate:
        return np.ascontiguousarray(samples, dtype=np.float32)
    try:
        import soxr
    except ImportError as exc:
        raise NotInstalled(
            f"a recording with {own_rate} samples per second, for a model that hears {rate}, needs "
            "soxr",
            "media",
        ) from exc
    length = math.ceil(len(samples) * rate / own_rate)
    made = soxr.resample(samples, own_rate, rate, quality="soxr_hq")
    made = np.pad(made, (0, max(0, length - len(made))))[:length]
    return np.ascontiguousarray(made, dtype=np.float32)


def _read(data: bytes, budget: Budget) -> tuple[Any, int]:
    """The samples, with the mean of all channels, and how many are for a second."""
    try:
        import soundfile
    except (ImportError, OSError):  # the library that it loads can be missing
        return _read_wave(data, budget)
    try:
        file = soundfile.SoundFile(io.BytesIO(data))
    except Exception as exc:
        raise ValueError("it is not a recording in a known format, such as WAV or MP3") from exc
    with file:
        budget.take_samples(file.frames * file.channels)
        try:
            samples = file.read(dtype="float32", always_2d=True)
        except Exception as exc:
            raise ValueError("the recording is damaged") from exc
        return _mono(samples), file.samplerate


def _read_wave(data: bytes, budget: Budget) -> tuple[Any, int]:
    import numpy as np

    try:
        with wave.open(io.BytesIO(data)) as file:
            channels, width, rate = file.getnchannels(), file.getsampwidth(), file.getframerate()
            budget.take_samples(len(data) / width)
            frames = file.readframes(len(data))
    except (wave.Error, EOFError) as exc:
        if data[:4] == b"RIFF":
            raise ValueError("the WAV file is damaged, or does not have plain samples") from exc
        raise NotInstalled("recordings that are not WAV files need soundfile", "media") from exc
    if width not in (1, 2, 4):
        raise NotInstalled(f"WAV files with {8 * width} bits need soundfile", "media")
    frames = frames[: len(frames) // (width * channels) * width * channels]
    samples = np.frombuffer(frames, dtype=f"<{'u' if width == 1 else 'i'}{width}")
    scaled = samples.astype(np.float32) / 2.0 ** (8 * width - 1) - (width == 1)
    return _mono(scaled.reshape(-1, channels)), rate


def _mono(samples: Any) -> Any:
    return samples[:, 0] if samples.shape[1] == 1 else samples.mean(axis=1)
