"""The programs under test, as an operator runs them: a configuration file, and what they write to their log."""

import base64
import json
import os
import secrets
import tomllib
from pathlib import Path

import requests

from .processes import Program
from .settings import merged, toml

REPOSITORY = Path(__file__).resolve().parents[3]
BINARIES = Path(os.environ.get("WAYPOST_BIN_DIR") or REPOSITORY / "target" / "debug")


def program(name):
    """The path of a built program; fails when it was not built."""
    path = BINARIES / name
    assert path.is_file(), f"{path} is missing: cargo build --workspace, or set WAYPOST_BIN_DIR"
    return path


class Waypost:
    """A running `name` with `settings` (a dict of tables) as its configuration.

    `public` and `operations` are the (host, port) of its listeners.
    """

    def __init__(self, name, label, folder: Path, settings):
        listen = {"public": "127.0.0.1:0", "operations": "127.0.0.1:0"}
        self.settings = merged({"listen": listen, "log": {"level": "debug", "format": "json"}}, settings)
        folder.mkdir(parents=True, exist_ok=True)
        self._config = folder / "waypost.toml"
        self._config.write_text(toml(self.settings))
        self._name, self._label, self._folder = name, label, folder
        self._start()

    def _start(self):
        before = self.log_lines() if hasattr(self, "program") else []
        command = [program(self._name), "--config", self._config, "serve"]
        self.program = Program(self._label, command, self._folder)

        def ready():
            new = self.log_lines()[len(before) :]
            return next((line for line in new if line.get("message") == "listening"), None)

        line = self.program.wait_until(ready)
        self.public, self.operations = (self._address(line[key]) for key in ("public", "operations"))

    @staticmethod
    def _address(text):
        host, port = text.rsplit(":", 1)
        return host, int(port)

    @property
    def url(self):
        """The base URL of the public listener, without TLS."""
        return "http://{}:{}".format(*self.public)

    def log_lines(self):
        """The log so far, as dicts; a line that is not JSON is left out."""
        lines = []
        for line in self.program.log_text().splitlines():
            try:
                lines.append(json.loads(line))
            except ValueError:
                continue
        return lines

    def metric(self, name):
        """A sample by its name with all labels as they are written; None if it is not there."""
        text = requests.get("http://{}:{}/metrics".format(*self.operations), timeout=30).text
        for line in text.splitlines():
            sample, _, value = line.rpartition(" ")
            if sample == name:
                return float(value)
        return None

    def restart(self):
        """Kills it and starts it again on the same data; its port changes."""
        self.program.kill()
        self._start()

    def stop(self):
        self.program.kill()


def random_key():
    """32 random bytes as key files have them."""
    return base64.b64encode(secrets.token_bytes(32)).decode()


def no_limits():
    """`[limits]` of the identity server without any limit, so that tests do not wait for each other."""
    sample = tomllib.loads((REPOSITORY / "identity" / "config.sample.toml").read_text())
    return {key: {"burst": 0, "refill_secs": value["refill_secs"]} for key, value in sample["limits"].items()}


class Identity:
    """An identity server behind TLS: one process, or several replicas on one database.

    `name` is what clients and homeservers call it (`localhost:PORT`), `url` the same with https. It trusts the run's
    authority, reaches loopback addresses and has no limits. `changes` are merged into the configuration.
    """

    def __init__(self, folder, front, ca, mailbox, database_url=None, replicas=1, changes=None):
        self.front, self.name, self.url = front, front.name, front.url
        self.ca = ca
        settings = {
            "identity": {"server_name": front.name, "public_base_url": front.url},
            "email": mailbox.settings(),
            "outbound": {
                "allowed_ranges": ["127.0.0.0/8"],
                "extra_ca_file": ca.root,
                "hosts": {"localhost": "127.0.0.1"},
            },
            "limits": no_limits(),
        }
        if database_url:
            # Replicas share their keys, so that with PostgreSQL none are made.
            keys = {
                "storage_key_file": self._write(folder / "storage.key", f"hash {random_key()}\nseal 1 {random_key()}\n"),
                "signing_key_file": self._write(folder / "signing.key", f"ed25519 0 {random_key()}\n"),
            }
            settings = merged(settings, {"database": {"url": database_url}, "keys": keys})
        settings = merged(settings, changes or {})
        self.replicas = []
        for number in range(1, replicas + 1):
            own = folder / f"replica-{number}"
            label = f"waypost-identity-{front.port}-{number}"
            data = {"identity": {"data_dir": own / "data"}}
            self.replicas.append(Waypost("waypost-identity", label, own, merged(settings, data)))
        front.upstreams = [replica.public for replica in self.replicas]

    @staticmethod
    def _write(path, text):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o600)
        return path

    def call(self, method, path, token=None, **more):
        """A request below `/_matrix/identity` by https, of the `requests` package; returns its response."""
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        url = f"{self.url}/_matrix/identity{path}"
        return requests.request(method, url, headers=headers, verify=self.ca.root, timeout=60, **more)

    def restart(self):
        """Kills all replicas and starts them again on the same data."""
        for replica in self.replicas:
            replica.restart()
        self.front.upstreams = [replica.public for replica in self.replicas]
        self.front.drop_connections()

    def stop(self):
        for replica in self.replicas:
            replica.stop()
        self.front.close()


class Gateway:
    """A push gateway behind TLS: one process, or several replicas that share what they remember in Redis.

    `apps` are the entries of `[[apps]]`; `url` is what pushers name. Trouble is given back to the homeserver quickly.
    """

    def __init__(self, folder, front, ca, apps, redis_url, replicas=1):
        self.front, self.url = front, front.url
        settings = {
            "outbound": {
                "allowed_ranges": ["127.0.0.0/8"],
                "extra_ca_file": ca.root,
                "hosts": {"localhost": "127.0.0.1"},
            },
            "notify": {"budget_secs": 2, "attempt_timeout_secs": 2},
            "seen": {"redis_url": redis_url, "secret": secrets.token_hex(32)},
            "apps": apps,
        }
        self.replicas = []
        for number in range(1, replicas + 1):
            label = f"waypost-push-gateway-{front.port}-{number}"
            self.replicas.append(Waypost("waypost-push-gateway", label, folder / f"replica-{number}", settings))
        front.upstreams = [replica.public for replica in self.replicas]

    def metric(self, name):
        """The sum of a sample over all replicas; 0 where it is not there."""
        return sum(replica.metric(name) or 0 for replica in self.replicas)

    def stop(self):
        for replica in self.replicas:
            replica.stop()
        self.front.close()
