"""Which class of transformers loads a model, and which loads its tokenizer or processor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["Classes", "classes_for"]

# transformers' lists of models with the class that loads those in it, in the order in which they
# are tried. Releases differ in which they have.
_AUTO_CLASSES = (
    ("MULTIMODAL_LM", "AutoModelForMultimodalLM"),
    ("IMAGE_TEXT_TO_TEXT", "AutoModelForImageTextToText"),
    ("SPEECH_SEQ_2_SEQ", "AutoModelForSpeechSeq2Seq"),
)


@dataclass(frozen=True)
class Classes:
    """Classes with a ``from_pretrained``.

    Args:
        model: loads the model.
        encoder: loads its tokenizer, or its processor.
        is_text_optional: whether the model can be loaded as one of text alone, too.
    """

    model: Any
    encoder: Any
    is_text_optional: bool = False


def classes_for(config: Any, *, text_alone: bool = False) -> Classes:
    """Choose the classes for a model.

    Args:
        config: of the model, from ``AutoConfig``.
        text_alone: load the model without its parts for pictures and sound, if possible.
    """
    import transformers
    from transformers.models.auto import modeling_auto

    model_type = getattr(config, "model_type", None)
    has_text = model_type in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    for listed, name in () if has_text and text_alone else _AUTO_CLASSES:
        names = getattr(modeling_auto, f"MODEL_FOR_{listed}_MAPPING_NAMES", {})
        if model_type not in names or not hasattr(transformers, name):
            continue
        # A list can have models of text alone, too: those take no more by either class.
        if not has_text or _takes_more(names[model_type]):
            return Classes(getattr(transformers, name), transformers.AutoProcessor, has_text)
    if not has_text and model_type in modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES:
        return Classes(transformers.AutoModelForSeq2SeqLM, transformers.AutoTokenizer)
    # Code that comes with a model registers itself, most often as a model of text.
    return Classes(transformers.AutoModelForCausalLM, transformers.AutoTokenizer)


def _takes_more(name: str | tuple[str, ...]) -> bool:
    """Whether a model's class takes more than text."""
    import transformers

    found = getattr(transformers, name if isinstance(name, str) else name[0], None)
    return getattr(found, "input_modalities", "text") not in ("text", ("text",))
