"""Pictures and recordings in requests: the answers are those of plain ``generate()``."""

from __future__ import annotations

import base64
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

pytest.importorskip("PIL")
pytest.importorskip("torch")

from PIL import Image

from anystreamer import open_engine
from anystreamer.server import create_app

from ..helpers.serving import LEFT_GENERATORS, client_of, official, serving
from ..helpers.tiny_models import llama, steps_of, tokenizer
from ..helpers.tiny_processors import (
    Kind,
    clip,
    kind_named,
    picture,
    png,
    recording,
    video,
    wav,
)
from ..prompts.test_media import asking, plain
from ..prompts.test_media_fetch import pictures

pytestmark = [
    pytest.mark.torch,
    pytest.mark.slow,
    LEFT_GENERATORS,
]

CHAT = "/v1/chat/completions"


@asynccontextmanager
async def edge(model: Any, processor: Any, **kwargs: Any) -> AsyncIterator[str]:
    async with open_engine(model, processor) as engine:
        async with serving(create_app(engine, **kwargs)) as url:
            yield url


def base64_of(data: bytes) -> str:
    return base64.b64encode(data).decode()


def image_url(data: bytes) -> dict[str, Any]:
    url = f"data:image/png;base64,{base64_of(data)}"
    return {"type": "image_url", "image_url": {"url": url, "detail": "auto"}}


def input_audio(data: bytes) -> dict[str, Any]:
    return {"type": "input_audio", "input_audio": {"data": base64_of(data), "format": "wav"}}


def text_of(kind: Kind, chat: Any) -> str:
    ids = plain(kind, chat)
    return str(kind.processor.decode(ids, skip_special_tokens=True))


async def answer(client: openai.AsyncOpenAI, messages: Any, *, stream: bool, **kwargs: Any) -> str:
    settings: dict[str, Any] = {"max_tokens": 8, "temperature": 0, **kwargs}
    if not stream:
        whole = await client.chat.completions.create(
            model="anystreamer", messages=messages, **settings
        )
        return str(whole.choices[0].message.content)
    text = ""
    events = await client.chat.completions.create(
        model="anystreamer", messages=messages, stream=True, **settings
    )
    async for event in events:
        text += event.choices[0].delta.content or ""
    return text


@pytest.mark.parametrize("name", ["llava", "qwen2.5-vl", "gemma3", "qwen2-audio"])
async def test_the_official_client(name: str) -> None:
    kind = kind_named(name)
    if "image" in kind.media:
        sent, given = image_url(png(picture(2))), {"type": "image", "image": picture(2)}
    else:
        sent, given = input_audio(wav(recording(2))), {"type": "audio", "audio": recording(2)}
    expected = text_of(kind, asking(given))
    messages = [{"role": "system", "content": "Be brief."}, *asking(sent)]
    with_system = text_of(
        kind,
        [{"role": "system", "content": [{"type": "text", "text": "Be brief."}]}, *asking(given)],
    )
    async with edge(kind.model, kind.processor) as url, official(url) as client:
        for stream in (False, True):
            assert await answer(client, asking(sent), stream=stream) == expected
            assert await answer(client, messages, stream=stream) == with_system


async def test_a_picture_that_a_tool_has_made() -> None:
    """As Codex and openai-agents send it in the Responses API, and in chats as vLLM takes it."""
    kind = kind_named("llava")
    function = {"name": "look", "arguments": "{}"}
    call = {"id": "call_1", "type": "function", "function": function}
    said = [{"role": "user", "content": [{"type": "text", "text": "a"}]}]
    calling = {"role": "assistant", "content": [{"type": "text", "text": ""}]}
    given = [{"type": "text", "text": "b"}, {"type": "image", "image": picture(2)}]
    expected = text_of(kind, [*said, calling, {"role": "tool", "content": given}])
    sent = image_url(png(picture(2)))
    called = {"role": "assistant", "content": None, "tool_calls": [call]}
    result = {"role": "tool", "tool_call_id": "call_1", "content": [given[0], sent]}
    items: Any = [
        *({**each, "content": "a"} for each in said),
        {"type": "function_call", "call_id": "call_1", **function},
        {
            "type": "function_call_output",
            "call_id": "call_1",
            "output": [
                {"type": "input_text", "text": "b"},
                {
                    "type": "input_image",
                    "image_url": sent["image_url"]["url"],
                    "detail": "original",
                },
            ],
        },
    ]
    async with edge(kind.model, kind.processor) as url, official(url) as client:
        assert await answer(client, [*said, called, result], stream=False) == expected
        response = await client.responses.create(
            model="anystreamer", input=items, max_output_tokens=16, temperature=0
        )
        assert response.output_text.startswith(expected)


def address_part(kind: str, data: bytes) -> dict[str, Any]:
    """As vLLM takes files of each kind."""
    return {"type": kind, kind: {"url": f"data:{kind};base64,{base64_of(data)}"}}


async def test_a_recording_as_clients_of_vllm_send_it() -> None:
    kind = kind_named("qwen2-audio")
    expected = text_of(kind, asking({"type": "audio", "audio": recording(2)}))
    sent = asking(address_part("audio_url", wav(recording(2))))
    async with edge(kind.model, kind.processor) as url, official(url) as client:
        assert await answer(client, sent, stream=True) == expected


async def test_a_video_as_clients_of_vllm_send_it(tmp_path: Path) -> None:
    pytest.importorskip("torchvision")
    pytest.importorskip("av")
    from ..prompts.test_videos import plain_file, without_data

    kind = kind_named("qwen2.5-vl, videos")
    path = tmp_path / "a video.mp4"
    path.write_bytes(video(clip(2)))
    from_file = kind.processor.decode(plain_file(kind, path), skip_special_tokens=True)
    files = ",".join(base64_of(png(Image.fromarray(each))) for each in clip(2))
    frames = {"type": "video_url", "video_url": f"data:video/jpeg;base64,{files}"}
    from_frames = text_of(kind, asking({"type": "video", "video": clip(2)}))
    async with edge(kind.model, kind.processor) as url:
        async with official(url) as client:
            sent = asking(address_part("video_url", path.read_bytes()))
            assert await answer(client, sent, stream=True) == from_file
            assert await answer(client, asking(frames), stream=False) == from_frames
        async with client_of(url) as raw:
            with steps_of(kind.model) as steps:
                bad = address_part("video_url", b"hello")
                assert "content[0]: it is not a video" in await refusal(raw, [bad])
                damaged = address_part("video_url", without_data(path.read_bytes(), keep=100))
                assert "content[0]: the video is damaged" in await refusal(raw, [damaged])
                for place in (str(path), path.as_uri()):
                    there = {"type": "video_url", "video_url": {"url": place}}
                    assert "must be a data: URL" in await refusal(raw, [there])
                address = {"type": "video_url", "video_url": "http://169.254.169.254/a.mp4"}
                assert "allow_media_from" in await refusal(raw, [address])
            assert steps.count == 0
    sees = kind_named("llava")
    async with edge(sees.model, sees.processor) as url, client_of(url) as raw:
        message = await refusal(raw, [frames])
        assert "is a video, and LlavaProcessor does not take video inputs" in message


async def test_several_answers_and_the_text_beside_them() -> None:
    kind = kind_named("llava")
    expected = text_of(kind, asking({"type": "image", "image": picture(2)}, text="a<eos>b"[:1]))
    async with edge(kind.model, kind.processor) as url, official(url) as client:
        whole = await client.chat.completions.create(
            model="anystreamer",
            messages=asking(image_url(png(picture(2))), text="a"),  # type: ignore[arg-type]
            max_tokens=8,
            temperature=0,
            n=2,
        )
        assert [each.message.content for each in whole.choices] == [expected] * 2
        # The token of a picture is text, as all special tokens are.
        await answer(
            client, asking(image_url(png(picture(2))), text="<image><end><eos>"), stream=False
        )


async def refusal(client: httpx.AsyncClient, content: Any, status: int = 400) -> str:
    body = {"messages": [{"role": "user", "content": content}], "max_tokens": 2}
    response = await client.post(CHAT, json=body)
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert str(error["param"]).startswith("messages")
    return str(error["message"])


async def test_what_is_wrong_with_a_picture_is_400(tmp_path: Any) -> None:
    kind = kind_named("llava")
    path = tmp_path / "secret.png"
    path.write_bytes(png(picture()))

    def at(url: str) -> list[Any]:
        return [{"type": "image_url", "image_url": {"url": url}}]

    async with edge(kind.model, kind.processor) as url, client_of(url) as client:
        with steps_of(kind.model) as steps:
            assert "not a picture" in await refusal(client, [image_url(b"hello")])
            assert "base64" in await refusal(client, at("data:image/png;base64,a?b"))
            assert "base64" in await refusal(client, at("data:image/svg+xml,<svg/>"))
            assert "allow_media_from" in await refusal(client, at("http://169.254.169.254/"))
            for place in (str(path), path.as_uri(), f"FILE://{path}", "../secret.png", "ftp://a/b"):
                assert "must be a data: URL" in await refusal(client, at(place))
            bomb = png(Image.new("L", (8_001, 8_000)))
            assert "64 million pixels" in await refusal(client, [image_url(bomb)])
            assert "at most 32" in await refusal(client, [image_url(png(picture()))] * 33)
            audio = await refusal(client, [input_audio(wav(recording()))])
            assert "is audio, and LlavaProcessor does not take audio" in audio
            for part in (
                {"type": "image", "path": str(path)},
                {"type": "video", "video": str(path)},
                {"type": "video_url", "video_url": {"url": "data:video/mp4;base64,aaaa"}},
                {"type": "video_url", "video_url": {"path": str(path)}},
                {"type": "audio_url", "audio_url": {"url": ""}},
                {"type": "image_url", "image_url": {"path": str(path)}},
                {"type": "image_url", "image_url": {"url": "", "detail": "auto"}},
                {"type": "image_url"},
                {"type": "text", "text": "a", "image": str(path)},
                {"type": "input_audio", "input_audio": {"data": "aaaa", "format": "exe"}},
            ):
                await refusal(client, [part])
        assert steps.count == 0


async def test_a_model_without_a_processor_says_so() -> None:
    async with edge(llama(), tokenizer()) as url, client_of(url) as client:
        with steps_of(llama()) as steps:
            message = await refusal(client, [image_url(png(picture()))])
            assert "is an image, and LlamaForCausalLM does not take image inputs" in message
            message = await refusal(client, [input_audio(wav(recording()))])
            assert "is audio, and LlamaForCausalLM does not take audio inputs" in message
        assert steps.count == 0
    kind = kind_named("llava")
    async with edge(kind.model, kind.processor.tokenizer) as url, client_of(url) as client:
        await refusal(client, [image_url(png(picture()))])


@pytest.mark.parametrize(
    ("name", "kinds"), [("llava", ["text", "image"]), ("qwen2-audio", ["text", "audio"])]
)
async def test_the_list_of_models_says_what_messages_can_have(name: str, kinds: list[str]) -> None:
    """The chat page offers pictures where it says so."""
    kind = kind_named(name)
    for processor, expected in ((kind.processor, kinds), (kind.processor.tokenizer, ["text"])):
        async with edge(kind.model, processor) as url, client_of(url) as client:
            (card,) = (await client.get("/v1/models")).json()["data"]
            assert card["input_modalities"] == expected
            assert (await client.get("/v1/models/anystreamer")).json() == card


async def test_addresses_of_named_hosts_are_fetched() -> None:
    pytest.importorskip("httpcore")
    kind = kind_named("llava")
    expected = text_of(kind, asking({"type": "image", "image": picture(3)}))
    async with pictures() as server:
        part = {"type": "image_url", "image_url": {"url": f"{server.url}/picture.png"}}
        for special in (False, True):
            async with edge(
                kind.model,
                kind.processor,
                allow_media_from=[server.host],
                allow_special_tokens=special,
            ) as url:
                async with official(url) as client:
                    assert await answer(client, asking(part), stream=True) == expected
                async with client_of(url) as raw:
                    missing = {"url": f"{server.url}/missing"}
                    message = await refusal(raw, [{"type": "image_url", "image_url": missing}])
                    assert "answered 404" in message


async def test_text_alone_reaches_a_template_of_parts() -> None:
    kind = kind_named("llava")
    expected = text_of(kind, asking(text="Hello"))
    async with edge(kind.model, kind.processor) as url, official(url) as client:
        messages = [{"role": "user", "content": "Hello"}]
        assert await answer(client, messages, stream=False) == expected


def test_a_list_of_hosts_is_checked() -> None:
    with pytest.raises(TypeError, match="allow_media_from must be a list of hosts"):
        create_app(object(), allow_media_from="example.org")  # type: ignore[arg-type]


@pytest.mark.parametrize(("name", "package"), [("llava", "PIL"), ("qwen2-audio", "soundfile")])
async def test_a_server_without_what_decodes_a_file_says_so(
    name: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = kind_named(name)
    part = image_url(png(picture())) if package == "PIL" else input_audio(b"ID3" + bytes(2000))
    for loaded in [each for each in sys.modules if each.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.setitem(sys.modules, package, None)
    async with edge(kind.model, kind.processor) as url, client_of(url) as client:
        response = await client.post(CHAT, json={"messages": asking(part), "max_tokens": 2})
    assert response.status_code == 400
    assert "anystreamer[media]" in response.json()["error"]["message"]
