"""Which class loads a model: seen from configs, and from folders of tiny models."""

from __future__ import annotations

import base64
import logging
import re
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("PIL")
pytest.importorskip("torch")

import transformers
from transformers import CONFIG_MAPPING

from anystreamer import load_model, open_engine, stream_text
from anystreamer._loading.model_class import classes_for
from anystreamer.server import create_app

from ..helpers.serving import client_of, serving
from ..helpers.tiny_models import llama, t5, tokenizer
from ..helpers.tiny_processors import kind_named, picture, png
from ..prompts.test_media import asking, part_of, plain

pytestmark = [
    pytest.mark.torch,
    pytest.mark.slow,
    pytest.mark.may_leave_stuck("tqdm_monitor"),  # of progress bars
]

MULTIMODAL = ("AutoModelForMultimodalLM", "AutoModelForImageTextToText")
TEXT = ("AutoModelForCausalLM",)


@pytest.mark.parametrize(
    ("model_type", "models", "encoder"),
    [
        ("llama", TEXT, "AutoTokenizer"),
        ("qwen2", TEXT, "AutoTokenizer"),
        ("gemma3_text", TEXT, "AutoTokenizer"),
        ("gpt2", TEXT, "AutoTokenizer"),
        ("t5", ("AutoModelForSeq2SeqLM",), "AutoTokenizer"),
        ("llava", MULTIMODAL, "AutoProcessor"),
        ("qwen2_vl", MULTIMODAL, "AutoProcessor"),
        ("qwen2_5_vl", MULTIMODAL, "AutoProcessor"),
        ("qwen3_vl", MULTIMODAL, "AutoProcessor"),
        ("gemma3", MULTIMODAL, "AutoProcessor"),
        ("gemma3n", MULTIMODAL, "AutoProcessor"),
        ("mllama", MULTIMODAL, "AutoProcessor"),
        ("qwen2_audio", ("AutoModelForMultimodalLM",), "AutoProcessor"),
        ("voxtral", ("AutoModelForMultimodalLM",), "AutoProcessor"),
        ("whisper", ("AutoModelForMultimodalLM", "AutoModelForSpeechSeq2Seq"), "AutoProcessor"),
    ],
)
def test_classes(model_type: str, models: tuple[str, ...], encoder: str) -> None:
    found = classes_for(CONFIG_MAPPING[model_type]())
    assert found.model.__name__ in models
    assert found.encoder.__name__ == encoder


def test_text_alone_where_the_model_can_be_loaded_so() -> None:
    both = classes_for(CONFIG_MAPPING["gemma3"]())
    assert both.is_text_optional
    alone = classes_for(CONFIG_MAPPING["gemma3"](), text_alone=True)
    assert (alone.model, alone.encoder) == (
        transformers.AutoModelForCausalLM,
        transformers.AutoTokenizer,
    )
    sees = CONFIG_MAPPING["llava"]()
    assert not classes_for(sees).is_text_optional
    assert classes_for(sees, text_alone=True) == classes_for(sees)


def test_a_type_that_is_not_known() -> None:
    class Config:
        model_type = "of its own"

    assert classes_for(Config()).model is transformers.AutoModelForCausalLM


@pytest.mark.parametrize("name", ["llava", "gemma3", "qwen2-audio"])
async def test_a_model_that_sees_or_hears_is_loaded_with_its_processor(
    name: str, tmp_path: Path
) -> None:
    kind = kind_named(name)
    for each in (kind.model, kind.processor):
        each.save_pretrained(tmp_path)
    model, processor = load_model(str(tmp_path), device="cpu")
    assert type(model) is type(kind.model)
    assert type(processor) is type(kind.processor)
    chat = asking(part_of(kind, 2))
    async with stream_text(model, processor, chat, max_new_tokens=8, do_sample=False) as stream:
        await stream.read()
    assert list(stream.token_ids) == plain(kind, chat)


@pytest.mark.parametrize("model", [llama, t5])
def test_a_model_of_text_is_loaded_with_its_tokenizer(model: Any, tmp_path: Path) -> None:
    for each in (model(), tokenizer()):
        each.save_pretrained(tmp_path)
    loaded, encoder = load_model(str(tmp_path), device="cpu")
    assert type(loaded) is type(model())
    assert encoder.get_vocab() == tokenizer().get_vocab()


def test_without_its_processor_a_model_of_both_takes_text(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kind = kind_named("gemma3")
    for each in (kind.model, kind.processor):
        each.save_pretrained(tmp_path)
    (tmp_path / "processor_config.json").write_text('{"processor_class": "Gemma3Processor"}')
    with caplog.at_level(logging.WARNING, "anystreamer"):
        model, encoder = load_model(str(tmp_path), device="cpu")
    assert "accepts only text here" in caplog.text
    assert isinstance(model, transformers.PreTrainedModel)
    assert not hasattr(encoder, "image_processor")


@pytest.mark.parametrize("backend", ["torchvision", "PIL"])
async def test_without_its_processor_pictures_are_refused_with_what_to_install(
    backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the server, too: its clients do not see its log."""
    kind = kind_named("gemma3")
    for each in (kind.model, kind.processor):
        each.save_pretrained(tmp_path)
    lacking = f"Gemma3Processor needs {backend}.\nInstall it with: pip install {backend}"

    def fail(*_: object, **__: object) -> None:
        raise ImportError(lacking)

    monkeypatch.setattr(transformers.AutoProcessor, "from_pretrained", fail)
    model, encoder = load_model(str(tmp_path), device="cpu")
    monkeypatch.undo()
    sent = base64.b64encode(png(picture())).decode()
    part = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{sent}"}}
    chat = [{"role": "user", "content": [{"type": "text", "text": "What?"}, part]}]
    shown = f"only text here, because .* pip install {backend}"
    with pytest.raises(ValueError, match=shown):
        async with stream_text(model, encoder, chat):
            pass
    async with open_engine(model, encoder) as engine:
        async with serving(create_app(engine)) as url, client_of(url) as client:
            response = await client.post("/v1/chat/completions", json={"messages": chat})
    assert response.status_code == 400
    assert re.search(shown, response.json()["error"]["message"])
