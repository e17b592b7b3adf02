"""A person with an account on Synapse and one at an identity server, doing what clients and people do."""

import base64
import hashlib
import secrets
from html.parser import HTMLParser
from urllib.parse import parse_qs, urljoin, urlsplit

import requests


class _Forms(HTMLParser):
    """The forms of a page: (method, action, fields, has a button)."""

    def __init__(self):
        super().__init__()
        self.forms = []

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if tag == "form":
            self.forms.append([attrs.get("method", "get").upper(), attrs.get("action", ""), {}, False])
        elif self.forms and tag == "input" and "name" in attrs:
            self.forms[-1][2][attrs["name"]] = attrs.get("value", "")
        elif self.forms and tag == "button":
            self.forms[-1][3] = attrs.get("type", "submit") == "submit"


def open_page(url, ca):
    """Opens a link as a browser does; the response."""
    return requests.get(url, headers={"Accept": "text/html"}, verify=ca.root, timeout=60)


def press_button(page, ca):
    """Sends the one form of a page as its button does; the response."""
    parser = _Forms()
    parser.feed(page.text)
    assert len(parser.forms) == 1, page.text
    method, action, fields, button = parser.forms[0]
    assert method == "POST" and button, page.text
    return requests.post(urljoin(page.url, action), data=fields, verify=ca.root, timeout=60)


def lookup_hash(address, medium, pepper):
    """The hash of an address. Source: Identity Service API, "Association lookup"."""
    digest = hashlib.sha256(f"{address} {medium} {pepper}".encode()).digest()
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


class Person:
    """`user` of Synapse, registered at `identity` by an OpenID token; `token` is its access token there."""

    def __init__(self, user, identity, mailbox):
        self.user, self.identity, self.mailbox = user, identity, mailbox
        answer = identity.call("POST", "/v2/account/register", json=user.openid_token())
        assert answer.status_code == 200, answer.text
        self.token = answer.json()["token"]

    def call(self, method, path, **more):
        """A request to the identity server as this person, which has to succeed; the body of its answer."""
        answer = self.identity.call(method, f"/v2{path}", self.token, **more)
        assert answer.status_code == 200, f"{method} {path}: {answer.status_code} {answer.text}"
        return answer.json()

    def prove(self, email):
        """Proves an address by the mail that arrives, pressing the button on its page; (sid, client_secret)."""
        client_secret = secrets.token_hex(16)
        seen = len(self.mailbox.to(email))
        body = {"client_secret": client_secret, "email": email, "send_attempt": 1}
        sid = self.call("POST", "/validate/email/requestToken", json=body)["sid"]
        link = self.mailbox.wait_for(email, seen + 1).link
        assert link.startswith(f"{self.identity.url}/"), link
        assert parse_qs(urlsplit(link).query)["sid"] == [sid]
        page = open_page(link, self.identity.ca)
        assert page.status_code == 200, page.text
        done = press_button(page, self.identity.ca)
        assert done.status_code == 200, done.text
        return sid, client_secret

    def bind(self, email):
        """Proves an address and publishes it as this person's, at the identity server itself; the association."""
        sid, client_secret = self.prove(email)
        body = {"sid": sid, "client_secret": client_secret, "mxid": self.user.user_id}
        return self.call("POST", "/3pid/bind", json=body)

    def lookup(self, *addresses, medium="email"):
        """Who the addresses belong to, by hash: a dict from address to user id; unknown ones are not in it."""
        details = self.call("GET", "/hash_details")
        pepper = details["lookup_pepper"]
        assert "sha256" in details["algorithms"]
        hashes = {lookup_hash(address, medium, pepper): address for address in addresses}
        body = {"addresses": list(hashes), "algorithm": "sha256", "pepper": pepper}
        mappings = self.call("POST", "/lookup", json=body)["mappings"]
        return {hashes[key]: user_id for key, user_id in mappings.items()}
