"""Who may ask: everyone on this machine, or whoever has the key."""

from __future__ import annotations

import hmac
import ipaddress

from mlagent_jax.serving.errors import ApiError

KEY_VARIABLE = "MLAGENT_API_KEY"
"""Environment variable with the key: the arguments of a process can be read by others."""


def check_host(host: str, api_key: str | None) -> None:
    """Nobody but this machine's users reaches a server without a key.

    Raises:
        ValueError: They would.
    """
    try:
        local = ipaddress.ip_address(host).is_loopback
    except ValueError:
        local = host == "localhost"
    if not local and not api_key:
        raise ValueError(f"--host={host} is reached from other machines: set {KEY_VARIABLE} to a key, or leave it out")


def check_key(api_key: str | None, authorization: str) -> None:
    """Whether a request may be served, given its `Authorization` header.

    Raises:
        ApiError: The key is missing or wrong.
    """
    if api_key is not None and not hmac.compare_digest(authorization.encode(), f"Bearer {api_key}".encode()):
        raise ApiError(401, "the API key is missing or wrong: send it as `Authorization: Bearer KEY`")
