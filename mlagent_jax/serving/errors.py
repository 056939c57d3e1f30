"""Errors that a client receives, in OpenAI's shape."""

from __future__ import annotations

from typing import Any


class ApiError(Exception):
    """Refusal of a request, with a status and a message that says what to change.

    Attributes:
      status: HTTP status.
      param: Field of the request that caused the error, if any.
    """

    def __init__(self, status: int, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.param = status, param

    def body(self) -> dict[str, Any]:
        """Return the body of the answer."""
        kinds = {401: "authentication_error", 429: "rate_limit_error"}
        kind = kinds.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": None}}


def bad_request(message: str, param: str | None = None) -> ApiError:
    """Return the error of a request that can never be served."""
    return ApiError(400, message, param)
