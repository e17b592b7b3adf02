"""Starts programs, keeps their logs, and leaves none running."""

import ctypes
import os
import signal
import socket
import subprocess
import time
from pathlib import Path

# All programs that run now, for the report of a failure.
_running = []

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)


def free_port():
    """A TCP port that was free a moment ago, for programs that cannot choose one themselves."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def tails(lines=40):
    """The ends of the logs of all programs that run, for a failure's message."""
    return "\n".join(program.tail(lines) for program in _running)


def stop_all():
    """Kills whatever still runs; for the end of a run."""
    for program in list(_running):
        program.kill()


def clean_environment():
    """The environment without what it says about Waypost, certificates and proxies."""
    unwanted = ("SSL_CERT_FILE", "SSL_CERT_DIR", "PYTHONPATH", "PYTHONHOME")
    return {
        key: value
        for key, value in os.environ.items()
        if not key.startswith("WAYPOST_") and key not in unwanted and not key.lower().endswith("_proxy")
    }


def _die_with_parent():
    # Also when the test run itself is killed and cannot clean up.
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


class Program:
    """A running program; what it writes goes to the file `log`.

    Start it from the main thread only: it is killed when the thread that started it ends.
    """

    def __init__(self, name, command, folder: Path, environment=None):
        """`environment` is added to the clean one. `folder` becomes the working directory."""
        folder.mkdir(parents=True, exist_ok=True)
        self.name = name
        self.log = folder / f"{name}.log"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [str(part) for part in command],
                cwd=folder,
                env=clean_environment() | (environment or {}),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=_die_with_parent,
            )
        _running.append(self)

    def log_text(self):
        return self.log.read_text(errors="replace")

    def tail(self, lines=40):
        """The last lines of the log under a heading."""
        end = "\n".join(line[:1000] for line in self.log_text().splitlines()[-lines:])
        state = self.process.poll()
        state = "running" if state is None else f"ended with {state}"
        return f"--- {self.name} ({state}), the end of its log:\n{end}"

    def ensure_running(self):
        """Fails with the end of the log if the program has ended."""
        if self.process.poll() is not None:
            raise AssertionError(f"{self.name} has ended\n{self.tail(80)}")

    def wait_until(self, ready, patience=60.0):
        """Asks `ready` until it is truthy, returns its answer; fails when the program ends or takes too long."""
        deadline = time.monotonic() + patience
        while True:
            self.ensure_running()
            answer = ready()
            if answer:
                return answer
            if time.monotonic() > deadline:
                raise AssertionError(f"{self.name} was not ready after {patience:g} s\n{self.tail(80)}")
            time.sleep(0.05)

    def stop(self, patience=30.0):
        """Asks it to stop (SIGTERM) and returns its exit code; fails when it is still there after `patience` seconds."""
        self.process.terminate()
        try:
            code = self.process.wait(patience)
        except subprocess.TimeoutExpired:
            tail = self.tail()
            self.kill()
            raise AssertionError(f"{self.name} did not stop within {patience:g} s\n{tail}") from None
        self._forget()
        return code

    def kill(self):
        """Kills it (SIGKILL), if it still runs."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._forget()

    def _forget(self):
        if self in _running:
            _running.remove(self)
