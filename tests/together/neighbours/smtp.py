"""aiosmtpd as the mail server of an operator: it wants STARTTLS and a password, and keeps what it gets."""

import asyncio
import email
import email.policy
import re
import threading
from dataclasses import dataclass
from html.parser import HTMLParser

from aiosmtpd.smtp import SMTP, AuthResult, LoginPassword

from .waiting import wait_for

USER = "waypost"
PASSWORD = "a password, with spaces"


class _Hrefs(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attrs):
        if tag == "a":
            self.found += [value for key, value in attrs if key == "href"]


@dataclass
class Mail:
    """A mail as it was taken: the envelope, whether it came through TLS and by whom, and the parsed message."""

    sender: str
    recipients: list
    encrypted: bool
    login: str
    raw: bytes
    message: email.message.EmailMessage

    @property
    def text(self):
        """The text part."""
        return self.message.get_body(("plain",)).get_content()

    @property
    def html(self):
        """The HTML part."""
        return self.message.get_body(("html",)).get_content()

    @property
    def link(self):
        """The one link of the mail, from its text; the HTML part has to lead to the same place."""
        links = set(re.findall(r"https?://\S+", self.text))
        hrefs = _Hrefs()
        hrefs.feed(self.html)
        assert len(links) == 1 and set(hrefs.found) == links, (links, hrefs.found)
        return links.pop()


class Mailbox:
    """All mails that the mail server has taken, in order.

    Without a certificate authority it speaks no TLS, and takes mails from everybody.
    """

    def __init__(self, background, ca):
        self._background = background
        self._context = ca and ca.server_context()
        self._lock = threading.Lock()
        self._mails = []
        # How often somebody tried to log in.
        self.logins = 0
        self.port = 0
        self.start()

    def start(self):
        """Listens, on the port that it had before."""
        self._server = self._background.run(self._listen())
        self.port = self._server.sockets[0].getsockname()[1]

    async def _listen(self):
        return await asyncio.get_running_loop().create_server(self._connection, "127.0.0.1", self.port)

    def _connection(self):
        secure = self._context is not None
        return SMTP(
            self,
            hostname="localhost",
            tls_context=self._context,
            require_starttls=secure,
            auth_required=secure,
            auth_require_tls=secure,
            authenticator=self._authenticate,
            enable_SMTPUTF8=True,
            loop=asyncio.get_running_loop(),
        )

    def _authenticate(self, server, session, envelope, mechanism, data):
        self.logins += 1
        good = isinstance(data, LoginPassword) and (data.login, data.password) == (USER.encode(), PASSWORD.encode())
        # Not handled: the server has yet to say so.
        return AuthResult(success=good, handled=False, auth_data=USER if good else None)

    async def handle_DATA(self, server, session, envelope):
        raw = envelope.content
        mail = Mail(
            sender=envelope.mail_from,
            recipients=envelope.rcpt_tos,
            encrypted=session.ssl is not None,
            login=session.auth_data,
            raw=raw,
            message=email.message_from_bytes(raw, policy=email.policy.default),
        )
        with self._lock:
            self._mails.append(mail)
        return "250 taken"

    def to(self, address):
        """All mails to `address` so far; its case does not matter."""
        with self._lock:
            mails = list(self._mails)
        return [mail for mail in mails if address.casefold() in (other.casefold() for other in mail.recipients)]

    def wait_for(self, address, count=1):
        """The mail number `count` to `address`, waiting for it."""
        return wait_for(f"mail {count} to {address}", lambda: self.to(address)[count - 1 : count])[0]

    def settings(self):
        """The keys of `[email]` that lead here."""
        return {
            "transport": "smtp",
            "from": "Waypost <noreply@id.example>",
            "smtp_host": "localhost",
            "smtp_port": self.port,
            "smtp_tls": "starttls",
            "smtp_username": USER,
            "smtp_password": PASSWORD,
        }

    def stop(self):
        """Refuses new connections until `start`."""
        self._background.run(self._close())

    async def _close(self):
        self._server.close()
