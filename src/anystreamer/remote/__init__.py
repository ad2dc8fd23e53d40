"""Engines on other servers: the same streams from any server that has OpenAI's API."""

from .._installing import to_install as _to_install

try:
    from ._engine import open_remote_engine
except ModuleNotFoundError as _missing:
    _name = (_missing.name or "").partition(".")[0]
    if _name not in ("openai", "httpx", "httpx2"):
        raise
    raise ImportError(f"anystreamer.remote needs {_name}: {_to_install('remote')}") from _missing

__all__ = ["open_remote_engine"]
