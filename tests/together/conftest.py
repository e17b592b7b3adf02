"""Fixtures: the programs around Waypost. Those that are slow to start are shared by the whole run."""

import signal
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from js.fixtures import *  # noqa: E402, F403
from neighbours import processes  # noqa: E402
from neighbours.background import Background  # noqa: E402
from neighbours.ca import CertificateAuthority  # noqa: E402
from neighbours.front import TlsFront  # noqa: E402
from neighbours.person import Person  # noqa: E402
from neighbours.postgres import Databases  # noqa: E402
from neighbours.providers.apns import Apns  # noqa: E402
from neighbours.providers.fcm import Fcm  # noqa: E402
from neighbours.providers.sms import SmsGateway  # noqa: E402
from neighbours.providers.webpush import WebPush  # noqa: E402
from neighbours.redis import Redis  # noqa: E402
from neighbours.smtp import Mailbox  # noqa: E402
from neighbours.synapse import Synapse  # noqa: E402
from neighbours.waypost import Gateway, Identity  # noqa: E402


def pytest_configure(config):
    # So that fixtures end, and with them the programs, when the run is asked to stop.
    signal.signal(signal.SIGTERM, lambda *_: pytest.exit("asked to stop", 143))


def pytest_unconfigure(config):
    processes.stop_all()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    """Adds the ends of all programs' logs to the report of a failure."""
    report = (yield).get_result()
    if report.failed:
        report.sections.append(("programs", processes.tails()))


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """A folder for the run, removed by pytest some runs later; each program makes its own in it."""
    return tmp_path_factory.mktemp("together")


@pytest.fixture(scope="session")
def background():
    """The event loop of everything that this process serves."""
    background = Background()
    yield background
    background.stop()


@pytest.fixture(scope="session")
def ca(folder):
    """The private certificate authority of the run."""
    return CertificateAuthority(folder / "ca")


@pytest.fixture(scope="session")
def new_front(background, ca):
    """Makes a TLS front on a free port of localhost."""
    return lambda: TlsFront(background, ca)


@pytest.fixture(scope="session")
def mailbox(background, ca):
    """The mail server: STARTTLS, a password, and all mails that were sent."""
    mailbox = Mailbox(background, ca)
    yield mailbox
    mailbox.stop()


@pytest.fixture(scope="session")
def databases():
    """Makes databases in the run's PostgreSQL."""
    databases = Databases()
    yield databases
    databases.drop_all()


@pytest.fixture(scope="session")
def redis(folder):
    redis = Redis(folder / "redis")
    yield redis
    redis.stop()


@pytest.fixture(scope="session")
def new_identity(folder, new_front, ca, mailbox, databases):
    """Starts an identity server: `new_identity(database="sqlite", replicas=1, changes={}, front=None)`; or "postgres"."""
    started = []

    def start(database="sqlite", replicas=1, changes=None, front=None):
        own = folder / f"identity-{len(started) + 1}"
        url = databases.fresh_url() if database == "postgres" else None
        identity = Identity(own, front or new_front(), ca, mailbox, url, replicas, changes)
        started.append(identity)
        return identity

    yield start
    for identity in started:
        identity.stop()


@pytest.fixture(scope="session")
def push_services(background, ca, folder):
    """The three push services, by name."""
    kinds = {"apns": Apns, "fcm": Fcm, "webpush": WebPush}
    services = {name: kind(background, ca, folder) for name, kind in kinds.items()}
    yield services
    for service in services.values():
        service.stop()


@pytest.fixture
def providers(push_services):
    """The three push services, which must not be asked for anything that a real one would not take."""
    for service in push_services.values():
        service.mistakes.clear()
    yield push_services
    assert [mistake for service in push_services.values() for mistake in service.mistakes] == []


@pytest.fixture(scope="session")
def new_gateway(folder, new_front, ca, push_services, redis):
    """Starts a push gateway with two apps for each push service, NAME.full and NAME.ids.

    `new_gateway(replicas=1, redis_url=…)`; without the latter they share the run's Redis.
    """
    contents = {"full": "full", "ids": "ids_only"}
    started = []

    def start(replicas=1, redis_url=redis.url):
        apps = [
            service.app(f"{name}.{suffix}", content)
            for name, service in push_services.items()
            for suffix, content in contents.items()
        ]
        own = folder / f"gateway-{len(started) + 1}"
        gateway = Gateway(own, new_front(), ca, apps, redis_url, replicas)
        started.append(gateway)
        return gateway

    yield start
    for gateway in started:
        gateway.stop()


@pytest.fixture(scope="session")
def gateway(new_gateway):
    """The push gateway of most tests."""
    return new_gateway()


@pytest.fixture(scope="session")
def sms(background, ca):
    """The gateway for text messages."""
    sms = SmsGateway(background, ca)
    yield sms
    sms.stop()
    assert sms.mistakes == []


@dataclass
class Neighbourhood:
    """Synapse and the identity server (on PostgreSQL) that its users use, which also sends its text messages."""

    synapse: Synapse
    identity: Identity
    mailbox: Mailbox
    sms: SmsGateway

    def person(self, prefix="user", identity=None):
        """A new user of Synapse who has registered at the identity server, or at another one."""
        return Person(self.synapse.user(prefix), identity or self.identity, self.mailbox)


@pytest.fixture(scope="session")
def neighbourhood(folder, new_front, ca, mailbox, sms, new_identity):
    """Synapse with its identity server; started once."""
    # Each has to know the other's name before it starts.
    identity_front, synapse_front = new_front(), new_front()
    delegate = {"account_threepid_delegates": {"msisdn": identity_front.url}}
    synapse = Synapse(folder / "synapse", synapse_front, ca, delegate)
    changes = {"sms": sms.settings(), "v1": {"allow": ["127.0.0.1/32"]}}
    identity = new_identity("postgres", front=identity_front, changes=changes)
    yield Neighbourhood(synapse, identity, mailbox, sms)
    synapse.stop()


@pytest.fixture
def talk(neighbourhood):
    """Alice and Bob, users of Synapse, in a room called Mission Control."""
    alice, bob = neighbourhood.synapse.user("alice"), neighbourhood.synapse.user("bob")
    room_id = alice.create_room(name="Mission Control")
    alice.invite(room_id, bob)
    bob.join(room_id)
    # Until he reads something, the invite itself is unread.
    bob.read_up_to(room_id, alice.send(room_id, "Welcome"))
    return alice, bob, room_id
