"""What of a generation is its text: where it begins, and which of its tokens are none of it."""

from __future__ import annotations

import threading
from functools import cache, partial
from typing import Any

import pytest
import torch
import transformers
from anyio import CancelScope, from_thread
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    MaxLengthCriteria,
    PreTrainedTokenizerFast,
    Qwen2_5OmniConfig,
    Qwen2_5OmniForConditionalGeneration,
)

from anystreamer import FinishReason, Timeouts, stream_batch, stream_text
from anystreamer._streams.timeouts import Deadlines

from ..helpers.inside import worker_left
from ..helpers.tiny_models import EOS, VOCABULARY, Say, TinyProcessor, ids_of, llama, steps_of, t5
from ..helpers.tiny_models import tokenizer as byte_tokenizer

pytestmark = [pytest.mark.torch, pytest.mark.usefixtures("one_thread_for_the_model")]

WORDS = ["<unk>", "<s>", "▁the", "▁quick", "▁brown", "▁fox", "es", "▁", ".", "user:", "a:"]

DECODERS = {
    "metaspace": decoders.Metaspace(),
    "strip": decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    ),
}


@cache
def words(kind: str = "metaspace") -> Any:
    """A tokenizer whose decoder drops the first space of a text, as Llama 2's and Mistral's do."""
    backend = Tokenizer(models.WordLevel({word: n for n, word in enumerate(WORDS)}, "<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = DECODERS[kind]
    backend.add_special_tokens(["<s>", "user:", "a:"])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        clean_up_tokenization_spaces=False,
        chat_template=(
            "{% for message in messages %}{{ message.role + ':' + message.content }}{% endfor %}"
            "{% if add_generation_prompt %}a:{% endif %}"
        ),
    )


def saying(*answer: str) -> dict[str, Any]:
    ids = [WORDS.index(word) for word in answer]
    return {"logits_processor": [Say(*ids)], "max_new_tokens": len(ids)}


async def text_of(*args: Any, **kwargs: Any) -> str:
    async with stream_text(*args, **kwargs) as stream:
        chunks = [chunk async for chunk in stream]
    assert "".join(chunks) == stream.text
    return stream.text


# Where a text begins.


@pytest.mark.parametrize("kind", DECODERS)
async def test_a_string_prompt_is_continued(kind: str) -> None:
    """The prompt and the text joined are what decode() makes of both."""
    tokenizer = words(kind)
    text = await text_of(llama(), tokenizer, "the", **saying("▁quick", "▁brown", "▁fox", "es"))
    assert text == " quick brown foxes"
    both = tokenizer("the quick brown fox").input_ids
    assert tokenizer.decode(both) == "the quick brown fox"


async def test_a_continuation_that_is_no_new_word() -> None:
    text = await text_of(llama(), words(), "the fox", **saying("es", ".", "▁the"))
    assert text == "es. the"


async def test_a_stop_string_in_the_prompt_does_not_count() -> None:
    """Nor does one that begins there."""
    stop = ["the", "x es", "fox"]
    text = await text_of(llama(), words(), "the fox", stop=stop, **saying("▁", "es", "▁fox", "."))
    assert text == " es "


CHAT = [{"role": "user", "content": " fox"}]


async def test_an_answer_to_chat_messages_begins_a_text() -> None:
    assert await text_of(llama(), words(), CHAT, **saying("▁the", "▁fox")) == "the fox"


async def test_the_continuation_of_a_message_keeps_its_space() -> None:
    """With `continue_final_message` the answer is the rest of the last message."""
    messages = [*CHAT, {"role": "a", "content": " the"}]
    kwargs = {"continue_final_message": True, "add_generation_prompt": False}
    answer = saying("▁quick", "▁fox")
    text = await text_of(llama(), words(), messages, chat_template_kwargs=kwargs, **answer)
    assert text == " quick fox"


async def test_an_answer_to_model_inputs_begins_a_text() -> None:
    """Nothing shows whether they are a chat or a text to be continued."""
    inputs = words()("the", return_tensors="pt")
    assert await text_of(llama(), words(), dict(inputs), **saying("▁fox")) == "fox"


async def test_the_answer_of_an_encoder_decoder_begins_a_text() -> None:
    """Its decoder has not seen the prompt."""
    assert await text_of(t5(), words(), "the", **saying("▁quick", "▁fox")) == "quick fox"


async def test_each_row_of_a_batch_goes_on_from_its_own_prompt() -> None:
    answer = saying("▁fox", "es")
    prompts: list[Any] = ["the", CHAT, "the quick brown"]
    async with stream_batch(llama(), words(), prompts, **answer) as stream:
        await stream.read()
    assert list(stream.text) == [" foxes", "foxes", " foxes"]
    answer = saying("▁fox", "es")
    copies: dict[str, Any] = {"num_return_sequences": 2, "do_sample": True}
    async with stream_batch(llama(), words(), ["the", CHAT], **answer, **copies) as stream:
        await stream.read()
    assert list(stream.text) == [" foxes"] * 2 + ["foxes"] * 2


async def test_a_processor_s_string_prompt_is_continued() -> None:
    processor = TinyProcessor(words())
    assert await text_of(llama(), processor, "the", **saying("▁fox")) == " fox"


# The token that ended it.


@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("how", ["argument", "list", "config"])
async def test_an_ordinary_token_that_ends_the_row_is_not_text(
    monkeypatch: pytest.MonkeyPatch, how: str, skip: bool
) -> None:
    """Its id is delivered all the same, and without `skip_special_tokens` its text."""
    model, (end,) = llama(), ids_of("~")
    kwargs: dict[str, Any] = {}
    if how == "config":
        monkeypatch.setattr(model.generation_config, "eos_token_id", end)
    else:
        kwargs["eos_token_id"] = [EOS, end] if how == "list" else end
    async with stream_text(
        model,
        byte_tokenizer(),
        "go",
        logits_processor=[Say("hello~more")],
        max_new_tokens=30,
        skip_special_tokens=skip,
        **kwargs,
    ) as stream:
        await stream.read()
    assert stream.finish_reason is FinishReason.EOS
    assert stream.text == ("hello" if skip else "hello~")
    assert stream.token_ids == ids_of("hello~")


async def test_each_row_ends_without_its_own_last_token() -> None:
    (end,) = ids_of("~")
    async with stream_batch(
        llama(),
        byte_tokenizer(),
        ["go", "on"],
        logits_processor=[Say("hello~more")],
        eos_token_id=end,
        max_new_tokens=30,
    ) as stream:
        await stream.read()
    assert list(stream.text) == ["hello", "hello"]


@pytest.mark.parametrize(
    ("stop", "text", "reason"),
    [
        ("o~", "hell", FinishReason.STOP_STRING),
        ("~", "hello", FinishReason.STOP_STRING),
        ("o~m", "hello", FinishReason.EOS),
        ("~m", "hello", FinishReason.EOS),
        ("lo", "hel", FinishReason.STOP_STRING),
    ],
)
async def test_a_stop_string_may_end_with_the_last_token(
    stop: str, text: str, reason: FinishReason
) -> None:
    """Neither is text; and what was held back for a longer stop string is."""
    async with stream_text(
        llama(),
        byte_tokenizer(),
        "go",
        stop=stop,
        logits_processor=[Say("hello~more")],
        eos_token_id=ids_of("~")[0],
        max_new_tokens=30,
    ) as stream:
        await stream.read()
    assert (stream.text, stream.finish_reason) == (text, reason)
    assert stream.stop_string == (stop if reason is FinishReason.STOP_STRING else None)


async def test_a_character_that_the_last_token_cuts_off() -> None:
    """What the tokens before it have begun is shown, as at any other end."""
    (end,) = ids_of("~")
    async with stream_text(
        llama(),
        byte_tokenizer(),
        "go",
        logits_processor=[Say("a", *ids_of("👍")[:2], end)],
        eos_token_id=end,
        max_new_tokens=30,
    ) as stream:
        await stream.read()
    assert stream.text == "a\ufffd"


# What a model makes after its answer.

CODES = 40  # of audio


@cache
def omni() -> Any:
    """Qwen2.5-Omni: it writes an answer, then speaks it, all in one `generate()`."""
    if not hasattr(transformers.Qwen2_5OmniTalkerConfig(), "pad_token_id"):
        pytest.skip("this transformers cannot make a small one")
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
    layers = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "rope_parameters": rope,
    }
    special = {
        name: VOCABULARY + number
        for number, name in enumerate(
            (
                "audio_token_index",
                "image_token_index",
                "video_token_index",
                "vision_start_token_id",
                "vision_end_token_id",
            )
        )
    }
    end = {"bos_token_id": None, "eos_token_id": EOS, "pad_token_id": EOS}
    thinker = {
        "text_config": {**layers, **end, "vocab_size": VOCABULARY + 20},
        "audio_config": {
            "num_mel_bins": 8,
            "encoder_layers": 1,
            "encoder_attention_heads": 2,
            "encoder_ffn_dim": 16,
            "d_model": 16,
            "output_dim": 16,
            "max_source_positions": 20,
            "n_window": 2,
        },
        "vision_config": {
            "depth": 1,
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_heads": 2,
            "out_hidden_size": 16,
            "fullatt_block_indexes": [0],
        },
        **special,
    }
    talker = {
        **layers,
        **special,
        "head_dim": 8,
        "vocab_size": CODES,
        "embedding_size": 16,
        "tts_text_start_token_id": VOCABULARY + 10,
        "tts_text_end_token_id": VOCABULARY + 11,
        "tts_text_pad_token_id": VOCABULARY + 12,
        "tts_codec_start_token_id": 33,
        "tts_codec_end_token_id": 34,
        "tts_codec_pad_token_id": 32,
        "tts_codec_mask_token_id": 35,
    }
    to_wave = {
        "dit_config": {
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "emb_dim": 8,
            "head_dim": 8,
            "num_embeds": CODES,
            "mel_dim": 8,
            "enc_emb_dim": 8,
            "enc_dim": 8,
            "enc_channels": [8, 8, 8, 8, 24],
            "enc_attention_channels": 4,
            "enc_se_channels": 4,
            "look_ahead_layers": [0],
            "look_backward_layers": [0],
            "block_size": 4,
            "max_position_embeddings": 200,
        },
        "bigvgan_config": {
            "mel_dim": 8,
            "upsample_initial_channel": 64,
            "resblock_kernel_sizes": [3],
            "resblock_dilation_sizes": [[1, 3, 5]],
            "upsample_rates": [2, 2],
            "upsample_kernel_sizes": [4, 4],
        },
    }
    config = Qwen2_5OmniConfig(
        thinker_config=thinker, talker_config=talker, token2wav_config=to_wave
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        model = Qwen2_5OmniForConditionalGeneration(config).eval()
    voice = {"cond": torch.zeros(1, 8), "ref_mel": torch.zeros(1, 8, 8)}
    model.speaker_map = {"Chelsie": {"bos_token": VOCABULARY + 10, **voice}}
    return model


def spoken(answer: str = "hello there", **kwargs: Any) -> Any:
    """Write an answer and speak it, with 12 codes."""
    settings: dict[str, Any] = {
        "thinker_max_new_tokens": len(answer),
        "talker_max_new_tokens": 12,
        "talker_do_sample": False,
        "talker_eos_token_id": [],
        "token2wav_num_steps": 2,
    }
    settings["thinker_logits_processor"] = [Say(answer)]
    return stream_text(omni(), byte_tokenizer(), "go", **{**settings, **kwargs})


async def test_what_a_model_makes_after_its_answer_is_not_text() -> None:
    """The streamer's end() ends the answer: only Whisper has windows."""
    async with spoken() as stream:
        text = await stream.read()
    assert text == stream.text == "hello there"
    assert stream.token_ids == ids_of("hello there")
    assert stream.usage is not None
    assert stream.usage.computed_tokens == stream.usage.completion_tokens == len("hello there")
    sequences, wave = stream.output
    assert sequences[0, 2:].tolist() == ids_of("hello there")
    assert len(wave) > 0


async def test_a_stop_string_ends_the_answer_and_not_the_speech() -> None:
    """What is spoken is what was written."""
    with steps_of(omni().talker) as codes:
        async with spoken(stop="o t") as stream:
            await stream.read()
    assert stream.text == "hell"
    assert stream.finish_reason is FinishReason.STOP_STRING
    assert codes.count == 12


async def test_held_text_is_delivered_before_the_speech() -> None:
    """When the answer has ended it cannot change any more, and speech takes its time."""
    is_complete = threading.Event()
    in_time: list[bool] = []
    gate = {5: lambda: in_time.append(is_complete.wait(30))}
    with steps_of(omni().talker, gate):
        async with spoken(stop="there!") as stream:
            async for _ in stream:
                if stream.text == "hello there":
                    is_complete.set()
    assert in_time == [True]


@pytest.mark.parametrize("way", ["scope", "stop"])
async def test_the_speech_is_stopped_within_a_step(way: str) -> None:
    with CancelScope() as scope, steps_of(omni().talker) as codes:
        async with spoken(talker_max_new_tokens=1_000) as stream:
            end = partial(from_thread.run_sync, scope.cancel) if way == "scope" else stream.stop
            codes.at = {5: end}
            async for _ in stream:
                pass
    assert worker_left(stream)
    assert codes.count <= 6
    if way == "stop":
        assert stream.text == "hello there"
    else:  # what had not been received when the scope was cancelled is dropped
        assert "hello there".startswith(stream.text)


async def test_codes_are_a_sign_of_life(monkeypatch: pytest.MonkeyPatch) -> None:
    """Though no more text comes, `between_tokens` counts from one to the next."""
    ahead = 0.0  # seconds of the model's own time
    check, token_made = Deadlines.check, Deadlines.token_made
    monkeypatch.setattr(
        Deadlines, "check", lambda each, now, spent: check(each, now, spent + ahead)
    )
    monkeypatch.setattr(
        Deadlines, "token_made", lambda each, spent: token_made(each, spent + ahead)
    )

    def take_long() -> None:
        nonlocal ahead
        ahead += 600

    with steps_of(omni().talker, dict.fromkeys(range(2, 12), take_long)):
        async with spoken(timeout=Timeouts(between_tokens=1000)) as stream:
            await stream.read()
    assert stream.text == "hello there"


async def test_the_limit_of_the_answers_own_model_is_its_length() -> None:
    async with spoken() as stream:
        await stream.read()
    assert stream.finish_reason is FinishReason.LENGTH
    async with spoken(
        thinker_logits_processor=[Say("hi", EOS)], thinker_max_new_tokens=9
    ) as stream:
        await stream.read()
    assert (stream.text, stream.finish_reason) == ("hi", FinishReason.EOS)


async def test_a_callers_criterion_is_about_the_answer_and_not_about_the_speech() -> None:
    seen: list[int] = []

    def criterion(input_ids: Any, scores: Any, **kwargs: Any) -> bool:
        seen.append(input_ids.shape[1])
        return False

    with steps_of(omni().talker) as codes:
        async with spoken(stopping_criteria=[criterion]) as stream:
            await stream.read()
    assert len(seen) == len("hello there")
    assert codes.count == 12


async def test_a_criterion_of_transformers_beside_speech() -> None:
    """It is asked once more about the result, which is the text and the sound of it."""
    criterion = MaxLengthCriteria(max_length=2 + 5)
    async with spoken(stopping_criteria=[criterion]) as stream:
        await stream.read()
    assert stream.text == "hello"
    assert stream.finish_reason is FinishReason.CRITERIA
