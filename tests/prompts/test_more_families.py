"""More families that see and hear, in all ways: the ids are those of plain ``generate()``."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("PIL")
pytest.importorskip("torch")
pytest.importorskip("torchvision")

import transformers

from anystreamer import UntrustedMessages, open_engine
from anystreamer.server import create_app

from ..helpers.more_processors import MORE, one_of_more
from ..helpers.serving import LEFT_GENERATORS, client_of, serving
from ..helpers.tiny_processors import Kind, clip, picture, png, recording, video, wav
from .test_media import (
    TOKENS,
    asking,
    data_url,
    different,
    plain,
    plain_rows,
    rows_of,
    streamed,
)
from .test_videos import plain_file

pytestmark = [
    pytest.mark.torch,
    # Of processors of transformers 5.0.
    pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning"),
    LEFT_GENERATORS,
]

# These differ in mechanism: shapes that are kept, one input for pictures and videos, two media.
BY_DAY = ("mistral3", "internvl", "qwen2.5-omni")
WAYS = {
    "internvl": ("image", "video"),
    "mistral3": ("image",),
    "qwen2.5-omni": ("image", "audio"),  # its processor makes each frame too large for a test
    "aya-vision": ("image",),
    "idefics3": ("image",),
    "llama4": ("image",),
    "llava-onevision": ("image", "video"),
    "phi4": ("audio",),
    "smolvlm": ("image",),
}
CASES = [
    pytest.param(
        name,
        medium,
        id=f"{name}, {medium}",
        marks=[] if name in BY_DAY else [pytest.mark.variant],
    )
    for name in MORE
    for medium in WAYS[name]
]


def kind_of(name: str) -> Kind:
    if name == "smolvlm":
        pytest.importorskip("num2words")
    if name == "llama4" and not hasattr(transformers, "Llama4ImageProcessor"):
        pytest.skip("transformers 5.0 fails at its pictures")
    return one_of_more(name)


def part_of(medium: str, number: int) -> dict[str, Any]:
    """Each number is another one. Pictures and recordings differ in size, too."""
    if medium == "image":
        return {"type": "image", "image": picture(number, 16 + 8 * (number % 3), 16)}
    if medium == "audio":
        return {"type": "audio", "audio": recording(number, 0.3 + 0.2 * (number % 3))}
    return {"type": "video", "video": clip(number)}


def sent(medium: str, number: int) -> dict[str, Any]:
    """The same, as clients send it."""
    value = part_of(medium, number)[medium]
    if medium == "image":
        url = data_url(png(value))
    elif medium == "audio":
        url = data_url(wav(value), "audio/wav")
    else:
        files = [data_url(png(picture_of(frame))).partition(",")[2] for frame in value]
        url = f"data:video/jpeg;base64,{','.join(files)}"
    return {"type": f"{medium}_url", f"{medium}_url": {"url": url}}


def picture_of(frame: Any) -> Any:
    from PIL import Image

    return Image.fromarray(frame)


@pytest.mark.parametrize(("name", "medium"), CASES)
async def test_one_after_the_other_and_in_engines(name: str, medium: str) -> None:
    kind = kind_of(name)
    chat = asking(part_of(medium, 1), part_of(medium, 2))
    different(kind, chat, asking(part_of(medium, 1), part_of(medium, 3)))
    expected = plain(kind, chat)
    assert await streamed(kind, chat) == expected
    assert await streamed(kind, UntrustedMessages(chat)) == expected
    batchings: tuple[Any, ...] = ("none", "auto")
    for batching in batchings:
        async with open_engine(kind.model, kind.processor, batching=batching) as engine:
            for _ in range(2):  # the second has a conversation's cache
                async with engine.stream_text(
                    chat, max_new_tokens=TOKENS, do_sample=False
                ) as stream:
                    await stream.read()
                assert list(stream.token_ids) == expected


@pytest.mark.parametrize(("name", "medium"), CASES)
async def test_a_batch(name: str, medium: str) -> None:
    kind = kind_of(name)
    chats = [
        asking(part_of(medium, 1), text="A longer question, so that the others are padded."),
        asking(part_of(medium, 2), part_of(medium, 3)),
    ]
    assert await rows_of(kind, chats) == plain_rows(kind, chats)


@pytest.mark.parametrize(("name", "medium"), CASES)
async def test_the_server(name: str, medium: str) -> None:
    kind = kind_of(name)
    expected = kind.processor.decode(
        plain(kind, asking(part_of(medium, 4))), skip_special_tokens=True
    )
    body = {"messages": asking(sent(medium, 4)), "max_tokens": TOKENS, "temperature": 0}
    async with (
        open_engine(kind.model, kind.processor) as engine,
        serving(create_app(engine)) as url,
        client_of(url) as client,
    ):
        answer = await client.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    assert answer.json()["choices"][0]["message"]["content"] == expected


@pytest.mark.variant
async def test_a_family_whose_processor_takes_only_files_of_videos(tmp_path: Path) -> None:
    """It writes the times of frames, and does not know those of frames alone."""
    pytest.importorskip("av")
    kind = kind_of("smolvlm")
    if "processor_kwargs" not in inspect.signature(kind.processor.apply_chat_template).parameters:
        pytest.skip("it has no metadata of files in transformers 5.0")
    path = tmp_path / "a video.mp4"
    path.write_bytes(video(clip(1, 16)))
    chat = asking({"type": "video", "video": path.read_bytes()})
    expected = plain_file(kind, path, num_frames=4, fps=1)
    assert await streamed(kind, chat) == expected
    assert await streamed(kind, UntrustedMessages(chat)) == expected
