"""Pictures, recordings and videos among chat messages: found, checked and decoded."""

from __future__ import annotations

import base64
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .missing_processors import missing_processor
from .untrusted import NotText, UntrustedMessages, with_contents

if TYPE_CHECKING:
    from .media_files import Budget

__all__ = [
    "MediaPart",
    "check_processor",
    "decoded_messages",
    "has_media",
    "media_kinds",
    "media_parts",
    "open_picture",
]

# The types of parts, in transformers' own shape and in those of OpenAI's APIs and of Anthropic's.
_KINDS = {
    "image": "image",
    "image_url": "image",
    "input_image": "image",
    "audio": "audio",
    "audio_url": "audio",
    "input_audio": "audio",
    "video": "video",
    "video_url": "video",
}
# The keys under which a part can have its media. The first key that it has counts.
_KEYS = {
    "image": ("image", "url", "path", "base64", "image_url", "source"),
    "audio": ("audio", "url", "path", "base64", "audio_url", "input_audio", "source"),
    "video": ("video", "url", "path", "base64", "video_url", "source"),
}
# The same within an object, such as {"url": ...} or {"data": ..., "format": "wav"}.
_INNER_KEYS = ("url", "data", "array", "bytes", "path")

_NAMES = {"image": "an image", "audio": "audio", "video": "a video"}
# What a processor needs for each kind: one of these attributes.
_COMPONENTS = {
    "image": ("image_processor",),
    "audio": ("feature_extractor", "audio_processor"),
    "video": ("video_processor",),
}


@dataclass(frozen=True)
class MediaPart:
    """A part of a message that is not text.

    Args:
        kind: ``"image"``, ``"audio"`` or ``"video"``.
        place: such as ``messages[0].content[1]``.
        part: as it was given.
    """

    kind: str
    place: str
    part: Mapping[str, Any]

    def source(self) -> tuple[str, Any]:
        """The key of the part's media, and its value. Raises ValueError if it has none."""
        keys = _KEYS[self.kind]
        key, value = _first(self.part, keys)
        if isinstance(value, Mapping):
            key, inner = _first(value, _INNER_KEYS)
            value = value if key == "array" else inner
        if value is None:
            raise ValueError(
                f"{self.place} has no {self.kind}: put it under one of {', '.join(keys)}"
            )
        return key, value

    @property
    def address(self) -> str | None:
        """The address to fetch it from, if that is how it is given."""
        _, value = self.source()
        return value if isinstance(value, str) and _scheme(value) in ("http", "https") else None

    def decoded(self, value: Any) -> dict[str, Any]:
        """The part in transformers' own shape, with *value* as its media."""
        others = {
            name: each
            for name, each in self.part.items()
            if name not in _KEYS[self.kind] and name not in ("type", "detail")
        }
        return {**others, "type": self.kind, self.kind: value}


def _first(value: Mapping[str, Any], keys: Sequence[str]) -> tuple[str, Any]:
    found = next((key for key in keys if value.get(key) is not None), "")
    return found, value.get(found)


def media_parts(messages: Any) -> Iterator[MediaPart]:
    """All parts of chat messages that are not text."""
    for number, message in enumerate(messages):
        content = message.get("content") if isinstance(message, Mapping) else None
        if not isinstance(content, list | tuple):  # text, or a prompt of ids
            continue
        for index, part in enumerate(content):
            if (kind := _kind_of(part)) is not None:
                yield MediaPart(kind, _place(number, index), part)


def _kind_of(part: Any) -> str | None:
    name = part.get("type") if isinstance(part, Mapping) else None
    return _KINDS.get(name) if isinstance(name, str) else None


def has_media(prompt: Any) -> bool:
    """Whether a prompt is chat messages with pictures, recordings or videos."""
    if isinstance(prompt, str | Mapping):
        return False
    return next(media_parts(prompt), None) is not None


def media_kinds(processor: Any) -> list[str]:
    """What a processor takes besides text: ``"image"``, ``"audio"``, ``"video"``."""
    return [
        kind
        for kind, components in _COMPONENTS.items()
        if any(getattr(processor, each, None) is not None for each in components)
    ]


def check_processor(model: Any, tokenizer: Any, text_tokenizer: Any, part: MediaPart) -> None:
    """Refuse a part that the model or its processor does not take.

    Args:
        model: of transformers, or another one.
        tokenizer: what was passed: perhaps a processor.
        text_tokenizer: the tokenizer itself, which a processor has inside.
        part: of the prompt.

    Raises:
        ValueError: what to pass instead.
    """
    name = f"{part.place} is {_NAMES[part.kind]}, and"
    if part.kind in media_kinds(tokenizer):
        return
    if reason := missing_processor(tokenizer):
        raise ValueError(
            f"{name} the model accepts only text here, because its processor could not be loaded: "
            f"{reason}"
        )
    if tokenizer is not text_tokenizer:
        raise ValueError(f"{name} {type(tokenizer).__name__} does not take {part.kind} inputs")
    if type(tokenizer).__module__.endswith("mistral_common"):  # a processor of images itself
        return
    modalities = getattr(model, "input_modalities", "text")
    if part.kind in ([modalities] if isinstance(modalities, str) else modalities):
        raise ValueError(
            f"{name} {type(tokenizer).__name__} encodes only text: pass the model's processor in "
            "its place (AutoProcessor.from_pretrained)"
        )
    raise ValueError(f"{name} {type(model).__name__} does not take {part.kind} inputs")


def open_picture(data: bytes) -> Any:
    """Decode a picture of the caller's own, as `decoded_messages` does. Raises as that does."""
    from .media_files import Budget, decode_picture

    return decode_picture(data, Budget(is_bounded=False))


def decoded_messages(messages: Any, rate: int, fetched: Mapping[str, bytes]) -> Any:
    """The same messages with decoded pictures and recordings. In a worker thread.

    Args:
        messages: a chat. What others have written is `UntrustedMessages`: their paths are not read,
            and their files are bounded.
        rate: of recordings, in samples per second.
        fetched: the files from addresses.

    Raises:
        ValueError: a part cannot be decoded.
        ImportError: a package that decodes it is not installed.
    """
    from .media_files import Budget

    is_own = not isinstance(messages, UntrustedMessages)
    decoder = _Decoder(rate, fetched, Budget(is_bounded=not is_own), reads_files=is_own)
    decoded = {part.place: decoder.decode(part) for part in media_parts(messages)}

    def with_decoded(number: int, content: Any) -> Any:
        if not isinstance(content, list | tuple):
            return content
        return [decoded.get(_place(number, index), part) for index, part in enumerate(content)]

    return with_contents(messages, with_decoded)


def _place(number: int, index: int) -> str:
    return f"messages[{number}].content[{index}]"


class _Decoder:
    """Decodes the parts of one chat."""

    def __init__(
        self, rate: int, fetched: Mapping[str, bytes], budget: Budget, *, reads_files: bool
    ) -> None:
        self._rate = rate
        self._fetched = fetched
        self._reads_files = reads_files
        self._budget = budget
        self._decoders: dict[str, Callable[[str, Any], Any]] = {
            "image": self._image,
            "audio": self._audio,
            "video": self._video,
        }

    def decode(self, part: MediaPart) -> dict[str, Any]:
        key, value = part.source()
        try:
            self._budget.take_item()
            made = self._decoders[part.kind](key, value)
        except (OSError, ValueError) as exc:
            raise ValueError(f"{part.place}: {exc}") from exc
        if isinstance(made, NotText):
            made.place = part.place
        return part.decoded(made)

    def _image(self, key: str, value: Any, *, is_frame: bool = False) -> Any:
        from .media_files import decode_picture

        data = self._bytes_of(key, value)
        return value if data is None else decode_picture(data, self._budget, is_frame=is_frame)

    def _audio(self, key: str, value: Any) -> Any:
        from .media_files import decode_recording, resampled

        if isinstance(value, Mapping):  # {"array": ..., "sampling_rate": ...}
            array = _as_array(value["array"])
            return resampled(array, int(value.get("sampling_rate") or self._rate), self._rate)
        data = self._bytes_of(key, value)
        return (
            _as_array(value) if data is None else decode_recording(data, self._rate, self._budget)
        )

    def _video(self, key: str, value: Any) -> Any:
        """Its frames in an array; or its file, of which the processor chooses the frames."""
        from .media_files import frames_of
        from .video_files import VideoFile, decodes_video_files

        frames = _frames_in(value)
        if frames is not None:
            return frames_of([self._image(key, frame, is_frame=True) for frame in frames])
        path = self._own_path(key, value)
        if path is not None:
            # Without PyAV, a processor may have other means to decode it.
            return VideoFile(path, self._budget) if decodes_video_files() else path
        data = self._bytes_of(key, value)
        return frames_of(value) if data is None else VideoFile(data, self._budget)

    def _own_path(self, key: str, value: Any) -> str | None:
        """The path of a file of the caller's."""
        if not self._reads_files or not isinstance(value, str | os.PathLike):
            return None
        text = os.fsdecode(value)
        is_address = _scheme(text) == "file"
        if is_address:
            text = _path_of(text)
        if is_address or key == "path":
            os.stat(text)  # raises an error that names a file that is not there
            return text
        return text if self._is_file(text) else None

    def _bytes_of(self, key: str, value: Any) -> bytes | None:
        """The bytes of a file; None for what is decoded already."""
        if isinstance(value, bytes | bytearray | memoryview):
            return bytes(value)
        if isinstance(value, os.PathLike):
            return self._read(os.fspath(value))
        if isinstance(value, str):
            return self._bytes_of_text(key, value)
        if not self._reads_files and isinstance(value, list | tuple | bool | int | float):
            raise ValueError("it must be a data: URL, base64 or an address")
        return None

    def _bytes_of_text(self, key: str, text: str) -> bytes:
        scheme = _scheme(text)
        if scheme in ("http", "https"):
            return self._fetched[text]
        if scheme == "data":
            kind, comma, text = text.partition(",")
            if not comma or not kind.lower().endswith(";base64"):
                raise ValueError("a data: URL must have base64: data:image/png;base64,...")
        elif key not in ("base64", "data") and self._reads_files:
            path = _path_of(text) if scheme == "file" else text
            if key == "path" or scheme == "file" or self._is_file(path):
                return self._read(path)
        elif key not in ("base64", "data"):
            raise ValueError("it must be a data: URL with base64, or an http(s) address")
        return self._from_base64(text)

    def _from_base64(self, text: str) -> bytes:
        self._budget.take_bytes(len(text) * 3 // 4)
        try:
            return base64.b64decode("".join(text.split()), validate=True)
        except ValueError as exc:
            files = "the path of a file that exists, nor " if self._reads_files else ""
            raise ValueError(f"it is not {files}valid base64") from exc

    def _is_file(self, path: str) -> bool:
        return self._reads_files and len(path) < 4096 and "\0" not in path and os.path.isfile(path)

    def _read(self, path: str | bytes) -> bytes:
        if not self._reads_files:
            raise ValueError("paths in UntrustedMessages are not read")
        return Path(os.fsdecode(path)).read_bytes()


def _scheme(text: str) -> str:
    """The scheme of an address, in small letters; empty for other text."""
    scheme, colon, _ = text[:16].partition(":")
    return scheme.strip().lower() if colon else ""


def _path_of(address: str) -> str:
    import urllib.parse
    import urllib.request

    return urllib.request.url2pathname(urllib.parse.urlsplit(address).path)


def _frames_in(value: Any) -> Sequence[Any] | None:
    """The frames of a video that is given as its frames; None for others."""
    if isinstance(value, list | tuple):
        return value
    if isinstance(value, str) and value[:16].lower().startswith("data:video/jpeg;"):
        # As vLLM takes it: JPEG files, each in base64, with commas between them.
        kind, comma, files = value.partition(",")
        return [f"{kind}{comma}{each}" for each in files.split(",")]
    return None


def _as_array(value: Any) -> Any:
    import numpy as np

    if hasattr(value, "detach"):
        value = value.detach().cpu().numpy()
    array = np.asarray(value, dtype=np.float32)
    if array.size == 0:
        raise ValueError("the recording is empty")
    return array
