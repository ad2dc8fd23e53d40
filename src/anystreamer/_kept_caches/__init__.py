"""The KV caches of recent conversations, which an engine keeps for their next turns."""

from .free_memory import free_bytes
from .reuse_cache import EngineCaches, ReuseCache, validate_reuse_cache

__all__ = ["EngineCaches", "ReuseCache", "free_bytes", "validate_reuse_cache"]
