"""The command line: ``demo``, ``chat``, ``serve``. What is heavy is imported when one runs."""

# Without `from __future__ import annotations`: typer evaluates the annotations of the functions in
# _app(), and some names in them are known in there only.

import importlib.metadata
import ipaddress
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from enum import StrEnum
from importlib.util import find_spec
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any

import anyio

from . import TextStream, open_engine, stream_text
from ._loading import load, shown_name
from ._terminal import Screen, counted, figures
from ._terminal import fail as _fail
from ._terminal import leave as _leave

if TYPE_CHECKING:
    from ._partners import Partner

__all__ = ["main"]

PROMPT = "An increasing sequence: one,"
KEY = "ANYSTREAMER_API_KEY"
CANCEL_AFTER = 0.2  # seconds
INSTALL = "pip install 'anystreamer[demo]'"
INSTALL_SERVER = "pip install 'anystreamer[demo,server]'"


class Backend(StrEnum):
    """The event loops that a command can run on."""

    ASYNCIO = "asyncio"
    TRIO = "trio"


class Server(StrEnum):
    """The servers that there are, and their loops."""

    UVICORN = "uvicorn"
    HYPERCORN_ASYNCIO = "hypercorn-asyncio"
    HYPERCORN_TRIO = "hypercorn-trio"


class Batching(StrEnum):
    """How many requests the model works on at a time."""

    NONE = "none"
    CONTINUOUS = "continuous"


def main() -> None:
    """Run the command line."""
    # As a KeyboardInterrupt, Ctrl-C could strike a __del__ during an import, which swallows it; and
    # a second one, a loop that is just ending.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not so under nohup
        signal.signal(signal.SIGINT, _leave)
    try:
        app = _app()
    except ImportError as exc:
        _fail(f"the command line needs typer and rich ({exc}): {INSTALL}")
    try:
        app(prog_name="anystreamer")
    except OSError as exc:  # a full disk, an unreadable file
        _fail(str(exc))


def _app() -> Any:
    """Return the typer application."""
    import rich.console  # noqa: F401  # typer can do without it, the commands cannot
    import typer

    app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)

    def show_version(asked: bool) -> None:
        if asked:
            try:
                version = importlib.metadata.version("anystreamer")
            except importlib.metadata.PackageNotFoundError:  # run from its source
                version = "(not installed)"
            typer.echo(f"anystreamer {version}")
            raise typer.Exit

    show = typer.Option("--version", callback=show_version, is_eager=True, help="Show the version.")
    text = typer.Argument(help="The text to continue. Without one: a short tour.")
    loop = typer.Option(help="The event loop: by default asyncio, and both for the tour.")
    limit = typer.Option(min=1, metavar="N", help="How many tokens to generate at most.")

    @app.callback()
    def anystreamer(version: Annotated[bool, show] = False) -> None:
        """Cancellation-safe token streams from transformers' generate(), on asyncio and trio."""

    @app.command()
    def demo(
        prompt: Annotated[str | None, text] = None,
        backend: Annotated[Backend | None, loop] = None,
        max_new_tokens: Annotated[int, limit] = 20,
    ) -> None:
        """Stream from the embedded model, which has learnt to count."""
        _demo(prompt, backend, max_new_tokens)

    which = typer.Argument(help="A folder or a hub id. Without one: the embedded model.")
    host_of = typer.Option(help="The address to listen on.")
    port_of = typer.Option(min=0, max=65535, help="The port; 0 takes a free one.")
    server = typer.Option(help="The server, and the event loop that it runs on.")
    batches = typer.Option(help="One request at a time, or many at once.")
    line = typer.Option(min=0, metavar="N", help="How many requests may wait; the next get 503.")
    key = typer.Option(
        envvar=KEY,
        help="What clients have to send as a key. Other users see a command's options: use the "
        "environment.",
    )
    public = typer.Option("--insecure", help="Listen on a public address without a key.")
    seconds = typer.Option(min=0.0, help="Seconds that open streams have to end, after Ctrl-C.")
    size = typer.Option(min=1, metavar="N", help="How large the body of a request may be.")
    usual = typer.Option(min=1, metavar="N", help="Tokens of an answer, where nobody says.")
    most = typer.Option(min=1, metavar="N", help="How many tokens a request may ask for.")
    late = typer.Option(min=0.0, help="Seconds for a request, queue and all; 0 sets no limit.")
    origin = typer.Option(
        "--allow-origin", help="A site whose pages may use it in browsers, such as https://a.org."
    )
    names = typer.Option(
        "--allow-host", help="One more name to be asked for by. On loopback there are its own only."
    )
    trust = typer.Option("--trust-remote-code", help="Run Python code that the model brings.")

    say = typer.Option(help="What the model is told before the conversation.")
    longest = typer.Option(
        min=1, metavar="N", help="How many tokens an answer has at most: 1024, or as a server says."
    )
    elsewhere = typer.Option(
        metavar="URL", help="A server that has the model, and speaks as OpenAI's API does."
    )
    its_key = typer.Option(help=f"The server's key. Better in the environment, as {KEY}.")

    @app.command()
    def chat(
        model: Annotated[str | None, which] = None,
        backend: Annotated[Backend, typer.Option(help="The event loop.")] = Backend.ASYNCIO,
        max_new_tokens: Annotated[int | None, longest] = None,
        system: Annotated[str | None, say] = None,
        base_url: Annotated[str | None, elsewhere] = None,
        api_key: Annotated[str | None, its_key] = None,
        trust_remote_code: Annotated[bool, trust] = False,
    ) -> None:
        """Chat with a model. Ctrl-C stops an answer, Ctrl-D leaves."""
        if find_spec(backend) is None:
            _fail(f"{backend} is not installed: {INSTALL}")
        if base_url is None:
            if api_key is not None:
                raise typer.BadParameter("is for a server: --base-url", param_hint="--api-key")
            partner = _model_here(model, max_new_tokens, trust_remote_code)
        else:
            key = api_key or os.environ.get(KEY)
            partner = _model_elsewhere(base_url, model, key, max_new_tokens)
        from ._chat import Chat

        Chat(partner, backend=backend, system=system).run()

    @app.command()
    def serve(
        model: Annotated[str | None, which] = None,
        host: Annotated[str, host_of] = "127.0.0.1",
        port: Annotated[int, port_of] = 8000,
        backend: Annotated[Server, server] = Server.UVICORN,
        batching: Annotated[Batching, batches] = Batching.NONE,
        max_waiting: Annotated[int, line] = 100,
        api_key: Annotated[str | None, key] = None,
        insecure: Annotated[bool, public] = False,
        grace: Annotated[float, seconds] = 10.0,
        max_body_bytes: Annotated[int, size] = 1024 * 1024,
        default_max_tokens: Annotated[int, usual] = 1024,
        max_tokens_limit: Annotated[int | None, most] = None,
        timeout: Annotated[float, late] = 600.0,
        allow_origin: Annotated[list[str] | None, origin] = None,
        allow_host: Annotated[list[str] | None, names] = None,
        trust_remote_code: Annotated[bool, trust] = False,
    ) -> None:
        """Serve a model as OpenAI's API does."""
        if not (api_key or insecure or _is_loopback(host)):
            raise typer.BadParameter(
                f"{host} is a public address: anybody could use the model. Give an --api-key, or "
                "say --insecure"
            )
        _serve(
            model,
            host,
            port,
            backend,
            batching,
            max_waiting,
            grace,
            trust_remote_code,
            api_key=api_key or None,
            max_body_bytes=max_body_bytes,
            default_max_tokens=default_max_tokens,
            max_tokens_limit=max_tokens_limit,
            timeout=timeout or None,
            allow_origins=allow_origin or [],
            allowed_hosts=_hosts_of(host, allow_host or []),
        )

    return app


def _demo(prompt: str | None, backend: Backend | None, max_new_tokens: int) -> None:
    import typer

    if prompt == "":
        raise typer.BadParameter("the prompt is empty: there is nothing to continue")
    if prompt and any("\ud800" <= character <= "\udfff" for character in prompt):
        raise typer.BadParameter(
            "the prompt is no text in this locale: use a UTF-8 one, or set PYTHONUTF8=1"
        )
    if backend and find_spec(backend) is None:
        _fail(f"{backend} is not installed: {INSTALL}")
    model, tokenizer = _load()
    room = model.config.max_position_embeddings
    tokens = len(tokenizer(prompt or PROMPT, verbose=False)["input_ids"])
    if tokens + 1 > room:
        raise typer.BadParameter(
            f"the prompt has {tokens} tokens; the model takes {room}, new ones included"
        )
    if tokens + max_new_tokens > room:
        raise typer.BadParameter(
            f"--max-new-tokens {max_new_tokens} is more than the {room - tokens} that fit: "
            f"the model takes {room}, and the prompt has {tokens}"
        )

    screen = Screen()
    if prompt:
        backend = backend or Backend.ASYNCIO
        anyio.run(_stream, screen, model, tokenizer, prompt, max_new_tokens, backend=backend)
    else:
        backends = [backend] if backend else list(Backend)
        for each in backends:
            screen.write(each, "bold", end="\n")
            if find_spec(each) is None:
                screen.write(f"not installed: {INSTALL}", "dim", end="\n")
            else:
                anyio.run(_stream, screen, model, tokenizer, PROMPT, max_new_tokens, backend=each)
            screen.write("\n")
        title = f"{backends[0]}, cancelled by move_on_after({CANCEL_AFTER})"
        screen.write(title, "bold", end="\n")
        anyio.run(_cancel, screen, model, tokenizer, room - tokens, backend=backends[0])
    screen.explain_replacements()


def _load() -> tuple[Any, Any]:
    """Load the embedded model. It takes seconds, nearly all of them to import torch."""
    from .demo import load_demo

    notice = "Loading the model ..." if sys.stderr and sys.stderr.isatty() else ""
    if notice:
        print(notice, end="", file=sys.stderr, flush=True)
    model: Any
    try:
        try:
            model, tokenizer = load_demo()
            # A process's first generation is slower than all others.
            model.generate(**tokenizer(PROMPT, return_tensors="pt"), max_new_tokens=1)
            return model, tokenizer
        finally:
            if notice:
                print("\r" + " " * len(notice), end="\r", file=sys.stderr, flush=True)
    except ImportError as exc:
        _fail(f"the demo needs transformers and torch ({exc.__cause__ or exc}): {INSTALL}")


@asynccontextmanager
async def _open(model: Any, tokenizer: Any, prompt: str, limit: int) -> AsyncIterator[TextStream]:
    """Open a stream that Ctrl-C stops. The program then ends after the model's thread."""
    interrupted = False
    handler = signal.getsignal(signal.SIGINT)
    try:
        async with stream_text(model, tokenizer, prompt, max_new_tokens=limit) as stream:

            def stop(*_: object) -> None:
                nonlocal interrupted
                interrupted = True
                signal.signal(signal.SIGINT, _leave)  # a second one does not wait
                stream.stop()

            if handler is _leave:
                signal.signal(signal.SIGINT, stop)
            yield stream
    finally:
        signal.signal(signal.SIGINT, handler)
        if interrupted:
            _leave()


async def _stream(screen: Screen, model: Any, tokenizer: Any, prompt: str, limit: int) -> None:
    screen.write(prompt, "dim")
    async with _open(model, tokenizer, prompt, limit) as stream:
        async for text in stream:
            screen.write(text)
    screen.write("\n")
    screen.write(figures(stream), "dim", end="\n")


async def _cancel(screen: Screen, model: Any, tokenizer: Any, limit: int) -> None:
    """Cancel a long generation, and measure what becomes of the model."""
    steps = 0

    def count_step(*_: object) -> None:
        nonlocal steps
        steps += 1

    model.register_forward_hook(count_step)
    screen.write(PROMPT, "dim")
    deadline = perf_counter() + CANCEL_AFTER
    with anyio.move_on_after(CANCEL_AFTER) as scope:
        async with _open(model, tokenizer, PROMPT, limit) as stream:
            try:
                async for text in stream:
                    screen.write(text)
            finally:  # this is where the cancellation arrives
                cancelled, steps_then = perf_counter(), steps
    left = perf_counter()
    screen.write("\n")
    screen.write(figures(stream), "dim", end="\n")
    if scope.cancelled_caught:
        late, took = (cancelled - deadline) * 1e3, (left - cancelled) * 1e3
        screen.write(
            f"cancelled {late:.1f} ms after the deadline: the model took "
            f"{counted(steps - steps_then, 'step')} more, and its thread left in {took:.1f} ms",
            "dim",
            end="\n",
        )


def _model_here(name: str | None, max_new_tokens: int | None, trust_remote_code: bool) -> "Partner":
    from ._partners import ModelHere

    model, tokenizer = _load_from(name, trust_remote_code)
    return ModelHere(model, tokenizer, shown_name(name), max_new_tokens or 1024)


def _model_elsewhere(
    base_url: str, name: str | None, api_key: str | None, max_new_tokens: int | None
) -> "Partner":
    try:
        from . import remote  # noqa: F401  # what it needs is asked for first
    except ImportError as exc:
        _fail(str(exc))
    from openai import APIError

    from ._partners import ModelElsewhere, only_model_of

    try:
        name = name or only_model_of(base_url, api_key)
    except (APIError, ValueError) as exc:
        _fail(f"{base_url}: {exc}")
    return ModelElsewhere(base_url, name, api_key, max_new_tokens)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _hosts_of(host: str, more: list[str]) -> list[str] | None:
    """The names that a server on *host* may be asked for by; None if nobody has to look."""
    if not (more or _is_loopback(host)):
        return None
    own = f"[{host}]" if ":" in host else host
    return ["localhost", "127.0.0.1", "[::1]", own, *more]


def _serve(
    name: str | None,
    host: str,
    port: int,
    server: Server,
    batching: Batching,
    max_waiting: int,
    grace: float,
    trusts_code: bool,
    **limits: Any,
) -> None:
    try:
        from .server import create_app
        from .server._serve import listening, run, url_of
    except ImportError as exc:
        _fail(f"{exc.__cause__ or exc}: {INSTALL_SERVER}")
    package, _, loop = server.partition("-")
    for each in (package, loop):
        if each not in ("", "asyncio") and find_spec(each) is None:
            _fail(f"{each} is not installed: {INSTALL_SERVER}")
    # First: loading takes long, to be told then that the port is taken.
    with listening(host, port) as listener:
        model, tokenizer = _load_from(name, trusts_code)
        shown = shown_name(name)

        async def main() -> None:
            await run(
                open_engine(
                    model,
                    tokenizer,
                    batching=batching.value,
                    max_waiting=max_waiting,
                    sampling=batching is Batching.CONTINUOUS,
                ),
                lambda engine: create_app(engine, model_name=shown, **limits),
                listener,
                server.value,
                grace=grace,
                ready=lambda: print(f"Serving {shown} on {url_of(listener)}", flush=True),
                at_once=_leave,
            )

        anyio.run(main, backend=loop or "asyncio")


def _load_from(name: str | None, trusts_code: bool) -> tuple[Any, Any]:
    """Load a model of transformers, or the embedded one. Only if trusted it runs own code."""
    if name is None:
        return _load()
    try:
        return load(name, trusts_code=trusts_code)
    except ImportError as exc:
        _fail(f"models need transformers and torch ({exc}): {INSTALL}")
    except ValueError as exc:
        needs_trust = "trust_remote_code" in str(exc) and not trusts_code
        _fail(f"{exc}{' (here: --trust-remote-code)' if needs_trust else ''}")
