"""The commands and their options: ``anystreamer demo | chat | serve``, built with typer."""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Callable
from typing import Annotated

import rich.console  # noqa: F401  # typer runs without it, the commands do not
import typer

from .._logs import LogLevel, RequestLogFormat, write_logs
from .._prompts import UntrustedMessages
from .._site_names import validate_allowed_hosts, validate_origins
from .common import (
    KEY,
    Backend,
    Batching,
    Server,
    finite,
    given,
    refuse_empty,
    require_installed,
)
from .connection_limits import ConnectionLimits
from .demo import run_demo
from .listening import Certificate
from .serve import allowed_hosts, is_loopback, run_serve
from .terminal import fail

__all__ = ["app"]

app: typer.Typer = typer.Typer(
    add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False
)

Model = Annotated[
    str | None,
    typer.Argument(
        help="A folder with a model, or its id on the Hugging Face hub. By default the embedded "
        "model, which is small and can count."
    ),
]
TrustRemoteCode = Annotated[
    bool,
    typer.Option(
        "--trust-remote-code",
        help="Run Python code that comes with the model.",
        rich_help_panel="Model",
    ),
]
Device = Annotated[
    str | None,
    typer.Option(
        help="The device for the model, such as cuda:1 or cpu. By default the accelerator, if the "
        "machine has one.",
        metavar="NAME",
        rich_help_panel="Model",
    ),
]
Dtype = Annotated[
    str | None,
    typer.Option(
        help="The dtype of the weights, such as bfloat16. By default as they are stored.",
        metavar="NAME",
        rich_help_panel="Model",
    ),
]
Quantization = Annotated[
    str | None,
    typer.Option(
        help="8bit or 4bit: the weights need less memory. It needs bitsandbytes.",
        metavar="BITS",
        rich_help_panel="Model",
    ),
]
ChatTemplate = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        help="A Jinja chat template instead of the model's own.",
        rich_help_panel="Model",
    ),
]
EventLoop = Annotated[Backend, typer.Option(help="The event loop.")]


def _show_version(is_asked: bool) -> None:
    if is_asked:
        try:
            version = importlib.metadata.version("anystreamer")
        except importlib.metadata.PackageNotFoundError:  # run from its source
            version = "(not installed)"
        typer.echo(f"anystreamer {version}")
        raise typer.Exit


@app.callback()
def anystreamer(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    """Cancellation-safe token streams from transformers' generate(), on asyncio and trio.

    All commands work at once, with the embedded model, which comes with the package and is small.
    Try demo first.
    """


@app.command()
def demo(
    prompt: Annotated[
        str | None, typer.Argument(help="The text to continue. Without it, a tour is shown.")
    ] = None,
    backend: Annotated[
        Backend | None,
        typer.Option(help="The event loop. By default asyncio. The tour shows both."),
    ] = None,
    max_new_tokens: Annotated[
        int, typer.Option(min=1, metavar="N", help="Token limit of the text.")
    ] = 20,
) -> None:
    """Stream text from the embedded model, which can count."""
    run_demo(prompt, backend, max_new_tokens)


@app.command()
def chat(
    context: typer.Context,
    model: Model = None,
    backend: EventLoop = Backend.ASYNCIO,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Token limit of an answer. By default 1024, or the server's own with --base-url.",
        ),
    ] = None,
    system: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="A system message, sent before the conversation."),
    ] = None,
    image: Annotated[
        list[str] | None,
        typer.Option(
            "--image",
            metavar="FILE",
            help="A picture for the first question, if the model takes pictures. The option can be "
            "repeated.",
        ),
    ] = None,
    base_url: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Use the model of this OpenAI-compatible server."),
    ] = None,
    api_key: Annotated[
        str | None,
        typer.Option(
            help="The API key of that server. Other users of this machine can see the options of a "
            f"command: it is safer to set {KEY}."
        ),
    ] = None,
    device: Device = None,
    dtype: Dtype = None,
    quantization: Quantization = None,
    chat_template: ChatTemplate = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Chat with a model in the terminal.

    The model runs in this process. With --base-url it is the model of a server. Each turn computes
    only what is new in the conversation. The model's own settings decide how tokens are chosen,
    until you change them with /set. /image adds a picture to a question.

    Ctrl-C stops an answer, Ctrl-D ends the chat, /help lists the commands. If you pipe text in,
    each line is a question.
    """
    refuse_empty(context, "system")
    require_installed(backend)
    if base_url is None and api_key is not None:
        raise typer.BadParameter("needs --base-url", param_hint="--api-key")
    from .chat import Chat
    from .chat_backends import ChatBackend, local_model, remote_model
    from .chat_pictures import read_picture

    try:  # before the model is loaded, which takes long
        pictures = [read_picture(path) for path in image or ()]
    except ValueError as exc:
        raise typer.BadParameter(str(exc), param_hint="--image") from None
    except ImportError as exc:
        fail(str(exc))
    chat_backend: ChatBackend
    if base_url is None:
        chat_backend = local_model(
            model,
            max_new_tokens,
            **given(
                device=device,
                dtype=dtype,
                quantization=quantization,
                chat_template=chat_template,
                trust_remote_code=trust_remote_code,
            ),
        )
    else:
        chat_backend = remote_model(base_url, model, api_key or os.environ.get(KEY), max_new_tokens)
    try:
        session = Chat(chat_backend, backend=backend, system=system, pictures=pictures)
    except ValueError as exc:
        fail(f"--image: {exc}")
    session.run()


@app.command()
def serve(
    context: typer.Context,
    model: Model = None,
    host: Annotated[
        str,
        typer.Option(
            help="The address to listen on.", metavar="ADDRESS", rich_help_panel="Address"
        ),
    ] = "127.0.0.1",
    port: Annotated[
        int,
        typer.Option(
            min=0, max=65535, help="The port. 0 chooses a free one.", rich_help_panel="Address"
        ),
    ] = 8000,
    uds: Annotated[
        str | None,
        typer.Option(
            metavar="PATH",
            help="Listen on this Unix domain socket instead.",
            rich_help_panel="Address",
        ),
    ] = None,
    ssl_certfile: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="Serve HTTPS with this certificate.", rich_help_panel="Address"
        ),
    ] = None,
    ssl_keyfile: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="The certificate's key, if it is in another file.",
            rich_help_panel="Address",
        ),
    ] = None,
    backend: Annotated[
        Backend, typer.Option(help="The event loop.", rich_help_panel="Running")
    ] = Backend.ASYNCIO,
    server: Annotated[
        Server | None,
        typer.Option(
            help="The HTTP server. By default uvicorn on asyncio, hypercorn on trio.",
            rich_help_panel="Running",
        ),
    ] = None,
    batching: Annotated[
        Batching,
        typer.Option(
            help="none runs one request at a time. continuous runs many at once. auto does both: "
            "requests that cannot be batched run one at a time.",
            rich_help_panel="Engine",
        ),
    ] = Batching.AUTO,
    max_running: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="How many requests run at once, with continuous batching. By default 64.",
            rich_help_panel="Engine",
        ),
    ] = None,
    max_waiting: Annotated[
        int,
        typer.Option(
            min=0,
            metavar="N",
            help="How many requests can wait. Others get status 503.",
            rich_help_panel="Engine",
        ),
    ] = 100,
    api_key: Annotated[
        str | None,
        typer.Option(
            envvar=KEY,
            help="The key that clients must send. Other users of this machine can see the options "
            "of a command: it is safer to set the environment variable.",
            metavar="KEY",
            rich_help_panel="Access",
        ),
    ] = None,
    insecure: Annotated[
        bool,
        typer.Option(
            "--insecure", help="Listen on a public address without a key.", rich_help_panel="Access"
        ),
    ] = False,
    drain: Annotated[
        float,
        typer.Option(
            min=0.0,
            help="After Ctrl-C or SIGTERM, the server accepts requests for this many seconds more. "
            "GET /health already says that it will end.",
            callback=finite,
            metavar="SECONDS",
            rich_help_panel="Running",
        ),
    ] = 0.0,
    grace: Annotated[
        float,
        typer.Option(
            min=0.0,
            help="After --drain, open streams have this many seconds to finish.",
            callback=finite,
            metavar="SECONDS",
            rich_help_panel="Running",
        ),
    ] = 10.0,
    max_body_bytes: Annotated[
        int,
        typer.Option(
            min=1, metavar="N", help="The largest body of a request.", rich_help_panel="Requests"
        ),
    ] = 1024 * 1024,
    max_connections: Annotated[
        int,
        typer.Option(
            min=1,
            metavar="N",
            help="How many connections can be open. Others get status 503.",
            rich_help_panel="Connections",
        ),
    ] = 900,
    max_head_bytes: Annotated[
        int,
        typer.Option(
            min=1024,
            metavar="N",
            help="The largest head of a request.",
            rich_help_panel="Connections",
        ),
    ] = 64 * 1024,
    head_timeout: Annotated[
        float,
        typer.Option(
            min=1.0,
            help="A connection is closed if it is idle, or sends a request's head, for more than "
            "this many seconds.",
            callback=finite,
            metavar="SECONDS",
            rich_help_panel="Connections",
        ),
    ] = 10.0,
    send_timeout: Annotated[
        float,
        typer.Option(
            min=0.0,
            help="How many seconds a client can take to receive a part of its answer. 0 means no "
            "limit.",
            callback=finite,
            metavar="SECONDS",
            rich_help_panel="Connections",
        ),
    ] = 30.0,
    max_unsent_tokens: Annotated[
        int,
        typer.Option(
            min=1,
            metavar="N",
            help="How many tokens can wait for a client that takes nothing.",
            rich_help_panel="Connections",
        ),
    ] = 10_000,
    max_unsent_bytes: Annotated[
        int,
        typer.Option(
            min=1,
            metavar="N",
            help="How many bytes can wait for a client that takes nothing.",
            rich_help_panel="Connections",
        ),
    ] = 4 * 1024 * 1024,
    keep_alive: Annotated[
        float,
        typer.Option(
            min=0.0,
            help="After this many seconds without text, the server sends a comment, so that no "
            "proxy closes the connection. 0 turns this off.",
            callback=finite,
            metavar="SECONDS",
            rich_help_panel="Connections",
        ),
    ] = 15.0,
    context_length: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Token limit of prompt and answer together. By default the model's own.",
            rich_help_panel="Engine",
        ),
    ] = None,
    default_max_tokens: Annotated[
        int,
        typer.Option(
            min=1,
            metavar="N",
            help="Token limit of an answer, if the request does not set one.",
            rich_help_panel="Requests",
        ),
    ] = 1024,
    max_tokens_limit: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="The highest token limit that a request can set.",
            rich_help_panel="Requests",
        ),
    ] = None,
    timeout: Annotated[
        float,
        typer.Option(
            min=0.0,
            help="How many seconds a request can take, with the time it waits. 0 means no limit.",
            callback=finite,
            metavar="SECONDS",
            rich_help_panel="Requests",
        ),
    ] = 600.0,
    allow_special_tokens: Annotated[
        bool,
        typer.Option(
            "--allow-special-tokens",
            help="If a message has the text of a special token, it becomes this token. By default "
            "it stays text.",
            rich_help_panel="Access",
        ),
    ] = False,
    allow_media_from: Annotated[
        list[str] | None,
        typer.Option(
            "--allow-media-from",
            metavar="HOST",
            help="Messages can have addresses of pictures and sound on this host. The option can "
            "be repeated.",
            rich_help_panel="Access",
        ),
    ] = None,
    allow_origin: Annotated[
        list[str] | None,
        typer.Option(
            "--allow-origin",
            help="Pages of this site can use the server from a browser: https://a.org. The option "
            "can be repeated.",
            metavar="URL",
            rich_help_panel="Access",
        ),
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            "--allow-host",
            help="Requests can use this host name too. By default, a server on loopback accepts "
            "only its own names. The option can be repeated.",
            metavar="HOST",
            rich_help_panel="Access",
        ),
    ] = None,
    served_model_name: Annotated[
        list[str] | None,
        typer.Option(
            "--served-model-name",
            metavar="NAME",
            help="The model's name in requests and responses. If the option is repeated, the other "
            "names are aliases in requests.",
            rich_help_panel="Address",
        ),
    ] = None,
    log_level: Annotated[
        LogLevel,
        typer.Option(help="The lowest level of what the server logs.", rich_help_panel="Running"),
    ] = LogLevel.WARNING,
    request_log: Annotated[
        RequestLogFormat,
        typer.Option(
            help="Log each request, as text or as one line of JSON.", rich_help_panel="Running"
        ),
    ] = RequestLogFormat.OFF,
    device: Device = None,
    dtype: Dtype = None,
    quantization: Quantization = None,
    chat_template: ChatTemplate = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Serve a model through an OpenAI-compatible API.

    It prints its address when it is ready. At this address is a chat page, and the API below /v1.
    Ctrl-C stops the server: open streams have the time of --grace to finish, and a second Ctrl-C
    stops it at once.
    """
    refuse_empty(context)
    if ssl_keyfile and not ssl_certfile:
        raise typer.BadParameter("needs --ssl-certfile", param_hint="--ssl-keyfile")
    if not (api_key or insecure or uds or is_loopback(host)):
        raise typer.BadParameter(
            f"{host} is a public address: anyone could use the model. "
            "Set --api-key, or confirm with --insecure"
        )
    if server is Server.UVICORN and backend is Backend.TRIO:
        raise typer.BadParameter(
            "uvicorn runs on asyncio only: use --server hypercorn", param_hint="--server"
        )
    _check_names(allow_host or [], allow_origin or [], allow_media_from or [])
    write_logs(log_level, request_log)
    run_serve(
        model,
        host,
        port,
        uds,
        Certificate(ssl_certfile, ssl_keyfile) if ssl_certfile else None,
        backend,
        server or (Server.UVICORN if backend is Backend.ASYNCIO else Server.HYPERCORN),
        batching,
        max_running,
        max_waiting,
        drain,
        grace,
        given(
            device=device,
            dtype=dtype,
            quantization=quantization,
            chat_template=chat_template,
            trust_remote_code=trust_remote_code,
        ),
        ConnectionLimits(
            max_connections=max_connections,
            max_head_bytes=max_head_bytes,
            head_timeout=head_timeout,
            send_timeout=send_timeout or None,
        ),
        served_names=served_model_name or [],
        keep_alive=keep_alive or None,
        context_length=context_length,
        max_unsent_tokens=max_unsent_tokens,
        max_unsent_bytes=max_unsent_bytes,
        api_key=api_key or None,
        max_body_bytes=max_body_bytes,
        default_max_tokens=default_max_tokens,
        max_tokens_limit=max_tokens_limit,
        timeout=timeout or None,
        allow_special_tokens=allow_special_tokens,
        allow_media_from=allow_media_from or [],
        allow_origins=allow_origin or [],
        allowed_hosts=allowed_hosts(host, allow_host or []),
    )


def _check_names(hosts: list[str], origins: list[str], media_hosts: list[str]) -> None:
    """Check the names of other machines: `create_app` would, when the model has been loaded."""
    checks: dict[str, Callable[[], object]] = {
        "--allow-host": lambda: validate_allowed_hosts(hosts),
        "--allow-origin": lambda: validate_origins(origins),
        "--allow-media-from": lambda: UntrustedMessages(allow_media_from=media_hosts),
    }
    for option, check in checks.items():
        try:
            check()
        except ValueError as exc:
            raise typer.BadParameter(str(exc), param_hint=option) from None
