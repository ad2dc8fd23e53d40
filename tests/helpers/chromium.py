"""Opens pages in a real, headless Chromium. An error in a page fails the test."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from playwright.async_api import Browser, ConsoleMessage, Page, async_playwright, expect

from .scripted import PATIENCE

__all__ = ["launched", "opened"]

# Set where the tests must not be skipped.
REQUIRE = "ANYSTREAMER_REQUIRE_CHROMIUM"
NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")

# Chromium writes this for every status from 400 on.
STATUS = re.compile(r"Failed to load resource: the server responded with a status of (\d+)")

expect.set_options(timeout=PATIENCE * 1000)


@asynccontextmanager
async def launched() -> AsyncIterator[Browser]:
    """The browser of this machine: none is ever downloaded."""
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        reason = "there is no Chromium on this machine (Debian: apt-get install chromium)"
        if os.environ.get(REQUIRE):
            pytest.fail(f"{reason}, and {REQUIRE} is set", pytrace=False)
        pytest.skip(reason)
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=path)
        yield browser
        await browser.close()


@asynccontextmanager
async def opened(
    browser: Browser, url: str, *, expected: tuple[str, ...] = (), **options: Any
) -> AsyncIterator[Page]:
    """A page at *url*, in a context of its own.

    The test fails if the console has errors, such as a violation of the content security policy,
    except statuses and texts in *expected*.
    """
    errors: list[str] = []

    def on_console(message: ConsoleMessage) -> None:
        if message.type not in ("error", "warning"):
            return
        status = STATUS.match(message.text)
        text = status[1] if status else message.text
        if not any(each in text for each in expected):
            errors.append(message.text)

    context = await browser.new_context(**options)
    try:
        context.set_default_timeout(PATIENCE * 1000)
        page = await context.new_page()
        page.on("console", on_console)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("crash", lambda _: errors.append("the page crashed"))
        await page.goto(url)
        yield page
    finally:
        await context.close()
    assert errors == [], "\n".join(errors)
