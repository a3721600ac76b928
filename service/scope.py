"""What a connection tells a request whose task is already running: keys of its ASGI scope."""

BODY_ERROR = "normscope.body_error"
"""Why the rest of the body will not come, a `ServiceError`. The reader of the body wakes with an empty chunk."""
CLIENT_IS_GONE = "normscope.client_is_gone"
"""Set before the task is cancelled, because the connection has ended before the answer."""
