"""Asks the search of the built site for the words of searched.toml: `python docs/search.py site`.

It runs the search's own worker in the Chromium of this machine, and fails if a word does not bring
its page among the first ones.
"""

from __future__ import annotations

import asyncio
import functools
import http.server
import json
import shutil
import sys
import threading
import tomllib
from pathlib import Path

from playwright.async_api import async_playwright

WORDS = tomllib.loads(Path(__file__).with_name("searched.toml").read_text("utf-8"))["words"]
FIRST = 4  # pages that a reader sees without scrolling
# Messages of mkdocs-material's worker: 0 sets it up, 1 is its answer, 2 asks, 3 has the results.
ASK = """
async words => {
  const worker = new Worker(JSON.parse(document.getElementById("__config").textContent).search);
  const index = await (await fetch("search/search_index.json")).json();
  const told = type => new Promise(resolve => {
    worker.onmessage = event => { if (event.data.type === type) resolve(event.data.data); };
  });
  const ready = told(1);
  worker.postMessage({ type: 0, data: { ...index, options: { suggest: false } } });
  await ready;
  const found = {};
  for (const word of words) {
    const results = told(3);
    worker.postMessage({ type: 2, data: word });
    found[word] = (await results).items.map(page => page[0].location);
  }
  return found;
}
"""


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


async def pages_for(url: str, words: list[str]) -> dict[str, list[str]]:
    async with async_playwright() as playwright:
        path = shutil.which("chromium") or shutil.which("google-chrome")
        browser = await playwright.chromium.launch(executable_path=path)
        page = await browser.new_page()
        await page.goto(url)
        found: dict[str, list[str]] = await page.evaluate(ASK, words)
        await browser.close()
    return found


def main(site: str) -> None:
    handler = functools.partial(Quiet, directory=site)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        words = sorted({word for each in WORDS.values() for word in each})
        found = asyncio.run(pages_for(f"http://127.0.0.1:{server.server_port}/", words))
        server.shutdown()
    missing, firsts = [], 0
    for name, searched in WORDS.items():
        address = name.removesuffix(".md").removesuffix("/index")
        for word in searched:
            pages = list(dict.fromkeys(each.partition("#")[0].rstrip("/") for each in found[word]))
            firsts += pages[:1] == [address]
            if address not in pages[:FIRST]:
                missing.append(f"{word!r} should bring {address}, not {json.dumps(pages[:FIRST])}")
    total = sum(map(len, WORDS.values()))
    print(f"{total} words: {firsts} bring their page first, {total - firsts - len(missing)} among")
    print(f"the first {FIRST}, {len(missing)} do not.", *missing, sep="\n")
    if missing:
        raise SystemExit(1)


if __name__ == "__main__":
    main(sys.argv[1])
