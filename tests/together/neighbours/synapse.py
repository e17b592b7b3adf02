"""Synapse, the homeserver, behind TLS; and its users."""

import hashlib
import hmac
import itertools
import json
import os
import secrets
import urllib.parse
from pathlib import Path

import requests

from .processes import Program, free_port
from .settings import merged
from .waiting import wait_for

PYTHON_VARIABLE = "WAYPOST_SYNAPSE_PYTHON"
PASSWORD = "correct horse battery staple"

# Synapse has each of these limits in this shape; tests are faster than people.
_NO_LIMIT = {"per_second": 10000, "burst_count": 10000}
_LIMITS = {
    "rc_message": _NO_LIMIT,
    "rc_registration": _NO_LIMIT,
    "rc_admin_redaction": _NO_LIMIT,
    "rc_3pid_validation": _NO_LIMIT,
    "rc_third_party_invite": _NO_LIMIT,
    "rc_login": {"address": _NO_LIMIT, "account": _NO_LIMIT, "failed_attempts": _NO_LIMIT},
    "rc_joins": {"local": _NO_LIMIT, "remote": _NO_LIMIT},
    "rc_invites": {"per_room": _NO_LIMIT, "per_user": _NO_LIMIT, "per_issuer": _NO_LIMIT},
}

_LOG = {
    "version": 1,
    "formatters": {"line": {"format": "%(asctime)s %(levelname)s %(name)s: %(message)s"}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
    "root": {"level": "INFO", "handlers": ["stderr"]},
    "loggers": {"synapse.storage.background_updates": {"level": "WARNING"}},
    "disable_existing_loggers": False,
}


def escaped(text):
    """A Matrix id as one part of a path."""
    return urllib.parse.quote(text, safe="")


class Synapse:
    """`name` is its server name (`localhost:PORT`, which needs no .well-known), `url` its address, with TLS.

    `changes` are merged into its configuration.
    """

    def __init__(self, folder: Path, front, ca, changes=None):
        python = os.environ.get(PYTHON_VARIABLE)
        assert python, f"{PYTHON_VARIABLE} is not set; tests/together/run installs Synapse and sets it"
        self.front, self.ca, self.name, self.url = front, ca, front.name, front.url
        self._shared_secret = secrets.token_hex(16)
        self._numbers = itertools.count(1)
        port = free_port()
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "log.yaml").write_text(json.dumps(_LOG))
        config = {
            "server_name": self.name,
            "public_baseurl": f"{self.url}/",
            "pid_file": str(folder / "synapse.pid"),
            "listeners": [
                {
                    "port": port,
                    "type": "http",
                    "tls": False,
                    "bind_addresses": ["127.0.0.1"],
                    "resources": [{"names": ["client", "federation"]}],
                }
            ],
            "database": {"name": "sqlite3", "args": {"database": str(folder / "homeserver.db")}},
            "log_config": str(folder / "log.yaml"),
            "media_store_path": str(folder / "media"),
            "signing_key_path": str(folder / "signing.key"),
            "registration_shared_secret": self._shared_secret,
            "macaroon_secret_key": secrets.token_hex(16),
            "form_secret": secrets.token_hex(16),
            "enable_registration": True,
            "enable_registration_without_verification": True,
            "report_stats": False,
            "trusted_key_servers": [],
            "suppress_key_server_warning": True,
            "ip_range_whitelist": ["127.0.0.0/8", "::1/128"],
            "presence": {"enabled": False},
            # Then a badge counts messages, and rises with each.
            "push": {"group_unread_count_by_room": False},
            # So that an account needs its password for few things again.
            "ui_auth": {"session_timeout": "10m"},
            **_LIMITS,
        }
        # JSON is YAML.
        (folder / "homeserver.yaml").write_text(json.dumps(merged(config, changes or {}), indent=1))
        # Its calls to identity servers and push gateways trust what this names, and nothing else.
        environment = {"SSL_CERT_FILE": str(ca.root), "PYTHONUNBUFFERED": "1"}
        common = [python, "-m", "synapse.app.homeserver", "--config-path", folder / "homeserver.yaml"]
        keys = Program("synapse-keys", [*common, "--generate-keys"], folder, environment)
        code = keys.process.wait(120)
        assert code == 0, keys.tail()
        keys.kill()
        self.program = Program("synapse", common, folder, environment)
        front.upstreams = [("127.0.0.1", port)]
        self.program.wait_until(self._answers, 120)

    def _answers(self):
        try:
            return requests.get(f"{self.url}/health", verify=self.ca.root, timeout=5).status_code == 200
        except requests.RequestException:
            return False

    @property
    def version(self):
        """Its version, as it says itself."""
        answer = requests.get(f"{self.url}/_matrix/federation/v1/version", verify=self.ca.root, timeout=30)
        return answer.json()["server"]["version"]

    def user(self, prefix="user"):
        """A new user, whose name begins with `prefix`."""
        localpart = f"{prefix}{next(self._numbers)}"
        path = f"{self.url}/_synapse/admin/v1/register"
        nonce = requests.get(path, verify=self.ca.root, timeout=30).json()["nonce"]
        text = b"\0".join(part.encode() for part in (nonce, localpart, PASSWORD, "notadmin"))
        body = {
            "nonce": nonce,
            "username": localpart,
            "displayname": localpart.capitalize(),
            "password": PASSWORD,
            "admin": False,
            "mac": hmac.new(self._shared_secret.encode(), text, hashlib.sha1).hexdigest(),
        }
        answer = requests.post(path, json=body, verify=self.ca.root, timeout=60)
        assert answer.status_code == 200, answer.text
        return User(self, answer.json()["user_id"], answer.json()["access_token"])

    def stranger(self):
        """Somebody who has no account yet."""
        return User(self, None, None)

    def stop(self):
        self.program.kill()
        self.front.close()


class User:
    """A user of Synapse with an access token; both are None for somebody who has no account yet."""

    password = PASSWORD

    def __init__(self, synapse, user_id, token):
        self.synapse, self.user_id, self.token = synapse, user_id, token
        self._transactions = itertools.count(1)
        self._since = None
        # The state events of each room that /sync said the user is invited to.
        self.invites = {}

    def request(self, method, path, body=None, **more):
        """A request below `/_matrix/client`; the response, whatever its status."""
        url = f"{self.synapse.url}/_matrix/client{path}"
        headers = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        if body is None and method != "GET":
            body = {}
        return requests.request(
            method, url, json=body, headers=headers, verify=self.synapse.ca.root, timeout=90, **more
        )

    def call(self, method, path, body=None, **more):
        """The same, which has to succeed; the body of its answer."""
        answer = self.request(method, path, body, **more)
        assert answer.status_code == 200, f"{method} {path}: {answer.status_code} {answer.text}"
        return answer.json()

    def with_password(self, method, path, body):
        """A request for which the user has to give the password again (user-interactive authentication)."""
        first = self.request(method, path, body)
        if first.status_code != 401:
            assert first.status_code == 200, first.text
            return first.json()
        auth = {
            "type": "m.login.password",
            "identifier": {"type": "m.id.user", "user": self.user_id},
            "password": self.password,
            "session": first.json()["session"],
        }
        return self.call(method, path, {**body, "auth": auth})

    def openid_token(self):
        """An OpenID token, as it is passed to an identity server."""
        return self.call("POST", f"/v3/user/{escaped(self.user_id)}/openid/request_token")

    def create_room(self, **options):
        """A new room; its id."""
        return self.call("POST", "/v3/createRoom", {"preset": "private_chat", **options})["room_id"]

    def invite(self, room_id, other):
        """Invites another user."""
        self.call("POST", f"/v3/rooms/{escaped(room_id)}/invite", {"user_id": other.user_id})

    def invite_address(self, room_id, email, identity, token):
        """Invites whoever has `email`, by an identity server and a token of this user for it."""
        body = {"id_server": identity.name, "id_access_token": token, "medium": "email", "address": email}
        return self.call("POST", f"/v3/rooms/{escaped(room_id)}/invite", body)

    def join(self, room_id, body=None, **more):
        return self.call("POST", f"/v3/rooms/{escaped(room_id)}/join", body, **more)

    def send(self, room_id, text, **content):
        """Sends a message; its event id."""
        path = f"/v3/rooms/{escaped(room_id)}/send/m.room.message/t{next(self._transactions)}"
        return self.call("PUT", path, {"msgtype": "m.text", "body": text, **content})["event_id"]

    def read_up_to(self, room_id, event_id):
        """Says that everything up to the event was read."""
        self.call("POST", f"/v3/rooms/{escaped(room_id)}/receipt/m.read/{escaped(event_id)}")

    def sync(self):
        """What is new since the last call, waiting a second for it at the most, as clients do; adds to `invites`."""
        parameters = {"timeout": 1000, "since": self._since}
        answer = self.call("GET", "/v3/sync", params={key: value for key, value in parameters.items() if value})
        self._since = answer["next_batch"]
        rooms = answer.get("rooms", {})
        for room_id, invite in rooms.get("invite", {}).items():
            self.invites[room_id] = invite["invite_state"]["events"]
        return answer

    def wait_for_invite(self, room_id):
        """Waits until the invite to a room shows in /sync; its state events."""

        def ask():
            self.sync()
            return self.invites.get(room_id)

        return wait_for(f"the invite of {self.user_id} to {room_id} in /sync", ask)

    def members(self, room_id):
        """Who is in the room, by user id: `join`, `invite`, ..."""
        chunk = self.call("GET", f"/v3/rooms/{escaped(room_id)}/members")["chunk"]
        return {event["state_key"]: event["content"]["membership"] for event in chunk}

    def state(self, room_id, kind):
        """The state events of one type in the room, by state key: their contents."""
        events = self.call("GET", f"/v3/rooms/{escaped(room_id)}/state")
        return {event["state_key"]: event["content"] for event in events if event["type"] == kind}

    def pushers(self):
        return self.call("GET", "/v3/pushers")["pushers"]

    def set_pusher(self, gateway_url, app_id, pushkey, data=None):
        """Adds an HTTP pusher that goes to a gateway."""
        body = {
            "kind": "http",
            "app_id": app_id,
            "pushkey": pushkey,
            "app_display_name": "Test",
            "device_display_name": "Phone",
            "lang": "en",
            "append": True,
            "data": {"url": f"{gateway_url}/_matrix/push/v1/notify", **(data or {})},
        }
        self.call("POST", "/v3/pushers/set", body)
