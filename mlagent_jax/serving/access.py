"""Access control: programs of this machine, or clients with the key."""

from __future__ import annotations

import hmac
import ipaddress
import urllib.parse

from mlagent_jax.serving.errors import ApiError

KEY_VARIABLE = "MLAGENT_API_KEY"
"""Environment variable with the key. It is not a flag, since other users can read the arguments of a process."""


def check_host(host: str, api_key: str | None) -> None:
    """Check that a server without a key is reachable from this machine only.

    Raises:
      ValueError: It is reachable from other machines.
    """
    if not _is_local(host) and not api_key:
        raise ValueError(f"--host={host} is reached from other machines: set {KEY_VARIABLE} to a key, or leave it out")


def check_key(api_key: str | None, authorization: str) -> None:
    """Check whether a request may be served, given its `Authorization` header.

    Raises:
      ApiError: The key is missing or wrong.
    """
    if api_key is not None and not hmac.compare_digest(authorization.encode(), f"Bearer {api_key}".encode()):
        raise ApiError(401, "the API key is missing or wrong: send it as `Authorization: Bearer KEY`")


def check_site(host: str, origin: str | None) -> None:
    """Check that a request to a server without a key comes from a program of this machine, by its `Host` and `Origin`.

    A site elsewhere may direct a local browser here: by a name that resolves to this machine (DNS rebinding), which
    `Host` shows, or by a form that is sent across sites, which `Origin` shows.

    Raises:
      ApiError: The request comes from elsewhere.
    """
    if not _is_local(_name(f"//{host}")):
        raise ApiError(403, "this server has no key and is for this machine alone: ask for localhost or 127.0.0.1")
    if origin is not None and not _is_local(_name(origin)):
        raise ApiError(403, "this server has no key and answers no page of another site")


def _name(url: str) -> str:
    try:
        return urllib.parse.urlsplit(url).hostname or ""
    except ValueError:
        return ""


def _is_local(name: str) -> bool:
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost"
