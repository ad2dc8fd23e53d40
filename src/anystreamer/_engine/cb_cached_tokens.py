"""Reports how many tokens of a prompt a manager of continuous batching has in its cache already."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["report_cached_tokens"]


def report_cached_tokens(manager: Any, report: Callable[[str, int], None]) -> None:
    """Call *report* with the id of each request, and how many tokens of its prompt were found.

    In the manager's thread, before the request's first pass. The manager's results do not say it.
    Nothing is reported where the manager does not share what prompts have in common.
    """
    cache = manager.batch_processor.cache
    search = getattr(cache, "search_prefix_match", None)
    if search is None:
        return

    def search_and_report(request_id: str, *args: Any, **kwargs: Any) -> Any:
        found = search(request_id, *args, **kwargs)
        report(request_id, int(found))
        return found

    cache.search_prefix_match = search_and_report
