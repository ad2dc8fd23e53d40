"""What type checkers make of the public names: nothing here runs. mypy and pyright read it.

`assert_type` says what a checker infers. Where an error is expected it is ignored by its code, and
both checkers complain of an ignore without an error: what they have to refuse is tested, too.
"""

# pyright: strict, reportUnnecessaryTypeIgnoreComment=true

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import assert_type

from anyio.abc import ObjectReceiveStream
from transformers import (
    AutoModelForCausalLM,
    BertModel,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    WhisperForConditionalGeneration,
)

import anystreamer
from anystreamer import (
    BatchStream,
    Emit,
    Ending,
    Engine,
    EngineStatistics,
    FinishReason,
    Stopping,
    SupportsDecode,
    SupportsGenerate,
    TextChunk,
    TextStream,
    ThreadStream,
    Timeouts,
    Timing,
    Usage,
    Worker,
    sync,
)
from anystreamer.remote import open_remote_engine
from anystreamer.testing import ScriptedModel


async def first_of(stream: ObjectReceiveStream[str]) -> str:
    return await stream.receive()


async def text(model: SupportsGenerate, tokenizer: SupportsDecode) -> None:
    async with anystreamer.stream_text(model, tokenizer, "hi", max_new_tokens=3) as stream:
        assert_type(stream, TextStream)
        async for chunk in stream:
            assert_type(chunk, TextChunk)
            assert_type(chunk.token_ids, tuple[int, ...])
            assert_type(chunk.elapsed, float)
        assert_type(await stream.receive(), TextChunk)
        assert_type(await stream.read(), str)
        assert_type(stream.text, str)
        assert_type(stream.token_ids, list[int])
        assert_type(stream.finish_reason, FinishReason | None)
        assert_type(stream.usage, Usage | None)
        assert_type(stream.timing, Timing | None)
        # Where a stream of str is wanted, a stream of chunks is one.
        await first_of(stream)


def real_models(
    llama: LlamaForCausalLM,
    whisper: WhisperForConditionalGeneration,
    encoder: BertModel,
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    loaded = AutoModelForCausalLM.from_pretrained("name")  # pyright: ignore[reportUnknownMemberType]
    models: list[SupportsGenerate] = [llama, whisper, loaded, ScriptedModel("a")]
    anystreamer.stream_text(models[0], tokenizer, "hi")
    anystreamer.stream_text(llama, tokenizer, "hi")
    anystreamer.open_engine(loaded, tokenizer)
    sync.open_engine(whisper, tokenizer)
    anystreamer.stream_text(encoder, tokenizer, "hi")  # type: ignore[arg-type]


async def batch(model: SupportsGenerate, tokenizer: SupportsDecode) -> None:
    async with anystreamer.stream_batch(model, tokenizer, ["hi", "ho"]) as stream:
        assert_type(stream, BatchStream)
        assert_type(await stream.receive(), TextChunk)
        assert_type(await stream.read(), list[str])
        assert_type(stream.finish_reason, list[FinishReason | None])


async def engine(model: SupportsGenerate, tokenizer: SupportsDecode) -> None:
    async with anystreamer.open_engine(model, tokenizer, batching="continuous") as engine:
        assert_type(engine, Engine)
        assert_type(engine.statistics(), EngineStatistics)
        async with engine.stream_text("hi", timeout=Timeouts(total=3)) as stream:
            assert_type(stream, TextStream)
    async with open_remote_engine("http://localhost", "model") as elsewhere:
        same: Engine = elsewhere
        async with same.stream_text([{"role": "user", "content": "hi"}]) as stream:
            assert_type(stream, TextStream)


async def any_item(rows: Callable[[], Iterator[tuple[int, str]]]) -> None:
    def produce(emit: Callable[[bytes], None], should_stop: Callable[[], bool]) -> None:
        emit(b"")

    async with anystreamer.stream_from_thread(produce) as from_thread:
        assert_type(from_thread, ThreadStream[bytes])
        assert_type([item async for item in from_thread], list[bytes])
        assert_type(from_thread.ending, Ending | None)
    async with anystreamer.stream_iterable(rows) as of_rows:
        assert_type(of_rows, ThreadStream[tuple[int, str]])
        assert_type(await of_rows.receive(), tuple[int, str])
    async with anystreamer.stream_iterable(lambda: [1, 2]) as of_a_lambda:
        assert_type(of_a_lambda, ThreadStream[int])
        assert_type(await anext(of_a_lambda), int)


async def of_a_worker(rows: Callable[[], Iterator[tuple[int, str]]]) -> None:
    def produce(emit: Callable[[bytes], None], should_stop: Callable[[], bool]) -> None:
        emit(b"")

    async def length(text: str) -> int:
        return len(text)

    def ask(emit: Emit[int], should_stop: Stopping) -> None:
        emit(assert_type(should_stop.wait_for(length, "hi"), int))
        should_stop.wait_for(length, 1)  # type: ignore[arg-type]

    async with anystreamer.open_worker(threads=2, max_waiting=3, name="database") as worker:
        assert_type(worker, Worker)
        async with worker.stream_from_thread(produce) as from_thread:
            assert_type(from_thread, ThreadStream[bytes])
        async with worker.stream_from_thread(ask) as asked:
            assert_type(asked, ThreadStream[int])
        async with worker.stream_iterable(rows, max_buffer_size=3) as of_rows:
            assert_type(of_rows, ThreadStream[tuple[int, str]])
        assert_type(await worker.run(divmod, 7, 2), tuple[int, int])
        assert_type(await worker.run(str.upper, "a", on_stop=print), str)
        await worker.run(str.upper, 1)  # type: ignore[arg-type]
        worker.stream_iterable([1, 2])  # type: ignore[arg-type]
        worker.stream_from_thread(produce, limiter=None)  # type: ignore[call-overload]
        worker.stream_iterable(rows, queue_timeout="1s")  # type: ignore[arg-type]
        assert_type(sync.SyncWorker(worker).run(divmod, 7, 2), tuple[int, int])


def without_a_loop(model: SupportsGenerate, tokenizer: SupportsDecode) -> None:
    with sync.stream_text(model, tokenizer, "hi", stop="!", max_new_tokens=3) as stream:
        assert_type(stream, sync.SyncTextStream)
        assert_type(stream.text, str)
        for chunk in stream:
            assert_type(chunk, TextChunk)
        assert_type(stream.read(), str)
    with sync.stream_batch(model, tokenizer, ["hi"]) as batch:
        assert_type(batch.read(), list[str])
        batch.stop(0)

    def produce(emit: Callable[[bytes], None], should_stop: Callable[[], bool]) -> int:
        emit(b"")
        return 1

    def produce_many(emit: Emit[int], should_stop: Stopping) -> None:
        emit.many([1, 2])

    with sync.stream_from_thread(produce, name="bytes") as from_thread:
        assert_type(from_thread, sync.SyncThreadStream[bytes])
        assert_type(next(from_thread), bytes)
        assert_type(list(from_thread), list[bytes])
        assert_type(from_thread.ending, Ending | None)
    with sync.stream_from_thread(produce_many) as many:
        assert_type(next(many), int)
    with sync.stream_iterable(lambda: [1, 2], close=False) as of_a_lambda:
        assert_type(of_a_lambda, sync.SyncThreadStream[int])
    with sync.open_worker(threads=2, max_waiting=3, name="database") as worker:
        assert_type(worker, sync.OwnedSyncWorker)
        assert_type(worker.stream_from_thread(produce), sync.SyncThreadStream[bytes])
        assert_type(worker.stream_from_thread(produce_many), sync.SyncThreadStream[int])
        with worker.stream_iterable(lambda: [1, 2], queue_timeout=1) as of_a_worker:
            assert_type(next(of_a_worker), int)
        assert_type(worker.run(divmod, 7, 2), tuple[int, int])
        assert_type(worker.run(str.upper, "a", on_stop=print, queue_timeout=1.5), str)
        worker.run(str.upper, 1)  # type: ignore[arg-type]
        worker.stream_iterable([1, 2])  # type: ignore[arg-type]
    with sync.open_engine(model, tokenizer, max_waiting=3) as engine:
        assert_type(engine, sync.OwnedSyncEngine)
        assert_type(engine.stream_text("hi", stop="!"), sync.SyncTextStream)


def parts(tokenizer: SupportsDecode) -> None:
    decoder = anystreamer.text_decoder(tokenizer, skip_special_tokens=True)
    assert_type(decoder.decode([1, 2]), str)
    assert_type(decoder.flush(), str)
    model = ScriptedModel(["a"])
    as_a_model: SupportsGenerate = model
    as_a_tokenizer: SupportsDecode = model.tokenizer
    anystreamer.AsyncTextIteratorStreamer(as_a_tokenizer, skip_prompt=True, timeout=3)
    print(as_a_model)


async def wrong_arguments(model: SupportsGenerate, tokenizer: SupportsDecode) -> None:
    stream_text = anystreamer.stream_text
    stream_text("gpt2", tokenizer, "hi")  # type: ignore[arg-type]
    stream_text(model, None, "hi")  # type: ignore[arg-type]
    stream_text(model, tokenizer, 1)  # type: ignore[arg-type]
    stream_text(model, tokenizer)  # type: ignore[call-arg]
    stream_text(model, tokenizer, "hi", "!")  # type: ignore[call-arg]
    stream_text(model, tokenizer, "hi", stop=1)  # type: ignore[arg-type]
    stream_text(model, tokenizer, "hi", timeout="1s")  # type: ignore[arg-type]
    stream_text(model, tokenizer, "hi", cancel_within="token")  # type: ignore[arg-type]
    anystreamer.stream_batch(model, tokenizer, 1)  # type: ignore[arg-type]
    anystreamer.open_engine(model, tokenizer, batching="static")  # type: ignore[arg-type]
    anystreamer.stream_iterable([1, 2])  # type: ignore[arg-type]
    anystreamer.stream_from_thread(lambda: None)  # type: ignore[arg-type,misc]
    anystreamer.Timeouts(totel=3)  # type: ignore[call-arg]
    open_remote_engine("http://localhost")  # type: ignore[call-arg]
    sync.stream_text(model, None, "hi")  # type: ignore[arg-type]
    sync.stream_iterable([1, 2])  # type: ignore[arg-type]
    sync.stream_iterable(lambda: [1], name=1)  # type: ignore[arg-type]
    sync.open_engine(model, tokenizer, batching="static")  # type: ignore[arg-type]


async def an_unopened_stream(model: SupportsGenerate, tokenizer: SupportsDecode) -> None:
    context = anystreamer.stream_text(model, tokenizer, "hi")
    with context:  # type: ignore[attr-defined]
        pass
    for _ in context:  # type: ignore[attr-defined]
        pass
    async for _ in context:  # type: ignore[attr-defined]
        pass
    await context  # type: ignore[misc]
    with anystreamer.open_engine(model, tokenizer):  # type: ignore[attr-defined]
        pass


async def what_is_read_only(stream: TextStream, usage: Usage) -> None:
    for _ in stream:  # type: ignore[attr-defined]
        pass
    stream.text = ""  # type: ignore[misc]
    usage.prompt_tokens = 2  # type: ignore[misc]
    if stream.finish_reason.openai:  # type: ignore[union-attr]
        pass
