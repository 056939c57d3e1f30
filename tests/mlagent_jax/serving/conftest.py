"""A server on this machine, as `mlagent_jax.serve` runs it, and a small policy for it."""

import contextlib
import socket
import threading
import time

import pytest
import uvicorn

from mlagent_jax.sampling import Sampler, load
from mlagent_jax.serving.app import make_app
from mlagent_jax.serving.connections import TimedProtocol
from mlagent_jax.serving.service import Limits, Service


@contextlib.contextmanager
def run_server(sampler, api_key=None, **limits):
    """A server's address while it is up."""
    service = Service(sampler, Limits(**{"prompt_tokens": 60, "new_tokens": 64, "slots": 4, "waiting": 8, **limits}))
    server = uvicorn.Server(uvicorn.Config(make_app(service, "policy", api_key), log_level="error", http=TimedProtocol))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            deadline = time.monotonic() + 60
            while not server.started:
                assert time.monotonic() < deadline
                time.sleep(0.01)
            yield service, f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture(scope="session")
def serving():
    """Starts a server with a sampler; gives its service and address for as long as it is up."""
    return run_server


@pytest.fixture(scope="session")
def sampler(speaker):
    return Sampler(*load(speaker), slots=4)
