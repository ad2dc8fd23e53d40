"""Names of ASGI extensions, by which an HTTP server offers the application more than ASGI has."""

__all__ = ["ABORT", "CANCELS_ON_DISCONNECT", "CONNECTIONS"]

# A function that closes the request's connection at once. An application has no other way: a
# connection stays open while the server has unsent data.
ABORT = "anystreamer.abort"

# A function that returns how many connections the server has now, and how many it can have.
CONNECTIONS = "anystreamer.connections"

# For servers that cancel a request's task when its client disconnects, as Ray Serve does. Other
# servers cancel tasks only when they shut down.
CANCELS_ON_DISCONNECT = "anystreamer.cancels_on_disconnect"
