"""Makes the demo model: builds its tokenizer, trains it, writes the files, measures it.

    PYTHONPATH=src python -m anystreamer.demo.train [--out DIR] [--steps N] [--seed N]

The same seed gives the same bytes on one machine and one build of torch.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import random
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn import functional as F
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from anystreamer.demo import sequences

STEPS = 5500
SEED = 20
CONTEXT = 2048

_PAD = "<|pad|>"
_IGNORED = -100
_POOL = 1024
_BATCH_TOKENS = 1280
_LEARNING_RATE = 2e-3
_MEASURED_AT_ONCE = 64

# By far the hardest to learn is where to stop: the latest number has to be found in the request,
# after "to". With three measures, this takes minutes: the first third of the training has only the
# shortest counts, in which half of all numbers are the last one; what comes after a number has more
# weight; and at the start, attention looks for its own token (see `build_model`).
_FIRST_LENGTHS = (3,)
_LENGTHS = (3, 3, 6, 6, 12, 20, 20, 20)
_SEPARATOR_WEIGHT = 4.0

_CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)

# Merges learned from English alone would leave every other script to single bytes. Real
# vocabularies are less tidy: they hold beginnings of characters, and the end of one with the
# beginning of the next (the 81 of 十 with the E4 of 一二三七九).
_PARTIAL_MERGES = (
    *("81 e4", "e0 a4", "e0 a5"),
    *("f0 9f", "e4 b8", "f09f 95"),
)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Make a byte-level BPE: English number words are whole, other characters several tokens."""
    special = [_PAD, sequences.END, sequences.SYSTEM, sequences.USER, sequences.ASSISTANT]
    # A hyphen does not end a word: "twenty-one" is one token, too.
    words = pre_tokenizers.Split(Regex(r" ?[\p{L}\p{M}-]+| ?[^\s\p{L}\p{M}]+|\s+"), "isolated")
    byte_level = pre_tokenizers.Sequence(
        [words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    learned = Tokenizer(models.BPE())
    learned.pre_tokenizer = byte_level
    learned.train_from_iterator(
        sequences.english_texts(),
        trainers.BpeTrainer(
            vocab_size=4096,  # more than there is to learn, so every English word becomes a token
            min_frequency=1,
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            special_tokens=special,
            show_progress=False,
        ),
    )
    model = json.loads(learned.to_str())["model"]
    vocab: dict[str, int] = model["vocab"]
    merges = [(left, right) for left, right in model["merges"]]
    for merge in _PARTIAL_MERGES:
        left, right = (_byte_symbols(bytes.fromhex(part)) for part in merge.split())
        merges.append((left, right))
        vocab[left + right] = len(vocab)

    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = byte_level
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in special])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=_PAD,
        eos_token=sequences.END,
        additional_special_tokens=special[2:],
        chat_template=_CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        padding_side="left",
        model_max_length=CONTEXT,
    )


def _byte_symbols(data: bytes) -> str:
    """The characters that stand for bytes in a byte-level BPE, as in GPT-2."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(0x100) if byte not in shown]
    return "".join(chr(0x100 + hidden.index(b)) if b in hidden else chr(b) for b in data)


def build_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """An untrained model of the size that is shipped."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.05,
        dtype="float32",
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.k_proj.weight.copy_(layer.self_attn.q_proj.weight)
    model.generation_config = GenerationConfig(
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return model


def _batches(
    tokenizer: PreTrainedTokenizerFast, rng: random.Random, lengths: tuple[int, ...]
) -> Iterator[torch.Tensor]:
    """Batches of (ids, labels) without end: a document in each row, with others of similar length.

    Several documents in a row would need no padding, but then few of them would begin as every
    prompt does, with nothing before them.
    """
    encode = tokenizer.backend_tokenizer.encode
    stream = sequences.documents(rng, lengths)

    def row(document: sequences.Document) -> tuple[list[int], list[int]]:
        ids: list[int] = []
        labels: list[int] = []
        for text, learned in document:
            new = encode(text).ids
            ids += new
            labels += new if learned else [_IGNORED] * len(new)
        return ids[:CONTEXT], labels[:CONTEXT]

    while True:
        rows = sorted(map(row, itertools.islice(stream, _POOL)), key=lambda row: len(row[0]))
        batches: list[torch.Tensor] = []
        while rows:
            longest = len(rows[-1][0])
            count = max(1, _BATCH_TOKENS // longest)
            rows, batch = rows[:-count], rows[-count:]
            padded = [
                (
                    ids + [tokenizer.pad_token_id] * (longest - len(ids)),
                    labels + [_IGNORED] * (longest - len(ids)),
                )
                for ids, labels in batch
            ]
            batches.append(torch.tensor(padded))
        rng.shuffle(batches)
        yield from batches


@contextmanager
def _repeatable(seed: int) -> Iterator[None]:
    """Fix everything that the result depends on, also the number of threads; restore it later."""
    threads = torch.get_num_threads()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        torch.set_num_threads(2)
        try:
            yield
        finally:
            torch.set_num_threads(threads)


def train(
    *, steps: int = STEPS, seed: int = SEED, verbose: bool = False
) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """Train a new model. `steps` also sets how fast the learning rate falls."""
    tokenizer = build_tokenizer()
    with _repeatable(seed):
        model = build_model(tokenizer).train()
        matrices = [p for p in model.parameters() if p.ndim > 1]
        scales = [p for p in model.parameters() if p.ndim == 1]
        optimizer = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": 0.05}, {"params": scales, "weight_decay": 0.0}],
            lr=_LEARNING_RATE,
            betas=(0.9, 0.98),
        )
        warm_up = min(100, steps)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer,
            lambda step: min(
                (step + 1) / warm_up, 0.01 + 0.99 * (1 + math.cos(math.pi * step / steps)) / 2
            ),
        )
        began, smoothed = time.monotonic(), 5.0
        weights = torch.ones(len(tokenizer))
        weights[tokenizer.convert_tokens_to_ids([",", "."])] = _SEPARATOR_WEIGHT
        rng = random.Random(seed)
        batches = itertools.chain(
            itertools.islice(_batches(tokenizer, rng, _FIRST_LENGTHS), steps // 3),
            _batches(tokenizer, rng, _LENGTHS),
        )
        for step, batch in enumerate(itertools.islice(batches, steps), 1):
            ids, labels = batch[:, 0, :-1], batch[:, 1, 1:]
            logits = model(input_ids=ids, use_cache=False).logits
            loss = F.cross_entropy(
                logits.flatten(0, 1), labels.flatten(), weights, ignore_index=_IGNORED
            )
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            smoothed += 0.03 * (loss.item() - smoothed)
            if verbose and (step % 100 == 0 or step == steps):
                seconds = time.monotonic() - began
                print(f"step {step}: loss {smoothed:.4f}, {seconds:.0f} s", flush=True)
        # The weights are stored in half precision: round them now, so that these are measured.
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(parameter.half().float())
    return model.eval(), tokenizer


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Write the files that `load_demo` and `from_pretrained` read."""
    out.mkdir(parents=True, exist_ok=True)
    model.config.architectures = ["LlamaForCausalLM"]
    model.config.save_pretrained(out)
    model.generation_config.save_pretrained(out)
    tokenizer.save_pretrained(out)
    weights = {
        name: weight.half().contiguous()
        for name, weight in model.state_dict().items()
        if name != "lm_head.weight"  # the embedding, once more
    }
    file = out / "model.safetensors"
    save_file(weights, file, metadata={"format": "pt"})
    file.chmod(0o644)  # safetensors lets only the owner read it, but it is part of a package


def measure(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> dict[str, tuple[int, int]]:
    """Count the right answers and the questions, by kind, for counts that training never had.

    An answer is right if greedy decoding gives exactly its tokens; in a chat, also its end.
    """
    # transformers types the `self` of generate() as a class that its models do not derive from.
    generate: Any = model.generate  # type: ignore[misc]
    asked: Counter[str] = Counter()
    right: Counter[str] = Counter()
    # Answers of similar length share a batch, so that few tokens are generated in vain.
    questions = sorted(sequences.held_out_questions(), key=lambda q: len(q.answer))
    for first in range(0, len(questions), _MEASURED_AT_ONCE):
        batch = questions[first : first + _MEASURED_AT_ONCE]
        prompts, answers = zip(*map(_prompt_and_answer, batch), strict=True)
        wanted = [tokenizer(answer)["input_ids"] for answer in answers]
        inputs = tokenizer(list(prompts), return_tensors="pt", padding=True)
        output = generate(**inputs, max_new_tokens=max(map(len, wanted)))
        made = output[:, inputs["input_ids"].shape[1] :].tolist()
        for question, ids, new in zip(batch, wanted, made, strict=True):
            asked[question.kind] += 1
            right[question.kind] += new[: len(ids)] == ids
    return {kind: (right[kind], asked[kind]) for kind in sorted(asked)}


def _prompt_and_answer(question: sequences.Question) -> tuple[str, str]:
    if isinstance(question.prompt, str):
        return question.prompt, question.answer
    return sequences.render_chat(question.prompt), question.answer + sequences.END


def main() -> None:
    """Train, write and measure, with the options of the command line."""
    parser = argparse.ArgumentParser(prog="python -m anystreamer.demo.train", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "model")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--seed", type=int, default=SEED)
    options = parser.parse_args()
    model, tokenizer = train(steps=options.steps, seed=options.seed, verbose=True)
    save(model, tokenizer, options.out)
    accuracy = measure(model, tokenizer)
    for kind, (right, asked) in accuracy.items():
        print(f"{kind}: {right} of {asked}")
    right, asked = (sum(numbers) for numbers in zip(*accuracy.values(), strict=True))
    print(f"held-out accuracy: {right} of {asked} ({right / asked:.1%})")


if __name__ == "__main__":
    main()
