"""A gateway for text messages that takes JSON and HTTP Basic, as many do."""

import base64
import re

from ..waiting import wait_for
from .service import Answer, Service

USER = "account"
PASSWORD = "a secret: with a colon"


class SmsGateway(Service):
    """`texts_to(number)` are the messages to a number, which begins with a plus."""

    def __init__(self, background, ca):
        self._texts = []
        super().__init__(background, ca)

    def answer(self, request):
        assert (request.method, request.path) == ("POST", "/messages")
        credentials = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        assert request.headers["authorization"] == f"Basic {credentials}"
        body = request.json()
        assert set(body) == {"to", "text"} and re.fullmatch(r"\+[0-9]+", body["to"])
        with self._lock:
            self._texts.append((body["to"], body["text"]))
        return Answer(201, {"status": "queued"})

    def texts_to(self, number):
        with self._lock:
            return [text for to, text in self._texts if to == number]

    def code_for(self, number, count=1):
        """The code in message number `count` to a number, waiting for it."""
        what = f"text message {count} to {number}"
        text = wait_for(what, lambda: self.texts_to(number)[count - 1 : count])[0]
        return re.search(r"\b[0-9]{6}\b", text)[0]

    def settings(self):
        """`[sms]` of an identity server that sends here."""
        return {
            "transport": "http",
            "username": USER,
            "password": PASSWORD,
            "http": {"url": f"{self.url}/messages", "body": '{"to": "{{ to }}", "text": "{{ text }}"}'},
        }
