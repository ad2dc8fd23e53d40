"""The commands: ``anystreamer demo | chat | serve``, built with typer."""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Callable
from typing import Annotated

import rich.console  # noqa: F401  # typer can do without rich, the commands cannot
import typer

from .._prompts import UntrustedMessages
from .._serving import (
    LogLevel,
    RequestLogFormat,
    validate_allowed_hosts,
    validate_origins,
    write_logs,
)
from . import options
from .common import (
    KEY,
    Backend,
    Batching,
    Server,
    given,
    refuse_beside,
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

    Without a MODEL, each command uses a small model that is included. Try demo first.
    """


@app.command()
def demo(
    prompt: options.Prompt = None,
    backend: options.DemoEventLoop = None,
    max_new_tokens: options.DemoMaxNewTokens = 20,
) -> None:
    """Stream text from the embedded model, which can count."""
    run_demo(prompt, backend, max_new_tokens)


@app.command()
def chat(
    context: typer.Context,
    model: options.Model = None,
    backend: options.EventLoop = Backend.ASYNCIO,
    max_new_tokens: options.ChatMaxNewTokens = None,
    system: options.SystemMessage = None,
    image: options.Pictures = None,
    base_url: options.BaseURL = None,
    api_key: options.APIKey = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    quantization: options.Quantization = None,
    chat_template: options.ChatTemplate = None,
    trust_remote_code: options.TrustRemoteCode = False,
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
    if base_url is not None:
        loading = ("device", "dtype", "quantization", "chat_template", "trust_remote_code")
        refuse_beside(context, "--base-url", *loading)
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
    model: options.Model = None,
    host: options.Host = "127.0.0.1",
    port: options.Port = 8000,
    uds: options.UnixSocket = None,
    ssl_certfile: options.CertificateFile = None,
    ssl_keyfile: options.KeyFile = None,
    backend: options.ServerEventLoop = Backend.ASYNCIO,
    server: options.HTTPServer = None,
    batching: options.BatchingMode = Batching.AUTO,
    max_running: options.MaxRunning = None,
    max_waiting: options.MaxWaiting = 100,
    api_key: options.ServedKey = None,
    insecure: options.Insecure = False,
    drain: options.DrainTime = 0.0,
    grace: options.GraceTime = 10.0,
    max_body_bytes: options.MaxBodyBytes = 1024 * 1024,
    max_connections: options.MaxConnections = 900,
    max_head_bytes: options.MaxHeadBytes = 64 * 1024,
    head_timeout: options.HeadTimeout = 10.0,
    send_timeout: options.SendTimeout = 30.0,
    max_unsent_tokens: options.MaxUnsentTokens = 10_000,
    max_unsent_bytes: options.MaxUnsentBytes = 4 * 1024 * 1024,
    keep_alive: options.KeepAlive = 15.0,
    context_length: options.ContextLength = None,
    default_max_tokens: options.DefaultMaxTokens = 1024,
    max_tokens_limit: options.MaxTokensLimit = None,
    timeout: options.RequestTimeout = 600.0,
    allow_special_tokens: options.AllowSpecialTokens = False,
    allow_media_from: options.AllowMediaFrom = None,
    allow_origin: options.AllowOrigin = None,
    allow_host: options.AllowHost = None,
    served_model_name: options.ServedModelName = None,
    log_level: options.LowestLogLevel = LogLevel.WARNING,
    request_log: options.RequestLog = RequestLogFormat.OFF,
    device: options.Device = None,
    dtype: options.Dtype = None,
    quantization: options.Quantization = None,
    chat_template: options.ChatTemplate = None,
    trust_remote_code: options.TrustRemoteCode = False,
) -> None:
    """Serve a model through an OpenAI-compatible API.

    It prints its address when it is ready. At this address is a chat page, and the API below /v1.
    Ctrl-C stops the server: open streams can finish within --grace seconds, and a second Ctrl-C
    stops it at once.
    """
    refuse_empty(context)
    if uds is not None:
        refuse_beside(context, "--uds", "host", "port")
    if batching is Batching.NONE:
        refuse_beside(context, "--batching none", "max_running")
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
        host=host,
        port=port,
        uds=uds,
        certificate=Certificate(ssl_certfile, ssl_keyfile) if ssl_certfile else None,
        backend=backend,
        server=server or (Server.UVICORN if backend is Backend.ASYNCIO else Server.HYPERCORN),
        batching=batching,
        max_running=max_running,
        max_waiting=max_waiting,
        drain=drain,
        grace=grace,
        loading=given(
            device=device,
            dtype=dtype,
            quantization=quantization,
            chat_template=chat_template,
            trust_remote_code=trust_remote_code,
        ),
        connections=ConnectionLimits(
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
    """Check the names of other machines. `create_app` does too, but after the model is loaded."""
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
