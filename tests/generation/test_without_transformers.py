"""Without torch and transformers: what needs neither works."""

from __future__ import annotations

import subprocess
import sys

WITHOUT = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "transformers", "tokenizers", "numpy"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocker())

import anyio
from anystreamer import stream_from_thread, stream_text

class Tokenizer:
    def __call__(self, text, **kwargs):
        return {"input_ids": [[1, 2]]}
    def decode(self, token_ids, **kwargs):
        return "".join(chr(96 + token_id) for token_id in token_ids)

class Model:
    def generate(self, **kwargs):
        raise AssertionError("called")

class TorchlessModel:
    uses_torch = False
    def generate(self, input_ids, streamer, stopping_criteria, **kwargs):
        streamer.put(input_ids)
        for token_id in (1, 2, 3):
            input_ids = [[*input_ids[0], token_id]]
            streamer.put([token_id])
            if any(criterion(input_ids, None) for criterion in stopping_criteria):
                break
        streamer.end()
        return input_ids

def produce(emit, should_stop):
    for number in range(3):
        emit(number)

async def main():
    async with stream_from_thread(produce) as stream:
        print([item async for item in stream])
    async with stream_text(TorchlessModel(), Tokenizer(), "x") as stream:
        print(await stream.read(), stream.finish_reason, stream.output)
    try:
        stream_text(Model(), Tokenizer(), "x")
    except ImportError as error:
        print(error)

anyio.run(main)
"""


def test_without_transformers() -> None:
    """Streams that need no torch work; for the others the error names what to install."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", WITHOUT], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    items, text, message = done.stdout.splitlines()
    assert items == "[0, 1, 2]"
    assert text == "abc eos [[1, 2, 1, 2, 3]]"
    assert "pip install 'anystreamer[transformers]'" in message
