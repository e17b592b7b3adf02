"""A browser vendor's push service and the browsers behind it: http-ece decrypts, py-vapid and PyJWT verify."""

import base64
import json
import re
import secrets
import time
from dataclasses import dataclass

import http_ece
import jwt
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from py_vapid import Vapid02

from ..ca import write_private_key
from .devices import Devices
from .service import Answer

CONTACT = "ops@example.com"


def encoded(data):
    """URL-safe base64 without padding."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def raw_public_key(key):
    """The uncompressed point of a public key, 65 bytes."""
    return key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)


class Subscription:
    """A browser's subscription: `endpoint`, `p256dh` (the pushkey) and `auth`, as it gives them to a web app."""

    def __init__(self, origin):
        self.device = secrets.token_urlsafe(16)
        self.endpoint = f"{origin}/push/{self.device}"
        self.private_key = ec.generate_private_key(ec.SECP256R1())
        self.secret = secrets.token_bytes(16)
        self.p256dh = encoded(raw_public_key(self.private_key.public_key()))
        self.auth = encoded(self.secret)


@dataclass
class Push:
    """A push that was taken: its device, headers, and what the browser decrypted."""

    device: str
    headers: dict
    payload: dict


class WebPush(Devices):
    def __init__(self, background, ca, folder):
        key = ec.generate_private_key(ec.SECP256R1())
        self._public_key = key.public_key()
        self._key_file = write_private_key(folder / "vapid.pem", key)
        self._subscriptions = {}
        super().__init__(background, ca)

    def subscribe(self):
        subscription = Subscription(self.url)
        with self._lock:
            self._subscriptions[subscription.device] = subscription
        return subscription

    def read(self, request):
        assert request.method == "POST"
        subscription = self._subscriptions[re.fullmatch(r"/push/([\w-]+)", request.path)[1]]
        self._verify(request.headers["authorization"])
        assert int(request.headers["ttl"]) >= 0
        assert request.headers["urgency"] in ("very-low", "low", "normal", "high")
        assert request.headers["content-encoding"] == "aes128gcm"
        assert len(request.body) <= 4096
        clear = http_ece.decrypt(
            request.body,
            private_key=subscription.private_key,
            auth_secret=subscription.secret,
            version="aes128gcm",
        )
        return Push(subscription.device, request.headers, json.loads(clear))

    def _verify(self, authorization):
        # py-vapid takes no space after the comma, which RFC 8292's own example has.
        assert Vapid02.verify(re.sub(r",\s+", ",", authorization))
        parameters = dict(re.findall(r"(\w)=([^,\s]+)", authorization))
        assert parameters["k"] == encoded(raw_public_key(self._public_key))
        claims = jwt.decode(
            parameters["t"], self._public_key, algorithms=["ES256"], audience=self.url, options={"require": ["exp"]}
        )
        assert claims["exp"] <= time.time() + 24 * 3600
        assert claims["sub"] == f"mailto:{CONTACT}"

    def success(self, push):
        return Answer(201, headers={"location": f"{self.url}/message/{secrets.token_hex(8)}"})

    def gone(self):
        return Answer(410)

    def away(self):
        return Answer(503)

    def app(self, app_id, content):
        """The entry of `[[apps]]` that goes here."""
        return {
            "id": app_id,
            "content": content,
            "webpush": {
                "vapid_key_file": self._key_file,
                "vapid_contact": CONTACT,
                "allowed_endpoints": ["localhost"],
            },
        }
