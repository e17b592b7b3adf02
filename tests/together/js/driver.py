"""Node programs that answer questions: matrix-js-sdk, and a browser."""

import json
import os
import select
import subprocess
from pathlib import Path

from neighbours import processes

HERE = Path(__file__).parent
PACKAGES_VARIABLE = "WAYPOST_NODE_PACKAGES"
# Seconds for one answer. A browser on a busy machine takes its time to start.
PATIENCE = 90.0


def installed_packages():
    """The folder with `node_modules`, which tests/install made."""
    folder = os.environ.get(PACKAGES_VARIABLE)
    assert folder, f"{PACKAGES_VARIABLE} is not set; tests/together/run installs the packages and sets it"
    return Path(folder)


def scripts_beside(packages, folder):
    """Copies the programs into `folder`, beside the packages that they import."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in [*HERE.glob("*.js"), HERE / "package.json"]:
        (folder / file.name).write_bytes(file.read_bytes())
    (folder / "node_modules").symlink_to(packages / "node_modules")
    return folder


class Thrown(Exception):
    """What a method of matrix-js-sdk threw: `errcode`, `status` and `data` of a MatrixError."""

    def __init__(self, thrown):
        super().__init__(json.dumps(thrown))
        self.errcode, self.status, self.data = thrown.get("errcode"), thrown.get("httpStatus"), thrown.get("data")


class Driver(processes.Program):
    """A program of this folder that takes a line of JSON and answers one."""

    def __init__(self, script, folder, environment=None):
        self.name = script.removesuffix(".js")
        self.log = folder / f"{self.name}.log"
        # For what a browser would leave behind when it is killed.
        temporary = folder / "tmp"
        temporary.mkdir(exist_ok=True)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                ["node", "--enable-source-maps", script],
                cwd=folder,
                env=processes.clean_environment() | {"TMPDIR": str(temporary)} | (environment or {}),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                preexec_fn=processes._die_with_parent,
            )
        self._unread = b""
        processes._running.append(self)

    def ask(self, call, **arguments):
        """Calls `call` of the program; what it answers. Fails when it throws, ends or takes too long."""
        self.process.stdin.write(json.dumps({"call": call, **arguments}).encode() + b"\n")
        self.process.stdin.flush()
        answer = json.loads(self._line(call))
        assert "error" not in answer, f"{self.name}: {call}: {answer['error'].get('stack')}"
        return answer["ok"]

    def _line(self, call):
        while b"\n" not in self._unread:
            ready, _, _ = select.select([self.process.stdout], [], [], PATIENCE)
            assert ready, f"{self.name} did not answer {call} within {PATIENCE:g} s\n{self.tail()}"
            data = os.read(self.process.stdout.fileno(), 65536)
            assert data, f"{self.name} ended while it was asked for {call}\n{self.tail(80)}"
            self._unread += data
        line, self._unread = self._unread.split(b"\n", 1)
        return line

    def end(self):
        """Lets the program end by itself, so that it takes its own children with it."""
        self.process.stdin.close()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            pass
        self.process.stdout.close()
        self.kill()


class Client:
    """A client of matrix-js-sdk, in Node or in a page, for a user of Synapse at an identity server."""

    def __init__(self, driver, name, user, identity, identity_token=None):
        self.user, self.identity = user, identity
        self._driver, self._name = driver, name
        self._make(identity_token)

    def _make(self, identity_token):
        self._driver.ask(
            "makeClient",
            name=self._name,
            baseUrl=self.user.synapse.url,
            idBaseUrl=self.identity.url,
            userId=self.user.user_id,
            accessToken=self.user.token,
            identityToken=identity_token,
        )

    def call(self, method, *args):
        """Calls a method of the client; its result as JSON. Raises [`Thrown`] when it throws."""
        answer = self._driver.ask("callClient", name=self._name, method=method, args=args)
        if "thrown" in answer:
            raise Thrown(answer["thrown"])
        return answer.get("value")

    def register(self):
        """Registers at the identity server with an OpenID token of Synapse, as Element Web does; the access token."""
        answer = self.call("registerWithIdentityServer", self.call("getOpenIdToken"))
        self._make(answer["access_token"])
        return answer["access_token"]
