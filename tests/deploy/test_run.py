"""The rendered charts, run by `podman play kube`, and asked what Kubernetes and others would ask."""

import json
import os
import pathlib
import ssl
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
import tools
from tools import (
    ALL_CI,
    CI_IDS,
    all_of,
    answers,
    container,
    for_podman,
    http,
    of_kind,
    port_of,
    render,
    run,
    until,
)

IMAGES = {
    chart: {"image.repository": f"localhost/waypost-{chart}", "image.pullPolicy": "Never"} for chart in tools.CHARTS
}
VALUES = {chart: {path.stem.removesuffix("-values"): path for path in tools.ci_values(chart)} for chart in tools.CHARTS}


class Played:
    """A rendered chart that runs."""

    def __init__(self, engine, folder: pathlib.Path, manifests: list[dict], more=(), with_claims=True):
        self.engine, self.manifests, self.file = engine, manifests, folder / "kube.yaml"
        self.file.write_text(for_podman(manifests, folder, more, with_claims))
        engine.podman("play", "kube", "--network=host", self.file)
        self.name = f"{of_kind(manifests, 'Deployment')['metadata']['name']}-pod-0-{container(manifests)['name']}"
        try:
            until(answers(self.url("operations", "/health/ready")))
        except AssertionError as error:
            raise AssertionError(engine.logs(self.name)) from error

    def url(self, port: str, path: str) -> str:
        """An address of a port of the container, by its name."""
        return f"http://127.0.0.1:{port_of(self.manifests, port)}{path}"

    def state(self) -> dict:
        """What podman says of the container."""
        return json.loads(self.engine.podman("inspect", self.name).stdout)[0]

    def down(self) -> None:
        """Ends it as Kubernetes would; volumes stay."""
        self.engine.podman("play", "kube", "--down", self.file)

    def check(self) -> None:
        """What holds of each: the probes of its Deployment are answered, and it runs as restricted as it says."""
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            get = container(self.manifests)[probe]["httpGet"]
            assert http(self.url(get["port"], get["path"]))[0] == 200, probe
            # What is not there is no 200, so the above says something.
            assert http(self.url(get["port"], get["path"] + "x"))[0] == 404
        status, metrics = http(self.url("operations", "/metrics"))
        assert status == 200 and metrics.endswith("# EOF\n")
        # Nothing of the operations listener is on the public one.
        assert http(self.url("http", "/metrics"))[0] == 404
        process = pathlib.Path(f"/proc/{self.state()['State']['Pid']}/status").read_text()
        status = dict(line.split(":\t", 1) for line in process.splitlines() if ":\t" in line)
        assert status["Uid"].split() == ["65532"] * 4
        assert {status[f"Cap{kind}"] for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb")} == {"0" * 16}
        assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
        assert self.state()["HostConfig"]["ReadonlyRootfs"] is True


def public_key(played: Played) -> str:
    """The signing key's public half, as clients ask for it."""
    status, text = http(played.url("http", "/_matrix/identity/v2/pubkey/ed25519:0"))
    assert status == 200, text
    return json.loads(text)["public_key"]


def test_identity_with_sqlite_runs_and_keeps_its_keys_over_an_upgrade(podman, tmp_path):
    values = (VALUES["identity"]["sqlite"], IMAGES["identity"])
    played = Played(podman, tmp_path, render("identity", *values))
    played.check()
    key = public_key(played)
    for path in ("/_matrix/identity/versions", "/_matrix/identity/v2", "/_matrix/identity/api/v1"):
        assert http(played.url("http", path))[0] == 200
    played.down()
    later = render("identity", *values, {"config.log.format": "text"}, more=["--is-upgrade"])
    # The volume is there already, as it is for an upgrade in a cluster.
    played = Played(podman, tmp_path, later, with_claims=False)
    assert public_key(played) == key
    # Without the volume it would be another one, so the above says something.
    played.down()
    podman.podman("volume", "rm", "--all", "--force")
    assert public_key(Played(podman, tmp_path, later)) != key


def test_identity_with_postgresql_runs_from_inline_secrets(podman, postgres, ci, keys, programs, tmp_path):
    manifests = render("identity", *ci("identity", VALUES["identity"]["inline"]), IMAGES["identity"])
    played = Played(podman, tmp_path, manifests)
    played.check()
    first = public_key(played)
    # The key is the one of the values: a server beside it with the same file shows the same.
    assert first == key_of(keys["signing"], programs, tmp_path)
    assert (
        "associations" in run("psql", "--host=127.0.0.2", "--username=waypost", "waypost", "--command", r"\dt").stdout
    )
    # The internal listener takes the secret that was mounted, and no other.
    (secrets,) = tools.secret_values(manifests).values()
    url = played.url("internal", "/_matrix/identity/internal/bind")
    body = json.dumps({"medium": "email", "address": "alice@example.com", "mxid": "@alice:example.com"})
    sent = ("curl", "--silent", "--output", "/dev/null", "--write-out", "%{http_code}", url, "--data", body)
    assert run(*sent, "--header", "Authorization: Bearer wrong").stdout == "401"
    assert run(*sent, "--header", f"Authorization: Bearer {secrets['internal-secret']}").stdout == "200"
    # It ends in time by itself.
    played.engine.podman("stop", "--time=40", played.name)
    assert played.state()["State"]["ExitCode"] == 0


def key_of(signing: str, programs, folder: pathlib.Path) -> str:
    """The public half of a signing key, by running the program with it and nothing else."""
    (folder / "key").write_text(signing)
    environment = {
        **os.environ,
        "WAYPOST_IDENTITY__DATA_DIR": str(folder / "data"),
        "WAYPOST_KEYS__SIGNING_KEY_FILE": str(folder / "key"),
        "WAYPOST_LISTEN__PUBLIC": "127.0.0.1:9090",
        "WAYPOST_LISTEN__OPERATIONS": "127.0.0.1:9091",
    }
    (folder / "data").mkdir()
    with subprocess.Popen(
        [programs / "waypost-identity", "serve"], env=environment, stderr=subprocess.DEVNULL
    ) as server:
        try:
            until(answers("http://127.0.0.1:9091/health/ready"))
            return json.loads(http("http://127.0.0.1:9090/_matrix/identity/v2/pubkey/ed25519:0")[1])["public_key"]
        finally:
            server.terminate()


def test_push_gateway_runs_without_any_values(podman, tmp_path):
    played = Played(podman, tmp_path, render("push-gateway", VALUES["push-gateway"]["default"], IMAGES["push-gateway"]))
    played.check()
    notify = played.url("http", "/_matrix/push/v1/notify")
    assert http(notify, b'{"notification":{"devices":[]}}') == (200, '{"rejected":[]}')
    # Nobody's pushers are deleted for an app that nobody configured.
    body = b'{"notification":{"event_id":"$1","devices":[{"app_id":"a","pushkey":"k"}]}}'
    assert http(notify, body)[0] == 503


@pytest.fixture
def push_server(tmp_path):
    """A push server for UnifiedPush on https://127.0.0.5:8443 with its own authority; yields what it got, and the PEM."""
    run(
        "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
        "-subj", "/CN=up.example.com", "-addext", "subjectAltName=DNS:up.example.com",
        "-addext", "basicConstraints=critical,CA:FALSE",
        "-keyout", tmp_path / "key.pem", "-out", tmp_path / "cert.pem",
    )  # fmt: skip
    got = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            got.append((self.path, self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(201)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.5", 8443), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield got, (tmp_path / "cert.pem").read_text()
    server.shutdown()
    server.server_close()


def test_push_gateway_delivers_with_redis_and_secrets_of_all_kinds(podman, redis, push_server, ci, tmp_path):
    """One push all the way: an existing secret with our authority, inline ones, a VAPID key, and the memory in Redis."""
    got, authority = push_server
    values = {
        "extraSecrets": {"ca": {"existingSecret": "our-ca", "key": "ca.pem"}},
        "config.outbound": {
            "extra_ca_file": "/etc/waypost/secrets/extra-ca/value",
            "allowed_ranges": ["127.0.0.0/8"],
            "hosts": {"up.example.com": "127.0.0.5"},
        },
    }
    manifests = render(
        "push-gateway", *ci("push-gateway", VALUES["push-gateway"]["inline"]), IMAGES["push-gateway"], values
    )
    played = Played(podman, tmp_path, manifests, more=[tools.secret("our-ca", {"ca.pem": authority})])
    played.check()
    device = {"app_id": "org.example.unified", "pushkey": "https://up.example.com:8443/up1"}
    body = json.dumps({"notification": {"event_id": "$1", "room_id": "!r:x", "devices": [device]}}).encode()
    notify = played.url("http", "/_matrix/push/v1/notify")
    assert http(notify, body) == (200, '{"rejected":[]}'), podman.logs(played.name)
    ((path, sent),) = got
    assert path == "/up1" and json.loads(sent)["notification"]["event_id"] == "$1"
    # Once more: it was remembered, in Redis.
    assert http(notify, body)[0] == 200
    assert len(got) == 1
    size = run("redis-cli", "-h", "127.0.0.3", "dbsize").stdout
    assert int(size) >= 1


@pytest.mark.parametrize(("chart", "values"), ALL_CI, ids=CI_IDS)
def test_the_program_takes_the_configuration(podman, chart, values, ci, keys, programs, tmp_path):
    """`check-config` in the image, with the files where the chart mounts them; existing secrets are made up."""
    manifests = render(chart, *ci(chart, values), IMAGES[chart])
    folder = tmp_path / "waypost"
    (folder / "config").mkdir(parents=True)
    (folder / "config/waypost.toml").write_text(tools.toml_text(manifests))
    inline = tools.secret_values(manifests)
    for volume in tools.pod_spec(manifests)["volumes"]:
        if "secret" in volume:
            name, key = volume["secret"]["secretName"], volume["secret"]["items"][0]["key"]
            text = inline[name][key] if name in inline else made_up(volume["name"], key, keys, programs)
            target = folder / "secrets" / volume["name"].removeprefix("secret-") / "value"
            target.parent.mkdir(parents=True)
            target.write_text(text)
    for path in [tmp_path, *folder.rglob("*")]:
        path.chmod(0o755)
    (mounted,) = [m["mountPath"] for m in container(manifests)["volumeMounts"] if m["name"] == "config"]
    variables = [f"--env={e['name']}={e['value']}" for e in container(manifests)["env"]]
    done = podman.podman(
        "run", "--rm", "--pull=never", "--network=host", "--read-only",
        f"--volume={folder}:{mounted.rsplit('/', 1)[0]}:ro",
        *variables, f"localhost/waypost-{chart}:0.1.0", "check-config", check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "The configuration is good." in done.stdout
    # And it was this configuration that was read.
    listen = tools.config(manifests)["listen"]
    assert all(address in done.stdout for address in listen.values())


def made_up(volume: str, key: str, keys, programs) -> str:
    """Content for a secret that would be in the cluster already, by its volume and its key."""
    if key == "ca.pem":
        return next(iter(pathlib.Path("/etc/ssl/certs").glob("*.pem"))).read_text()
    if key in ("vapid.pem",):
        return run(programs / "waypost-push-gateway", "vapid").stdout
    if key.endswith(".p8"):
        return run("openssl", "genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256").stdout
    if key == "service-account.json":
        private = run("openssl", "genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048").stdout
        account = {
            "type": "service_account",
            "project_id": "example-1234",
            "private_key_id": "1",
            "private_key": private,
        }
        account |= {
            "client_email": "push@example-1234.iam.example.com",
            "token_uri": "https://oauth2.example.com/token",
        }
        return json.dumps(account)
    if "storage" in key or "signing" in key:
        return keys[key.split(".")[0]]
    urls = {
        "secret-database-url": "postgres://waypost@db/waypost",
        "secret-redis-url": "redis://redis:6379/0",
        "secret-proxy-url": "http://proxy.example.com:3128",
    }
    return urls.get(volume, "0123456789abcdef0123456789abcdef")


@pytest.fixture(scope="module")
def busybox(engine, tmp_path_factory) -> str:
    """What stands for the image of `helm test`: busybox, beside a libc by which it can resolve names."""
    folder = tmp_path_factory.mktemp("busybox")
    (folder / "Dockerfile").write_text(
        "FROM localhost/base:test AS base\n"
        "FROM localhost/waypost-push-gateway:0.1.0\n"
        "COPY --from=base /bin/busybox /bin/busybox\n"
        "USER 0\n"
        'RUN ["/bin/busybox", "--install", "-s", "/bin"]\n'
        "USER 65532\n"
        "ENTRYPOINT []\n"
    )
    run(
        "buildah", "bud", "--isolation", "chroot", "--pull-never", "--tag", "localhost/busybox:1.37", folder,
        env=engine.environment,
    )  # fmt: skip
    return "localhost/busybox:1.37"


@pytest.mark.parametrize("chart", tools.CHARTS)
def test_the_pod_of_helm_test_succeeds_only_where_the_service_answers(podman, busybox, chart, tmp_path):
    least = {"serverName": "id.example.com"} if chart == "identity" else {}
    # The Service's port is that of the program here, since nothing maps one to the other.
    port = {"identity": 8090, "push-gateway": 5000}[chart]
    manifests = render(chart, least, IMAGES[chart], {"service.port": port, "tests.image": busybox})
    (pod,) = all_of(manifests, "Pod")
    assert pod["metadata"]["annotations"]["helm.sh/hook"] == "test"
    (part,) = pod["spec"]["containers"]
    user = pod["spec"]["securityContext"]["runAsUser"]
    command = (
        "run", "--rm", "--pull=never", "--network=host", "--read-only", "--cap-drop=ALL", f"--user={user}",
        f"--add-host={of_kind(manifests, 'Deployment')['metadata']['name']}:127.0.0.1",
        *(f"--env={e['name']}={e['value']}" for e in part["env"]), part["image"], *part["command"],
    )  # fmt: skip
    assert podman.podman(*command, check=False).returncode != 0
    Played(podman, tmp_path, manifests)
    done = podman.podman(*command, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
