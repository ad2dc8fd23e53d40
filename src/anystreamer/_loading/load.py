"""Loads a model and its tokenizer or processor, from a folder or from the hub, onto a device."""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from .._installing import to_install
from .._prompts import note_missing_processor
from .._reporting import SafeLogger

if TYPE_CHECKING:
    import torch

    from .model_class import Classes

__all__ = ["EMBEDDED", "load_model", "placement", "shown_name"]

logger = SafeLogger()

EMBEDDED = "anystreamer-demo"


def load_model(
    name: str | None,
    *,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    quantization: Any = None,
    chat_template: str | None = None,
    trust_remote_code: bool = False,
) -> tuple[Any, Any]:
    """Load a model and its tokenizer, or its processor, with transformers' ``from_pretrained``.

        model, tokenizer = load_model("Qwen/Qwen3-0.6B", dtype="bfloat16")
        async with stream_text(model, tokenizer, messages) as stream:
            ...

    It only chooses arguments of ``from_pretrained``. For others, such as an attention
    implementation, call that yourself: `stream_text` takes any model of transformers.

    Args:
        name: a folder or a hub id; None is the embedded model.
        device: ``"auto"``, or a device such as ``"cpu"``, ``"cuda:1"`` or ``"mps"``. ``"auto"`` is
            accelerate's ``device_map="auto"`` where accelerate is installed: several devices can
            share a model that is too large for one. Else it is the machine's accelerator, or the
            CPU if there is none.
        dtype: ``"auto"`` is the dtype that the weights are stored in. Others: ``"bfloat16"``,
            ``"float16"``, ``"float32"``, or one of torch's.
        quantization: ``"8bit"`` or ``"4bit"``, with bitsandbytes; or a configuration of
            transformers, such as ``TorchAoConfig``. Weights that are stored quantized need none.
        chat_template: a Jinja template, or a file with one, in place of the model's own.
        trust_remote_code: run Python code that comes with the model.

    Returns:
        The model, in evaluation mode, and its tokenizer. For a model with image or audio input: its
        processor, which `stream_text` takes in the tokenizer's place.

    Raises:
        ImportError: transformers or torch, or what the quantization needs, is not installed.
        ValueError: it is not a text model; it comes with code and *trust_remote_code* is false; or
            there is no such device, dtype, quantization or template.
        OSError: there is no model of this name, or it is not in the cache while the hub cannot be
            reached.
    """
    if name is not None:
        name = _checked_name(name)
    try:
        import transformers  # noqa: F401
    except ImportError as exc:
        raise ImportError(
            f"load_model needs transformers and torch: {to_install('transformers')}"
        ) from exc
    # Wrong arguments are reported before gigabytes are read.
    where, precision = _device_map(device), _dtype(dtype)
    quantized = _quantization_config(quantization)
    template = None if chat_template is None else _template(chat_template)
    if name is not None:
        model, tokenizer = _pretrained(name, where, precision, quantized, trust_remote_code)
    elif quantized is not None:
        raise ValueError("quantization= needs a model: the embedded one is small as it is")
    else:
        model, tokenizer = _embedded(where, precision)
    if template is not None:
        tokenizer.chat_template = template
        _check_syntax(tokenizer)
    return model.eval(), tokenizer


def _embedded(where: Any, dtype: Any) -> tuple[Any, Any]:
    from ..demo import load_demo

    model: Any
    model, tokenizer = load_demo()
    model.to(_one_device() if where == "auto" else where)
    return model if dtype == "auto" else model.to(dtype=dtype), tokenizer


def _pretrained(
    name: str, where: Any, dtype: Any, quantization: Any, trusts_code: bool
) -> tuple[Any, Any]:
    try:
        classes, tokenizer = _classes_and_tokenizer(name, trusts_code)
    except OSError as exc:
        if os.path.isdir(name) or "cache" not in str(exc):
            raise
        raise OSError(
            f"{name} is not in the cache, and the hub cannot be reached (HF_HUB_OFFLINE is set, or "
            "there is no network): download it first, or pass the folder that it is in"
        ) from exc
    arguments: dict[str, Any] = {"dtype": dtype, "trust_remote_code": trusts_code}
    if quantization is not None:
        arguments["quantization_config"] = quantization
    if find_spec("accelerate") is not None:
        return classes.model.from_pretrained(name, device_map=where, **arguments), tokenizer
    model: Any = classes.model.from_pretrained(name, **arguments)
    return model.to(_one_device() if where == "auto" else where), tokenizer


def _classes_and_tokenizer(name: str, trusts_code: bool) -> tuple[Classes, Any]:
    """The classes that load a model, and its tokenizer or its processor."""
    from transformers import AutoConfig

    from .model_class import classes_for

    config = AutoConfig.from_pretrained(name, trust_remote_code=trusts_code)
    classes = classes_for(config)
    try:
        return classes, classes.encoder.from_pretrained(name, trust_remote_code=trusts_code)
    except (ImportError, OSError, ValueError) as exc:
        if not classes.is_text_optional:
            raise
        # Its files, or a package such as torchvision, are not there.
        logger.warning("%s accepts only text here: its processor cannot be loaded (%s)", name, exc)
        missing = exc
    classes = classes_for(config, text_alone=True)
    tokenizer = classes.encoder.from_pretrained(name, trust_remote_code=trusts_code)
    note_missing_processor(tokenizer, missing)
    return classes, tokenizer


def shown_name(name: str | None) -> str:
    """Return the name to show for the model: of its folder, or its id on the hub."""
    if name is None:
        return EMBEDDED
    path = os.path.expanduser(name)
    return os.path.basename(os.path.abspath(path)) if os.path.isdir(path) else name


def placement(model: Any) -> str:
    """Where a model's weights are, and their dtype, such as ``cuda:0, bfloat16``."""
    devices = dict.fromkeys(str(each.device) for each in model.parameters())
    return f"{' and '.join(devices)}, {str(model.dtype).removeprefix('torch.')}"


def _checked_name(name: str) -> str:
    """The path of a model's folder, or its id on the hub, which has one slash at most.

    Raises:
        OSError: it is a path, but not that of a model's folder.
    """
    path = os.path.expanduser(name)
    if os.path.isdir(path):
        if os.path.isfile(os.path.join(path, "config.json")):
            return path
        if os.path.isfile(os.path.join(path, "adapter_config.json")):
            raise OSError(
                f"{name} has an adapter and no model: load its model, and then put the adapter on "
                f"it with peft.PeftModel.from_pretrained(model, {name!r})"
            )
        raise OSError(f"{name} has no config.json: it is not the folder of a model")
    if os.path.isabs(path) or name.startswith(".") or name.count("/") > 1:
        raise OSError(f"there is no folder {name}")
    return name


def _dtype(dtype: str | torch.dtype) -> Any:
    """A dtype of torch's, or ``"auto"``."""
    import torch

    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if dtype == "auto":
        return dtype
    if not (isinstance(found, torch.dtype) and found.is_floating_point):
        raise ValueError(
            f"dtype={dtype!r} is not a dtype for weights: use 'auto', 'bfloat16', 'float16' or "
            "'float32'. For fewer bits use quantization="
        )
    return found


def _device_map(device: str | torch.device) -> Any:
    """One device that this machine has, or ``"auto"``."""
    import torch

    if device == "auto":
        return device
    has = _one_device()
    try:
        found = torch.device(device)
        if found.type != "cpu":
            torch.empty(0, device=found)
    except Exception as exc:  # which one depends on the build of torch
        raise ValueError(
            f"device={str(device)!r} is not there ({str(exc).splitlines()[0]}): use 'auto', 'cpu'"
            + ("" if has.type == "cpu" else f" or {has.type!r}")
        ) from exc
    if found.type == "meta":
        raise ValueError("device='meta' has no weights to generate with")
    return found


def _one_device() -> torch.device:
    """The machine's accelerator, or the CPU."""
    import torch

    accelerator: Any = getattr(torch, "accelerator", None)  # from torch 2.6 on
    if accelerator is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return accelerator.current_accelerator() if accelerator.is_available() else torch.device("cpu")


def _quantization_config(quantization: Any) -> Any:
    """A configuration of transformers, or None."""
    if not isinstance(quantization, str):
        return quantization
    if quantization not in ("4bit", "8bit"):
        raise ValueError(
            f"quantization={quantization!r} is not known: use '8bit', '4bit', or a configuration "
            "of transformers. A model whose weights are stored quantized needs none"
        )
    for package in ("bitsandbytes", "accelerate"):
        if find_spec(package) is None:
            raise ImportError(
                f"quantization={quantization!r} needs {package}: "
                "pip install bitsandbytes accelerate"
            )
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(**{f"load_in_{quantization}": True})


def _template(chat_template: str) -> str:
    """A template, from a file if it names one."""
    if "{" in chat_template:
        return chat_template
    try:
        with open(os.path.expanduser(chat_template), encoding="utf-8") as file:
            return file.read()
    except OSError as exc:
        raise ValueError(
            f"chat_template={chat_template!r} is neither a file nor a Jinja template "
            f"({exc.strerror})"
        ) from exc
    except UnicodeError as exc:
        raise ValueError(f"chat_template={chat_template!r} is not a text in UTF-8") from exc


def _check_syntax(tokenizer: Any) -> None:
    """Raise ValueError if its chat template cannot be read: else each chat would fail later.

    transformers compiles it, with its own extensions of Jinja.
    """
    try:
        tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
    except Exception as exc:
        # Other errors are not about the template: it can want messages that are not this one.
        if type(exc).__name__ == "TemplateSyntaxError":
            line = getattr(exc, "lineno", None)
            raise ValueError(f"chat_template: line {line} is not Jinja: {exc}") from exc
