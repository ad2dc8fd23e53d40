"""The options of the commands: their types, their limits, and their texts in ``--help``."""

from __future__ import annotations

from typing import Annotated

import typer

from .._serving import LogLevel, RequestLogFormat
from .common import KEY, Backend, Batching, Server, finite

# The model of ``chat`` and ``serve``.
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
        help="Load the weights in 8bit or 4bit, which needs less memory. Needs bitsandbytes.",
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

# Of ``demo``.
Prompt = Annotated[
    str | None, typer.Argument(help="The text to continue. Without it, a tour is shown.")
]
DemoEventLoop = Annotated[
    Backend | None,
    typer.Option(help="The event loop. By default asyncio. The tour shows both."),
]
DemoMaxNewTokens = Annotated[int, typer.Option(min=1, metavar="N", help="Token limit of the text.")]

# Of ``chat``.
EventLoop = Annotated[Backend, typer.Option(help="The event loop.")]
ChatMaxNewTokens = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="N",
        help="Token limit of an answer. By default 1024, or the server's own with --base-url.",
    ),
]
SystemMessage = Annotated[
    str | None,
    typer.Option(metavar="TEXT", help="A system message, sent before the conversation."),
]
Pictures = Annotated[
    list[str] | None,
    typer.Option(
        "--image",
        metavar="FILE",
        help="A picture for the first question, if the model takes pictures. The option can be "
        "repeated.",
    ),
]
BaseURL = Annotated[
    str | None,
    typer.Option(metavar="URL", help="Use the model of this OpenAI-compatible server."),
]
APIKey = Annotated[
    str | None,
    typer.Option(
        help="The API key of that server. Other users of this machine can see the options of a "
        f"command: it is safer to set {KEY}."
    ),
]

# Of ``serve``: where it listens, and the names of its model.
Host = Annotated[
    str,
    typer.Option(help="The address to listen on.", metavar="ADDRESS", rich_help_panel="Address"),
]
Port = Annotated[
    int,
    typer.Option(
        min=0, max=65535, help="The port. 0 chooses a free one.", rich_help_panel="Address"
    ),
]
UnixSocket = Annotated[
    str | None,
    typer.Option(
        metavar="PATH",
        help="Listen on this Unix domain socket instead.",
        rich_help_panel="Address",
    ),
]
CertificateFile = Annotated[
    str | None,
    typer.Option(
        metavar="FILE", help="Serve HTTPS with this certificate.", rich_help_panel="Address"
    ),
]
KeyFile = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        help="The certificate's key, if it is in another file.",
        rich_help_panel="Address",
    ),
]
ServedModelName = Annotated[
    list[str] | None,
    typer.Option(
        "--served-model-name",
        metavar="NAME",
        help="The model's name in requests and responses. If the option is repeated, the other "
        "names are aliases in requests.",
        rich_help_panel="Address",
    ),
]

# How it runs, and ends.
ServerEventLoop = Annotated[
    Backend, typer.Option(help="The event loop.", rich_help_panel="Running")
]
HTTPServer = Annotated[
    Server | None,
    typer.Option(
        help="The HTTP server. By default uvicorn on asyncio, hypercorn on trio.",
        rich_help_panel="Running",
    ),
]
DrainTime = Annotated[
    float,
    typer.Option(
        min=0.0,
        help="After Ctrl-C or SIGTERM, the server accepts requests for this many seconds more. "
        "Meanwhile, GET /health reports that it is draining.",
        callback=finite,
        metavar="SECONDS",
        rich_help_panel="Running",
    ),
]
GraceTime = Annotated[
    float,
    typer.Option(
        min=0.0,
        help="After --drain, open streams have this many seconds to finish.",
        callback=finite,
        metavar="SECONDS",
        rich_help_panel="Running",
    ),
]
LowestLogLevel = Annotated[
    LogLevel,
    typer.Option(help="The lowest level of what the server logs.", rich_help_panel="Running"),
]
RequestLog = Annotated[
    RequestLogFormat,
    typer.Option(
        help="Log each request, as text or as one line of JSON.", rich_help_panel="Running"
    ),
]

# Its engine.
BatchingMode = Annotated[
    Batching,
    typer.Option(
        help="none runs one request at a time. continuous runs many at once. auto does both: "
        "requests that cannot be batched run one at a time.",
        rich_help_panel="Engine",
    ),
]
MaxRunning = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="N",
        help="How many requests run at once, with continuous batching. By default 64.",
        rich_help_panel="Engine",
    ),
]
MaxWaiting = Annotated[
    int,
    typer.Option(
        min=0,
        metavar="N",
        help="How many requests can wait. Others get status 503.",
        rich_help_panel="Engine",
    ),
]
ContextLength = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="N",
        help="Token limit of prompt and answer together. By default the model's own.",
        rich_help_panel="Engine",
    ),
]

# Who can use it, and for what.
ServedKey = Annotated[
    str | None,
    typer.Option(
        envvar=KEY,
        help="The key that clients must send. Other users of this machine can see the options "
        "of a command: it is safer to set the environment variable.",
        metavar="KEY",
        rich_help_panel="Access",
    ),
]
Insecure = Annotated[
    bool,
    typer.Option(
        "--insecure", help="Listen on a public address without a key.", rich_help_panel="Access"
    ),
]
AllowSpecialTokens = Annotated[
    bool,
    typer.Option(
        "--allow-special-tokens",
        help="If a message has the text of a special token, it becomes this token. By default "
        "it stays text.",
        rich_help_panel="Access",
    ),
]
AllowMediaFrom = Annotated[
    list[str] | None,
    typer.Option(
        "--allow-media-from",
        metavar="HOST",
        help="Messages can have addresses of pictures and sound on this host. The option can "
        "be repeated.",
        rich_help_panel="Access",
    ),
]
AllowOrigin = Annotated[
    list[str] | None,
    typer.Option(
        "--allow-origin",
        help="Pages of this site can use the server from a browser: https://a.org. The option "
        "can be repeated.",
        metavar="URL",
        rich_help_panel="Access",
    ),
]
AllowHost = Annotated[
    list[str] | None,
    typer.Option(
        "--allow-host",
        help="Requests can use this host name too. By default, a server on loopback accepts "
        "only its own names. The option can be repeated.",
        metavar="HOST",
        rich_help_panel="Access",
    ),
]

# The limits of a request.
MaxBodyBytes = Annotated[
    int,
    typer.Option(
        min=1,
        metavar="N",
        help="The largest body of a request, in bytes.",
        rich_help_panel="Requests",
    ),
]
DefaultMaxTokens = Annotated[
    int,
    typer.Option(
        min=1,
        metavar="N",
        help="Token limit of an answer, if the request does not set one.",
        rich_help_panel="Requests",
    ),
]
MaxTokensLimit = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="N",
        help="The highest token limit that a request can set.",
        rich_help_panel="Requests",
    ),
]
RequestTimeout = Annotated[
    float,
    typer.Option(
        min=0.0,
        help="How many seconds a request can take, including its time in the queue. 0 means no "
        "limit.",
        callback=finite,
        metavar="SECONDS",
        rich_help_panel="Requests",
    ),
]

# The limits of connections.
MaxConnections = Annotated[
    int,
    typer.Option(
        min=1,
        metavar="N",
        help="How many connections can be open. Others get status 503.",
        rich_help_panel="Connections",
    ),
]
MaxHeadBytes = Annotated[
    int,
    typer.Option(
        min=1024,
        metavar="N",
        help="The largest head of a request, in bytes.",
        rich_help_panel="Connections",
    ),
]
HeadTimeout = Annotated[
    float,
    typer.Option(
        min=1.0,
        help="A connection is closed if it is idle, or sends a request's head, for more than "
        "this many seconds.",
        callback=finite,
        metavar="SECONDS",
        rich_help_panel="Connections",
    ),
]
SendTimeout = Annotated[
    float,
    typer.Option(
        min=0.0,
        help="How many seconds a client can take to receive a part of its answer. 0 means no "
        "limit.",
        callback=finite,
        metavar="SECONDS",
        rich_help_panel="Connections",
    ),
]
MaxUnsentTokens = Annotated[
    int,
    typer.Option(
        min=1,
        metavar="N",
        help="How many tokens can wait for a client that receives nothing.",
        rich_help_panel="Connections",
    ),
]
MaxUnsentBytes = Annotated[
    int,
    typer.Option(
        min=1,
        metavar="N",
        help="How many bytes can wait for a client that receives nothing.",
        rich_help_panel="Connections",
    ),
]
KeepAlive = Annotated[
    float,
    typer.Option(
        min=0.0,
        help="After this many seconds without text, the server sends a comment, so that no "
        "proxy closes the connection. 0 turns this off.",
        callback=finite,
        metavar="SECONDS",
        rich_help_panel="Connections",
    ),
]
