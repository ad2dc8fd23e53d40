"""What answers in a chat: a model in this process, or the model of a server."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

import anyio

from .. import Engine, ReuseCache, open_engine
from .._generation import Seed, UpTo
from .._loading import shown_name
from .._model import max_context_length, uses_torch
from .._prompts import check_media
from .chat_pictures import Part, as_data
from .common import load_or_fail
from .terminal import fail

__all__ = ["ChatBackend", "local_model", "remote_model"]

Settings = Mapping[str, Any]  # values of some of `chat_settings.SETTINGS`

# A chat is one conversation, so its KV cache can have half of the memory. The other half is for the
# next conversation, which begins while this one is still kept.
KEPT = ReuseCache(max_conversations=1, max_share=0.5)


class ChatBackend(Protocol):
    """What answers in a chat: opens an engine, and makes the arguments of its requests."""

    @property
    def shown_as(self) -> str:
        """The name of its model."""

    def open(self) -> AbstractAsyncContextManager[Engine]:
        """The block of the engine, for the whole session."""

    def arguments(self, settings: Settings) -> dict[str, Any]:
        """Arguments of `Engine.stream_text`. Raises ValueError for a setting that has no effect."""

    def check_pictures(self) -> None:
        """Raises ValueError if it is known that the model takes no pictures."""

    def picture_part(self, picture: Any) -> Part:
        """A picture of Pillow's as a part of a message."""


class LocalModel:
    """A model of transformers. Its context limits the conversation.

    The engine runs one request at a time, because one user never has two. Continuous batching would
    reserve memory for many, and support fewer settings. The engine keeps the KV cache, so each
    turn computes only what is new.
    """

    def __init__(self, model: Any, tokenizer: Any, shown_as: str, max_new_tokens: int) -> None:
        self.shown_as = shown_as
        self._model = model
        self._tokenizer = tokenizer
        self._max_new_tokens = max_new_tokens

    def open(self) -> AbstractAsyncContextManager[Engine]:
        return open_engine(self._model, self._tokenizer, batching="none", reuse_cache=KEPT)

    def arguments(self, settings: Settings) -> dict[str, Any]:
        limit = settings.get("max_tokens", self._max_new_tokens)
        fitting = UpTo(limit, max_context_length(self._model))
        arguments: dict[str, Any] = {"max_new_tokens": fitting}
        if "seed" in settings:
            if not uses_torch(self._model):
                raise ValueError("this model takes no seed: /set seed removes it")
            arguments["logits_processor"] = [Seed(settings["seed"])]
        return arguments | _sampling(settings)

    def check_pictures(self) -> None:
        check_media(self._model, self._tokenizer, "image", "the file")

    def picture_part(self, picture: Any) -> Part:
        return {"type": "image", "image": picture}


class RemoteModel:
    """The model of a server that has OpenAI's API."""

    def __init__(
        self, base_url: str, name: str, api_key: str | None, max_new_tokens: int | None
    ) -> None:
        self.shown_as = name
        self._base_url = base_url
        self._api_key = api_key
        self._max_new_tokens = max_new_tokens  # None: the server's own limit

    def open(self) -> AbstractAsyncContextManager[Engine]:
        from ..remote import open_remote_engine

        return open_remote_engine(self._base_url, self.shown_as, api_key=self._api_key)

    def arguments(self, settings: Settings) -> dict[str, Any]:
        arguments: dict[str, Any] = {}
        limit = settings.get("max_tokens", self._max_new_tokens)
        if limit is not None:
            arguments["max_new_tokens"] = limit
        if "seed" in settings:
            arguments["extra_body"] = {"seed": settings["seed"]}
        return arguments | _sampling(settings)

    def check_pictures(self) -> None:
        """Not known before a request: most servers do not list what their models take."""

    def picture_part(self, picture: Any) -> Part:
        return as_data(picture)


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
        listed = f": {', '.join(names)}" if names else ", which does not list them"
        raise ValueError(f"pass the name of one of the server's models{listed}")
    return names[0]


async def _model_names(base_url: str, api_key: str | None) -> list[str]:
    from ..remote import open_remote_engine

    async with open_remote_engine(base_url, "", api_key=api_key) as engine:
        remote: Any = engine  # other engines have no such method
        names: list[str] = await remote.model_names()
        return names
