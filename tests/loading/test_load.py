"""A model of one's own: from a folder, onto a device, in a dtype, with a template."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import QuantoConfig

from anystreamer import load_model, stream_text
from anystreamer._loading import load, placement, shown_name
from anystreamer.demo import load_demo

pytestmark = pytest.mark.torch

PROMPT = "An increasing sequence: one,"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("model")
    for each in load_demo():
        each.save_pretrained(path)
    return str(path)


@pytest.fixture(params=[True, False], ids=["accelerate", "no accelerate"])
def with_accelerate(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether accelerate is used. Without it, it is not found."""
    is_used: bool = request.param
    if is_used:
        pytest.importorskip("accelerate")
    else:
        monkeypatch.setattr(load, "find_spec", without("accelerate"))
    return is_used


def without(package: str) -> Callable[[str], Any]:
    return lambda name: None if name == package else importlib.util.find_spec(name)


async def text_of(model: Any, tokenizer: Any) -> str:
    async with stream_text(model, tokenizer, PROMPT, max_new_tokens=12) as stream:
        return await stream.read()


@pytest.mark.usefixtures("with_accelerate")
@pytest.mark.parametrize("device", ["auto", "cpu", "cpu:0", torch.device("cpu")])
async def test_it_is_loaded_onto_a_device(folder: str, device: Any) -> None:
    model, tokenizer = load_model(folder, device=device)
    assert not model.training
    assert await text_of(model, tokenizer) == await text_of(*load_demo())
    if device != "auto":
        assert {each.device.type for each in model.parameters()} == {"cpu"}


@pytest.mark.usefixtures("with_accelerate")
@pytest.mark.parametrize("name", ["folder", None])
@pytest.mark.parametrize("dtype", ["bfloat16", torch.float64])
def test_it_has_the_dtype_that_was_asked_for(folder: str, dtype: Any, name: str | None) -> None:
    model, _ = load_model(name and folder, dtype=dtype, device="cpu")
    wanted = dtype if isinstance(dtype, torch.dtype) else torch.bfloat16
    assert {each.dtype for each in model.parameters()} == {wanted}
    assert placement(model) == f"cpu, {str(wanted).removeprefix('torch.')}"


def test_by_default_the_dtype_is_the_stored_one(folder: str, tmp_path: Path) -> None:
    model, tokenizer = load_model(folder, dtype="float16")
    for each in (model, tokenizer):
        each.save_pretrained(tmp_path)
    assert load_model(str(tmp_path))[0].dtype == torch.float16
    assert load_model(folder)[0].dtype == load_model(None)[0].dtype == torch.float32


TEMPLATE = "{% for each in messages %}<{{ each.content }}>{% endfor %}"


@pytest.mark.parametrize("name", ["folder", None])
def test_a_chat_template_is_text_or_a_file(folder: str, tmp_path: Path, name: str | None) -> None:
    path = tmp_path / "chat.jinja"
    path.write_text(TEMPLATE)
    for template in (TEMPLATE, str(path)):
        _, tokenizer = load_model(name and folder, chat_template=template)
        messages = [{"role": "user", "content": "hi"}]
        assert tokenizer.apply_chat_template(messages, tokenize=False) == "<hi>"


def test_paths_can_begin_with_the_home_folder(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shell leaves the ``~`` of ``--model=~/model`` as it is."""
    (tmp_path / "a-model").symlink_to(folder)
    (tmp_path / "chat.jinja").write_text(TEMPLATE)
    monkeypatch.setenv("HOME", str(tmp_path))
    model, tokenizer = load_model("~/a-model", device="cpu", chat_template="~/chat.jinja")
    assert model.config.model_type == "llama"
    assert tokenizer.chat_template == TEMPLATE
    assert shown_name("~/a-model") == "a-model"


def test_a_chat_template_has_to_be_jinja(tmp_path: Path) -> None:
    """One that wants other messages is: what it raises itself is no fault."""
    template = "{{ raise_exception('only documents') }}{% generation %}a{% endgeneration %}"
    _, tokenizer = load_model(None, chat_template=template)
    assert tokenizer.chat_template == template
    for wrong, line in (("a\n{% if %}", 2), ("{{ 'a' }", 1)):
        with pytest.raises(ValueError, match=f"chat_template: line {line} is not Jinja: "):
            load_model(None, chat_template=wrong)
    (tmp_path / "latin.jinja").write_bytes("{# é #}".encode("latin-1"))
    with pytest.raises(ValueError, match="is not a text in UTF-8"):
        load_model(None, chat_template=str(tmp_path / "latin.jinja"))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"device": "gpu"}, ValueError, "device='gpu' is not there"),
        ({"device": "cuda:99"}, ValueError, "device='cuda:99' is not there"),
        ({"device": ""}, ValueError, "device='' is not there"),
        ({"device": "meta"}, ValueError, "has no weights"),
        ({"dtype": "int8"}, ValueError, "use quantization="),
        ({"dtype": "bf16"}, ValueError, "'bfloat16'"),
        ({"dtype": "nn"}, ValueError, "is not a dtype"),
        ({"dtype": torch.int64}, ValueError, "is not a dtype"),
        ({"quantization": "3bit"}, ValueError, "use '8bit', '4bit'"),
        ({"chat_template": "nowhere.jinja"}, ValueError, "is neither a file nor a Jinja template"),
    ],
)
@pytest.mark.parametrize("name", ["nobody/nothing", None])
def test_what_is_wrong_is_said_before_weights_are_read(
    name: str | None, arguments: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        load_model(name, **arguments)


def test_the_embedded_model_is_not_quantized() -> None:
    with pytest.raises(ValueError, match="small as it is"):
        load_model(None, quantization=QuantoConfig(weights="int8"))


@pytest.mark.parametrize("package", ["accelerate", "bitsandbytes"])
def test_quantization_says_what_it_needs(
    folder: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def found(name: str) -> object:
        return None if name == package else object()

    monkeypatch.setattr(load, "find_spec", found)
    with pytest.raises(ImportError, match=f"needs {package}: pip install"):
        load_model(folder, quantization="4bit")


def test_models_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="there is no folder"):
        load_model(str(tmp_path / "nowhere"))
    with pytest.raises(OSError, match=r"there is no folder \./nowhere"):
        load_model("./nowhere")
    with pytest.raises(OSError, match=r"has no config\.json"):
        load_model(str(tmp_path))
    (tmp_path / "adapter_config.json").touch()
    with pytest.raises(OSError, match=r"has an adapter and no model.*PeftModel\.from_pretrained"):
        load_model(str(tmp_path))
    with pytest.raises(OSError, match=r"some/model is not in the cache.*HF_HUB_OFFLINE"):
        load_model("some/model")
