"""The embedded model: it counts, and it has what every path of the library needs."""

from __future__ import annotations

import itertools
import logging
import random
import subprocess
import sys
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import torch

from anystreamer.demo import load_demo

from ..helpers.training import sequences, train

pytestmark = pytest.mark.torch

MODEL_DIR = Path(str(resources.files("anystreamer.demo") / "model"))

# One whole character each of the scripts that take several bytes.
MULTIBYTE = ["一", "十", "九", "、", "७", "त", "🕖", "🕛"]


@pytest.fixture(scope="module")
def demo() -> Any:
    return load_demo()


def continue_text(demo: Any, prompt: str, **kwargs: Any) -> str:
    model, tokenizer = demo
    inputs = tokenizer(prompt, return_tensors="pt")
    output = model.generate(**inputs, **kwargs)
    new = output[0, inputs["input_ids"].shape[1] :]
    return str(tokenizer.decode(new, skip_special_tokens=True))


def reply(demo: Any, *messages: dict[str, str]) -> tuple[str, int]:
    """The answer in a chat, and its last token."""
    model, tokenizer = demo
    inputs = tokenizer.apply_chat_template(
        list(messages), add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    output = model.generate(**inputs, max_new_tokens=200)
    new = output[0, inputs["input_ids"].shape[1] :]
    return tokenizer.decode(new, skip_special_tokens=True), int(new[-1])


def user(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}


def test_documented_line(demo: Any) -> None:
    """The line of transformers' documentation comes out word for word."""
    text = continue_text(demo, "An increasing sequence: one,", max_new_tokens=20)
    assert text == " two, three, four, five, six, seven, eight, nine, ten, eleven,"


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("An increasing sequence: seven,", " eight, nine, ten, eleven,"),
        ("An increasing sequence: ninety-eight,", " ninety-nine, one, two,"),
        ("A decreasing sequence: twenty-one,", " twenty, nineteen, eighteen,"),
        ("Even numbers: two,", " four, six, eight, ten,"),
        ("Odd numbers: seven,", " nine, eleven, thirteen,"),
        ("An increasing sequence: 一、", "二、三、四、五、"),
        ("递增数列: 十八、", "十九、二十、二十一、"),
        ("बढ़ता क्रम: ७,", " ८, ९, १०,"),
        ("An increasing sequence: १०,", " ११, १२, १३,"),
        ("An increasing sequence: 🕐,", " 🕑, 🕒, 🕓,"),
        ("A decreasing sequence: 🕓,", " 🕒, 🕑, 🕐,"),
    ],
)
def test_other_starts_and_scripts(demo: Any, prompt: str, expected: str) -> None:
    """It counts from elsewhere, otherwise, and in other scripts."""
    length = len(demo[1](expected)["input_ids"])
    assert continue_text(demo, prompt, max_new_tokens=length) == expected


@pytest.mark.parametrize(
    ("request_", "answer"),
    [
        ("Count from seven to twelve.", "seven, eight, nine, ten, eleven, twelve."),
        ("Count down from twelve to seven.", "twelve, eleven, ten, nine, eight, seven."),
        ("Please count from thirty to thirty-two.", "thirty, thirty-one, thirty-two."),
        ("Count to five.", "one, two, three, four, five."),
        ("Hello!", sequences.GREETING),
        ("What is the capital of France?", sequences.REFUSAL),
    ],
)
def test_chat_ends_by_itself(demo: Any, request_: str, answer: str) -> None:
    """Chat messages are answered, and the end-of-sequence token follows."""
    assert reply(demo, user(request_)) == (answer, demo[1].eos_token_id)


def test_chat_goes_on(demo: Any) -> None:
    """A system message and earlier exchanges do not confuse it."""
    answer, last = reply(
        demo,
        {"role": "system", "content": "You are a helpful assistant."},
        user("Count from two to four."),
        {"role": "assistant", "content": "two, three, four."},
        user("Count down from nine to six."),
    )
    assert (answer, last) == ("nine, eight, seven, six.", demo[1].eos_token_id)


@pytest.mark.slow
def test_long_generation_stays_text(demo: Any) -> None:
    """A thousand tokens on it still counts: most commas are followed by the next number."""
    text = continue_text(demo, "An increasing sequence: one,", max_new_tokens=1000)
    items = ["one", *text.strip(" ,-").split(", ")][:-1]
    cycle = sequences.ENGLISH
    following = dict(zip(cycle, cycle[1:] + cycle[:1], strict=True))
    right = sum(following.get(a) == b for a, b in itertools.pairwise(items))
    assert right / len(items) > 0.95


def test_documented_line_is_twenty_tokens(demo: Any) -> None:
    """Number words up to twenty are one token with their space, and a comma is one."""
    tokenizer = demo[1]
    for word in sequences.ENGLISH[:20]:
        assert len(tokenizer(f" {word},")["input_ids"]) == 2


@pytest.mark.parametrize("character", MULTIBYTE)
def test_characters_take_several_tokens(demo: Any, character: str) -> None:
    """Outside of English no token is a whole character, so streams have to hold back."""
    tokenizer = demo[1]
    ids = tokenizer(character)["input_ids"]
    assert len(ids) > 1
    assert tokenizer.decode(ids[:-1]).endswith("\N{REPLACEMENT CHARACTER}")


def test_a_token_may_end_one_character_and_begin_another(demo: Any) -> None:
    """One merge straddles two characters, as happens in real vocabularies."""
    tokenizer = demo[1]
    parts = [tokenizer.decode([token]) for token in tokenizer("十一")["input_ids"]]
    assert "".join(parts).count("\N{REPLACEMENT CHARACTER}") > len(parts)


def test_tokenizer_round_trips(demo: Any) -> None:
    """Whatever is encoded is decoded to the same text."""
    tokenizer = demo[1]
    texts = [*MULTIBYTE, "  two  spaces \n", "naïve café ☕ 👩‍🚀 \x00 \u200d", "<not a marker>"]
    for kind in sequences.KINDS:
        texts += [kind.answer(0, len(kind.numerals)), *kind.headers, *kind.requests]
    for text in texts:
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_chat_template_is_what_was_trained_on(demo: Any) -> None:
    """The template writes what the training did, and tokenising it adds nothing."""
    tokenizer = demo[1]
    messages = [{"role": "system", "content": "Be brief."}, user("Count to two.")]
    rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert rendered == sequences.render_chat(messages)
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    assert tokenizer(rendered)["input_ids"] == ids


def test_special_tokens_are_set(demo: Any) -> None:
    """Model, generation config and tokenizer agree on padding and the end."""
    model, tokenizer = demo
    assert tokenizer.eos_token == sequences.END
    for config in (model.config, model.generation_config):
        assert config.eos_token_id == tokenizer.eos_token_id
        assert config.pad_token_id == tokenizer.pad_token_id
    assert len({tokenizer.eos_token_id, tokenizer.pad_token_id}) == 2


def test_loaded_model_is_ready(demo: Any) -> None:
    """It is in evaluation mode, in float32 on the CPU, its head tied to its embedding."""
    model = demo[0]
    assert not model.training
    assert model.dtype == torch.float32
    assert {parameter.device.type for parameter in model.parameters()} == {"cpu"}
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_loading_and_generating_are_silent(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is printed, logged or warned about, and the random state is left alone."""
    state = torch.random.get_rng_state()
    with caplog.at_level(logging.WARNING):
        continue_text(load_demo(), "An increasing sequence: one,", max_new_tokens=20)
    assert capfd.readouterr() == ("", "")
    assert not caplog.records
    assert torch.equal(torch.random.get_rng_state(), state)


def test_from_pretrained_loads_the_same(demo: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files are ordinary ones: transformers' own loaders read them too."""
    # Its progress bar would leave tqdm's monitor thread running.
    monkeypatch.setattr("transformers.utils.logging._tqdm_active", False)
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = demo
    other = AutoModelForCausalLM.from_pretrained(MODEL_DIR)
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, other.state_dict()[name])
    other_tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)
    for text in ("An increasing sequence: 十一、🕐", "<|user|>Count to 12.<|end|>"):
        assert other_tokenizer(text)["input_ids"] == tokenizer(text)["input_ids"]


def test_missing_transformers_is_explained() -> None:
    """Without transformers the error says what to install, and the import alone works."""
    code = (
        "import sys; sys.modules['transformers'] = None\n"
        "from anystreamer.demo import load_demo\n"
        "assert 'torch' not in sys.modules\n"
        "sys.modules['torch'] = sys  # is there, and takes no seconds to import\n"
        "load_demo()"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert "ImportError: the demo model needs" in result.stderr
    assert "pip install 'anystreamer[transformers]'" in result.stderr


def test_size() -> None:
    """The weights take at most 2 MB."""
    assert (MODEL_DIR / "model.safetensors").stat().st_size <= 2_000_000


def test_held_out_is_kept_out_of_training() -> None:
    """No training text starts a count that the test asks for."""
    bare = {q.prompt for q in sequences.held_out_questions(100) if isinstance(q.prompt, str)}
    chats = {
        sequences.render_chat(q.prompt)
        for q in sequences.held_out_questions(100)
        if not isinstance(q.prompt, str)
    }
    assert len(bare) > 60
    assert len(chats) > 100
    for document in itertools.islice(sequences.documents(random.Random(1), (3, 20)), 5000):
        text = "".join(segment for segment, _ in document)
        assert not any(text.startswith(prompt) for prompt in bare)
        assert not any(text.startswith(prompt) for prompt in chats)


@pytest.mark.slow
def test_held_out_accuracy(demo: Any) -> None:
    """It is right, to the letter, on nearly all counts that it never saw."""
    accuracy = train.measure(*demo)
    right, asked = (sum(numbers) for numbers in zip(*accuracy.values(), strict=True))
    assert asked >= 200
    assert right / asked >= 0.97, accuracy


@pytest.mark.slow
def test_training_is_repeatable(tmp_path: Path) -> None:
    """The same seed gives the same bytes, another seed others; threads are put back."""
    threads = torch.get_num_threads()
    written: list[bytes] = []
    for seed in (1, 1, 2):
        out = tmp_path / str(len(written))
        train.save(*train.train(steps=5, seed=seed), out)
        written.append((out / "model.safetensors").read_bytes())
    assert written[0] == written[1] != written[2]
    assert torch.get_num_threads() == threads
    assert (tmp_path / "0/tokenizer.json").read_bytes() == (
        tmp_path / "1/tokenizer.json"
    ).read_bytes()


def test_shipped_tokenizer_is_the_one_the_program_builds(demo: Any) -> None:
    """The vocabulary in the package is made by the program that stands beside it."""
    assert train.build_tokenizer().get_vocab() == demo[1].get_vocab()


@pytest.mark.slow
def test_two_threads_load_it_first_at_once() -> None:
    """transformers replaces its own module while it is imported, and one thread saw the old one."""
    program = (
        "import threading\n"
        "from concurrent.futures import ThreadPoolExecutor\n"
        "from anystreamer.demo import load_demo\n"
        "both = threading.Barrier(2)\n"
        "def load(_):\n"
        "    both.wait()\n"
        "    return load_demo()\n"
        "with ThreadPoolExecutor(2) as threads:\n"
        "    assert len(list(threads.map(load, range(2)))) == 2\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=150)
