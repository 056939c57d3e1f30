"""A network that can be cut without a word, between a client and a server of this host."""

import contextlib
import socket
import threading


class SilentNetwork:
    """Forwards TCP connections to a server, until it is cut.

    What is sent while it is cut vanishes and nothing is closed. A connection that was cut stays so: as behind a gateway
    that forgot it, only a new one gets through later.
    """

    def __init__(self, host, port):
        self._server = (host, port)
        self._cut, self._closed = False, False
        self._links = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._spawn(self._accept)

    def cut(self):
        """Returns how many connections will hear nothing any more."""
        self._cut = True
        for link in self._links:
            link["lost"] = True
        return len(self._links)

    def restore(self):
        self._cut = False

    def close(self):
        self._closed = True
        # Wakes those who wait for it, which closing alone would not.
        for end in (self._listener, *(end for link in self._links for end in link["ends"])):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def _accept(self):
        while not self._closed:
            with contextlib.suppress(OSError):
                near = self._listener.accept()[0]
                far = socket.create_connection(self._server)
                link = {"ends": (near, far), "lost": self._cut}
                self._links.append(link)
                self._spawn(self._carry, link, near, far)
                self._spawn(self._carry, link, far, near)

    def _carry(self, link, source, target):
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                if not link["lost"]:
                    target.sendall(data)
            if not link["lost"]:
                target.shutdown(socket.SHUT_WR)

    def _spawn(self, target, *arguments):
        threading.Thread(target=target, args=arguments, daemon=True).start()
