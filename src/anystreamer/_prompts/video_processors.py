"""Lets a processor read the video files of a prompt."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from .untrusted import with_contents
from .video_files import Video, VideoFrames

__all__ = ["reading_video_files"]


def reading_video_files(
    processor: Any, chats: Sequence[Any], lock: threading.Lock
) -> tuple[Any, list[Any]]:
    """The processor and the chats. If a video is a file, then a processor that reads it.

    A processor takes either files or frames: together with files, frames are passed as files.

    Args:
        processor: of the model.
        chats: with decoded pictures, recordings and frames.
        lock: held while the processor is called, and released while a file is decoded, which can
            take seconds.
    """
    if not any(isinstance(each, Video) for chat in chats for each in _videos_in(chat)):
        return processor, list(chats)
    reading = copy.copy(processor)
    reading.video_processor = copy.copy(processor.video_processor)
    # `BaseVideoProcessor` calls it with how to choose frames. Its own decodes paths only.
    reading.video_processor.fetch_videos = partial(_fetch_videos, lock)
    return reading, [with_contents(chat, _with_videos) for chat in chats]


def _fetch_videos(
    lock: threading.Lock, videos: Sequence[Video], sample_indices_fn: Any = None
) -> tuple[list[Any], list[Any]]:
    lock.release()
    try:
        fetched = [_frames_of(video, sample_indices_fn) for video in videos]
    finally:
        lock.acquire()
    return [frames for frames, _ in fetched], [metadata for _, metadata in fetched]


def _frames_of(video: Video, choose: Any) -> tuple[Any, Any]:
    try:
        return video.frames(choose)
    except ValueError as exc:
        raise ValueError(f"{video.place}: {exc}") from exc


def _videos_in(chat: Any) -> Iterator[Any]:
    for message in chat:
        content = message.get("content")
        for part in content if isinstance(content, list | tuple) else ():
            if _is_video(part):
                yield part["video"]


def _is_video(part: Any) -> bool:
    return isinstance(part, Mapping) and part.get("type") == "video"


def _with_videos(_: int, content: Any) -> Any:
    return list(map(_with_video, content)) if isinstance(content, list | tuple) else content


def _with_video(part: Any) -> Any:
    if not _is_video(part) or isinstance(part["video"], Video):
        return part
    return {**part, "video": VideoFrames(part["video"])}
