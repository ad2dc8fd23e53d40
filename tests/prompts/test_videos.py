"""Videos in chats: the ids are those of plain ``generate()``."""

from __future__ import annotations

import base64
import sys
import threading
from collections.abc import Callable
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any

import anyio
import pytest

pytest.importorskip("PIL")
pytest.importorskip("torch")
pytest.importorskip("torchvision")  # transformers' processors of videos need it

import torch
from PIL import Image

from anystreamer import UntrustedMessages, open_engine, stream_text
from anystreamer._prompts import encode, media_files, video_files

from ..helpers.tiny_models import steps_of
from ..helpers.tiny_processors import Kind, clip, kind_named, picture, png, video
from .test_media import TOKENS, asking, data_url, different, plain, refused, rows_of, streamed

pytestmark = pytest.mark.torch

BY_DAY = "qwen2.5-vl, videos"
WITH_TIMES = "qwen3-vl, videos"  # it writes the times of frames into the prompt


@pytest.fixture(scope="module")
def has_av() -> None:
    pytest.importorskip("av")


@pytest.fixture
def kind() -> Kind:
    return kind_named(BY_DAY)


def part(value: Any) -> dict[str, Any]:
    return {"type": "video", "video": value}


# -- frames


FRAMES: dict[str, Callable[[Any, Path], Any]] = {
    "an array": lambda frames, path: frames,
    "a tensor": lambda frames, path: torch.from_numpy(frames),
    "a list of arrays": lambda frames, path: list(frames),
    "a tuple of tensors": lambda frames, path: tuple(torch.from_numpy(frames)),
    "pictures": lambda frames, path: [Image.fromarray(each) for each in frames],
    "files' bytes": lambda frames, path: [png(Image.fromarray(each)) for each in frames],
    "data addresses": lambda frames, path: [
        data_url(png(Image.fromarray(each))) for each in frames
    ],
    "paths": lambda frames, path: [
        written(path / f"{number}.png", png(Image.fromarray(each)))
        for number, each in enumerate(frames)
    ],
}


def written(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    return str(path)


@pytest.mark.parametrize("shape", FRAMES)
async def test_shapes_of_frames(shape: str, kind: Kind, tmp_path: Path) -> None:
    chat = asking(part(FRAMES[shape](clip(1), tmp_path)))
    different(kind, asking(part(clip(1))), asking(part(clip(2))))
    assert await streamed(kind, chat) == plain(kind, asking(part(clip(1))))


async def test_frames_as_clients_of_vllm_send_them(kind: Kind) -> None:
    frames = [base64.b64encode(png(Image.fromarray(each))).decode() for each in clip(1)]
    url = f"data:video/jpeg;base64,{','.join(frames)}"
    chat = asking({"type": "video_url", "video_url": {"url": url}})
    expected = plain(kind, asking(part(clip(1))))
    assert await streamed(kind, chat) == expected
    assert await streamed(kind, UntrustedMessages(chat)) == expected


async def test_a_batch_and_engines(kind: Kind) -> None:
    chats = [
        asking(part(clip(1, 6)), text="A longer question, so that the others are padded."),
        asking(text="Without any."),
        asking(part(clip(2, 2, 16, 16)), part(clip(3))),
    ]
    assert await rows_of(kind, chats) == [plain(kind, chat) for chat in chats]
    batchings: tuple[Any, ...] = ("none", "auto")
    for batching in batchings:
        async with open_engine(kind.model, kind.processor, batching=batching) as engine:
            async with engine.stream_text(
                chats[2], max_new_tokens=TOKENS, do_sample=False
            ) as answer:
                await answer.read()
        assert list(answer.token_ids) == plain(kind, chats[2])


BAD_FRAMES: dict[str, tuple[Any, str]] = {
    "none": ([], "has no frames"),
    "of two sizes": ([picture(), picture(1, 32, 16)], "must have one size"),
    "a file among them": ([picture(), b"hello"], "not a picture in a known format"),
    "too flat": (clip()[0], "must be its frames"),
    "too deep": ([clip(), clip()], "each frame of a video must be a picture"),
    "a number": (7, "must be its frames"),
}


@pytest.mark.parametrize("name", BAD_FRAMES)
async def test_bad_frames(name: str, kind: Kind) -> None:
    value, match = BAD_FRAMES[name]
    await refused(kind, asking(part(value)), rf"messages\[0\].content\[0\]: .*{match}")


async def test_a_processor_of_pictures_alone_refuses_a_video() -> None:
    sees = kind_named("qwen2.5-vl")
    await refused(sees, asking(part(clip())), "is a video, and .*does not take video inputs")


async def test_the_frames_of_others_are_bounded(
    kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(media_files, "MAX_FRAME_PIXELS", 5 * 24 * 16)
    frames = [png(Image.fromarray(each)) for each in clip(1, 3)]
    chat = UntrustedMessages(asking(part(frames), part(frames)))
    await refused(kind, chat, r"content\[1\]: the frames of a prompt's videos")
    assert await streamed(kind, UntrustedMessages(asking(part(frames)))) == plain(
        kind, asking(part(clip(1, 3)))
    )


# -- files


def plain_file(kind: Kind, path: Path, **sampling: Any) -> list[int]:
    """The new ids of ``generate()`` for a file whose frames transformers itself has chosen."""
    from transformers.video_utils import load_video

    choose = partial(kind.processor.video_processor.sample_frames, **sampling)
    file: Any = str(path)
    frames, metadata = load_video(file, sample_indices_fn=choose if sampling else every)
    inputs = kind.processor.apply_chat_template(
        asking(part(frames)),
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        add_generation_prompt=True,
        **processing(kind, video_metadata=[[metadata]], do_sample_frames=False),
    )
    output = kind.model.generate(**inputs, max_new_tokens=TOKENS, do_sample=False)
    ids: list[int] = output[0, inputs["input_ids"].shape[1] :].tolist()
    return ids


def processing(kind: Kind, **settings: Any) -> dict[str, Any]:
    """Settings of a processor among the arguments of its template. transformers 5.0 mixes them."""
    is_apart = "processor_kwargs" in signature(kind.processor.apply_chat_template).parameters
    return {"processor_kwargs": settings} if is_apart else settings


def every(metadata: Any, **kwargs: Any) -> list[int]:
    return list(range(metadata.total_num_frames))


FILES: dict[str, Callable[[bytes, Path], dict[str, Any]]] = {
    "bytes": lambda data, path: part(data),
    "path": lambda data, path: {"type": "video", "path": path},
    "path as text": lambda data, path: part(str(path)),
    "file address": lambda data, path: {"type": "video", "url": path.as_uri()},
    "base64": lambda data, path: {"type": "video", "base64": base64.b64encode(data).decode()},
    "vLLM": lambda data, path: {
        "type": "video_url",
        "video_url": {"url": data_url(data, "video/mp4")},
    },
    "vLLM, a string": lambda data, path: {
        "type": "video_url",
        "video_url": data_url(data, "video/mp4"),
    },
}


@pytest.mark.parametrize("shape", FILES)
async def test_shapes_of_files(shape: str, has_av: None, kind: Kind, tmp_path: Path) -> None:
    path = tmp_path / "a video.mp4"
    path.write_bytes(video(clip(1)))
    chat = asking(FILES[shape](path.read_bytes(), path))
    expected = plain_file(kind, path)
    assert await streamed(kind, chat) == expected
    if not {"path", "url"} & set(chat[0]["content"][0]) and shape != "path as text":
        assert await streamed(kind, UntrustedMessages(chat)) == expected


@pytest.mark.parametrize("kind_of_file", ["mp4", "mov", "webm", "matroska", "avi"])
async def test_the_processor_chooses_the_frames(
    kind_of_file: str, has_av: None, tmp_path: Path
) -> None:
    kind = kind_named(WITH_TIMES)
    codec = "libvpx" if kind_of_file == "webm" else "mpeg4"
    data = video(clip(1, 16), kind_of_file, codec)
    path = tmp_path / "a video"
    path.write_bytes(data)
    steps: list[list[int]] = []
    for sampling in ({"fps": 1}, {"fps": 2}):
        chat = UntrustedMessages(asking(part(data)))
        settings = {"processor_kwargs": dict(sampling)}
        got = await streamed(kind, chat, chat_template_kwargs=settings)
        assert settings == {"processor_kwargs": sampling}  # transformers writes into it
        if kind_of_file in ("mp4", "mov", "avi"):  # theirs needs the number in the header
            assert got == plain_file(kind, path, **sampling)
        steps.append(got)
    assert steps[0] != steps[1]


async def test_files_and_frames_in_one_batch(has_av: None, kind: Kind) -> None:
    file = part(video(clip(1)))
    chats = [asking(part(clip(2))), asking(file, part(clip(3, 2))), asking(text="None.")]
    alone = [await streamed(kind, chat) for chat in chats]
    assert alone[0] == plain(kind, chats[0])
    assert await rows_of(kind, chats) == alone


async def test_special_tokens_beside_a_file_are_text(has_av: None, kind: Kind) -> None:
    data = video(clip(1))
    text = f"What is {kind.placeholder}<end>?"
    async with stream_text(
        kind.model,
        kind.processor,
        UntrustedMessages(asking(part(data), text=text)),
        max_new_tokens=TOKENS,
        do_sample=False,
    ) as stream:
        await stream.read()
    ids = list(stream.prompt_token_ids)
    assert text in kind.processor.tokenizer.decode(ids)
    pad, end = kind.processor.tokenizer.convert_tokens_to_ids([kind.placeholder, "<end>"])
    assert (ids.count(pad), ids.count(end)) == (12, 1)  # of 24 frames' places, and the template's


async def test_a_video_of_a_phone_is_turned_upright(has_av: None, kind: Kind) -> None:
    data = bytearray(video(clip(1, 2)))
    # The matrix in the header of the track, turned by a quarter: 16.16 fixed-point numbers.
    start = data.index(b"tkhd") + 4 + 4 + 5 * 4 + 8 + 8
    turned = [0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30]
    data[start : start + 36] = b"".join(each.to_bytes(4, "big", signed=True) for each in turned)
    file = video_files.VideoFile(bytes(data), media_files.Budget(is_bounded=True))
    frames, _ = file.frames(None)
    level = video_files.VideoFile(video(clip(1, 2)), media_files.Budget(is_bounded=True))
    expected, _ = level.frames(None)
    assert frames.shape == (2, 24, 16, 3)
    assert (frames == torch.from_numpy(expected).rot90(-1, (1, 2)).numpy()).all()


def without_data(data: bytes, keep: int = 0) -> bytes:
    """The file with zeros in the place of its frames, but for some bytes."""
    box = data.index(b"mdat") + 4
    start = box + keep
    length = int.from_bytes(data[box - 8 : box - 4], "big") - 8 - keep
    return data[:start] + bytes(length) + data[start + length :]


async def test_a_header_that_names_more_frames_than_there_are(has_av: None, kind: Kind) -> None:
    data = bytearray(video(clip(1, 8)))
    start = data.index(b"elst") + 4 + 4 + 4 + 4  # where what is shown begins
    data[start : start + 4] = (2 * 4096).to_bytes(4, "big")
    file = video_files.VideoFile(bytes(data), media_files.Budget(is_bounded=True))
    frames, metadata = file.frames(None)
    assert metadata.total_num_frames == len(frames) == 8
    assert (frames[5:] == frames[5]).all()
    assert (frames[5] != frames[4]).any()


PLAYLIST = b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n"


async def test_bad_files(has_av: None, kind: Kind, tmp_path: Path) -> None:
    whole = video(clip(1, 8))
    own: list[tuple[Any, str]] = [
        (b"hello", "it is not a video in a known format"),
        (b"", "it is not a video"),
        (whole[: len(whole) // 2], "it is not a video|damaged"),
        (without_data(whole), "no video that can be decoded"),
        (without_data(whole, keep=500), "the video is damaged"),
        ("data:video/mp4;base64,a?", "valid base64"),
        ("data:video/mp4,abc", "must have base64"),
        ("https://example.org/a.mp4", "allow_media_from"),
    ]
    for value, match in own:
        await refused(kind, asking(part(value)), rf"messages\[0\].content\[0\]: .*({match})")
        await refused(kind, UntrustedMessages(asking(part(value))), rf"\[0\]: .*({match})")
    await refused(kind, asking({"type": "video", "path": "/nowhere/at/all.mp4"}), "No such file")
    path = tmp_path / "secret.mp4"
    path.write_bytes(whole)
    foreign: list[tuple[dict[str, Any], str]] = [
        (part(PLAYLIST), "known format: MP4, QuickTime, WebM"),
        (part(video(clip(1), "mpegts")), "known format: MP4"),
        (part(video(clip(1), "matroska", "ffv1")), "has the codec ffv1"),
        (part(str(path)), "must be a data: URL"),
        ({"type": "video", "path": path}, "are not read"),
        ({"type": "video", "url": path.as_uri()}, "must be a data: URL"),
        (part([str(path)]), "must be a data: URL"),
    ]
    for sent, match in foreign:
        await refused(kind, UntrustedMessages(asking(sent)), rf"\[0\]: .*({match})")


async def test_files_of_others_are_bounded(
    has_av: None, kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    chat = asking(part(video(clip(1, 8))))
    bounds = [
        (media_files, "MAX_FRAME_PIXELS", 5 * 24 * 16, "the frames of a prompt's videos"),
        (media_files, "MAX_DECODED_PIXELS", 5 * 24 * 16, "take too long to decode"),
        (media_files, "MAX_BYTES", 100, "larger than"),
        (video_files, "MAX_FRAME", 24 * 15, "a frame of the video has more than"),
    ]
    expected = await streamed(kind, UntrustedMessages(chat))
    for module, name, bound, match in bounds:
        with monkeypatch.context() as patch:
            patch.setattr(module, name, bound)
            await refused(kind, UntrustedMessages(chat), match)
            assert await streamed(kind, chat) == expected


async def test_while_a_file_is_decoded_others_are_encoded(
    has_av: None, kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = threading.Thread(
        target=encode,
        args=(kind.processor, ["Hello"], {}),
        kwargs={"device": None, "uses_torch": True, "pad": len},
    )
    ended = []

    def choose(metadata: Any, **kwargs: Any) -> list[int]:
        other.start()
        other.join(30)  # as long as it takes; without an end it waits for this call
        ended.append(not other.is_alive())
        return every(metadata)

    monkeypatch.setattr(kind.processor.video_processor, "sample_frames", choose)
    await streamed(
        kind,
        asking(part(video(clip(1)))),
        chat_template_kwargs={"processor_kwargs": {"do_sample_frames": True}},
    )
    assert ended == [True]


async def test_a_cancelled_prompt_is_not_decoded_to_its_end(
    has_av: None, kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded = []
    count = media_files.Budget.take_decoded
    scope = anyio.CancelScope()

    def take_decoded(budget: Any, pixels: int) -> None:
        decoded.append(pixels)
        count(budget, pixels)

    def choose(metadata: Any, **kwargs: Any) -> list[int]:
        anyio.from_thread.run_sync(scope.cancel)
        return every(metadata)

    monkeypatch.setattr(media_files.Budget, "take_decoded", take_decoded)
    monkeypatch.setattr(kind.processor.video_processor, "sample_frames", choose)
    with steps_of(kind.model) as steps, scope:
        await streamed(
            kind,
            asking(part(video(clip(1, 64)))),
            chat_template_kwargs={"processor_kwargs": {"do_sample_frames": True}},
        )
    assert scope.cancelled_caught
    assert steps.count == 0
    assert len(decoded) == 1


async def test_without_pyav_a_file_is_refused_at_once(
    kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with steps_of(kind.model) as steps, pytest.raises(ImportError, match=r"PyAV.*\[video\]"):
        await streamed(kind, asking(part(b"....ftypisom")))
    assert steps.count == 0
    assert await streamed(kind, asking(part(clip(1)))) == plain(kind, asking(part(clip(1))))
