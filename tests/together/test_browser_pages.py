"""The pages behind links, in Debian's Chromium: pressed, read, measured, and looked at by axe-core."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from js.pages import Eyes, Session, TextSession, restart_with, wait_until_expired, with_open_v1
from neighbours.waypost import no_limits

POLICY = """# Privacy policy

This server keeps **as little as it can**. It belongs to [Example Ltd](https://example.com/about).

## What is kept

- your address, sealed
- your Matrix id

| what | how long |
|---|---|
| addresses | until you remove them |
| invitations | 180 days, or until the address is bound, whichever comes first; then nothing of them is left |

| what | where it stands |
|---|---|
| the key that addresses are sealed with | `/var/lib/waypost-identity/data/keys/storage.key-of-the-first-server` |

## A long line

```
waypost-identity --config /etc/waypost/waypost-identity.toml association erase --medium email alice@example.com
```

averyveryverylongwordthatnobodywouldeverwritebutthatmustnotmakethepagewiderthanthescreenofatelephone
"""

WORDS = {
    "en": {
        "confirm": "Confirm your email address",
        "confirm number": "Confirm your phone number",
        "button": "Confirm",
        "done": "Thank you, your email address is confirmed",
        "done number": "Thank you, your phone number is confirmed",
        "expired": "This link has expired",
        "failed": "This link doesn't work",
        "too often": "Wait a while",
        "missing": "Document not found",
    },
    "de": {
        "confirm": "Bestätigen Sie Ihre E-Mail-Adresse",
        "confirm number": "Bestätigen Sie Ihre Telefonnummer",
        "button": "Bestätigen",
        "done": "Danke, Ihre E-Mail-Adresse ist bestätigt",
        "done number": "Danke, Ihre Telefonnummer ist bestätigt",
        "expired": "Dieser Link ist abgelaufen",
        "failed": "Dieser Link funktioniert nicht",
        "too often": "Warten Sie eine Weile",
        "missing": "Dokument nicht gefunden",
    },
}

in_both_languages = pytest.mark.parametrize("lang", ["en", "de"])


@pytest.fixture(scope="module")
def identity(new_identity, sms_gateway, folder):
    policies = {}
    for lang, name in [("en", "Privacy policy"), ("de", "Datenschutz")]:
        file = folder / f"privacy.{lang}.md"
        file.write_text(POLICY.replace("Privacy policy", name))
        policies[lang] = {"name": name, "file": file}
    changes = {
        "sms": sms_gateway.settings(),
        "validation": {"max_attempts": 2},
        "terms": {"policies": {"privacy": {"version": "1.0", "languages": policies}}},
    }
    return new_identity(changes=with_open_v1(changes))


@pytest.fixture
def eyes(browser, pictures):
    eyes = Eyes(browser, pictures)
    yield eyes
    eyes.close()


@in_both_languages
def test_the_page_confirms_by_a_click_and_not_before(lang, identity, mailbox, eyes):
    words, session = WORDS[lang], Session(identity, mailbox, lang)

    page = eyes.open(session.link)
    assert (page["status"], page["heading"], page["lang"]) == (200, words["confirm"], lang)
    assert session.address in page["text"] and page["scripts"] == 0
    eyes.picture(f"confirm-{lang}")
    assert session.state == "M_SESSION_NOT_VALIDATED"

    done = eyes.click("button")
    assert (done["status"], done["heading"], done["lang"]) == (200, words["done"], lang)
    assert done["url"] == f"{identity.url}/_matrix/identity/v2/validate/email/submitToken"
    eyes.picture(f"done-{lang}")
    assert session.state == "validated"

    # Who opens the link once more, or presses twice, is not told that something is wrong.
    assert eyes.open(session.link)["heading"] == words["confirm"]
    assert eyes.click("button")["heading"] == words["done"]


@in_both_languages
def test_the_page_confirms_by_keyboard_alone(lang, identity, mailbox, eyes):
    words, session = WORDS[lang], Session(identity, mailbox, lang)
    eyes.open(session.link)

    there = eyes.press("Tab")
    assert there["focused"] == words["button"] and there["focusIsVisible"]
    eyes.picture(f"confirm-focused-{lang}")
    done = eyes.press_and_follow("Enter")

    assert done["heading"] == words["done"]
    assert session.state == "validated"


def test_the_page_speaks_the_readers_language_where_the_link_names_none(identity, mailbox, eyes):
    link = Session(identity, mailbox).link.replace("&lang=en", "")
    assert "lang" not in link
    assert eyes.open(link, locale="de-AT")["heading"] == WORDS["de"]["confirm"]
    assert eyes.open(link, locale="fr-FR")["heading"] == WORDS["en"]["confirm"]
    # And the next page too, which has the language from this one.
    eyes.open(link, locale="de-AT")
    assert eyes.click("button")["heading"] == WORDS["de"]["done"]


@in_both_languages
def test_a_long_address_fits(lang, identity, mailbox, eyes):
    email = "maximiliane.hubertina.von-und-zu-oberwiesenthal-unterfranken@" + "very-long-label." * 5 + "example.com"
    page = eyes.open(Session(identity, mailbox, lang, email).link)
    assert email in page["text"] and page["heading"] == WORDS[lang]["confirm"]
    eyes.picture(f"confirm-long-{lang}")


@pytest.fixture
def app():
    """A web app on another origin, where `next_link` leads; its URL and the requests that came."""
    came = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            came.append((self.path, self.headers["Referer"]))
            body = b"<!doctype html><link rel=icon href=data:,><title>app</title><h1>Welcome back</h1>"
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}", came
    server.shutdown()
    server.server_close()


def test_next_link_is_followed_while_it_is_allowed(app, new_identity, mailbox, eyes):
    url, came = app
    allow = with_open_v1({"validation": {"next_link_allowed": [f"{url}/done/*"]}})
    identity = new_identity(changes=allow)
    session = Session(identity, mailbox, next_link=f"{url}/done/now?step=2#here")

    # `form-action` of the page's policy holds for the redirect too: the browser would block one that it does not name.
    assert eyes.open(session.link, allowed=[url])["heading"] == WORDS["en"]["confirm"]
    app_page = eyes.click("button")
    assert (app_page["url"], app_page["heading"]) == (f"{url}/done/now?step=2#here", "Welcome back")
    # The app does not learn the token that stood in the page's address.
    assert app_page["referrer"] == "" and came == [("/done/now?step=2", None)]
    assert session.state == "validated"

    # The same session, and an operator who has thought better of it.
    restart_with(identity, {"validation": {"next_link_allowed": []}})
    eyes.open(session.link)
    assert eyes.click("button")["heading"] == WORDS["en"]["done"]
    assert len(came) == 1


def test_next_link_is_not_taken_where_it_is_not_allowed(identity):
    body = {
        "client_secret": "monkeys",
        "email": "a@example.com",
        "send_attempt": 1,
        "next_link": "https://evil.example/",
    }
    answer = identity.call("POST", "/api/v1/validate/email/requestToken", json=body)
    assert (answer.status_code, answer.json()["errcode"]) == (400, "M_INVALID_PARAM")


def test_with_confirm_link_opening_the_link_is_enough(new_identity, mailbox, eyes):
    identity = new_identity(changes=with_open_v1({"validation": {"confirm": "link"}}))
    session = Session(identity, mailbox)
    assert eyes.open(session.link)["heading"] == WORDS["en"]["done"]
    assert session.state == "validated"


@in_both_languages
def test_an_expired_link_says_what_to_do(lang, new_identity, mailbox, eyes):
    identity = new_identity(changes=with_open_v1({"validation": {"session_lifetime_secs": 1}}))
    session = Session(identity, mailbox, lang)
    wait_until_expired(session)
    page = eyes.open(session.link)
    assert (page["status"], page["heading"], page["lang"]) == (400, WORDS[lang]["expired"], lang)
    assert "1 hours" not in page["text"] and "1 Stunden" not in page["text"]
    eyes.picture(f"expired-{lang}")


@in_both_languages
def test_a_wrong_link_says_what_to_do_and_too_many_close_the_session(lang, identity, mailbox, eyes):
    words, session = WORDS[lang], Session(identity, mailbox, lang)
    # The page of a link does not say whether its token is right; the button does.
    assert eyes.open(session.wrong_link())["heading"] == words["confirm"]
    failed = eyes.click("button")
    assert (failed["status"], failed["heading"], failed["lang"]) == (400, words["failed"], lang)
    eyes.picture(f"failed-{lang}")

    assert session.submit_wrong().status_code == 400
    page = eyes.open(session.link)
    assert (page["status"], page["heading"]) == (400, words["expired"])
    assert session.state == "M_SESSION_EXPIRED"


@in_both_languages
def test_a_link_that_was_cut_off_says_so(lang, identity, mailbox, eyes):
    session = Session(identity, mailbox, lang)
    cut = session.link.partition("&client_secret")[0]
    page = eyes.open(f"{cut}&lang={lang}")
    assert (page["status"], page["heading"]) == (400, WORDS[lang]["failed"])


@in_both_languages
def test_a_phone_number_is_confirmed_by_the_page(lang, identity, sms_gateway, eyes):
    words, number = WORDS[lang], {"en": "+447700900123", "de": "+4915123456789"}[lang]
    session = TextSession(identity, sms_gateway, number, lang)
    page = eyes.open(session.link)
    assert (page["status"], page["heading"]) == (200, words["confirm number"])
    assert number in page["text"]
    eyes.picture(f"confirm-number-{lang}")
    assert eyes.click("button")["heading"] == words["done number"]
    eyes.picture(f"done-number-{lang}")


@in_both_languages
def test_too_many_codes_are_answered_with_patience(lang, new_identity, sms_gateway, eyes):
    limits = no_limits() | {"sms_codes_per_source": {"burst": 1, "refill_secs": 3600.0}}
    changes = {"sms": sms_gateway.settings(), "limits": limits}
    identity = new_identity(changes=with_open_v1(changes))
    session = TextSession(identity, sms_gateway, "+447700900456", lang)
    eyes.open(session.link_with("000000x"))
    assert eyes.click("button")["status"] == 400
    eyes.open(session.link)
    page = eyes.click("button")
    assert (page["status"], page["heading"]) == (429, WORDS[lang]["failed"])
    assert WORDS[lang]["too often"] in page["text"] and int(page["headers"]["retry-after"]) > 0
    eyes.picture(f"too-often-{lang}")


@in_both_languages
def test_policies_are_shown_where_the_terms_say(lang, identity, eyes):
    terms = identity.call("GET", "/v2/terms").json()["policies"]["privacy"]
    page = eyes.open(terms[lang]["url"])
    assert (page["status"], page["heading"], page["lang"]) == (200, terms[lang]["name"], lang)
    assert "until you remove them" in page["text"] and page["links"] == ["https://example.com/about"]
    eyes.picture(f"terms-{lang}")


@in_both_languages
def test_a_policy_that_is_gone_says_where_to_look(lang, identity, eyes):
    page = eyes.open(f"{identity.url}/_waypost/terms/privacy/0.9/{lang}")
    assert (page["status"], page["heading"], page["lang"]) == (404, WORDS[lang]["missing"], lang)
    eyes.picture(f"missing-{lang}")
