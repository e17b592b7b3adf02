"""The status page of both services, in Debian's Chromium: its text, its look, and what it shows without them."""

import secrets

import pytest
import requests

from js.pages import Eyes, Session, with_open_v1
from neighbours.phones import Phone
from neighbours.processes import free_port
from neighbours.waypost import Waypost

# An app's id is chosen by the operator, but it is text: nothing in it may become markup.
HOSTILE = [
    "<img src=x onerror=alert(1)>",
    "\"'><script>document.title = 'mine'</script>",
    "${alert(1)} {{ 7 * 7 }} \\u003cb\\u003e",
    "org.example." + "averylongname" * 8 + ".*",
]
WIDTHS = (360, 1400)


@pytest.fixture
def eyes(browser, pictures):
    eyes = Eyes(browser, pictures)
    yield eyes
    eyes.close()


@pytest.fixture(scope="module")
def settings(ca):
    return {
        # Its port is known before, so that the page finds it again after a restart.
        "listen": {"operations": f"127.0.0.1:{free_port()}"},
        "outbound": {"allowed_ranges": ["127.0.0.0/8"], "extra_ca_file": ca.root, "hosts": {"localhost": "127.0.0.1"}},
        "notify": {"budget_secs": 2, "attempt_timeout_secs": 2},
    }


@pytest.fixture(scope="module")
def gateway(folder, settings, push_services):
    apps = [push_services["fcm"].app("fcm.full", "full"), push_services["apns"].app("apns.full", "full")]
    apps += [push_services["fcm"].app(app_id, "ids_only") for app_id in HOSTILE]
    server = Waypost("waypost-push-gateway", "status-page-gateway", folder / "status-page", {**settings, "apps": apps})
    yield server
    server.stop()


@pytest.fixture(scope="module")
def identity(new_identity):
    return new_identity(changes=with_open_v1({}))


def address(server):
    return "http://{}:{}/".format(*server.operations)


def push(gateway, app_id, phone):
    """Sends one event to `phone`; the status of the answer."""
    device = {"app_id": app_id, "pushkey": phone.pushkey, "data": phone.data}
    notification = {"event_id": f"${secrets.token_hex(8)}", "room_id": "!room:example.com", "devices": [device]}
    url = f"{gateway.url}/_matrix/push/v1/notify"
    return requests.post(url, json={"notification": notification}, timeout=30).status_code


def test_the_gateways_page_shows_its_apps_and_runs_nothing_of_their_names(gateway, providers, eyes):
    phone, other = Phone("fcm", providers), Phone("fcm", providers)
    assert push(gateway, "fcm.full", phone) == 200
    assert push(gateway, HOSTILE[0], phone) == 200
    other.service.set_trouble(other.device, other.service.away())
    assert push(gateway, HOSTILE[1], other) == 503

    first = eyes.open(address(gateway))
    assert first["status"] == 200 and first["lang"] == "en"
    # By then it has shown its name, polled again, and drawn everything.
    page = eyes.wait_for(
        "charts", lambda page: "Ready, with problems" in page["text"] and "Collecting" not in page["text"]
    )

    for app_id in HOSTILE:
        assert page["text"].count(app_id) >= 2, f"{app_id} is to be seen among the dependencies and the pushes"
    assert "A dependency is down" in page["text"] and "FCM: busy or unreachable" in page["text"]
    assert page["title"] == "Ready, with problems · Waypost push gateway"
    assert page["heading"] == "Waypost push gateway"
    assert (page["scripts"], page["links"]) == (1, [f"{address(gateway)}{path}" for path in ("status", "metrics")])
    assert phone.pushkey not in page["text"] and other.pushkey not in page["text"]
    eyes.picture("status-gateway", WIDTHS)
    # A name that became an element would have caused a console message, since the policy forbids it.
    eyes.close()


def test_the_identity_servers_page_shows_its_dependencies(identity, mailbox, eyes):
    (server,) = identity.replicas
    session = Session(identity, mailbox)

    eyes.open(address(server))
    page = eyes.wait_for("charts", lambda page: "Ready" in page["title"] and "Collecting" not in page["text"])

    assert page["title"] == "Ready · Waypost identity server"
    assert page["heading"] == "Waypost identity server"
    for words in ("SQLite", "mail server", "text messages", "homeservers", "0 calls pending, 0 given up", "pepper"):
        assert words in page["text"]
    assert session.address not in page["text"] and session.client_secret not in page["text"]
    eyes.picture("status-identity", WIDTHS)


def test_a_reader_pauses_it_by_keyboard(identity, eyes):
    (server,) = identity.replicas
    eyes.open(address(server))
    eyes.wait_for("an answer", lambda page: "Updated" in page["text"])
    for _ in range(10):
        page = eyes.press("Tab")
        if page["focused"] == "Pause":
            break
    assert page["focused"] == "Pause" and page["focusIsVisible"]

    assert "Paused at" in eyes.press("Enter")["text"]
    assert "Updated" in eyes.press("Enter")["text"]


def test_it_says_that_the_server_is_gone_and_that_it_is_back(gateway, eyes):
    eyes.open(address(gateway))
    before = eyes.wait_for("an answer", lambda page: "Updated" in page["text"])
    assert "cannot be reached" not in before["text"]

    gateway.stop()
    gone = eyes.wait_for("the banner", lambda page: "The server cannot be reached any more" in page["text"])
    assert gone["title"] == "No answer · Waypost push gateway"
    assert "There is no connection." in gone["text"] and "Last answer" in gone["text"]
    # Known data stays, and is marked as old.
    assert "The data shown is from" in gone["text"] and HOSTILE[0] in gone["text"]
    eyes.picture("status-stale", WIDTHS)

    gateway.restart()
    back = eyes.wait_for("the server", lambda page: "It restarted at" in page["text"])
    assert "cannot be reached" not in back["text"] and back["title"] == "Ready · Waypost push gateway"
    eyes.picture("status-restarted", WIDTHS)
    eyes.close(expected="net::ERR_CONNECTION_REFUSED")
