"""Pictures in a chat: what `/image` and `--image` take, and what the model gets of them."""

from __future__ import annotations

import base64
import io
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("rich")
pytest.importorskip("typer")
pytest.importorskip("PIL")

from PIL import Image
from typer.testing import CliRunner

from anystreamer.cli.chat_backends import LocalModel, RemoteModel
from anystreamer.cli.chat_commands import Commands, Conversation
from anystreamer.cli.chat_keyboard import completer
from anystreamer.cli.chat_pictures import MAX_SIDE, as_data, read_picture
from anystreamer.cli.commands import app
from anystreamer.testing import ScriptedModel

from ..helpers.scripted import PROGRAM_TIMEOUT
from ..helpers.serving import LEFT_GENERATORS, serving

RED = (200, 30, 40)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current one, and the user's home."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    return tmp_path


def save(path: Path, size: tuple[int, int] = (8, 6), **options: Any) -> Path:
    Image.new("RGB", size, RED).save(path, **options)
    return path


@pytest.mark.parametrize(
    "typed",
    ["a b.png", "./a b.png", "~/a b.png", '"a b.png"', "'a b.png'", "'~/a b.png'"]
    + [r"a\ b.png"] * (sys.platform != "win32"),
)
def test_a_path_as_it_is_typed_or_dropped(typed: str, folder: Path) -> None:
    save(folder / "a b.png")
    assert read_picture(typed).size == (8, 6)


def test_a_name_with_quotes_is_the_file_of_that_name(folder: Path) -> None:
    save(folder / "'a'", (1, 2), format="PNG")
    save(folder / "a", (3, 4), format="PNG")
    assert read_picture("'a'").size == (1, 2)


def test_a_picture_is_upright(folder: Path) -> None:
    """As phones store it: turned, with a note of how."""
    turned = Image.Exif()
    turned[0x0112] = 6
    save(folder / "a.jpg", (8, 6), exif=turned)
    assert read_picture("a.jpg").size == (6, 8)


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("nowhere.png", "nowhere.png: No such file"),
        ("https://a.org/b.png", "addresses are not fetched, so download it first"),
        ("folder", "folder: it is not a file"),
        ("text.png", "text.png: it is not a picture in a known format"),
        ("cut.png", "cut.png: the picture is damaged"),
        ("a\0b", "null"),
        ("'open quote", "'open quote: No such file"),
    ],
)
def test_what_is_no_picture(path: str, reason: str, folder: Path) -> None:
    (folder / "folder").mkdir()
    (folder / "text.png").write_text("text")
    data = save(folder / "whole.png", (500, 500)).read_bytes()
    (folder / "cut.png").write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match=reason):
        read_picture(path)


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such pipes")
def test_a_pipe_is_not_waited_for(folder: Path) -> None:
    os.mkfifo(folder / "pipe")
    with pytest.raises(ValueError, match="pipe: it is not a file"):
        read_picture("pipe")


def sent(part: dict[str, Any]) -> Image.Image:
    kind, _, data = part["image_url"]["url"].partition(",")
    assert kind == "data:image/jpeg;base64"
    return Image.open(io.BytesIO(base64.b64decode(data)))


def test_a_server_gets_a_small_picture_that_tells_no_more(folder: Path) -> None:
    """A body can have a mebibyte by default."""
    told = Image.Exif()
    told[0x010F] = "the camera"
    noise = Image.effect_noise((3000, 2000), 50).convert("RGB")
    noise.save(folder / "large.jpg", exif=told)
    part = as_data(read_picture("large.jpg"))
    assert len(json.dumps(part)) < 2**20
    picture = sent(part)
    assert picture.size == (MAX_SIDE, round(MAX_SIDE * 2 / 3))
    assert not picture.getexif()
    save(folder / "small.png")
    assert sent(as_data(read_picture("small.png"))).size == (8, 6)  # not larger


# -- the command


def test_pictures_go_with_the_next_question_only() -> None:
    conversation = Conversation(None)
    asked: list[Any] = []
    commands = Commands(conversation, asked.append, lambda path: {"type": "image", "image": path})
    assert conversation.question("q") == "q"
    assert commands.run("/image a b.png").startswith("The next question has 1 picture.")
    assert commands.run("/image c.png").startswith("The next question has 2 pictures.")
    first = conversation.question("q")
    assert first == [
        {"type": "image", "image": "a b.png"},
        {"type": "image", "image": "c.png"},
        {"type": "text", "text": "q"},
    ]
    assert conversation.question("q") == first  # until it is answered
    conversation.add(first, "a")
    assert conversation.question("r") == "r"
    commands.run("/image c.png")
    commands.run("/retry")
    assert asked == [first]
    assert len(conversation.pictures) == 1  # that of the next question stays
    assert commands.run("/image") == "The next question has no picture."
    commands.run("/image c.png")
    commands.run("/new")
    assert conversation.question("q") == "q"


def test_a_model_that_takes_no_pictures_says_so() -> None:
    model = ScriptedModel(["a"])
    with pytest.raises(ValueError, match="the file is an image, and ScriptedModel does not take"):
        LocalModel(model, model.tokenizer, "scripted", 5).check_pictures()
    RemoteModel("http://localhost", "name", None, None).check_pictures()  # the server will


def test_tab_completes_commands_settings_and_paths(folder: Path) -> None:
    commands = Commands(Conversation(None), print, read_picture)
    for name in ("one.png", "one more.png", "two[1].png"):
        save(folder / name)
    (folder / "once").mkdir()
    assert commands.completions("/im") == ["/image "]
    assert commands.completions("/he") == ["/help"]
    assert commands.completions("/set t") == ["/set temperature ", "/set top_p "]
    assert commands.completions("/nosuch ") == []
    found = ["one more.png", "one.png"]
    assert commands.completions("/image one") == [f"/image {each}" for each in found]
    assert commands.completions("/image ./one.") == ["/image ./one.png"]
    assert commands.completions("/image ~/onc") == [f"/image ~/once{os.sep}"]
    assert commands.completions("/image two[") == ["/image two[1].png"]
    assert commands.completions("/image nowhere/") == []


def test_a_tab_in_a_question_is_a_tab() -> None:
    """Text that is pasted has them."""
    complete = completer(lambda _: ["/new", "/next"])
    assert [complete("a", number) for number in (0, 1)] == ["a\t", None]
    assert [complete("/ne", number) for number in (0, 1, 2)] == ["/new", "/next", None]


@pytest.mark.parametrize("where", [[], ["--base-url", "http://127.0.0.1:1"]])
def test_the_option_is_checked_before_a_model_is_loaded(where: list[str], folder: Path) -> None:
    result = CliRunner().invoke(app, ["chat", "--image", "nowhere.png", *where])
    assert result.exit_code == 2
    assert "nowhere.png: No such file" in " ".join(result.output.replace("│", " ").split())


# -- real models


@pytest.mark.torch
@pytest.mark.parametrize("name", ["llava", "qwen2.5-vl"])
async def test_the_model_sees_the_picture_in_each_later_turn(name: str, folder: Path) -> None:
    from ..helpers.tiny_processors import kind_named, picture
    from ..prompts.test_media import asking, different, plain

    kind = kind_named(name)
    picture(1).save(folder / "a.png")
    part = {"type": "image", "image": picture(1)}
    different(kind, asking(part), asking({"type": "image", "image": picture(2)}))
    backend, conversation = LocalModel(kind.model, kind.processor, name, 8), Conversation(None)
    backend.check_pictures()
    conversation.pictures = [backend.picture_part(read_picture("a.png"))]
    known: list[Any] = []
    async with backend.open() as engine:
        for text in ("What is it?", "And now?"):
            known += asking(*([] if known else [part]), text=text)
            question = conversation.question(text)
            async with engine.stream_text(
                conversation.messages_with(question), **backend.arguments({"temperature": 0})
            ) as stream:
                answer = await stream.read()
            assert list(stream.token_ids) == plain(kind, known)
            conversation.add(question, answer)
            known += [{"role": "assistant", "content": [{"type": "text", "text": answer}]}]


@pytest.mark.torch
@LEFT_GENERATORS
async def test_a_server_s_model_sees_the_picture(folder: Path) -> None:
    from anystreamer import open_engine
    from anystreamer.server import create_app

    from ..helpers.tiny_processors import kind_named, picture
    from ..prompts.test_media import asking, plain

    kind = kind_named("qwen2.5-vl")
    picture(1).save(folder / "a.png")
    conversation = Conversation(None)
    async with open_engine(kind.model, kind.processor) as local, serving(create_app(local)) as url:
        backend = RemoteModel(f"{url}/v1", "anystreamer", None, 8)
        part = backend.picture_part(read_picture("a.png"))
        conversation.pictures = [part]
        messages = conversation.messages_with(conversation.question("What is it?"))
        async with backend.open() as engine:
            async with engine.stream_text(messages, **backend.arguments({"temperature": 0})) as it:
                answer = await it.read()
    ids = plain(kind, asking({"type": "image", "image": sent(part)}))
    assert answer == kind.processor.decode(ids, skip_special_tokens=True)


# -- on a terminal

PROGRAM = """
import json
from anystreamer import cli
from anystreamer.cli import common
from tests.helpers.tiny_processors import kind_named

kind = kind_named("llava")
seen = []
kind.model.model.vision_tower.register_forward_pre_hook(
    lambda module, args, kwargs: seen.append(len(args[0] if args else kwargs["pixel_values"])),
    with_kwargs=True,
)
common.load_embedded = lambda: (kind.model, kind.processor)
try:
    cli.main()
finally:
    with open({told!r}, "w") as file:
        json.dump(seen, file)
"""


@pytest.mark.torch
@pytest.mark.slow
@pytest.mark.timeout(PROGRAM_TIMEOUT)
@pytest.mark.skipif(sys.platform == "win32", reason="there are no such terminals")
def test_pictures_on_a_terminal(tmp_path: Path) -> None:
    """By the option and by the command, whose path a tab completes. Errors leave the chat open."""
    from ..helpers.terminals import terminal

    told = tmp_path / "told"
    save(tmp_path / "first one.png")
    save(tmp_path / "second.png")
    code = PROGRAM.format(told=str(told))
    option = ("--image", str(tmp_path / "first one.png"), "--max-new-tokens", "2")
    with terminal(code, "chat", *option, size=(200, 60)) as chat:
        chat.until(r"The next question has 1 picture\. .*\n>$")
        chat.type("/image nowhere.png\n")
        chat.until(r"Error: nowhere\.png: No such file.*\n>$")
        chat.type(f"/image {tmp_path}/sec\t\n")
        chat.until(r"second\.png\nThe next question has 2 pictures\. .*\n>$")
        chat.type("What is it?\n")
        chat.until(r"(length|eos), \d tokens?[^>]*\n>$")
        chat.type("/image\n")
        chat.until(r"The next question has no picture\.\n>$")
        chat.type("/he\t\n")
        chat.until(r"\n/image \[PATH\] +add a picture[^>]*\n>$")
        chat.type("\x04")
        assert chat.end() == 0
        assert "Traceback" not in chat.text
    assert json.loads(told.read_text()) == [2]  # at once, and with one question only
