"""Whatever the schemas of requests allow is answered without a 500, and nothing of it is kept."""

from __future__ import annotations

import gc
import json
import tracemalloc
from pathlib import Path
from typing import Any

import httpx
import pytest
from anyio.from_thread import start_blocking_portal
from hypothesis import example, given, settings
from hypothesis import strategies as st

import anystreamer
from anystreamer import open_engine
from anystreamer.server import create_app
from anystreamer.server._request_models import ChatRequest, CompletionRequest
from anystreamer.server._responses_api import ResponsesRequest
from anystreamer.testing import ScriptedModel

from ..helpers.serving import data_of, error_of, serving
from .test_responses import RESPONSES, checked
from .test_server import CHAT, TEXT

FEW = 4  # items of a list, or answers to a prompt: their number has tests of its own
KEPT = 128 * 1024  # bytes of the package after the requests; if it kept each, it would be 500 KiB

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)


def values(schema: dict[str, Any], models: dict[str, Any]) -> st.SearchStrategy[Any]:
    """The values that a schema of pydantic allows."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return st.deferred(lambda: values(models[name], models))
    if "const" in schema:
        return st.just(schema["const"])
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    if kinds := schema.get("anyOf") or schema.get("oneOf"):
        return st.one_of([values(each, models) for each in kinds])
    match schema.get("type"):
        case "object":
            return fields(schema, models)
        case "array":
            items, least = values(schema.get("items", {}), models), schema.get("minItems", 0)
            most = max(least, min(schema.get("maxItems", FEW), FEW))
            return st.lists(items, min_size=least, max_size=most)
        case "string" if "pattern" in schema:
            return st.from_regex(schema["pattern"], fullmatch=True)
        case "string":
            return st.text(min_size=schema.get("minLength", 0), max_size=40)
        case "integer":
            highest = schema.get("exclusiveMaximum", schema.get("maximum", 2**31) + 1) - 1
            return st.integers(schema.get("minimum", -(2**31)), highest)
        case "number":
            return st.floats(schema.get("minimum"), schema.get("maximum"), allow_nan=False)
        case "boolean":
            return st.booleans()
        case "null":
            return st.none()
    return JSON


PLAIN: dict[str, dict[str, Any]] = {
    CHAT: {"messages": [{"role": "user", "content": "hello"}]},
    TEXT: {"prompt": "hello"},
    RESPONSES: {"input": "hello"},
}


def fields(schema: dict[str, Any], models: dict[str, Any]) -> st.SearchStrategy[Any]:
    if not schema.get("properties"):
        return st.dictionaries(st.text(max_size=8), JSON, max_size=3)
    each = {name: values(field, models) for name, field in schema["properties"].items()}
    if "n" in each:
        each["n"] = st.none() | st.integers(1, FEW)
    required = {name: each.pop(name) for name in schema.get("required", ())}
    return st.fixed_dictionaries(required, optional=each)


def bodies(kind: type[Any]) -> st.SearchStrategy[dict[str, Any]]:
    schema = kind.model_json_schema()
    # Most values that change the answer's form are alone in a body, or one would hide the other.
    return values(schema, schema.get("$defs", {})).flatmap(
        lambda body: st.sets(st.sampled_from(sorted(body)), max_size=3).map(
            lambda names: {
                name: value
                for name, value in body.items()
                if name in names or name in schema.get("required", ())
            }
        )
    )


def check(response: httpx.Response) -> None:
    assert response.status_code in (200, 400, 404), response.text
    if response.status_code != 200:
        error_of(response)
    elif not response.headers["content-type"].startswith("text/event-stream"):
        answer = response.json()
        assert answer.get("choices") or answer["output"]
    elif response.text.startswith("event: "):
        assert checked(response.text)[-1]["type"] in ("response.completed", "response.incomplete")
    else:
        *chunks, done = data_of(response.text)
        assert done == "[DONE]"
        assert all("error" not in chunk for chunk in chunks)


def kept() -> int:
    """Bytes that code of the package has allocated and not freed."""
    gc.collect()
    own = tracemalloc.Filter(True, str(Path(anystreamer.__file__).parent / "*"))
    snapshot = tracemalloc.take_snapshot().filter_traces([own])
    return sum(trace.size for trace in snapshot.traces)


@pytest.mark.hypothesis
@pytest.mark.slow
@pytest.mark.parametrize(
    ("backend", "path", "kind"),
    [
        ("asyncio", CHAT, ChatRequest),
        ("asyncio", TEXT, CompletionRequest),
        ("asyncio", RESPONSES, ResponsesRequest),
        ("trio", CHAT, ChatRequest),
        # The schemas differ, and the loop reads none of them.
        pytest.param("trio", TEXT, CompletionRequest, marks=pytest.mark.variant),
        pytest.param("trio", RESPONSES, ResponsesRequest, marks=pytest.mark.variant),
    ],
)
def test_what_a_schema_allows_is_answered_and_nothing_of_it_is_kept(
    backend: str, path: str, kind: type[Any]
) -> None:
    model = ScriptedModel(["a", "b", "\n\n", "c"])
    statuses: set[int] = set()

    @given(bodies(kind))
    @settings(deadline=None)
    @example(PLAIN[path])
    @example({**PLAIN[path], "temperature": "warm"})
    def ask(body: dict[str, Any]) -> None:
        content = json.dumps(body).encode("utf-8", "surrogatepass")
        response = client.post(path, content=content, headers={"content-type": "application/json"})
        statuses.add(response.status_code)
        check(response)

    with start_blocking_portal(backend) as portal:
        with portal.wrap_async_context_manager(open_engine(model, model.tokenizer)) as engine:
            app = create_app(engine, default_max_tokens=8)
            with portal.wrap_async_context_manager(serving(app)) as url:
                with httpx.Client(base_url=url, trust_env=False, timeout=60) as client:
                    ask()
                    tracemalloc.start()
                    try:
                        model.calls.clear()
                        before = kept()
                        ask()
                        model.calls.clear()
                        growth = kept() - before
                    finally:
                        tracemalloc.stop()
    assert {200, 400} <= statuses  # the examples alone give both
    assert growth < KEPT
