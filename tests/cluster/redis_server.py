"""A real redis-server on a port of its own: start, stop, kill, flush, start again on the same port."""

import shutil
import socket
from pathlib import Path
from types import TracebackType
from typing import Self

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from cluster.leftovers import make_folder
from cluster.processes import Daemon, StartError, free_port

START_SECONDS = 20
NO_RETRY = Retry(NoBackoff(), 0)


class RedisServer:
    """A Redis with no persistence, or with an append-only file (written at each command) where `append_only` is set."""

    def __init__(self, folder: Path | None = None, *, password: str | None = None, append_only: bool = False) -> None:
        program = shutil.which("redis-server")
        if program is None:
            raise StartError("redis-server is not installed: run scripts/setup.sh cluster")
        self._owns_folder = folder is None
        self.folder = folder or make_folder("redis")
        self.folder.mkdir(parents=True, exist_ok=True)
        self.password = password
        self.host = "127.0.0.1"
        self.port = free_port()
        command = [program, "--bind", self.host, "--port", str(self.port), "--dir", str(self.folder), "--save", ""]
        command += ["--appendonly", "yes", "--appendfsync", "always"] if append_only else ["--appendonly", "no"]
        if password:
            command += ["--requirepass", password]
        self.daemon = Daemon("redis", command, self.folder / "redis.log", folder=self.folder)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def url(self) -> str:
        """`redis://[:password@]127.0.0.1:port`, without a database number."""
        login = f":{self.password}@" if self.password else ""
        return f"redis://{login}{self.host}:{self.port}"

    @property
    def client(self) -> "redis.Redis":
        """A client of database 0 that answers strings and never tries again; close it, or use it as a context manager."""
        return redis.Redis(
            host=self.host, port=self.port, password=self.password, decode_responses=True, retry=NO_RETRY
        )

    def start(self) -> None:
        """Starts it (again, on the same port) and waits until it answers. Raises StartError with the log's tail."""
        self.daemon.start()
        self.daemon.wait_ready(self._answers, START_SECONDS)

    def stop(self) -> None:
        """An orderly stop; an append-only file is complete."""
        self.daemon.stop()

    def kill(self) -> None:
        """SIGKILL."""
        self.daemon.kill()

    def flush(self) -> None:
        """Loses every key of every database."""
        with self.client as client:
            client.flushall()

    def pause(self) -> None:
        """The process is stopped: connections stay open and nothing is answered until `resume`."""
        self.daemon.pause()

    def resume(self) -> None:
        self.daemon.resume()

    def close(self) -> None:
        """Kills it and removes its folder where it is its own."""
        self.kill()
        if self._owns_folder:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _answers(self) -> bool:
        try:
            with socket.create_connection((self.host, self.port), timeout=1) as probe:
                probe.sendall(b"PING\r\n")
                return probe.recv(16)[:1] in (b"+", b"-")  # -NOAUTH is an answer too
        except OSError:
            return False
