"""Fixtures of the tests with matrix-js-sdk and with a browser."""

import itertools
import os
import tempfile
from pathlib import Path

import pytest

from .driver import Client, Driver, installed_packages, scripts_beside
from .sms import SmsGateway

__all__ = [
    "browser",
    "js_folder",
    "new_client",
    "node_sdk",
    "pictures",
    "pytest_terminal_summary",
    "sdk",
    "sms_gateway",
]


@pytest.fixture(scope="session")
def js_folder(folder):
    """The folder with the programs and their packages."""
    return scripts_beside(installed_packages(), folder / "js")


@pytest.fixture(scope="session")
def node_sdk(js_folder, ca):
    """matrix-js-sdk in Node."""
    driver = Driver("node.js", js_folder, {"NODE_EXTRA_CA_CERTS": str(ca.root)})
    yield driver
    driver.end()


@pytest.fixture(scope="session")
def browser(js_folder):
    """Chromium; also matrix-js-sdk in a page of another origin."""
    driver = Driver("browser.js", js_folder)
    yield driver
    driver.end()


@pytest.fixture(params=["node", "browser"])
def sdk(request):
    """matrix-js-sdk, in Node and in a page."""
    return request.getfixturevalue({"node": "node_sdk", "browser": "browser"}[request.param])


_numbers = itertools.count(1)


@pytest.fixture
def new_client(sdk):
    """Makes a client: `new_client(user, identity)`."""
    return lambda user, identity: Client(sdk, f"client-{next(_numbers)}", user, identity)


@pytest.fixture(scope="session")
def sms_gateway():
    """Takes text messages."""
    gateway = SmsGateway()
    yield gateway
    gateway.stop()


_pictures = []


@pytest.fixture(scope="session")
def pictures():
    """The folder for pictures of pages and mails: WAYPOST_SCREENSHOTS, or a new one."""
    named = os.environ.get("WAYPOST_SCREENSHOTS")
    path = Path(named or tempfile.mkdtemp(prefix="waypost-screenshots-"))
    path.mkdir(parents=True, exist_ok=True)
    _pictures.append(path)
    return path


def pytest_terminal_summary(terminalreporter):
    for path in _pictures:
        terminalreporter.write_line(f"Pictures of pages and mails are in {path}")
