"""A stand-in for Google: the token endpoint, whose assertions PyJWT verifies, and FCM's HTTP v1."""

import json
import secrets
import time
from dataclasses import dataclass
from urllib.parse import parse_qs

import jwt
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from .devices import Devices
from .service import Answer

PROJECT = "waypost-test"
ACCOUNT = f"push@{PROJECT}.iam.gserviceaccount.com"
KEY_ID = "0123456789abcdef"
SCOPE = "https://www.googleapis.com/auth/firebase.messaging"


@dataclass
class Push:
    """A message that was taken: the registration token of its device, and all of it."""

    device: str
    message: dict

    @property
    def payload(self):
        return self.message["data"]


class Fcm(Devices):
    def __init__(self, background, ca, folder):
        self._key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        self._bearers = set()
        super().__init__(background, ca)
        self._account_file = folder / "service-account.json"
        account = {
            "type": "service_account",
            "project_id": PROJECT,
            "private_key_id": KEY_ID,
            "private_key": self._key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode(),
            "client_email": ACCOUNT,
            "client_id": "1",
            "token_uri": f"{self.url}/token",
        }
        self._account_file.write_text(json.dumps(account))

    def answer(self, request):
        return self._token(request) if request.path == "/token" else super().answer(request)

    def _token(self, request):
        assert request.method == "POST"
        assert request.headers["content-type"].startswith("application/x-www-form-urlencoded")
        form = {name: values[0] for name, values in parse_qs(request.body.decode(), strict_parsing=True).items()}
        assert form["grant_type"] == "urn:ietf:params:oauth:grant-type:jwt-bearer"
        assertion = form["assertion"]
        assert jwt.get_unverified_header(assertion)["alg"] == "RS256"
        claims = jwt.decode(
            assertion,
            self._key.public_key(),
            algorithms=["RS256"],
            audience=f"{self.url}/token",
            issuer=ACCOUNT,
            options={"require": ["iss", "aud", "iat", "exp"]},
        )
        assert claims["scope"] == SCOPE
        assert 0 < claims["exp"] - claims["iat"] <= 3600 and claims["exp"] > time.time()
        bearer = f"ya29.{secrets.token_urlsafe(32)}"
        with self._lock:
            self._bearers.add(bearer)
        return Answer(200, {"access_token": bearer, "expires_in": 3599, "token_type": "Bearer"})

    def read(self, request):
        assert (request.method, request.path) == ("POST", f"/v1/projects/{PROJECT}/messages:send")
        scheme, bearer = request.headers["authorization"].split(" ")
        assert scheme == "Bearer" and bearer in self._bearers
        assert request.headers["content-type"].startswith("application/json")
        message = request.json()["message"]
        data = message["data"]
        assert all(isinstance(value, str) for value in data.values()), "FCM takes texts only"
        assert sum(len(key.encode()) + len(value.encode()) for key, value in data.items()) <= 4096
        return Push(message["token"], message)

    def success(self, push):
        return Answer(200, {"name": f"projects/{PROJECT}/messages/{secrets.token_hex(8)}"})

    @staticmethod
    def _error(status, name, code):
        detail = {"@type": "type.googleapis.com/google.firebase.fcm.v1.FcmError", "errorCode": code}
        return Answer(status, {"error": {"code": status, "message": "…", "status": name, "details": [detail]}})

    def gone(self):
        return self._error(404, "NOT_FOUND", "UNREGISTERED")

    def away(self):
        return self._error(503, "UNAVAILABLE", "UNAVAILABLE")

    def app(self, app_id, content):
        """The entry of `[[apps]]` that goes here."""
        return {
            "id": app_id,
            "content": content,
            "fcm": {
                "project_id": PROJECT,
                "endpoint": self.url,
                "service_account_file": self._account_file,
            },
        }
