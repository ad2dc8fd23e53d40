"""The chat page in a real Chromium: it streams, stops the model, and survives what can go wrong."""

from __future__ import annotations

import base64
import json
import os
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import anyio
import pytest
from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Browser, Error, Locator, Page, expect
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Mount, Route

from anystreamer import Engine, open_engine
from anystreamer.server import create_app
from anystreamer.server._chat_page import page_routes
from anystreamer.testing import Gate, Script, ScriptedModel

from ..helpers.chromium import launched, opened
from ..helpers.scripted import PATIENCE, until
from ..helpers.serving import serving
from ..helpers.warm_programs import start_program

pytestmark = pytest.mark.slow

DELAY = 0.02
# Steps that the model may take from the click until the server knows. On a quiet machine it is one
# or none; a busy one can take as long as a test waits for anything.
FEW = PATIENCE / DELAY
WORDS = 10_000
ENDLESS = ["word "] * WORDS


@pytest.fixture(scope="module", params=[pytest.param(("asyncio", {}), id="asyncio")])
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    """playwright is for asyncio. What each loop does when a client leaves is tested elsewhere."""
    return request.param


@pytest.fixture(scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with launched() as browser:
        yield browser


@asynccontextmanager
async def chatting(
    browser: Browser,
    script: Script | ScriptedModel,
    *,
    path: str = "",
    max_waiting: int | None = None,
    expected: tuple[str, ...] = (),
    context: dict[str, Any] | None = None,
    **kwargs: Any,
) -> AsyncIterator[tuple[Page, ScriptedModel, Engine]]:
    """A page, the model that it speaks with, and the engine between them."""
    model = script if isinstance(script, ScriptedModel) else ScriptedModel(script)
    async with open_engine(model, model.tokenizer, max_waiting=max_waiting) as engine:
        app: Any = create_app(engine, **kwargs)
        if path:
            app = Starlette(routes=[Mount(path, app)])
        async with serving(app) as url:
            try:
                async with opened(
                    browser, url + path, expected=expected, **(context or {})
                ) as page:
                    yield page, model, engine
            finally:
                model.open_gates()


async def say(page: Page, text: str) -> None:
    await page.get_by_label("Message").fill(text)
    await page.keyboard.press("Enter")


def answer(page: Page, number: int = -1) -> Locator:
    return page.locator(".answer > .text").nth(number)


def figures(page: Page, number: int = -1) -> Locator:
    return page.locator(".figures").nth(number)


def problem(page: Page) -> Locator:
    return page.locator("#problem")


def asked(model: ScriptedModel, call: int = -1) -> str:
    """The prompt of a call."""
    return model.tokenizer.decode(model.calls[call]["input_ids"][0])


async def is_stopped(model: ScriptedModel, engine: Engine, before: int) -> None:
    await until(lambda: not model.is_generating)
    assert model.steps - before <= FEW
    await until(lambda: engine.statistics().running == 0)
    assert engine.statistics().computed_tokens <= model.steps < WORDS


# -- streaming


async def test_text_appears_as_it_is_made(browser: Browser) -> None:
    """And a screen reader is told the answer once, when it is whole."""
    one, two = Gate(), Gate()
    script: Script = ["One ", one, "👋🏽 二\n", two, "  three"]
    async with chatting(browser, script, model_name="counter") as (page, model, _):
        await expect(page.locator("#model")).to_have_text("counter")
        await expect(page).to_have_title("Chat – counter")
        await say(page, "Count")
        await expect(page.locator(".question")).to_have_text("Count")
        status = page.locator("#status")
        for gate, text in ((one, "One"), (two, "One 👋🏽 二")):
            await expect(answer(page)).to_have_js_property("textContent", text)
            await expect(status).to_have_text("The model is answering.")
            await expect(page.get_by_role("button", name="Stop")).to_be_visible()
            await expect(page.get_by_role("button", name="Send")).to_be_hidden()
            await anyio.sleep(0.06)  # a rate needs some time
            gate.open()
        await expect(answer(page)).to_have_js_property("textContent", "One 👋🏽 二\nthree")
        await expect(figures(page)).to_have_text(
            re.compile(r"^finished · 4 tokens · \d+\.\d s · [\d.,]+ tokens/s$")
        )
        await expect(status).to_have_js_property("textContent", "One 👋🏽 二\nthree")
        await expect(page.get_by_role("button", name="Send")).to_be_visible()
        assert model.calls[-1]["max_new_tokens"] == 1024


async def test_a_short_answer_takes_milliseconds(browser: Browser) -> None:
    async with chatting(browser, ["Hello!"]) as (page, _, _):
        await page.evaluate("performance.now = () => 1000")
        await say(page, "first")
        await expect(figures(page)).to_contain_text("tokens · 1 ms")


async def test_the_conversation_is_kept_until_a_new_one(browser: Browser) -> None:
    async with chatting(browser, ["Hello!"]) as (page, model, _):
        await say(page, "first")
        await expect(figures(page, 0)).to_contain_text("finished")
        await say(page, "second")
        await expect(figures(page, 1)).to_contain_text("finished")
        assert asked(model) == "user: first\nassistant: Hello!\nuser: second\nassistant: "
        await page.get_by_role("button", name="New chat").click()
        await expect(page.locator(".question")).to_have_count(0)
        await expect(page.get_by_label("Message")).to_be_focused()
        await say(page, "third")
        await expect(figures(page, 0)).to_contain_text("finished")
        assert asked(model) == "user: third\nassistant: "


async def test_an_answer_that_is_cut_off_says_so(browser: Browser) -> None:
    async with chatting(browser, ["a "] * 50, default_max_tokens=3) as (page, _, _):
        await say(page, "Hi")
        await expect(figures(page)).to_have_text(
            re.compile(r"^cut off at the token limit · 3 tokens · ")
        )


async def test_it_stays_at_the_end_unless_the_reader_goes_elsewhere(browser: Browser) -> None:
    half, end = Gate(), Gate()
    lines = [f"{number}\n" for number in range(200)]
    async with chatting(browser, [*lines, half, *lines, end]) as (page, _, _):
        await say(page, "Count")
        conversation = page.locator("#conversation")
        await expect(answer(page)).to_contain_text("199")
        from_end = "c => c.scrollHeight - c.scrollTop - c.clientHeight"
        with anyio.fail_after(PATIENCE):
            while await conversation.evaluate(from_end) >= 2:
                await anyio.sleep(0.01)
        await conversation.evaluate("c => c.scrollTop = 0")
        half.open()
        await expect(answer(page)).to_have_text(re.compile("199.*199", re.DOTALL))
        end.open()
        await expect(figures(page)).to_contain_text("finished")
        assert await conversation.evaluate("c => c.scrollTop") == 0


async def test_mounted_under_a_path(browser: Browser) -> None:
    async with chatting(browser, ["Hello!"], path="/some/llm") as (page, _, _):
        assert page.url.endswith("/some/llm/")
        await say(page, "Hi")
        await expect(answer(page)).to_have_text("Hello!")


# -- what can be done with an answer, and what is asked for


COPIED = "navigator.clipboard.readText()"
CODE = "Do **this**:\n\n```py\nx = 1\n\ty\n```\n"


@pytest.mark.parametrize("is_secure", [True, False])
async def test_an_answer_and_its_code_are_copied(browser: Browser, is_secure: bool) -> None:
    """Also over HTTP from another machine, where pages have no clipboard of that kind."""
    permissions = {"permissions": ["clipboard-read", "clipboard-write"]}
    async with chatting(browser, [CODE], context=permissions) as (page, _, _):
        await say(page, "How?")
        await expect(figures(page)).to_contain_text("finished")
        if not is_secure:
            await page.evaluate("navigator.clipboard.writeText = undefined")
        for name, text in (("Copy code", "x = 1\n\ty"), ("Copy answer", CODE)):
            button = page.get_by_role("button", name=name)
            await button.focus()
            await page.keyboard.press("Enter")
            await expect(page.locator("button:focus")).to_have_text("Copied")  # for 2 s
            await expect(page.locator("#status")).to_have_text("Copied.")
            assert await page.evaluate(COPIED) == text
            await expect(button).to_be_visible()  # it has its name again
            await page.evaluate("document.getElementById('status').textContent = ''")


async def test_a_screen_reader_reads_no_marks_and_no_buttons(browser: Browser) -> None:
    async with chatting(browser, ["# A *b*\n\n- c\n- d\n\n", CODE]) as (page, _, _):
        await say(page, "How?")
        text = "A b\nc\nd\nDo this:\nx = 1\n\ty"
        await expect(page.locator("#status")).to_have_js_property("textContent", text)


async def test_what_has_the_focus_keeps_it_while_the_answer_grows(browser: Browser) -> None:
    gate = Gate()
    async with chatting(browser, ["```\nx", gate, "\ny\n```\n", "\nmore"]) as (page, _, _):
        await say(page, "How?")
        await expect(page.locator("pre")).to_have_text("x")
        await page.get_by_role("button", name="Copy code").focus()
        gate.open()
        await expect(page.locator("pre")).to_have_text("x\ny")
        await expect(figures(page)).to_contain_text("finished")
        await expect(page.get_by_role("button", name="Copy code")).to_be_focused()


async def test_the_last_answer_again(browser: Browser) -> None:
    """It takes the place of the answer. If there is none, that one stays."""
    failed = ("net::ERR_INTERNET_DISCONNECTED",)
    async with chatting(browser, ["Hello!"], expected=failed) as (page, model, _):
        for number, text in enumerate(("first", "second")):
            await say(page, text)
            await expect(figures(page, number)).to_contain_text("finished")
        again = page.get_by_role("button", name="Try again")
        await expect(again).to_have_count(1)  # only the last
        await again.click()
        await until(lambda: len(model.calls) == 3)
        assert asked(model) == "user: first\nassistant: Hello!\nuser: second\nassistant: "
        await expect(figures(page, 1)).to_contain_text("finished")
        await expect(page.locator(".question")).to_have_count(2)
        await page.context.set_offline(True)
        await again.click()
        await expect(problem(page)).to_contain_text("cannot be reached")
        await expect(answer(page, 1)).to_have_text("Hello!")
        await expect(page.locator(".question")).to_have_count(2)
        await expect(page.get_by_label("Message")).to_have_value("")
        await page.context.set_offline(False)
        await say(page, "third")
        await expect(figures(page, 2)).to_contain_text("finished")
        first, second = ("user: first\nassistant: Hello!\n", "user: second\nassistant: Hello!\n")
        assert asked(model) == f"{first}{second}user: third\nassistant: "


async def test_settings(browser: Browser) -> None:
    """They are sent with each question. The system prompt is kept for this tab alone."""
    async with chatting(browser, ["Hello!"], expected=("400",)) as (page, model, _):
        await page.get_by_role("button", name="Settings").click()
        await expect(page.get_by_label("System prompt")).to_be_focused()
        assert [each["id"] for each in (await Axe().run(page)).response["violations"]] == []
        await page.get_by_label("System prompt").fill("Be nice.")
        await page.get_by_label("Temperature").fill("3")
        await page.keyboard.press("Enter")  # too hot
        await expect(page.get_by_role("dialog")).to_be_visible()
        await page.get_by_label("Temperature").fill("0.7")
        await page.get_by_label("Top p").fill("0.9")
        await page.get_by_label("Max tokens").fill("5")
        await page.get_by_role("button", name="Save").click()
        await expect(page.get_by_role("button", name="Settings")).to_be_focused()
        for _ in range(2):
            await say(page, "Hi")
            await expect(figures(page)).to_contain_text("finished")
            assert asked(model) == "system: Be nice.\nuser: Hi\nassistant: "
            call = model.calls[-1]
            assert (call["temperature"], call["top_p"], call["max_new_tokens"]) == (0.7, 0.9, 5)
            await page.reload()
        stored = "[Object.values(localStorage), Object.values(sessionStorage)]"
        local, session = await page.evaluate(stored)
        assert (sorted(local), session) == (["0.7", "0.9", "5"], ["Be nice."])
        await page.get_by_role("button", name="Settings").click()
        await page.get_by_label("Seed").fill("0")
        await page.get_by_role("button", name="Save").click()
        await say(page, "Hi")
        await expect(problem(page)).to_contain_text("seed is not supported by this model")
        await page.get_by_label("Message").fill("")
        await page.get_by_role("button", name="Settings").click()
        await page.get_by_role("button", name="Reset").click()
        await page.get_by_role("button", name="Save").click()
        assert await page.evaluate(stored) == [[], []]
        await say(page, "Hi")
        await expect(figures(page)).to_contain_text("finished")
        assert asked(model) == "user: Hi\nassistant: "
        assert "temperature" not in model.calls[-1]


async def test_a_browser_that_keeps_nothing(browser: Browser) -> None:
    """The settings last as long as the page."""
    async with chatting(browser, ["Hello!"]) as (page, model, _):
        forbid = """for (const name of ["localStorage", "sessionStorage"]) {
            Object.defineProperty(window, name, {
                get() { throw new DOMException("no", "SecurityError"); }
            });
        }"""
        await page.add_init_script(forbid)
        await page.reload()
        await page.get_by_role("button", name="Settings").click()
        await page.get_by_label("Max tokens").fill("7")
        await page.get_by_role("button", name="Save").click()
        await say(page, "Hi")
        await expect(answer(page)).to_have_text("Hello!")
        assert model.calls[-1]["max_new_tokens"] == 7


async def test_pictures(browser: Browser, tmp_path: Path) -> None:
    """Where the model takes them: smaller, with nothing of the file but what one sees."""
    image = pytest.importorskip("PIL.Image")
    big = image.new("RGB", (3000, 1500), "red")
    exif = image.Exif()
    exif[0x010E] = "a secret place"
    big.save(tmp_path / "big.jpg", exif=exif)
    (tmp_path / "broken.png").write_bytes(b"no picture")
    async with chatting(browser, ["Hello!"]) as (page, model, _):
        await expect(page.locator("#model")).to_have_text("anystreamer")
        await expect(page.get_by_role("button", name="Picture")).to_be_hidden()
    model = ScriptedModel(["Hello!"])
    model.tokenizer.image_processor = object()  # type: ignore[attr-defined]
    failed = ("ERR_INTERNET_DISCONNECTED",)
    async with chatting(browser, model, expected=failed) as (page, _, _):
        files = page.locator("#picture-files")
        add = page.get_by_role("button", name="Picture", exact=True)
        await expect(add).to_be_visible()
        await files.set_input_files(tmp_path / "broken.png")
        await expect(problem(page)).to_have_text("The browser cannot read broken.png as a picture.")
        await files.set_input_files([tmp_path / "big.jpg"] * 2)
        remove = page.get_by_role("button", name="Remove picture")
        await expect(remove).to_have_count(2)
        assert [each["id"] for each in (await Axe().run(page)).response["violations"]] == []
        await remove.first.click()
        await expect(add).to_be_focused()
        await page.context.set_offline(True)
        await say(page, "What is it?")  # and it comes back
        await expect(problem(page)).to_contain_text("cannot be reached")
        await expect(remove).to_have_count(1)
        await page.context.set_offline(False)
        async with page.expect_request("**/chat/completions") as sent:
            await page.get_by_label("Message").press("Enter")
        request = await sent.value
        assert request.post_data is not None
        (message,) = json.loads(request.post_data)["messages"]
        picture, text = message["content"]
        assert text == {"type": "text", "text": "What is it?"}
        start, data = picture["image_url"]["url"].split(",")
        assert start == "data:image/jpeg;base64"
        content = base64.b64decode(data)
        assert b"secret" not in content
        assert image.open(BytesIO(content)).size == (1024, 512)
        await expect(page.locator(".question canvas")).to_have_count(1)
        await expect(remove).to_have_count(0)


# -- stopping


@pytest.mark.parametrize("how", ["click", "Escape", "New chat", "reload", "close"])
async def test_the_model_stops(browser: Browser, how: str) -> None:
    model = ScriptedModel(ENDLESS, delay=DELAY)
    async with chatting(browser, model) as (page, _, engine):
        await say(page, "Talk")
        await expect(answer(page)).to_contain_text("word word word")
        before = model.steps
        match how:
            case "click":
                await page.get_by_role("button", name="Stop").click()
            case "New chat":
                await page.get_by_role("button", name=how).click()
            case "Escape":
                await page.keyboard.press(how)
            case "reload":
                await page.reload()
            case "close":
                return await closed(page, model, engine, before)
        await is_stopped(model, engine, before)
        if how in ("click", "Escape"):
            await expect(figures(page)).to_have_text(re.compile(r"^stopped · \d+ tokens · "))
            await expect(problem(page)).to_be_empty()
            # What was said was said: it goes on from there. The page shows no space at its end.
            said = f"{await answer(page).text_content()} "
            await say(page, "More")
            await expect(answer(page)).to_contain_text("word")
            assert asked(model) == f"user: Talk\nassistant: {said}\nuser: More\nassistant: "
        else:
            await expect(page.locator(".question")).to_have_count(0)
            await expect(page.get_by_text("Send a message to the model.")).to_be_visible()
            await say(page, "Again")
            await expect(answer(page)).to_contain_text("word")
            assert asked(model) == "user: Again\nassistant: "


async def closed(page: Page, model: ScriptedModel, engine: Engine, before: int) -> None:
    await page.close()
    await is_stopped(model, engine, before)


async def test_stopped_before_its_turn_has_come(browser: Browser) -> None:
    """It never runs, and what was asked can be asked again."""
    gate = Gate()
    async with chatting(browser, ["Hello!", gate]) as (page, model, engine):
        async with engine.stream_text("somebody else's") as stream:
            await gate.reached()
            await say(page, "Hi")
            await expect(figures(page)).to_have_text("Waiting for the model …")
            await until(lambda: engine.statistics().waiting == 1)
            await page.keyboard.press("Escape")
            await until(lambda: engine.statistics().waiting == 0)
            await expect(page.get_by_label("Message")).to_have_value("Hi")
            await expect(page.locator(".question")).to_have_count(0)
            gate.open()
            await stream.read()
        assert len(model.calls) == 1


# -- what goes wrong


async def test_a_busy_engine(browser: Browser) -> None:
    gate = Gate()
    script: Script = ["Hello!", gate]
    async with chatting(browser, script, max_waiting=0, expected=("503",)) as (page, _, engine):
        async with engine.stream_text("somebody else's") as stream:
            await gate.reached()
            await say(page, "Hi")
            await expect(problem(page)).to_contain_text("The model is busy")
            await expect(page.get_by_label("Message")).to_have_value("Hi")
            await expect(page.locator(".question")).to_have_count(0)
            gate.open()
            await stream.read()
        await page.keyboard.press("Enter")
        await expect(answer(page)).to_have_text("Hello!")
        await expect(problem(page)).to_be_empty()


async def test_an_engine_that_has_ended(browser: Browser) -> None:
    async with chatting(browser, ["Hello!"], expected=("503",)) as (page, _, engine):
        await expect(page.locator("#model")).to_have_text("anystreamer")
        engine.close()  # type: ignore[attr-defined]
        await say(page, "Hi")
        await expect(problem(page)).to_have_text("The model is not available at the moment.")


async def test_a_conversation_that_is_too_long(browser: Browser) -> None:
    async with chatting(browser, ["Hello!"], context_length=40, expected=("400",)) as (page, _, _):
        await say(page, "x" * 40)
        await expect(problem(page)).to_contain_text("too long")


async def test_a_key(browser: Browser) -> None:
    """It is asked for at once, sent with every request, and kept for this tab alone."""
    key = "schlüssel-五"
    async with chatting(browser, ["Hello!"], api_key=key, expected=("401",)) as (page, model, _):
        field = page.get_by_label("API key")
        await expect(field).to_be_focused()
        assert (await Axe().run(page)).violations_count == 0
        await field.fill("wrong")
        await page.keyboard.press("Enter")
        await expect(page.get_by_text("The server did not accept this key.")).to_be_visible()
        await field.fill(key)
        await page.keyboard.press("Enter")
        await expect(page.locator("#model")).to_have_text("anystreamer")
        await expect(problem(page)).to_be_empty()
        await expect(page.get_by_label("Message")).to_be_focused()
        await say(page, "Hi")
        await expect(answer(page)).to_have_text("Hello!")
        stored = "({local: {...localStorage}, session: Object.values(sessionStorage)})"
        assert await page.evaluate(stored) == {"local": {}, "session": [key]}
        assert await page.context.cookies() == []
        await page.reload()
        await expect(page.locator("#model")).to_have_text("anystreamer")
        await expect(field).to_be_hidden()
        other = await page.context.new_page()
        await other.goto(page.url)
        await expect(other.get_by_label("API key")).to_be_focused()
        await other.get_by_role("button", name="Cancel").click()
        await say(other, "Hi")
        await expect(other.get_by_label("API key")).to_be_focused()
        await expect(other.get_by_label("Message")).to_have_value("Hi")
        assert len(model.calls) == 1


@pytest.mark.filterwarnings("ignore:.*RuntimeError")
async def test_a_model_that_fails_in_the_middle(browser: Browser) -> None:
    script: Script = ["so ", "far ", RuntimeError("a secret")]
    async with chatting(browser, script) as (page, _, _):
        await say(page, "Hi")
        await expect(problem(page)).to_have_text("The answer was interrupted: the model failed.")
        await expect(answer(page)).to_have_text("so far")
        await expect(figures(page)).to_have_text(re.compile(r"^interrupted · \d tokens? · "))
        await expect(page.get_by_role("button", name="Send")).to_be_visible()
        assert "secret" not in await page.content()


async def test_no_network(browser: Browser) -> None:
    failed = "net::ERR_INTERNET_DISCONNECTED"
    async with chatting(browser, ["Hello!"], expected=(failed,)) as (page, _, _):
        await expect(page.locator("#model")).to_have_text("anystreamer")
        await page.context.set_offline(True)
        await say(page, "Hi")
        await expect(problem(page)).to_contain_text("The server cannot be reached.")
        await expect(page.get_by_label("Message")).to_have_value("Hi")
        await page.context.set_offline(False)
        await page.keyboard.press("Enter")
        await expect(answer(page)).to_have_text("Hello!")


# -- other servers' answers, and streams that are cut in any place


def chunk(finish_reason: str | None = None, **delta: str) -> str:
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
    return json.dumps({"choices": [choice]}, ensure_ascii=False)


@asynccontextmanager
async def answered_with(
    browser: Browser,
    body: bytes,
    *,
    expected: tuple[str, ...] = (),
    cut: anyio.Event | None = None,
) -> AsyncIterator[Page]:
    """A page whose every question is answered with *body*, byte by byte, cut off if that is set."""

    async def parts() -> AsyncIterator[bytes]:
        for number in range(len(body)):
            yield body[number : number + 1]
            await anyio.sleep(0)
        if cut:
            await cut.wait()
            raise ConnectionError("cut on purpose")

    async def chat(request: Request) -> Response:
        return StreamingResponse(parts(), media_type="text/event-stream")

    async def models(request: Request) -> Response:
        return JSONResponse({"data": [{"id": "other"}]})

    routes = [
        *page_routes(),
        Route("/v1/chat/completions", chat, methods=["POST"]),
        Route("/v1/models", models),
    ]
    async with serving(Starlette(routes=routes)) as url:
        async with opened(browser, url, expected=expected) as page:
            yield page


async def test_events_in_every_form_that_the_standard_allows(browser: Browser) -> None:
    halves = chunk(content="lines").replace('"delta"', '\n"delta"').split("\n")
    body = (
        "\ufeff: a comment\n\n"
        f"data: {chunk(role='assistant', content='')}\r\n\r\n"
        f"data:{chunk(reasoning_content='Hm, ')}\r\r"
        f"id: 7\nretry: 100\ndata: {chunk(reasoning_content='五.')}\n\n"
        f"event: x\nunknown\ndata: {halves[0]}\ndata: {halves[1]}\n\n"
        f"event: no data\n\ndata: {chunk(content=' and 👋🏽')}\n\n"
        f"data: {chunk('stop')}\n\ndata: [DONE]\n\ndata: not looked at\n\n"
    ).encode()
    async with answered_with(browser, body) as page:
        await say(page, "Hi")
        await expect(figures(page)).to_have_text(re.compile("^finished · "))
        await expect(answer(page)).to_have_js_property("textContent", "lines and 👋🏽")
        reasoning = page.locator(".reasoning")
        await expect(reasoning.locator(".text")).to_be_hidden()
        await reasoning.locator("summary").click()
        await expect(reasoning.locator(".text")).to_have_text("Hm, 五.")


SO_FAR = f"data: {chunk(content='so far')}\n\ndata: {{".encode()


async def test_an_answer_without_its_end(browser: Browser) -> None:
    async with answered_with(browser, SO_FAR) as page:
        await say(page, "Hi")
        await expect(problem(page)).to_have_text(
            "The answer ended early: the connection was closed."
        )
        await expect(answer(page)).to_have_text("so far")


async def test_a_connection_that_breaks_off(browser: Browser) -> None:
    cut = anyio.Event()
    expected = ("net::ERR_INCOMPLETE_CHUNKED_ENCODING",)
    async with answered_with(browser, SO_FAR, expected=expected, cut=cut) as page:
        await say(page, "Hi")
        await expect(answer(page)).to_have_text("so far")
        cut.set()
        await expect(problem(page)).to_have_text("The connection was lost.")
        await expect(answer(page)).to_have_text("so far")


async def test_events_are_the_same_wherever_the_stream_is_cut(browser: Browser) -> None:
    text = (
        "\ndata: a\r\ndata\r\n\r\n:c\revent: e\rdata:  b\r\rdata:\n\nevent: f\n\n\ndata:x:y\n\r\n"
    )
    events = [("message", "a\n"), ("e", " b"), ("message", ""), ("message", "x:y")]
    async with chatting(browser, []) as (page, _, _):
        found = await page.evaluate(
            """async (text) => {
                const { EventParser } = await import("./page/events.js");
                const found = new Set();
                for (let i = 0; i <= text.length; i++) {
                    for (let j = i; j <= text.length; j++) {
                        const parser = new EventParser();
                        const parts = [text.slice(0, i), text.slice(i, j), text.slice(j)];
                        const events = parts.flatMap((part) => [...parser.push(part)]);
                        found.add(JSON.stringify(events.map(({ type, data }) => [type, data])));
                    }
                }
                return [...found];
            }""",
            text,
        )
    assert [[tuple(event) for event in json.loads(each)] for each in found] == [events]


# -- nothing that is said can run

ATTACKS = [
    "<img src=x onerror=\"window.pwned = 'img'\">",
    "<script>window.pwned = 'script'</script>",
    "<svg onload=\"window.pwned = 'svg'\">",
    '</p></section></template></textarea><iframe srcdoc="<script>parent.pwned = 1</script>">',
    "[x](javascript:window.pwned='link') &lt;b&gt; {{7*7}} ${window.pwned='js'}",
]
SHOWN = "".join(ATTACKS[:-1]) + (
    "x (javascript:window.pwned='link') <b> {{7*7}} ${window.pwned='js'}"
)


async def test_nothing_that_is_said_becomes_markup(browser: Browser) -> None:
    attack = " ".join(ATTACKS)
    async with chatting(browser, ATTACKS, model_name=ATTACKS[0]) as (page, _, _):
        await expect(page.locator("#model")).to_have_text(ATTACKS[0])
        await say(page, attack)
        await expect(figures(page)).to_contain_text("finished")
        await expect(answer(page)).to_have_js_property("textContent", SHOWN)
        await expect(page.locator(".question .text")).to_have_js_property("textContent", attack)
        strange = "img, svg, iframe, a, b, body script, [onerror], [onload], [style]"
        assert await page.locator(strange).count() == 0
        assert await page.evaluate("window.pwned") is None


async def test_if_it_became_markup_it_would_not_run(browser: Browser) -> None:
    """The control: the policy is in force, and these tests see what goes against it."""
    seen = pytest.RaisesExc(AssertionError, match="Content Security Policy")
    with pytest.RaisesGroup(seen):
        async with chatting(browser, []) as (page, _, _):
            for attack, kind in [
                ("document.body.innerHTML = '<b>bold</b>'", "TrustedHTML"),
                ("document.body.setAttribute('onclick', 'window.pwned = 1')", "TrustedScript"),
                ("document.createElement('script').text = 'window.pwned = 1'", "TrustedScript"),
            ]:
                with pytest.raises(Error, match=kind):
                    await page.evaluate(attack)
            assert await page.evaluate("fetch('data:,').then(() => 'sent', () => 'not sent')") == (
                "not sent"
            )


# -- keyboard, screen reader, phone


async def test_by_keyboard_alone(browser: Browser) -> None:
    model = ScriptedModel(ENDLESS, delay=DELAY)
    async with chatting(browser, model) as (page, _, engine):
        message = page.get_by_label("Message")
        await expect(message).to_be_focused()
        await page.keyboard.press("Enter")  # nothing to send
        await page.keyboard.type("two")
        await page.keyboard.press("Shift+Enter")
        await page.keyboard.type("lines")
        await expect(message).to_have_value("two\nlines")
        await page.keyboard.press("Enter")
        await expect(answer(page)).to_contain_text("word")
        assert asked(model) == "user: two\nlines\nassistant: "
        await page.keyboard.type("next")
        await page.keyboard.press("Enter")  # not while it answers
        await page.keyboard.press("Tab")
        stop = page.get_by_role("button", name="Stop")
        await expect(stop).to_be_focused()
        outline = "element => getComputedStyle(element).outlineStyle"
        assert await stop.evaluate(outline) == "solid"
        before = model.steps
        await page.keyboard.press("Space")
        await is_stopped(model, engine, before)
        await expect(message).to_be_focused()
        await expect(message).to_have_value("next")
        assert len(model.calls) == 1
        # Back to what can be read and scrolled, and to the start.
        for name in ("Try again", "Copy answer"):
            await page.keyboard.press("Shift+Tab")
            await expect(page.get_by_role("button", name=name)).to_be_focused()
        await page.keyboard.press("Shift+Tab")
        await expect(page.get_by_role("main")).to_be_focused()
        await page.keyboard.press("Shift+Tab")
        await page.keyboard.press("Enter")
        await expect(page.locator(".question")).to_have_count(0)
        await expect(message).to_be_focused()


async def test_enter_that_ends_a_composition_sends_nothing(browser: Browser) -> None:
    async with chatting(browser, ["Hello!"]) as (page, model, _):
        await expect(page.get_by_label("Message")).to_be_focused()
        devtools = await page.context.new_cdp_session(page)
        composition = {"text": "にほん", "selectionStart": 3, "selectionEnd": 3}
        await devtools.send("Input.imeSetComposition", composition)
        await page.keyboard.press("Enter")
        await devtools.send("Input.insertText", {"text": "日本"})
        # This Enter, which went past the input method, made a line as well.
        await expect(page.get_by_label("Message")).to_have_value(re.compile("^日本\n?$"))
        assert model.calls == []
        await page.keyboard.press("Enter")
        await expect(answer(page)).to_have_text("Hello!")
        assert asked(model) == "user: 日本\nassistant: "


@pytest.mark.parametrize("color_scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 1280])
async def test_it_fits_and_is_accessible(browser: Browser, width: int, color_scheme: str) -> None:
    long = "x" * 300
    script = [f"{long} 五 \u202eabc {long}", "\n\tcode" + " " * 300 + "end"]
    context = {
        "viewport": {"width": width, "height": 640},
        "color_scheme": color_scheme,
        "has_touch": width < 500,
        "is_mobile": width < 500,
    }
    async with chatting(browser, script, context=context, model_name=long) as (page, _, _):
        assert [each["id"] for each in (await Axe().run(page)).response["violations"]] == []
        await say(page, f"{long}\n{long}")
        await expect(figures(page)).to_contain_text("finished")
        assert [each["id"] for each in (await Axe().run(page)).response["violations"]] == []
        wide = """() => [document.documentElement, ...document.querySelectorAll("body *")]
            .filter((each) => !each.closest(".unseen, h1"))
            .filter((each) => each.getBoundingClientRect().right > innerWidth + 0.5
                || each.scrollWidth > each.clientWidth + 1 && each.clientWidth > 0)
            .map((each) => each.outerHTML.slice(0, 80))"""
        assert await page.evaluate(wide) == []
        assert await page.evaluate("innerWidth") == width
        for name in ("Send", "New chat"):
            box = await page.get_by_role("button", name=name).bounding_box()
            assert box is not None
            assert box["x"] >= 0
            assert box["x"] + box["width"] <= width
            assert box["y"] + box["height"] <= 640
            assert box["height"] >= 44  # for a thumb
        dark = color_scheme == "dark"
        paper = await page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (int(paper.removeprefix("rgb(").partition(",")[0]) < 128) == dark


# -- with the model that comes along, and the servers as they are started


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
async def test_anystreamer_serve(browser: Browser, backend: str) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    command = ("-m", "anystreamer", "serve", "--port", "0", "--backend", backend)
    with start_program(*command, env=dict(os.environ), joined=True) as process:
        try:
            assert process.stdout is not None
            line = await anyio.to_thread.run_sync(process.stdout.readline)
            await _chat(browser, line.split()[-1])
        finally:
            process.kill()


async def _chat(browser: Browser, url: str) -> None:
    async with opened(browser, url) as page:
        await page.get_by_role("button", name="Count from seven to twelve.").click()
        await expect(answer(page)).to_have_text("seven, eight, nine, ten, eleven, twelve.")
        await expect(figures(page)).to_contain_text("finished · 13 tokens")
        await say(page, "Count from one to ninety-nine.")
        await expect(answer(page)).to_contain_text("two")
        await page.keyboard.press("Escape")
        await expect(figures(page)).to_contain_text(re.compile("stopped|finished"))
        await say(page, "Count from one to three.")
        await expect(answer(page)).to_have_text("one, two, three.")
