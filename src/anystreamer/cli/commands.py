"""The commands and their options: what typer makes of ``anystreamer demo | chat | serve``."""

# Without `from __future__ import annotations`: typer evaluates the annotations of the functions in
# new_app(), and some names in them are known in there only.

import importlib.metadata
import os
from importlib.util import find_spec
from typing import TYPE_CHECKING, Annotated, Any

from .._load_model import shown_name
from .common import INSTALL, KEY, Backend, Batching, Server, load_model
from .demo import run_demo
from .serve import hosts_of, is_loopback, run_serve
from .terminal import fail

if TYPE_CHECKING:
    from .chat_backends import Partner

__all__ = ["new_app"]


def new_app() -> Any:
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
        run_demo(prompt, backend, max_new_tokens)

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
            fail(f"{backend} is not installed: {INSTALL}")
        if base_url is None:
            if api_key is not None:
                raise typer.BadParameter("is for a server: --base-url", param_hint="--api-key")
            partner = _model_here(model, max_new_tokens, trust_remote_code)
        else:
            key = api_key or os.environ.get(KEY)
            partner = _model_elsewhere(base_url, model, key, max_new_tokens)
        from .chat import Chat

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
        if not (api_key or insecure or is_loopback(host)):
            raise typer.BadParameter(
                f"{host} is a public address: anybody could use the model. Give an --api-key, or "
                "say --insecure"
            )
        run_serve(
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
            allowed_hosts=hosts_of(host, allow_host or []),
        )

    return app


def _model_here(name: str | None, max_new_tokens: int | None, trust_remote_code: bool) -> "Partner":
    from .chat_backends import ModelHere

    model, tokenizer = load_model(name, trust_remote_code)
    return ModelHere(model, tokenizer, shown_name(name), max_new_tokens or 1024)


def _model_elsewhere(
    base_url: str, name: str | None, api_key: str | None, max_new_tokens: int | None
) -> "Partner":
    try:
        from .. import remote  # noqa: F401  # what it needs is asked for first
    except ImportError as exc:
        fail(str(exc))
    from openai import APIError

    from .chat_backends import ModelElsewhere, only_model_of

    try:
        name = name or only_model_of(base_url, api_key)
    except (APIError, ValueError) as exc:
        fail(f"{base_url}: {exc}")
    return ModelElsewhere(base_url, name, api_key, max_new_tokens)
