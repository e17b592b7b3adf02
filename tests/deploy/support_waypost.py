"""What several test files share: where the built programs are, how one of them is started, which tools are there."""

import contextlib
import http.client
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import time

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
DEADLINE_SECS = 30


def program(name):
    """The path of a built program: in WAYPOST_BIN_DIR, else where cargo puts it. Fails where it is not built."""
    folder = pathlib.Path(os.environ.get("WAYPOST_BIN_DIR", ROOT / "target" / "debug"))
    path = folder / name
    if not os.access(path, os.X_OK):
        pytest.fail(f"{path} is not there: build it with `cargo build`, or name its folder in WAYPOST_BIN_DIR")
    return path


def tool(name):
    """The path of a program of Debian. Fails where it is missing: tests/install has to run before."""
    found = shutil.which(name, path=os.environ["PATH"] + ":/usr/sbin:/sbin")
    if not found:
        pytest.fail(f"{name} is missing. Type: sudo {ROOT / 'tests' / 'install'} deployment")
    return found


def run(*command, check=True, **options):
    """Runs a command to its end; its output is in the failure if it fails. Returns the completed process."""
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=300, **options)
    if check and done.returncode != 0:
        pytest.fail(f"{' '.join(map(str, command))} ended with {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done


def free_port(address="127.0.0.1"):
    """A TCP port that nobody listens on at the moment."""
    with socket.socket() as listener:
        listener.bind((address, 0))
        return listener.getsockname()[1]


def wait_for(condition, what, seconds=DEADLINE_SECS):
    """Asks until `condition` returns something true, and returns that. Fails after `seconds`."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        result = condition()
        if result:
            return result
        time.sleep(0.05)
    return pytest.fail(f"{what}: not within {seconds} s")


def ask(port, method, path, body=None, headers=None, host="127.0.0.1", connection=None):
    """One HTTP request. Returns (status, headers in lower case, body as text)."""
    connection = connection or http.client.HTTPConnection(host, port, timeout=10)
    with contextlib.closing(connection):
        connection.request(method, path, body=body, headers=headers or {})
        answer = connection.getresponse()
        return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read().decode()


def answers(port, path="/health/ready"):
    """Whether somebody answers 200 there."""
    with contextlib.suppress(OSError, http.client.HTTPException):
        return ask(port, "GET", path)[0] == 200
    return False


@contextlib.contextmanager
def started(command, log, **options):
    """A program that runs until the block ends, and whose output is in the file `log`. Yields the process."""
    with open(log, "wb") as output:
        process = subprocess.Popen([str(word) for word in command], stdout=output, stderr=output, **options)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextlib.contextmanager
def serving(name, folder, config="", public=None):
    """One of the services, ready, on free ports of loopback. Yields its (public, operations) ports."""
    folder.mkdir(parents=True, exist_ok=True)
    public, operations = public or free_port(), free_port()
    (folder / "waypost.toml").write_text(config)
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith("WAYPOST_")},
        "WAYPOST_LISTEN__PUBLIC": f"127.0.0.1:{public}",
        "WAYPOST_LISTEN__OPERATIONS": f"127.0.0.1:{operations}",
    }
    log = folder / "log"
    command = [program(name), "--config", "waypost.toml", "serve"]
    with started(command, log, cwd=folder, env=environment) as process:
        def ready():
            if process.poll() is not None:
                pytest.fail(f"{name} ended:\n{log.read_text()}")
            return answers(operations)

        wait_for(ready, f"{name} is ready")
        yield public, operations
