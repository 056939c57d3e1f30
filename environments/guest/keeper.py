"""The first program of the warm bubblewrap sandbox: starts the warm interpreter, then a supervisor per execution.

It stays small because it is forked often; the large warm interpreter (`zygote`) is forked once per execution.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import sys

from . import supervisor, zygote

MAX_REQUEST_BYTES = 1 << 16
REQUEST_DESCRIPTORS = 5


def serve(control: socket.socket) -> None:
    """Answer requests until the host closes its end or the warm interpreter dies."""
    warm, lifeline = _start_zygote(control)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps supervisors
    poller = select.poll()
    poller.register(control, select.POLLIN)
    poller.register(lifeline, select.POLLIN)  # readable when the zygote is ready, and when it ends
    while True:
        ready = {descriptor for descriptor, _ in poller.poll()}
        if lifeline in ready:
            started = os.read(lifeline, 1)
            control.send(b"ready" if started else b"ended")
            if not started:
                return
        if control.fileno() in ready:
            message, descriptors, _, _ = socket.recv_fds(control, MAX_REQUEST_BYTES, REQUEST_DESCRIPTORS)
            if not message:
                return
            _start_supervisor(control, warm, json.loads(message), descriptors)
            for descriptor in descriptors:
                os.close(descriptor)


def _start_zygote(control: socket.socket) -> tuple[socket.socket, int]:
    """Fork the warm interpreter; return its request socket, and a pipe that signals its start and its end."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    lifeline, its_end = os.pipe()
    if os.fork() == 0:
        control.close()
        ours.close()
        os.close(lifeline)
        zygote.serve(theirs, its_end)
        os._exit(0)
    theirs.close()
    os.close(its_end)
    return ours, lifeline


def _start_supervisor(
    control: socket.socket, warm: socket.socket, request: dict[str, object], descriptors: list[int]
) -> None:
    try:
        child = os.fork()
    except OSError as error:  # out of processes or memory: the closed channel tells the host
        print(f"fork: {error}", file=sys.stderr, flush=True)
        return
    if child == 0:
        control.close()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        supervisor.supervise(request, descriptors, warm)


def main() -> None:
    serve(socket.socket(fileno=int(sys.argv[1])))
