"""lm-eval: `local-completions` and `local-chat-completions`, each with a task of its own."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import lm_eval
from lm_eval.tasks import TaskManager

import checks

OPTIONS = f"model={checks.MODEL},num_concurrent=2,max_retries=1"
TOKENIZER = f"tokenizer_backend=huggingface,tokenizer={checks.MODEL_FOLDER}"

BEFORE_NINE = checks.COUNTED.partition(", nine")[0]


def evaluate(model: str, path: str, kind: str, options: str, **kwargs: object) -> dict[str, float]:
    """The scores of a task with two questions."""
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder, "data.jsonl")
        rows = [{"question": "one", "good": 0}, {"question": BEFORE_NINE, "good": 1}]
        data.write_text("\n".join(map(json.dumps, rows)))
        task = {
            "task": "counting",
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(data)}},
            "test_split": "test",
            "output_type": kind,
            "doc_to_text": "{{question}}",
            "target_delimiter": "",
            "num_fewshot": 0,
        }
        if kind == "multiple_choice":
            task |= {"doc_to_choice": [", two", ", nine"], "doc_to_target": "good"}
        else:
            task |= {
                "doc_to_target": ", three",
                "generation_kwargs": {"until": [", four"], "max_gen_toks": 20},
                "metric_list": [{"metric": "exact_match"}],
            }
        result = lm_eval.simple_evaluate(
            model=model,
            model_args=f"{OPTIONS},base_url={checks.V1}/{path},{options}",
            tasks=[task],
            task_manager=TaskManager(),
            **kwargs,
        )
    scores: dict[str, float] = result["results"]["counting"]
    return scores


def whole() -> None:
    """`generate_until` and loglikelihoods of `local-completions`, `local-chat-completions`"""
    scores = evaluate("local-completions", "completions", "multiple_choice", TOKENIZER)
    assert scores["acc,none"] == 1.0
    evaluate("local-completions", "completions", "generate_until", TOKENIZER)
    options = "tokenizer_backend=None"
    evaluate(
        "local-chat-completions",
        "chat/completions",
        "generate_until",
        options,
        apply_chat_template=True,
    )


NOT_HERE = "an evaluation reads whole answers"
checks.try_all(
    "lm_eval",
    whole=whole,
    stream=NOT_HERE,
    tools=NOT_HERE,
    forced_tool=NOT_HERE,
    structured=NOT_HERE,
    cancel=NOT_HERE,
)
