"""A stand-in for Apple: HTTP/2, provider tokens that PyJWT verifies, and answers by device."""

import re
import time
import uuid
from dataclasses import dataclass

import jwt
from cryptography.hazmat.primitives.asymmetric import ec

from ..ca import write_private_key
from .devices import Devices
from .service import Answer

TOPIC = "org.example.app"
TEAM_ID = "DEF123GHIJ"
KEY_ID = "ABC123DEFG"


@dataclass
class Push:
    """A push that was taken: the device's token in hexadecimal, headers, and the payload."""

    device: str
    headers: dict
    payload: dict


class Apns(Devices):
    def __init__(self, background, ca, folder):
        key = ec.generate_private_key(ec.SECP256R1())
        self._public_key = key.public_key()
        self._key_file = write_private_key(folder / "apns.p8", key)
        super().__init__(background, ca)

    def read(self, request):
        assert request.version == "2", "Apple speaks HTTP/2 only"
        assert request.method == "POST"
        device = re.fullmatch(r"/3/device/([0-9a-f]{64})", request.path)[1]
        self._verify(request.headers["authorization"])
        assert request.headers["apns-topic"] == TOPIC
        assert request.headers["apns-push-type"] in ("alert", "background")
        assert request.headers["apns-priority"] in ("5", "10")
        uuid.UUID(request.headers["apns-id"])
        assert len(request.body) <= 4096
        return Push(device, request.headers, request.json())

    def _verify(self, authorization):
        scheme, token = authorization.split(" ")
        assert scheme.lower() == "bearer"
        header = jwt.get_unverified_header(token)
        assert (header["alg"], header["kid"]) == ("ES256", KEY_ID)
        options = {"require": ["iss", "iat"]}
        claims = jwt.decode(token, self._public_key, algorithms=["ES256"], issuer=TEAM_ID, options=options)
        assert 0 <= time.time() - claims["iat"] < 3600

    def success(self, push):
        return Answer(200, headers={"apns-id": push.headers["apns-id"]})

    def gone(self):
        return Answer(410, {"reason": "Unregistered", "timestamp": int(time.time() * 1000)})

    def away(self):
        return Answer(503, {"reason": "ServiceUnavailable"})

    def app(self, app_id, content):
        """The entry of `[[apps]]` that goes here."""
        return {
            "id": app_id,
            "content": content,
            "apns": {
                "topic": TOPIC,
                "endpoint": self.url,
                "key_file": self._key_file,
                "key_id": KEY_ID,
                "team_id": TEAM_ID,
            },
        }
