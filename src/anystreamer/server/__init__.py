"""An engine behind HTTP: as an OpenAI-compatible application, or as the response of a route."""

from .._installing import to_install as _to_install

try:
    from ._app import create_app
    from ._text_response import TextStreamResponse
except ModuleNotFoundError as _missing:
    _name = (_missing.name or "").partition(".")[0]
    if _name not in ("starlette", "pydantic", "pydantic_core", "prometheus_client"):
        raise
    raise ImportError(f"anystreamer.server needs {_name}: {_to_install('server')}") from _missing

__all__ = ["TextStreamResponse", "create_app"]
