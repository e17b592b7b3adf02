"""What all tests share: images that are built once, containers that are gone after each test, servers beside them."""

import os
import pathlib
import resource
import shutil
import signal
import subprocess
import tempfile

import pytest
import tools
from tools import run, until

VERSION = "0.1.0"


def pytest_collection_modifyitems(items):
    """What is slow and changes seldom comes last: the packages, and the charts by the older of two Helms."""
    items.sort(key=lambda item: "test_debian" in item.nodeid or "helm3" in item.nodeid)


def driver(folder: pathlib.Path) -> str:
    """How images are stored: as layers over each other where the kernel can do so here, else as whole copies."""
    trial = folder / "trial"
    for name in ("lower", "upper", "work", "merged"):
        (trial / name).mkdir(parents=True)
    layers = f"lowerdir={trial}/lower,upperdir={trial}/upper,workdir={trial}/work"
    done = run("mount", "-t", "overlay", "overlay", "-o", layers, trial / "merged", check=False)
    if done.returncode == 0:
        run("umount", trial / "merged")
    return "overlay" if done.returncode == 0 else "vfs"


class Engine:
    """podman and buildah, with a storage of their own."""

    def __init__(self, folder: pathlib.Path):
        self.folder = folder
        # No more than we have ourselves: podman asks for more, which not every machine lets us give.
        files, processes = (resource.getrlimit(kind)[1] for kind in (resource.RLIMIT_NOFILE, resource.RLIMIT_NPROC))
        # The numbers here are what both tools begin with.
        limits = []
        for kind, ours, theirs in (("nofile", files, 1048576), ("nproc", processes, 32768)):
            number = ours if 0 < ours < theirs else theirs
            limits.append(f"{kind}={number}:{number}")
        (folder / "containers.conf").write_text(
            f'[containers]\ndefault_ulimits = {limits}\nlog_driver = "k8s-file"\n'
            '[engine]\nruntime = "runc"\ncgroup_manager = "cgroupfs"\nevents_logger = "none"\n'
        )
        (folder / "storage.conf").write_text(
            f'[storage]\ndriver = "{driver(folder)}"\ngraphroot = "{folder}/storage"\nrunroot = "{folder}/run"\n'
        )
        self.environment = {
            **os.environ,
            "CONTAINERS_CONF": f"{folder}/containers.conf",
            "CONTAINERS_STORAGE_CONF": f"{folder}/storage.conf",
            # Health checks want a systemd that is not everywhere; podman says so at each start.
            "PODMAN": "podman --log-level=fatal",
        }

    def podman(self, *arguments, **options) -> subprocess.CompletedProcess:
        """Runs podman; see `tools.run`."""
        return run("podman", "--log-level=fatal", *arguments, env=self.environment, **options)

    def build(self, target: str, tag: str, base: str, programs: pathlib.Path, *more) -> None:
        """Builds one target of deploy/Dockerfile from programs that are there, without fetching anything."""
        run(
            "buildah", "bud", "--format", "docker", "--isolation", "chroot", "--pull-never",
            "--build-arg", f"DEBIAN_IMAGE={base}", "--build-context", f"binaries={programs}",
            "--target", target, "--file", tools.REPO / "deploy/Dockerfile", *more, "--tag", tag, tools.REPO,
            env=self.environment, timeout=300,
        )  # fmt: skip

    def start(self, *arguments) -> str:
        """`podman run` in the background, on the network of the tests; returns the container's id."""
        return self.podman("run", "--detach", "--pull=never", "--network=host", *arguments).stdout.strip()

    def logs(self, name: str) -> str:
        """All that a container has said."""
        done = self.podman("logs", name, check=False)
        return done.stdout + done.stderr

    def clear(self) -> None:
        """Ends and removes everything but images."""
        self.podman("pod", "rm", "--all", "--force", "--time=0", check=False)
        self.podman("rm", "--all", "--force", "--time=0", check=False)
        self.podman("volume", "rm", "--all", "--force", check=False)

    def end(self) -> None:
        """Ends everything, and removes the storage with what is mounted in it."""
        self.clear()
        run("umount", "--recursive", "--lazy", self.folder)
        self.folder.rmdir()


@pytest.fixture(scope="session")
def programs(tmp_path_factory) -> pathlib.Path:
    """Copies of the two programs, without what only a debugger reads: that makes small images quickly."""
    folder = tmp_path_factory.mktemp("programs")
    for name in ("waypost-identity", "waypost-push-gateway"):
        source = pathlib.Path(os.environ["WAYPOST_BIN_DIR"]) / name
        if shutil.which("strip"):
            run("strip", "-o", folder / name, source)
        else:
            shutil.copy2(source, folder / name)
    return folder


@pytest.fixture(scope="session")
def engine(programs):
    """podman with both images, `localhost/waypost-identity` and `localhost/waypost-push-gateway`."""
    folder = pathlib.Path(tempfile.mkdtemp(prefix="waypost-deploy."))
    # In memory, some hundred megabytes: it is only for now. Nobody else sees the mount, which ends with us.
    run("mount", "-t", "tmpfs", "-o", "mode=700", "waypost-deploy", folder)
    engine = Engine(folder)
    try:
        engine.podman("import", os.environ["DEPLOY_BASE"], "localhost/base:test", timeout=300)
        labels = ("--build-arg", "REVISION=0123abc", "--build-arg", "SOURCE=https://example.com/waypost")
        for target in tools.CHARTS:
            engine.build(target, f"localhost/waypost-{target}:{VERSION}", "localhost/base:test", programs, *labels)
        yield engine
    finally:
        engine.end()


@pytest.fixture
def podman(engine):
    """The engine, and nothing of a test left in it afterwards."""
    yield engine
    engine.clear()


@pytest.fixture(scope="session")
def keys(programs) -> dict[str, str]:
    """Keys for the identity server, made by itself: `storage` and `signing`."""
    return {kind: run(programs / "waypost-identity", "keys", kind).stdout for kind in ("storage", "signing")}


@pytest.fixture(scope="session")
def ci(keys, programs):
    """`ci(chart, file)`: the values to test a chart with: the file, and what is made for this run."""
    vapid = run(programs / "waypost-push-gateway", "vapid").stdout
    inline = {
        "identity": {
            "secrets.databaseUrl.value": "postgres://waypost@127.0.0.2/waypost",
            "secrets.storageKey.value": keys["storage"],
            "secrets.signingKey.value": keys["signing"],
            "secrets.internalSecret.value": keys["storage"].strip()[-32:],
        },
        "push-gateway": {
            "secrets.redisUrl.value": "redis://127.0.0.3:6379/0",
            "secrets.memorySecret.value": keys["storage"].strip()[-32:],
            "apps[0].secrets.vapid_key_file.value": vapid,
        },
    }
    return lambda chart, path: [path] + ([inline[chart]] if path.name == "inline-values.yaml" else [])


@pytest.fixture
def background():
    """Starts programs that are ended after the test: `background(command…)`."""
    started = []

    def start(*command, **options) -> subprocess.Popen:
        started.append(subprocess.Popen([str(part) for part in command], **options))
        return started[-1]

    yield start
    # Not SIGTERM, at which PostgreSQL waits for its clients to leave.
    for process in started:
        process.send_signal(signal.SIGINT)
    for process in started:
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@pytest.fixture
def postgres(background):
    """A throwaway PostgreSQL on 127.0.0.2, port 5432, where anybody may do anything as `waypost`."""
    programs = sorted(pathlib.Path("/usr/lib/postgresql").glob("*/bin"))
    assert programs, "PostgreSQL's programs are missing: apt-get install postgresql"
    folder = pathlib.Path(tempfile.mkdtemp(prefix="waypost-pg."))
    shutil.chown(folder, "postgres", "postgres")
    as_postgres = ("setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups", "--")
    try:
        run(
            *as_postgres, programs[-1] / "initdb", f"--pgdata={folder}/data", "--username=waypost", "--auth=trust",
            "--encoding=UTF8", "--locale=C", "--no-sync",
        )  # fmt: skip
        background(
            *as_postgres, programs[-1] / "postgres", "-D", f"{folder}/data", "-c", "listen_addresses=127.0.0.2",
            "-c", f"unix_socket_directories={folder}", "-c", "fsync=off",
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        query = ("psql", "--host=127.0.0.2", "--username=waypost", "--dbname=postgres", "--command")
        until(lambda: run(*query, "SELECT 1", check=False).returncode == 0)
        run(*query, "CREATE DATABASE waypost")
        yield "127.0.0.2"
    finally:
        # It is ended by `background` after this; its files are of no use to it any more.
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def redis(background, tmp_path):
    """A throwaway Redis on 127.0.0.3, port 6379."""
    background(
        "redis-server", "--bind", "127.0.0.3", "--port", "6379", "--save", "", "--dir", tmp_path,
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    until(tools.port_is_open("127.0.0.3", 6379))
    return "127.0.0.3"
