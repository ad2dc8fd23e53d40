"""`anystreamer.testing`: a scripted model for tests of code that uses this library."""

from __future__ import annotations

import gc
import re
import subprocess
import sys
import textwrap
import threading
import tracemalloc
from pathlib import Path
from typing import Any

import anyio
import pytest

from anystreamer import FinishReason, open_engine, stream_text
from anystreamer.pytest_plugin import NewScriptedModel
from anystreamer.testing import Gate, ScriptedModel


async def test_nobody_is_left_waiting_at_a_gate() -> None:
    """A thread that waits there would keep the program from ending, when a test has failed."""
    threads = set(threading.enumerate())
    with anyio.move_on_after(0.01) as waiting:
        await Gate().reached()
    assert waiting.cancelled_caught
    left = set(threading.enumerate()) - threads
    assert not [thread for thread in left if not thread.daemon]


async def test_it_plays_its_script() -> None:
    model = ScriptedModel(["one", ", ", "two"])
    async with stream_text(model, model.tokenizer, "hi") as stream:
        assert await stream.read() == "one, two"
    assert stream.finish_reason is FinishReason.EOS
    assert stream.prompt_token_ids == [ord("h"), ord("i")]
    assert stream.output == [stream.prompt_token_ids + stream.token_ids]
    assert model.steps == 4


async def test_it_plays_its_script_at_each_call() -> None:
    model = ScriptedModel(["again"])
    for _ in range(2):
        async with stream_text(model, model.tokenizer, "hi", max_new_tokens=7) as stream:
            assert await stream.read() == "again"
    assert [call["max_new_tokens"] for call in model.calls] == [7, 7]


def test_decoding_a_token_copies_nothing_of_a_long_script() -> None:
    tokenizer = ScriptedModel(["word "] * 10_000).tokenizer
    token_id = tokenizer.add("last")
    tracemalloc.start()
    try:
        assert tokenizer.decode([token_id - 10_000, token_id, token_id + 1]) == "word last"
        assert tracemalloc.get_traced_memory()[1] < 10_000
    finally:
        tracemalloc.stop()


async def test_chat_messages_are_a_prompt() -> None:
    model = ScriptedModel(["fine"])
    messages = [{"role": "user", "content": "how are you?"}]
    async with stream_text(model, model.tokenizer, messages) as stream:
        assert await stream.read() == "fine"
    assert model.tokenizer.decode(stream.prompt_token_ids) == "user: how are you?\nassistant: "


async def test_max_new_tokens_ends_it() -> None:
    model = ScriptedModel(["a", "b", "c"])
    async with stream_text(model, model.tokenizer, "hi", max_new_tokens=2) as stream:
        assert await stream.read() == "ab"
    assert stream.finish_reason is FinishReason.LENGTH


async def test_an_exception_in_the_script_is_raised_after_the_text_before_it() -> None:
    error = MemoryError("the device is full")
    model = ScriptedModel(["a", error, "b"])
    with pytest.raises(MemoryError) as caught:
        async with stream_text(model, model.tokenizer, "hi") as stream:
            await stream.read()
    assert caught.value is error
    assert stream.text == "a"
    assert stream.finish_reason is FinishReason.ERROR
    assert not model.is_generating


async def test_a_gate_holds_it_inside_of_a_step() -> None:
    gate = Gate()
    model = ScriptedModel(["a", gate, "b", "c"])
    async with stream_text(model, model.tokenizer, "hi") as stream:
        assert await stream.receive() == "a"
        await gate.reached()
        assert model.is_generating
        assert model.steps == 1
        stream.stop()
        gate.open()
        assert await stream.read() == "b"
    assert stream.finish_reason is FinishReason.STOPPED
    assert model.steps == 2


async def test_a_cancelled_scope_stops_it_after_the_step() -> None:
    gate = Gate()
    model = ScriptedModel(["a", gate, "b", "c"])
    with anyio.CancelScope() as scope:
        async with stream_text(model, model.tokenizer, "hi") as stream:
            await gate.reached()
            scope.cancel()
            gate.open()
            await stream.read()
    assert scope.cancelled_caught
    assert stream.finish_reason is FinishReason.CANCELLED
    assert model.steps == 2


async def test_stop_strings_end_it_in_their_step() -> None:
    model = ScriptedModel(["a", "b", "c", "d"])
    async with stream_text(model, model.tokenizer, "hi", stop="bc") as stream:
        assert await stream.read() == "a"
    assert stream.stop_string == "bc"
    assert model.steps == 3


@pytest.mark.parametrize("item", [None, True, b"a"])
def test_a_script_of_something_else_is_refused(item: Any) -> None:
    with pytest.raises(TypeError, match=f"got {item!r}; a script has str, seconds"):
        ScriptedModel(["a", item])


@pytest.mark.parametrize("seconds", [-1, float("nan"), float("inf")])
def test_a_time_that_cannot_pass_is_refused(seconds: float) -> None:
    with pytest.raises(ValueError, match="a pause in a script must be at least 0 seconds"):
        ScriptedModel(["a", seconds])
    with pytest.raises(ValueError, match="delay must be at least 0 seconds"):
        ScriptedModel(["a"], delay=seconds)
    with pytest.raises(ValueError, match="prefill must be at least 0 seconds"):
        ScriptedModel(["a"], prefill=seconds)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"temprature": 1}, "no argument temprature=: did you mean temperature=?"),
        ({"presence": 1}, "no argument presence=: leave it out"),
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1, got 0"),
        ({"do_sample": True, "temperature": 2}, "temperature must be 1 or a float above 0, got 2"),
        ({"max_length": 2}, "max_length=2 leaves no room after a prompt of 2 tokens"),
    ],
)
async def test_arguments_are_refused_as_a_real_model_would(
    arguments: dict[str, Any], message: str
) -> None:
    model = ScriptedModel(["a"])
    with pytest.raises(ValueError, match=re.escape(message)):
        async with stream_text(model, model.tokenizer, "hi", **arguments) as stream:
            await stream.read()
    async with open_engine(model, model.tokenizer) as engine:
        with pytest.raises(ValueError, match=re.escape(message)):
            async with engine.stream_text("hi", **arguments) as stream:
                await stream.read()
    assert model.steps == 0
    assert not model.is_generating


def test_several_prompts_are_refused() -> None:
    with pytest.raises(ValueError, match="one row, got 2"):
        ScriptedModel(["a"]).generate(input_ids=[[1], [2]])


def test_the_template_s_settings_have_their_usual_meaning() -> None:
    tokenizer = ScriptedModel(["a"]).tokenizer
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]

    def text(**settings: bool) -> str:
        return tokenizer.decode(tokenizer.apply_chat_template(messages, **settings)["input_ids"][0])

    assert text() == "user: hi\nassistant: hello\n"
    assert text(add_generation_prompt=True) == text() + "assistant: "
    assert text(continue_final_message=True) == "user: hi\nassistant: hello"
    with pytest.raises(ValueError, match="exclude each other"):
        text(add_generation_prompt=True, continue_final_message=True)


def test_it_needs_no_torch() -> None:
    program = (
        "import sys, anyio\n"
        "from anystreamer import stream_text\n"
        "from anystreamer.testing import ScriptedModel\n"
        "async def main():\n"
        "    model = ScriptedModel(['a'])\n"
        "    async with stream_text(model, model.tokenizer, 'hi') as stream:\n"
        "        assert await stream.read() == 'a'\n"
        "anyio.run(main)\n"
        "assert not {'torch', 'transformers'} & sys.modules.keys()\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True, timeout=60)


def test_a_long_script_is_no_work_for_the_garbage_collector() -> None:
    """Tests make models with scripts that have no end, as good as: many of them."""
    gc.collect()
    before = len(gc.get_objects())
    model = ScriptedModel(["a"] * 10_000)
    assert len(gc.get_objects()) - before < 100
    assert model.steps == 0


# -- the fixture


async def test_the_fixture_makes_models(scripted_model: NewScriptedModel) -> None:
    model = scripted_model(["a", 0.001, "b"], delay=0.001)
    async with stream_text(model, model.tokenizer, "hi") as stream:
        assert await stream.read() == "ab"


@pytest.mark.slow
def test_the_fixture_fails_a_test_that_leaves_a_model_generating(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text('pytest_plugins = ["anystreamer.pytest_plugin"]')
    (tmp_path / "test_it.py").write_text(
        textwrap.dedent("""
            import threading
            from anystreamer.testing import Gate

            def test_leaves(scripted_model):
                gate = Gate()
                model = scripted_model([gate, "a"])
                thread = threading.Thread(target=model.generate, kwargs={"input_ids": [[1]]})
                thread.start()
                gate._reached.wait()

            def test_leaves_nothing(scripted_model):
                model = scripted_model(["a"])
                assert len(model.generate(input_ids=[[1]])[0]) == 3
        """)
    )
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "."],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "1 scripted model(s) left generating" in ran.stdout, ran.stdout
    assert ran.stdout.rstrip().splitlines()[-1].startswith("2 passed, 1 error"), ran.stdout


def test_the_page_works_from_its_first_line(tmp_path: Path) -> None:
    """In a folder that has nothing but the two files of the page."""
    page = (Path(__file__).parents[2] / "docs/how-to/testing.md").read_text(encoding="utf-8")
    files = re.findall(r'^```python title="([^"]+)"\n(.*?)^```', page, re.DOTALL | re.MULTILINE)
    assert [name for name, _ in files] == ["conftest.py", "test_answers.py"]
    for name, text in files:
        (tmp_path / name).write_text(text)
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "error"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert "2 passed" in run.stdout, run.stdout + run.stderr
