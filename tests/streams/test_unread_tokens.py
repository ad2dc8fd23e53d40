"""How many tokens wait for a consumer."""

from __future__ import annotations

from anystreamer import stream_text
from anystreamer.testing import Gate, ScriptedModel


async def test_tokens_that_wait_are_counted() -> None:
    gate = Gate()
    model = ScriptedModel(["a", "b", "c", gate, "d"])
    async with stream_text(model, model.tokenizer, "Hi") as stream:
        await gate.reached()
        assert stream.unread_tokens == 3
        gate.open()
        assert await stream.read() == "abcd"
        assert stream.unread_tokens == 0
