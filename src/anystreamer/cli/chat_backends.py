"""What answers in a chat: a model in this process, or the model of a server."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Protocol

import anyio

from .. import TextStream, stream_text
from .._load_model import shown_name
from .._model import max_context_length
from .._prompts import tokenizer_of
from .common import load_or_fail
from .terminal import fail

__all__ = ["ChatBackend", "local_model", "remote_model"]

Messages = Sequence[dict[str, str]]
Settings = Mapping[str, Any]  # those of `chat_settings`


class ChatBackend(Protocol):
    """Answers chat messages, in the current event loop."""

    @property
    def shown_as(self) -> str:
        """The name of its model."""

    def answer(
        self, messages: Messages, settings: Settings
    ) -> AbstractAsyncContextManager[TextStream]:
        """A block with the stream of an answer to these messages."""


class LocalModel:
    """A model of transformers. Its context limits the conversation."""

    def __init__(self, model: Any, tokenizer: Any, shown_as: str, max_new_tokens: int) -> None:
        self.shown_as = shown_as
        self._model = model
        self._tokenizer = tokenizer
        self._max_new_tokens = max_new_tokens

    def answer(
        self, messages: Messages, settings: Settings
    ) -> AbstractAsyncContextManager[TextStream]:
        """Raises ValueError if the conversation leaves no room for an answer."""
        limit = self._limit(messages, settings.get("max_tokens", self._max_new_tokens))
        sampling = _sampling(settings)
        return stream_text(self._model, self._tokenizer, messages, max_new_tokens=limit, **sampling)

    def _limit(self, messages: Messages, limit: int) -> int:
        most = max_context_length(self._model)
        if most is None:
            return limit
        # A processor encodes in another way than a tokenizer does, but both make the text.
        text = self._tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=False
        )
        encoded = tokenizer_of(self._tokenizer)(text, add_special_tokens=False)
        length = len(encoded["input_ids"])
        if length >= most:
            raise ValueError(
                f"the conversation has {length} tokens, and the model takes {most}, its answer "
                "included: start a new one with /new"
            )
        return min(limit, most - length)


class RemoteModel:
    """The model of a server that has OpenAI's API.

    A connection lasts for one answer, because each answer has an event loop of its own.
    """

    def __init__(
        self, base_url: str, name: str, api_key: str | None, max_new_tokens: int | None
    ) -> None:
        self.shown_as = name
        self._base_url = base_url
        self._api_key = api_key
        self._max_new_tokens = max_new_tokens  # None: the server's own limit

    @asynccontextmanager
    async def answer(self, messages: Messages, settings: Settings) -> AsyncIterator[TextStream]:
        """Raises what `open_remote_engine` and its streams raise."""
        from ..remote import open_remote_engine

        limit = settings.get("max_tokens", self._max_new_tokens)
        limits: dict[str, Any] = {} if limit is None else {"max_new_tokens": limit}
        async with (
            open_remote_engine(self._base_url, self.shown_as, api_key=self._api_key) as engine,
            engine.stream_text(messages, **limits, **_sampling(settings)) as stream,
        ):
            yield stream


def _sampling(settings: Settings) -> dict[str, Any]:
    """The settings as arguments for ``generate()``, which samples if one of them asks for it."""
    if settings.get("temperature") == 0:
        return {"do_sample": False}
    sampling = {name: settings[name] for name in ("temperature", "top_p") if name in settings}
    return {"do_sample": True, "temperature": 1.0, **sampling} if sampling else {}


def local_model(name: str | None, max_new_tokens: int | None, **options: Any) -> LocalModel:
    """Load a model of transformers, or the embedded one. *options* are those of `load_model`."""
    model, tokenizer = load_or_fail(name, **options)
    return LocalModel(model, tokenizer, shown_name(name), max_new_tokens or 1024)


def remote_model(
    base_url: str, name: str | None, api_key: str | None, max_new_tokens: int | None
) -> RemoteModel:
    """The model of a server with this name; or, if *name* is None, its only model."""
    try:
        from .. import remote  # noqa: F401  # first: it can be missing
    except ImportError as exc:
        fail(str(exc))
    from openai import APIError

    try:
        name = name or only_model_of(base_url, api_key)
    except (APIError, ValueError) as exc:
        fail(f"{base_url}: {exc}")
    return RemoteModel(base_url, name, api_key, max_new_tokens)


def only_model_of(base_url: str, api_key: str | None) -> str:
    """The name of a server's only model.

    Raises:
        ValueError: it has none or several, or *base_url* is not a URL.
        openai.APIError: the request failed.
    """
    names = anyio.run(_model_names, base_url, api_key)
    if len(names) != 1:
        raise ValueError(f"name one of the server's models: {', '.join(names) or 'it lists none'}")
    return names[0]


async def _model_names(base_url: str, api_key: str | None) -> list[str]:
    from ..remote import open_remote_engine

    async with open_remote_engine(base_url, "", api_key=api_key) as engine:
        remote: Any = engine  # its OpenAI client sends this key only
        models = await remote.client.models.list(extra_headers=remote.headers)
        return [each.id for each in models.data]
