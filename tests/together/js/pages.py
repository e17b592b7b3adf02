"""Opening sessions and invites without an account, and looking at what people then see."""

import secrets
from pathlib import Path

from neighbours.settings import merged, toml
from neighbours.waiting import wait_for

# The older API is asked, which needs no account: here only the pages count.
OPEN = {"v1": {"mode": "full", "allow": ["127.0.0.0/8"]}}


class Session:
    """A validation session at `identity`; `link` is what leads to its page."""

    def __init__(self, identity, mailbox, lang="en", email=None, next_link=None):
        self.identity = identity
        self.address = email or f"{secrets.token_hex(4)}.smith@example.com"
        self.client_secret = secrets.token_hex(16)
        seen = len(mailbox.to(self.address))
        body = {
            "client_secret": self.client_secret,
            "email": self.address,
            "send_attempt": 1,
            "lang": lang,
            **({"next_link": next_link} if next_link else {}),
        }
        answer = identity.call("POST", "/api/v1/validate/email/requestToken", json=body)
        assert answer.status_code == 200, answer.text
        self.sid = answer.json()["sid"]
        self.mail = mailbox.wait_for(self.address, seen + 1)
        self.link = self.mail.link
        assert f"sid={self.sid}" in self.link

    @property
    def state(self):
        """What the server says of it: "validated", or the error's code."""
        path = f"/api/v1/3pid/getValidated3pid?sid={self.sid}&client_secret={self.client_secret}"
        answer = self.identity.call("GET", path).json()
        return answer.get("errcode", "validated")

    def wrong_link(self):
        """The link with a token that is not its own."""
        before, _, after = self.link.partition("token=")
        return f"{before}token=wrong&{after.partition('&')[2]}"

    def submit_wrong(self):
        """Submits a wrong token as the page's button does."""
        form = {"sid": self.sid, "client_secret": self.client_secret, "token": "wrong"}
        return self.identity.call("POST", "/v2/validate/email/submitToken", data=form)


class TextSession:
    """A validation session for a phone number. Its `link` is made as clients make it, from the code."""

    def __init__(self, identity, sms_gateway, number, lang="en"):
        self.identity = identity
        self.client_secret = secrets.token_hex(16)
        seen = len(sms_gateway.to(number))
        body = {
            "client_secret": self.client_secret,
            "phone_number": number,
            "country": "",
            "send_attempt": 1,
            "lang": lang,
        }
        answer = identity.call("POST", "/api/v1/validate/msisdn/requestToken", json=body)
        assert answer.status_code == 200, answer.text
        self.sid, self.lang = answer.json()["sid"], lang
        self.message = sms_gateway.wait_for(number, seen + 1)
        self.link = self.link_with(self.message["code"])

    def link_with(self, code):
        path = f"{self.identity.url}/_matrix/identity/v2/validate/msisdn/submitToken"
        return f"{path}?token={code}&client_secret={self.client_secret}&sid={self.sid}&lang={self.lang}"


def invite(identity, mailbox, lang="en", **texts):
    """Invites a new address; the mail that arrives."""
    address = f"{secrets.token_hex(4)}@example.com"
    body = {
        "medium": "email",
        "address": address,
        "room_id": "!WvUWVjzTAzhwUjVIvC:example.com",
        "sender": "@alice:example.com",
        **texts,
    }
    answer = identity.call("POST", f"/api/v1/store-invite?lang={lang}", json=body)
    assert answer.status_code == 200, answer.text
    return mailbox.wait_for(address)


class Eyes:
    """Looks at one page after the other in a browser, and finds fault with each.

    Whatever a page may not do is remembered; [`Eyes.close`] fails with all of it.
    """

    def __init__(self, browser, folder: Path):
        self._browser, self._folder = browser, folder
        self._origins, self._wrong = set(), []

    def open(self, url, allowed=(), **options):
        """Opens a page in a fresh browser profile. It may ask its own origin and the `allowed` ones for something."""
        self.close()
        self._origins = {_origin(url), *allowed}
        return self._browser.ask("open", url=url, **options)

    def show(self, html):
        """Shows a mail, from an origin of its own."""
        self.close()
        self._origins = {self._browser.ask("origin")}
        return self._browser.ask("open", html=html)

    def click(self, selector):
        return self._browser.ask("click", selector=selector)

    def press(self, key):
        return self._browser.ask("press", key=key)

    def press_and_follow(self, key):
        return self._browser.ask("pressAndFollow", key=key)

    def look(self):
        """The page as it is now, which changes by itself."""
        return self._browser.ask("look")

    def wait_for(self, what, fits):
        """Looks at the page until `fits(page)` is truthy; the page."""
        return wait_for(what, lambda: (page := self.look()) and fits(page) and page)

    def picture(self, name, widths=(360, 1100)):
        """Takes pictures at two widths, light and dark; axe-core and a ruler must find nothing wrong."""
        wrong = self._browser.ask("pictures", folder=str(self._folder), name=name, widths=widths)
        assert wrong == [], "\n".join(wrong)
        for width in widths:
            for scheme in ("light", "dark"):
                assert (self._folder / f"{name}-{width}-{scheme}.png").stat().st_size > 2000

    def close(self, expected=None):
        """Closes the page. It must have said nothing to the console but `expected`, and asked no other origin."""
        seen = self._browser.ask("close")
        if seen:
            said = [line for line in seen["console"] if expected is None or expected not in line["text"]]
            assert said == [], said
            asked = {_origin(request["url"]) for request in seen["requests"]}
            assert asked and asked <= self._origins, seen["requests"]


def _origin(url):
    return "/".join(url.split("/")[:3])


def wait_until_expired(session):
    """Waits for the end of a session whose life is a second."""
    wait_for("the session to expire", lambda: session.state == "M_SESSION_EXPIRED")


def with_open_v1(changes):
    """The configuration of an identity server whose sessions and invites need no account."""
    return merged(OPEN, changes)


def restart_with(identity, changes):
    """Starts the one replica again on the same data, with other settings."""
    (replica,) = identity.replicas
    replica.settings = merged(replica.settings, changes)
    replica._config.write_text(toml(replica.settings))
    replica.restart()
    identity.front.upstreams = [replica.public]
