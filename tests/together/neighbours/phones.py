"""Devices with an app that has a pusher at Synapse."""

import base64
import secrets

KINDS = ["apns", "fcm", "webpush"]


class Phone:
    """A device of `kind`, one of KINDS: its `pushkey`, what its app puts into the pusher's `data`, and its `device`,
    the name by which the push service knows it."""

    def __init__(self, kind, services, suffix="full"):
        self.kind, self.service, self.app_id = kind, services[kind], f"{kind}.{suffix}"
        if kind == "apns":
            token = secrets.token_bytes(32)
            self.device, self.pushkey, self.data = token.hex(), base64.b64encode(token).decode(), {}
        elif kind == "fcm":
            self.device = self.pushkey = f"fcm:{secrets.token_urlsafe(100)}"
            self.data = {}
        else:
            subscription = self.service.subscribe()
            self.device, self.pushkey = subscription.device, subscription.p256dh
            self.data = {"endpoint": subscription.endpoint, "auth": subscription.auth}

    def log_in(self, user, gateway, data=None):
        """Gives the user a pusher for this device."""
        user.set_pusher(gateway.url, self.app_id, self.pushkey, {**self.data, **(data or {})})

    def wait_for(self, count):
        """The first `count` pushes that arrived, waiting for them."""
        return self.service.wait_for(self.device, count)

    def events(self):
        """The ids of all events that arrived, in order."""
        payloads = [push.payload for push in self.service.pushes_to(self.device)]
        return [payload["event_id"] for payload in payloads if "event_id" in payload]

    def badge(self, push):
        """The number on the app's icon after a push."""
        if self.kind == "apns":
            return push.payload["aps"]["badge"]
        return int(push.payload["unread"])
