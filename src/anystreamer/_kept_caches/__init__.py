"""The KV caches of recent conversations, which an engine keeps for their next turns."""

from .reuse_cache import EngineCaches, ReuseCache, validate_reuse_cache

__all__ = ["EngineCaches", "ReuseCache", "validate_reuse_cache"]
