"""The images: what is in them, and that they run as they are meant to."""

import contextlib
import io
import json
import pathlib
import socket
import struct
import subprocess
import sys
import tarfile
import threading

import pytest
import yaml
from tools import CHARTS, REPO, answers, http, run, until

PORTS = {"identity": (8090, 8091), "push-gateway": (5000, 5001)}
LOCKED = ("--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges")


def inspect(engine, target: str) -> dict:
    return json.loads(engine.podman("image", "inspect", f"localhost/waypost-{target}:0.1.0").stdout)[0]


@pytest.fixture(scope="module")
def contents(engine) -> dict[str, tarfile.TarFile]:
    """All files of each image."""
    files = {}
    for target in CHARTS:
        name = engine.podman("create", "--pull=never", f"localhost/waypost-{target}:0.1.0").stdout.strip()
        exported = subprocess.run(["podman", "export", name], env=engine.environment, capture_output=True, check=True)
        files[target] = tarfile.open(fileobj=io.BytesIO(exported.stdout))
    engine.clear()
    return files


@pytest.mark.parametrize("target", CHARTS)
def test_an_image_says_what_it_is(engine, target):
    image = inspect(engine, target)
    config = image["Config"]
    assert config["User"] == "65532:65532"
    assert config["Entrypoint"] == [f"/usr/bin/waypost-{target}"]
    assert config["Cmd"] == ["serve"]
    assert image["Healthcheck"]["Test"] == ["CMD", f"/usr/bin/waypost-{target}", "health"]
    assert set(config["ExposedPorts"]) == {f"{port}/tcp" for port in PORTS[target]}
    labels = config["Labels"]
    prefix = "org.opencontainers.image."
    assert labels[f"{prefix}title"] == f"waypost-{target}"
    assert labels[f"{prefix}licenses"] == "Apache-2.0"
    assert labels[f"{prefix}revision"] == "0123abc"
    assert labels[f"{prefix}source"] == "https://example.com/waypost"
    program = engine.podman("run", "--rm", "--pull=never", "--network=none", image["Id"], "--version").stdout
    assert program.split()[-1] == labels[f"{prefix}version"]


@pytest.mark.parametrize("target", CHARTS)
def test_an_image_holds_what_the_program_needs_and_little_more(contents, target):
    files = {member.name: member for member in contents[target].getmembers()}
    programs = {name for name, member in files.items() if member.isfile() and member.mode & 0o111}
    programs -= {name for name in programs if name.startswith("usr/lib/") and ".so" in name}
    assert programs == {f"usr/bin/waypost-{target}"}
    roots = contents[target].extractfile("etc/ssl/certs/ca-certificates.crt").read()
    assert roots.count(b"BEGIN CERTIFICATE") > 100
    assert "usr/share/zoneinfo/Europe/Berlin" in files
    # Nobody but root may change what is run.
    writable = {name for name, member in files.items() if not member.issym() and member.mode & 0o022}
    assert writable - {"dev", "proc", "run", "sys"} == {"tmp"}
    owned = {name for name, member in files.items() if member.uid != 0}
    assert owned == {"var/lib/waypost"}
    size = sum(member.size for name, member in files.items() if not name.startswith("usr/bin/waypost"))
    assert size < 20_000_000, f"{size} bytes beside the program"


@pytest.mark.parametrize("target", CHARTS)
def test_the_list_of_what_is_inside_is_that_of_cargo_lock_and_of_the_packages(contents, target):
    listed = json.load(contents[target].extractfile("usr/share/doc/waypost/sbom.cdx.json"))
    assert (listed["bomFormat"], listed["specVersion"]) == ("CycloneDX", "1.5")
    assert listed["metadata"]["component"]["name"] == f"waypost-{target}"
    versions = {component["name"]: component["version"] for component in listed["components"]}
    # Looked up in Cargo.lock by hand, as text.
    lock = (REPO / "Cargo.lock").read_text()
    for name in ("tokio", "rustls", "warp", "waypost-shared"):
        assert f'name = "{name}"\nversion = "{versions[name]}"\n' in lock
    assert ("sqlx" in versions) == (target == "identity")
    assert "waypost-tests" not in versions
    for package in ("libc6", "libgcc-s1", "ca-certificates", "tzdata"):
        record = contents[target].extractfile(f"var/lib/dpkg/status.d/{package}").read().decode()
        assert f"\nVersion: {versions[package]}\n" in record
    references = {component["bom-ref"] for component in listed["components"]}
    references.add(listed["metadata"]["component"]["bom-ref"])
    assert len(references) == len(listed["components"]) + 1
    assert {need for entry in listed["dependencies"] for need in entry["dependsOn"]} <= references


def test_a_crate_that_cargo_lock_does_not_hold_ends_the_list_with_an_error(tmp_path):
    lock = tmp_path / "Cargo.lock"
    lock.write_text('[[package]]\nname = "a"\nversion = "1.0.0"\ndependencies = ["gone"]\n')
    done = run(REPO / "deploy/image/sbom.py", "--lock", lock, "--root", "a", check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert "gone: 0 packages" in done.stderr


def test_what_the_first_stage_copies_is_all_that_cargo_needs_and_nothing_large(engine, tmp_path):
    """The real copy, by the rules of `.dockerignore`; only cargo itself, which wants the internet, is not run."""
    (tmp_path / "Dockerfile").write_text("FROM scratch\nCOPY . .\n")
    run(
        "buildah", "bud", "--isolation", "chroot", "--tag", "localhost/context:test",
        "--file", tmp_path / "Dockerfile", REPO, env=engine.environment,
    )  # fmt: skip
    name = engine.podman("create", "--pull=never", "localhost/context:test", "none").stdout.strip()
    exported = subprocess.run(["podman", "export", name], env=engine.environment, capture_output=True, check=True)
    files = set(tarfile.open(fileobj=io.BytesIO(exported.stdout)).getnames())
    engine.clear()
    engine.podman("rmi", "localhost/context:test")
    needed = {"Cargo.toml", "Cargo.lock", "LICENSE", "deploy/image/sbom.py"}
    # Cargo wants the manifest and the roots of each member, also of those that are not built.
    needed |= {f"{member}/Cargo.toml" for member in ("shared", "identity", "push-gateway", "tests")}
    for folder in ("shared", "identity", "push-gateway", "tests/src"):
        needed |= {str(path.relative_to(REPO)) for path in (REPO / folder).rglob("*.*") if path.is_file()}
    assert needed <= files
    assert not {".git", "target", "deploy/helm", "deploy/compose"} & files


@pytest.mark.parametrize("target", CHARTS)
def test_a_container_runs_with_nothing_to_write_on_but_its_volume(podman, target):
    public, operations = PORTS[target]
    volume = ("--volume=data:/var/lib/waypost",) if target == "identity" else ()
    name = podman.start(*LOCKED, *volume, f"localhost/waypost-{target}:0.1.0")
    until(answers(f"http://127.0.0.1:{operations}/health/ready"))
    if target == "identity":
        status, text = http(f"http://127.0.0.1:{public}/_matrix/identity/v2/pubkey/ed25519:0")
        assert status == 200 and len(json.loads(text)["public_key"]) == 43
    else:
        body = b'{"notification":{"devices":[]}}'
        assert http(f"http://127.0.0.1:{public}/_matrix/push/v1/notify", body) == (200, '{"rejected":[]}')
    # The health check of the image, done once as the engine would.
    assert podman.podman("healthcheck", "run", name).returncode == 0
    # It ends by itself at SIGTERM: 137 would be the engine's patience.
    podman.podman("stop", "--time=20", name)
    state = json.loads(podman.podman("inspect", name).stdout)[0]["State"]
    assert state["ExitCode"] == 0, podman.logs(name)


@pytest.mark.parametrize("target", CHARTS)
def test_the_health_check_fails_where_nobody_serves(podman, target):
    done = podman.podman(
        "run", "--rm", "--pull=never", "--network=none", f"localhost/waypost-{target}:0.1.0", "health", check=False
    )
    assert done.returncode == 1, done.stdout + done.stderr


class NameServer(threading.Thread):
    """Answers each question for an address over IPv4 with one and the same, by UDP on port 53; keeps the names."""

    def __init__(self, address: str, answer: str):
        super().__init__(daemon=True)
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind((address, 53))
        self.answer, self.asked = socket.inet_aton(answer), set()

    def run(self):
        while True:
            try:
                question, peer = self.socket.recvfrom(512)
            except OSError:
                return
            labels, at = [], 12
            while question[at]:
                labels.append(question[at + 1 : at + 1 + question[at]].decode())
                at += 1 + question[at]
            self.asked.add(".".join(labels))
            (kind,) = struct.unpack("!H", question[at + 1 : at + 3])
            found = b"\xc0\x0c" + struct.pack("!HHIH", 1, 1, 60, 4) + self.answer if kind == 1 else b""
            header = question[:2] + b"\x81\x80" + struct.pack("!HHHH", 1, 1 if found else 0, 0, 0)
            self.socket.sendto(header + question[12 : at + 5] + found, peer)


@pytest.mark.parametrize("by", ["hosts", "dns"])
def test_names_are_resolved_by_libc_as_everywhere(podman, keys, tmp_path, by):
    """The database's name is left to libc, by whose rules hosts comes before DNS; both need more than the program."""
    # Whom the container runs as is neither owner nor in the group.
    tmp_path.chmod(0o755)
    for kind, text in keys.items():
        (tmp_path / kind).write_text(text)
    with socket.create_server(("127.0.0.9", 5432)) as listener, contextlib.ExitStack() as servers:
        listener.settimeout(20)
        if by == "dns":
            server = NameServer("127.0.0.53", "127.0.0.9")
            servers.callback(server.socket.close)
            server.start()
            names = ("--dns=127.0.0.53", "--no-hosts")
        else:
            names = ("--add-host=db.example.com:127.0.0.9",)
        name = podman.start(
            *LOCKED, *names, f"--volume={tmp_path}:/keys:ro",
            "--env=WAYPOST_DATABASE__URL=postgres://waypost@db.example.com/waypost",
            "--env=WAYPOST_KEYS__STORAGE_KEY_FILE=/keys/storage", "--env=WAYPOST_KEYS__SIGNING_KEY_FILE=/keys/signing",
            "localhost/waypost-identity:0.1.0",
        )  # fmt: skip
        try:
            listener.accept()[0].close()
        except TimeoutError as error:
            raise AssertionError(podman.logs(name)) from error
        if by == "dns":
            assert "db.example.com" in server.asked


# --- Compose ----------------------------------------------------------------------------------------------------------

COMPOSE = REPO / "deploy/compose.yaml"


def test_the_compose_file_is_understood_and_what_it_names_is_there(engine):
    shown = run(sys.executable, "-m", "podman_compose", "-f", COMPOSE, "config", env=engine.environment).stdout
    understood = yaml.safe_load(shown)
    assert set(understood["services"]) == {"identity", "push-gateway", "postgres", "valkey", "mail"}
    compose = yaml.safe_load(COMPOSE.read_text())
    for name, service in compose["services"].items():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert source in compose["volumes"] or (COMPOSE.parent / source).is_file(), f"{name}: {source}"
        assert set(service.get("secrets", [])) <= set(compose["secrets"]), name
        assert set(service.get("depends_on", {})) <= set(compose["services"]), name
        # Only loopback is published: a try must not be open to the network.
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), name


def test_our_two_services_run_as_the_compose_file_says(podman, postgres, redis, tmp_path):
    """Its keys are made by its script, and both services run with its files, secrets and names of neighbours."""
    secrets = tmp_path / "secrets"
    environment = {
        **podman.environment, "ENGINE": "podman", "ENGINE_OPTIONS": "--pull=never", "SECRETS_DIR": str(secrets),
    }  # fmt: skip
    made = run(REPO / "deploy/compose/secrets", env=environment).stdout
    assert made.count("made ") == 6
    before = {path.name: path.read_bytes() for path in secrets.iterdir()}
    assert run(REPO / "deploy/compose/secrets", env=environment).stdout == ""
    assert {path.name: path.read_bytes() for path in secrets.iterdir()} == before
    assert secrets.stat().st_mode & 0o777 == 0o700

    compose = yaml.safe_load(COMPOSE.read_text())
    for name in CHARTS:
        service = compose["services"][name]
        assert service["read_only"] and service["cap_drop"] == ["ALL"]
        options = [f"--tmpfs={path}" for path in service["tmpfs"]]
        for volume in service["volumes"]:
            options.append(f"--volume={COMPOSE.parent / volume}")
        for secret in service["secrets"]:
            file = pathlib.Path(compose["secrets"][secret]["file"]).name
            options.append(f"--volume={secrets / file}:/run/secrets/{secret}:ro")
        names = ("--add-host=postgres:127.0.0.2", "--add-host=valkey:127.0.0.3", "--add-host=mail:127.0.0.4")
        podman.start("--name", name, *LOCKED, *names, *options, f"localhost/{service['image']}")
        published = [int(port.split(":")[-1]) for port in service["ports"]]
        public, operations = PORTS[name]
        assert published == [public]
        until(answers(f"http://127.0.0.1:{operations}/health/ready"))

    tables = run("psql", "--host=127.0.0.2", "--username=waypost", "waypost", "--command", r"\dt").stdout
    assert "associations" in tables
    status, text = http("http://127.0.0.1:8090/_matrix/identity/v2/pubkey/ed25519:0")
    assert status == 200 and "public_key" in text
    # UnifiedPush is configured there, and says so.
    assert http("http://127.0.0.1:5000/_matrix/push/v1/notify")[0] == 200
    # A pushkey that leads inside is refused, and what became of it is shared in Redis.
    up = "waypost_push_gateway_shared_memory_up 1"
    body = (
        b'{"notification":{"event_id":"$1","devices":[{"app_id":"org.example.unified","pushkey":"https://10.0.0.1/"}]}}'
    )
    assert http("http://127.0.0.1:5000/_matrix/push/v1/notify", body)[0] == 200
    until(lambda: up in http("http://127.0.0.1:5001/metrics")[1])
