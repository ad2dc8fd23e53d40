"""Makes the pictures in docs/images: the chat page with the embedded model."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from contextlib import asynccontextmanager
from io import BytesIO
from pathlib import Path

import uvicorn
from PIL import Image
from playwright.async_api import Browser, async_playwright

from anystreamer import open_engine
from anystreamer.demo import load_demo
from anystreamer.server import create_app

IMAGES = Path(__file__).parent / "images"
COLORS = 128
QUESTIONS = [
    "Count down from twenty-three to eighteen.",
    "Count from sixty to seventy-five.",
]
PICTURES = {
    "chat-desktop-light.png": {
        "viewport": {"width": 1000, "height": 740},
        "color_scheme": "light",
        "device_scale_factor": 1.5,
    },
    "chat-phone-dark.png": {
        "viewport": {"width": 390, "height": 780},
        "color_scheme": "dark",
        "device_scale_factor": 1.5,
        "is_mobile": True,
        "has_touch": True,
    },
}
# On a machine without its own fonts, the default font would be arbitrary. Debian's package of this
# one is fonts-inter.
FONT = "Inter"
FONTS = f"""<?xml version="1.0"?><!DOCTYPE fontconfig SYSTEM "fonts.dtd">
<fontconfig>
<include>/etc/fonts/fonts.conf</include>
<alias binding="strong"><family>system-ui</family><prefer><family>{FONT}</family></prefer></alias>
<alias binding="strong"><family>sans-serif</family><prefer><family>{FONT}</family></prefer></alias>
<alias binding="strong"><family>sans</family><prefer><family>{FONT}</family></prefer></alias>
</fontconfig>"""


@asynccontextmanager
async def serving():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        async with open_engine(*load_demo()) as engine:
            app = create_app(engine, model_name="anystreamer-demo")
            server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="off"))
            task = asyncio.create_task(server.serve(sockets=[listener]))
            try:
                yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
            finally:
                server.should_exit = True
                await task


async def picture(browser: Browser, url: str, options: dict) -> bytes:
    page = await browser.new_page(**options)
    await page.goto(url)
    for number, question in enumerate(QUESTIONS):
        await page.get_by_label("Message").fill(question)
        await page.keyboard.press("Enter")
        await page.locator(".figures", has_text="finished").nth(number).wait_for()
    png = await page.screenshot()
    await page.close()
    return png


def optimised(png: bytes) -> bytes:
    output = BytesIO()
    image = Image.open(BytesIO(png)).convert("RGB")
    image.quantize(COLORS, dither=Image.Dither.NONE).save(output, "png", optimize=True)
    return output.getvalue()


def font_is_installed() -> bool:
    found = subprocess.run(("fc-list", FONT), capture_output=True, text=True, check=True)
    return bool(found.stdout.strip())


async def main() -> None:
    chromium = shutil.which("chromium") or sys.exit("there is no chromium")
    if not font_is_installed():
        sys.exit(f"the font {FONT} is not installed (Debian: apt-get install fonts-inter)")
    with tempfile.TemporaryDirectory() as folder:
        fonts = Path(folder) / "fonts.conf"
        fonts.write_text(FONTS)
        async with serving() as url, async_playwright() as playwright:
            browser = await playwright.chromium.launch(
                executable_path=chromium,
                chromium_sandbox=False,
                env={**os.environ, "FONTCONFIG_FILE": str(fonts)},
            )
            IMAGES.mkdir(exist_ok=True)
            for name, options in PICTURES.items():
                (IMAGES / name).write_bytes(optimised(await picture(browser, url, options)))
            await browser.close()


asyncio.run(main())
