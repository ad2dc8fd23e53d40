"""Makes errors with a cause, a context and a traceback, and checks that these are unchanged."""

from __future__ import annotations


def raised(exc: BaseException) -> BaseException:
    """Give *exc* a cause, a context and a traceback, as an error has that was handled before."""
    try:
        try:
            raise KeyError("context")
        except KeyError:
            raise exc from LookupError("cause")
    except BaseException as same:
        return same


def is_untouched(exc: BaseException) -> bool:
    return (
        isinstance(exc.__cause__, LookupError)
        and isinstance(exc.__context__, KeyError)
        and exc.__suppress_context__
        and not hasattr(exc, "__notes__")
    )
