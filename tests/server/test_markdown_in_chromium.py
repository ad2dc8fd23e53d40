"""The chat page's Markdown in a real Chromium: read as in the terminal, in pieces of any size."""

from __future__ import annotations

import math
import random
from collections.abc import AsyncIterator
from html.parser import HTMLParser
from itertools import pairwise
from typing import Any

import pytest
from markdown_it import MarkdownIt
from playwright.async_api import Browser, Page
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from anystreamer.server._chat_page import page_routes

from ..helpers.chromium import launched, opened
from ..helpers.serving import serving

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=[pytest.param(("asyncio", {}), id="asyncio")])
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    """playwright is for asyncio."""
    return request.param


@pytest.fixture(scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with launched() as browser:
        yield browser


@pytest.fixture
async def page(browser: Browser) -> AsyncIterator[Page]:
    """The page without a model. `shown(texts)` is what it makes of an answer in these pieces."""

    async def models(request: Request) -> JSONResponse:
        return JSONResponse({"data": [{"id": "none"}]})

    app = Starlette(routes=[*page_routes(), Route("/v1/models", models)])
    async with serving(app) as url, opened(browser, url) as page:
        await page.evaluate(
            """async () => {
                const { MarkdownView } = await import("./page/markdown_view.js");
                // A picture of the screen for each piece.
                const frames = [];
                window.requestAnimationFrame = (draw) => frames.push(draw);
                window.cancelAnimationFrame = () => frames.splice(0);
                window.shown = (pieces) => {
                    const root = document.createElement("div");
                    const view = new MarkdownView(root);
                    for (const piece of pieces) {
                        view.add(piece);
                        for (const draw of frames.splice(0)) draw();
                    }
                    view.end();
                    root.normalize();
                    return root;
                };
            }"""
        )
        yield page


# -- what it is read as

SAMPLES = [
    "Some **bold**, *italic*, ***both***, ~~gone~~ and `code` in\ntwo lines.",
    "# One\n## Two ##\n### *Three*\n#### Four\ntext\n###### Six\n#seven",
    "- a\n- b\n  - c\n    1. d\n    2. e\n- f",
    "1. First:\n\n   ```python\n   def f():\n       return 1\n   ```\n\n2. Second\n\n   text",
    "7) seven\n8) eight\n\n* other\n\n  with a paragraph\n* list",
    "```\nplain\n\n  indented\n```\nafter",
    "~~~~js\n```\nnot an end\n~~~\n~~~~\nafter",
    "```py\nnever ended\n- not a list\n**not bold**",
    "> quote\nthat goes on\n> > deeper\n>\n> - list\n> ```\n> code\n> ```\n\nafter",
    "| a | b | c |\n|:--|:-:|--:|\n| **1** | `2` | 3 |\n| a \\| b | x | y |\n\nafter",
    "before\n\na | b\n--|--\n1 | 2",
    "| a |\n|---|\n| half",
    "Title\n=====\n\nOther\n---\n\ntext\n\n---\n\n***\ntext",
    "    indented code\n\n    more\n\ntext\n    still text",
    "snake_case_name and __init__ and 2 * 3 * 4 and * not * and **not ** bold",
    "*a **b** c* and **a *b* c** and *a _b_ c* **a**b**c** _a_b\n*a**b* a***b* **a",
    "[text](http://example.org \"title\") and [*a* b](<x>) ![picture](http://x/y.png)",
    "[http://x](http://x) <https://example.org/?a=b> [a](b(c)d) [a [b](c) d](e) [no] [no](",
    "`` a ` b `` and ` x ` and `no end and ``no",
    "\\*no\\* \\`no\\` \\[no](x) back\\slash &lt;b&gt; &amp;amp; &#65; &#x1F44B; &nosuch;",
    "<b>not bold</b> <script>alert(1)</script> <!-- --> a < b > c & d",
    "**五**は *強調* です。👋🏽**bold**👋🏽 **„x“**",
    "line  \nbreak\\\nbreak\nsoft",
    "- [ ] not done\n- [x] done\n-\n- after an empty one",
    "1. a\n1. b\n\n   c\n3. d\n- e\n+ f",
    "text\n- list\n1. list\n2) other\n> quote\n# head\n```\ncode\n```",
    "- a\ngoes on\n- b\n\ngone",
    "\tcode\n\n-\titem\n\n\tin it\n\n1.\tnumber",
    "- ```\n  code\n  ```\n- > quote\n- # head\n- - - deep",
    "a\n\n\n\nb   \n   c",
    "***", "**", "- ", "1.", "`", "```", ">", "|", "#", "&", "\\", "[", "![a](", "<", "", " \n ",
]  # fmt: skip

# The page's own heading is the first, and it has another name for what is struck out.
NAMES = {"s": "del"} | {f"h{level}": f"h{min(level + 1, 6)}" for level in range(1, 7)}


class Tree(HTMLParser):
    """HTML as nested lists, without what the page adds and the terminal does not have."""

    UNWRAPPED = frozenset({"span", "bdi", "tbody", "thead"})
    VOID = frozenset({"hr", "br", "img"})

    def __init__(self, html: str, *, is_page: bool) -> None:
        super().__init__()
        self.root: list[Any] = []
        self._stack: list[list[Any]] = [self.root]
        self._is_page = is_page
        self._hidden = 0
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if self._hidden or given.get("class") == "bar":
            self._hidden += 1
        elif tag == "a":
            self._stack.append([given["href"]])
        elif tag == "img":
            self._text(f"{given['alt']} ({given['src']})")
        elif tag == "br":
            self._text("\n")
        elif not self._is_unwrapped(tag):
            if not self._is_page:
                tag = NAMES.get(tag, tag)
            align = given.get("class") or (given.get("style") or "").removeprefix("text-align:")
            extra = [given["start"]] if "start" in given else []
            node = [tag, *extra, *([align] if tag in ("td", "th") and align else [])]
            self._stack[-1].append(node)
            if tag not in self.VOID:
                self._stack.append(node)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        if self._hidden:
            self._hidden -= 1
        elif tag == "a":
            address, *children = self._stack.pop()
            for child in children:
                self._text(child) if isinstance(child, str) else self._stack[-1].append(child)
            if children != [address]:
                self._text(f" ({address})")
        elif not self._is_unwrapped(tag):
            self._stack.pop()

    def _is_unwrapped(self, tag: str) -> bool:
        in_pre = tag == "code" and self._stack[-1][:1] == ["pre"]
        return tag in self.UNWRAPPED or (self._is_page and tag == "div") or in_pre

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self._text(data)

    def _text(self, text: str) -> None:
        in_block = any(node[:1] in (["p"], ["pre"], ["li"]) for node in self._stack)
        if not in_block and not text.strip():
            return
        last = self._stack[-1]
        if len(last) > 1 and isinstance(last[-1], str) and last is not self.root:
            last[-1] += text
        else:
            last.append(text)


def simplified(node: Any) -> Any:
    """Without the line ends that HTML has around blocks."""
    if isinstance(node, str):
        return node
    if node[:1] == ["pre"]:
        return ["pre", "".join(node[1:]).removesuffix("\n")]
    children = [simplified(each) for each in node]
    children = [
        each.strip("\n") if node[:1] == ["li"] and isinstance(each, str) else each
        for each in children
    ]
    return [each for each in children if each not in ("", "\n")]


async def test_answers_are_read_as_in_the_terminal(page: Page) -> None:
    """But for links, which have their address beside them, and levels of headings."""
    terminal = MarkdownIt("commonmark", {"html": False}).enable(["strikethrough", "table"])
    shown = await page.evaluate("texts => texts.map(text => shown([text]).innerHTML)", SAMPLES)
    for text, html in zip(SAMPLES, shown, strict=True):
        found = simplified(Tree(html, is_page=True).root)
        expected = simplified(
            Tree(terminal.render(text).replace("<br />\n", "\n"), is_page=False).root
        )
        assert found == expected, f"{text}\n{html}"


# -- pieces

PIECES = [
    *(
        "word ",
        "\n",
        "\n\n",
        "- ",
        "1. ",
        "2) ",
        "# ",
        "> ",
        "```",
        "```\n",
        "~~~py\n",
        "    ",
        "\t",
    ),
    *(
        "**",
        "*",
        "_",
        "~~",
        "`",
        "[",
        "](",
        ")",
        "![",
        "<b>",
        "&amp;",
        "\\",
        "---",
        "===\n",
        "|",
        "五👋🏽",
    ),
    *("| a | b |\n", "|---|---|\n", "a|b\n-|-\n", "  - ", "   ", "\r\n"),
]


async def test_it_does_not_matter_where_an_answer_is_cut(page: Page) -> None:
    """A block that is left alone is what the whole text has there."""
    choice = random.Random(1)
    texts = ["\n".join(SAMPLES), *SAMPLES]
    texts += ["".join(choice.choices(PIECES, k=choice.randint(2, 25))) for _ in range(400)]
    answers = []
    for text in texts:
        most = choice.choice([1, 3, 20])
        cuts = [0]
        while cuts[-1] < len(text):
            cuts.append(cuts[-1] + choice.randint(1, most))
        answers.append([text[a:b] for a, b in pairwise(cuts)])
    different = await page.evaluate(
        """answers => answers.filter(pieces =>
            shown(pieces).innerHTML !== shown([pieces.join("")]).innerHTML)""",
        answers,
    )
    assert different == []


FEW = ["word ", "```x\n", "a\n\n", "- a\n", "*a ", "[a](b", "`` ` "]
MANY = [
    "word\n", "> a\n", "  - a\n", "- ", "> ", "1. ", "**a *b ", "a* ", "*", "_a_", "[", "![", "](",
    "[](", "[a](b)", "[](<", '[]( "', "[]((a)", "`", "<", "<a:", "&#1", "\\", "| ", "|-",
    "| a |\n", "|-|\n", "#",
    "a|b\n-|-\n", "# ", "---\n", "===\n", "\t", " ", "\n", "😀*", "**a_ *b~~ ",
]  # fmt: skip


@pytest.mark.parametrize(
    "patterns",
    [pytest.param(FEW, id="few"), pytest.param(MANY, id="many", marks=pytest.mark.nightly)],
)
async def test_the_time_grows_as_the_length_does(page: Page, patterns: list[str]) -> None:
    """It is the processor's time. Without this, an answer four times as long takes it 16 times.

    The least of several times: on a busy machine, some take a hundred times as long.
    """
    devtools = await page.context.new_cdp_session(page)
    await devtools.send("Performance.setTimeDomain", {"timeDomain": "threadTicks"})
    await devtools.send("Performance.enable")

    async def seconds_so_far() -> float:
        metrics = (await devtools.send("Performance.getMetrics"))["metrics"]
        return float(next(each["value"] for each in metrics if each["name"] == "TaskDuration"))

    async def seconds(pattern: str, length: int) -> float:
        before = await seconds_so_far()
        await page.evaluate(
            """([pattern, length]) => {
                const text = pattern.repeat(length / pattern.length);
                shown(text.match(/[^]{1,100}/g)); // a picture of the screen for each hundred
            }""",
            [pattern, length],
        )
        return await seconds_so_far() - before

    for pattern in patterns:
        short = long = math.inf
        for _ in range(5):
            short = min(short, await seconds(pattern, 25_000))
            long = min(long, await seconds(pattern, 100_000))
            if long < 10 * short + 1:
                break
        assert long < 10 * short + 1, pattern


async def test_nothing_is_nested_without_end(page: Page) -> None:
    """Nor does a table have cells that nobody wrote."""
    nested = {
        "> " * 50_000 + "a": 12,
        "- " * 50_000 + "a": 24,
        "*a **b " * 10_000 + "** *" * 10_000: 18,
        "[*" * 20_000 + "a" + "*](b)" * 20_000: 18,
    }
    depth = """text => {
        let deepest = 0;
        for (const each of shown([text]).querySelectorAll("*")) {
            if (each.firstElementChild) continue;
            let depth = 0;
            for (let node = each; node; node = node.parentElement) depth += 1;
            deepest = Math.max(deepest, depth);
        }
        return deepest;
    }"""
    for text, most in nested.items():
        assert await page.evaluate(depth, text) <= most + 3, text[:20]
    wide = "|a" * 1000 + "|\n" + "|-" * 1000 + "|\n" + "|b|\n" * 10_000
    cells = "text => shown([text]).querySelectorAll('td').length"
    assert await page.evaluate(cells, wide) == 10_000
