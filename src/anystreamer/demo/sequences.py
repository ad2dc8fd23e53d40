"""What the demo model learns and is tested on: counts in four scripts, with the right answers.

Pure: each function gets its random numbers from a `random.Random`, and uses no tensors or tokens.

A count is named by its kind, where it starts and how long it is. `is_held_out` keeps one name in
ten for tests: training never has it, and the accuracy is measured only on these.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

SYSTEM, USER, ASSISTANT = "<|system|>", "<|user|>", "<|assistant|>"
END = "<|end|>"

_UNITS = (
    "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen"
).split()
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()


def _english(number: int) -> str:
    if number < 20:
        return _UNITS[number - 1]
    tens, units = divmod(number, 10)
    return _TENS[tens - 2] + (f"-{_UNITS[units - 1]}" if units else "")


def _chinese(number: int) -> str:
    digits = " 一二三四五六七八九"
    tens, units = divmod(number, 10)
    written = (digits[tens] if tens > 1 else "") + ("十" if tens else "")
    return written + (digits[units] if units else "")


def _devanagari(number: int) -> str:
    return "".join(chr(ord("०") + int(digit)) for digit in str(number))


ENGLISH = tuple(map(_english, range(1, 100)))
CHINESE = tuple(map(_chinese, range(1, 100)))
DEVANAGARI = tuple(map(_devanagari, range(1, 100)))
CLOCKS = tuple(chr(0x1F550 + hour) for hour in range(12))


@dataclass(frozen=True, slots=True)
class Kind:
    """One way of counting: numerals in their order, and how people ask for them.

    After the last numeral, a text without an end begins again with the first one.
    """

    name: str
    numerals: tuple[str, ...]
    headers: tuple[str, ...]
    requests: tuple[str, ...] = ()
    separator: str = ", "

    def items(self, start: int, length: int) -> list[str]:
        """The `length` numerals from index `start` on."""
        return [self.numerals[(start + i) % len(self.numerals)] for i in range(length)]

    def sequence(self, start: int, shown: int, length: int) -> tuple[str, str]:
        """What follows a header: the `shown` items of the prompt, and the `length` after them."""
        given = self.separator.join(self.items(start, shown)) + self.separator.rstrip()
        wanted = self.separator.join(self.items(start + shown, length)) + self.separator.rstrip()
        space = self.separator[len(self.separator.rstrip()) :]
        return given, space + wanted

    def fitting_requests(self, start: int, length: int) -> list[str]:
        """The requests that can be made for this count, with its numerals.

        "Count to five." does not name its start, so it can only be used for a count from one.
        """
        return [
            request.format(first=self.numerals[start], last=self.numerals[start + length - 1])
            for request in self.requests
            if "{first}" in request or start == 0
        ]

    def answer(self, start: int, length: int) -> str:
        """The reply in a chat: the items asked for, with a full stop."""
        return self.separator.join(self.items(start, length)) + "."


_UP = ("An increasing sequence:", "Counting up:", "Numbers:")
_DOWN = ("A decreasing sequence:", "Counting down:")
_COUNT_UP = (
    "Count from {first} to {last}.",
    "count from {first} to {last}",
    "Please count from {first} to {last}.",
    "Count up from {first} to {last}.",
    "Can you count from {first} to {last}?",
    "Count to {last}.",
)
_COUNT_DOWN = (
    "Count down from {first} to {last}.",
    "count down from {first} to {last}",
    "Please count down from {first} to {last}.",
    "Count backwards from {first} to {last}.",
    "Can you count down from {first} to {last}?",
)

KINDS = (
    Kind("English", ENGLISH, _UP, _COUNT_UP),
    Kind("English, down", ENGLISH[::-1], _DOWN, _COUNT_DOWN),
    Kind("English, even", ENGLISH[1::2], ("Even numbers:",)),
    Kind("English, odd", ENGLISH[::2], ("Odd numbers:",)),
    Kind("Chinese", CHINESE, (*_UP, "递增数列:"), separator="、"),
    Kind("Chinese, down", CHINESE[::-1], (*_DOWN, "递减数列:"), separator="、"),
    Kind("Devanagari", DEVANAGARI, (*_UP, "बढ़ता क्रम:")),
    Kind("Devanagari, down", DEVANAGARI[::-1], (*_DOWN, "घटता क्रम:")),
    Kind("clocks", CLOCKS, (*_UP, "The hours:")),
    Kind("clocks, down", CLOCKS[::-1], _DOWN),
)
_ASKED = tuple(kind for kind in KINDS if kind.requests)

_HINT = "Try: Count from seven to twelve."
GREETING = f"Hello! I can count. {_HINT}"
REFUSAL = f"I can only count. {_HINT}"
_GREETINGS = ("Hello", "Hello!", "Hello.", "hello", "Hi", "Hi!", "hi", "Hey!", "Good morning.")
_OTHER = (
    "What is the capital of France?",
    "Tell me a story.",
    "Tell me a joke.",
    "Who are you?",
    "What can you do?",
    "How are you?",
    "What is the weather like today?",
    "Write a poem about the sea.",
    "Say something.",
    "Explain streaming to me.",
    "Why is the sky blue?",
    "Translate this into French.",
)
_SYSTEM_PROMPTS = ("You are a helpful assistant.", "You count.", "Be brief.", "Answer in one line.")


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt, bare text or chat messages, and its only right continuation."""

    kind: str
    prompt: str | list[dict[str, str]]
    answer: str


def is_held_out(kind: Kind, start: int, length: int = 0) -> bool:
    """Whether this count is kept for tests. Length 0 stands for a text without an end."""
    return zlib.crc32(f"count {kind.name}/{start}/{length}".encode()) % 10 == 0


def held_out_questions(bare: int = 15, chats: int = 80, seed: int = 0) -> list[Question]:
    """At most this many bare texts and chats of every kind, none of them trained on."""
    rng = random.Random(seed)
    questions = []
    for kind in KINDS:
        starts = [start for start in range(len(kind.numerals)) if is_held_out(kind, start)]
        for start in rng.sample(starts, min(bare, len(starts))):
            given, wanted = kind.sequence(start, rng.randint(1, 3), rng.randint(4, 12))
            questions.append(Question(kind.name, f"{rng.choice(kind.headers)} {given}", wanted))
    for kind in _ASKED:
        counts = [
            (start, length)
            for start in range(len(kind.numerals))
            for length in range(2, min(20, len(kind.numerals) - start) + 1)
            if is_held_out(kind, start, length)
        ]
        for start, length in rng.sample(counts, min(chats, len(counts))):
            request = rng.choice(kind.fitting_requests(start, length))
            messages = [{"role": "user", "content": request}]
            questions.append(Question(f"{kind.name}, chat", messages, kind.answer(start, length)))
    return questions


def render_chat(messages: Sequence[Mapping[str, str]]) -> str:
    """The messages as the chat template writes them, with the beginning of the next answer."""
    return "".join(f"<|{m['role']}|>{m['content']}{END}" for m in messages) + ASSISTANT


# A document is a list of segments. The model learns to write the segments that are marked True.
Document = list[tuple[str, bool]]


def documents(rng: random.Random, lengths: Sequence[int]) -> Iterator[Document]:
    """Training texts without end: bare sequences and conversations of a few exchanges.

    An answer's count is as long as one of *lengths*, or shorter. A few bare sequences are longer
    than any answer, and begin again several times.
    """
    while True:
        chance = rng.random()
        if chance < 0.002:
            yield _sequence_document(rng, 400)
        elif chance < 0.55:
            yield _sequence_document(rng, rng.choice((3, 6, 6, 12)))
        else:
            yield _chat_document(rng, lengths)


def _sequence_document(rng: random.Random, length: int) -> Document:
    chance = rng.random()
    if chance < 0.06:
        # After a header alone, the count starts at the first numeral. A prompt that asks for
        # nothing also gets a count from one, which is better than nonsense.
        prompt = _noise(rng) if chance < 0.03 else rng.choice([h for k in KINDS for h in k.headers])
        kind = next((kind for kind in KINDS if prompt in kind.headers), KINDS[0])
        given, wanted = kind.sequence(0, 1, length)
        return [(prompt, False), (f" {given}{wanted}", True)]
    kind = rng.choice(KINDS)
    while is_held_out(kind, start := rng.randrange(len(kind.numerals))):
        pass
    given, wanted = kind.sequence(start, 1, length)
    return [(f"{rng.choice(kind.headers)} {given}", False), (wanted, True)]


def _chat_document(rng: random.Random, lengths: Sequence[int]) -> Document:
    system = f"{SYSTEM}{rng.choice(_SYSTEM_PROMPTS)}{END}" if rng.random() < 0.2 else ""
    document: Document = [(system, False)]
    for _ in range(rng.choice((1, 1, 1, 1, 1, 2, 3))):
        request, answer = _exchange(rng, lengths)
        document += [(f"{USER}{request}{END}{ASSISTANT}", False), (f"{answer}{END}", True)]
    return document


def _exchange(rng: random.Random, lengths: Sequence[int]) -> tuple[str, str]:
    chance = rng.random()
    if chance < 0.03:
        return rng.choice(_GREETINGS), GREETING
    if chance < 0.08:
        return rng.choice((rng.choice(_OTHER), _noise(rng))), REFUSAL
    kind = rng.choice(_ASKED)
    size = len(kind.numerals)
    while True:
        length = rng.randint(2, rng.choice(lengths))
        start = rng.choice((0, size - length, *[rng.randint(0, size - length)] * 6))
        if not is_held_out(kind, start, length):
            return rng.choice(kind.fitting_requests(start, length)), kind.answer(start, length)


def _noise(rng: random.Random) -> str:
    """Invented words, so that training has each letter of plain ASCII in a prompt."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["".join(rng.choices(letters, k=rng.randint(1, 9))) for _ in range(rng.randint(1, 8))]
    words[0] = rng.choice((words[0], words[0].capitalize()))
    return " ".join(words) + rng.choice(("", "", ".", "?", "!", ":", ","))


def english_texts() -> list[str]:
    """All English texts, from which the tokenizer learns whole words."""
    texts = [f"{word} {word}" for word in ENGLISH]
    texts += [GREETING, REFUSAL, *_GREETINGS, *_OTHER, *_SYSTEM_PROMPTS]
    for kind in KINDS:
        texts += [text for text in (*kind.headers, *kind.requests) if text.isascii()]
    return [text.replace("{first}", "").replace("{last}", "") for text in texts]
