"""A temporary PostgreSQL server for tests: made, started, restarted and removed by them."""

import glob
import os
import shutil
import socket
import subprocess
import tempfile

import needs


def need_binaries():
    """Folder of initdb and pg_ctl, the newest there is."""
    on_path = shutil.which("pg_ctl")
    folders = sorted(glob.glob("/usr/lib/postgresql/*/bin"), key=lambda path: int(path.split("/")[-2]))
    found = os.path.dirname(on_path) if on_path else (folders[-1] if folders else None)
    hint = "no PostgreSQL: install it (Debian: apt-get install postgresql) or set MLAGENT_TEST_POSTGRES to a URL"
    needs.need(found, hint)
    return found


class PostgresServer:
    """Listens on a free port of 127.0.0.1, or of another address, where it trusts all who come; runs as `postgres`
    where the tests run as root, which it refuses to be."""

    def __init__(self, binaries, address="127.0.0.1"):
        self._binaries, self._address = binaries, address
        self._user = "postgres" if os.geteuid() == 0 else None
        self._folder = tempfile.mkdtemp(prefix="mlagent-postgres-")
        if self._user:
            shutil.chown(self._folder, self._user)
        with socket.socket() as probe:
            probe.bind((address, 0))
            self._port = probe.getsockname()[1]
        self._run("initdb", "--auth=trust", "--username=postgres", "--no-sync", "--encoding=UTF8", "--locale=C")
        if address != "127.0.0.1":
            with open(f"{self._folder}/data/pg_hba.conf", "a") as file:
                file.write("host all all all trust\n")
        self.start()

    def url(self, database="postgres", user="postgres"):
        return f"postgresql://{user}@{self._address}:{self._port}/{database}"

    def demand_tls(self, certificate, key):
        """From the next start on, accept only encrypted connections with a password."""
        shutil.copy(certificate, f"{self._folder}/data/server.crt")
        shutil.copy(key, f"{self._folder}/data/server.key")
        os.chmod(f"{self._folder}/data/server.key", 0o600)
        if self._user:
            shutil.chown(f"{self._folder}/data/server.crt", self._user)
            shutil.chown(f"{self._folder}/data/server.key", self._user)
        with open(f"{self._folder}/data/pg_hba.conf", "w") as file:
            file.write("hostssl all all 127.0.0.1/32 scram-sha-256\n")
        with open(f"{self._folder}/data/postgresql.conf", "a") as file:
            file.write("ssl = on\n")

    def start(self):
        options = f"-c port={self._port} -c listen_addresses={self._address} -c unix_socket_directories={self._folder}"
        options += " -c fsync=off -c max_connections=200"
        self._run("pg_ctl", "-w", f"--log={self._folder}/log", f"--options={options}", "start")

    def stop(self):
        self._run("pg_ctl", "-w", "--mode=immediate", "stop")

    def remove(self):
        self.stop()
        shutil.rmtree(self._folder)

    def _run(self, program, *arguments):
        command = [os.path.join(self._binaries, program), f"--pgdata={self._folder}/data", *arguments]
        # Not through a pipe: the server would keep it open.
        with open(os.path.join(self._folder, "control.log"), "ab") as output:
            result = subprocess.run(
                command,
                user=self._user,
                cwd=self._folder,
                stdout=output,
                stderr=output,
                env={**os.environ, "PGUSER": ""},
            )
        if result.returncode:
            with open(output.name) as file:
                raise RuntimeError(f"{program} failed: {file.read()}")
