"""A redis-server of its own that keeps nothing."""

import shutil
import socket

from .processes import Program, free_port


class Redis:
    def __init__(self, folder):
        self._folder = folder
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.start()

    def start(self):
        """Starts it, empty, on the port that it had before."""
        program = shutil.which("redis-server")
        assert program, "redis-server is not installed; tests/run does that"
        command = [program, "--port", self.port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        self.program = Program("redis-server", command, self._folder)
        self.program.wait_until(self._answers)

    def _answers(self):
        try:
            return self.command("PING") == "+PONG"
        except OSError:
            return False

    def command(self, words):
        """Sends an inline command; the first line of the answer, as the server wrote it."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=10) as connection:
            connection.sendall(words.encode() + b"\r\n")
            return connection.makefile("rb").readline().decode().rstrip()

    def stop(self):
        self.program.kill()
