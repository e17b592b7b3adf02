"""The Debian packages: built, looked at, installed into a Debian of their own, and run there by the real systemd."""

import gzip
import os
import pathlib
import re
import shutil

import pytest

from support_debian import booted, copied, in_memory, inside, unpacked
from support_waypost import ROOT, program, run, tool, wait_for

NAMES = ["waypost-identity", "waypost-push-gateway"]
VERSION = re.search(r'^version = "(.*)"', (ROOT / "Cargo.toml").read_text(), re.M).group(1)
SECRET = "a secret for the internal listener"
IDENTITY, PUSH = "http://127.0.0.1:8090", "http://127.0.0.1:5000"
READY = {
    "waypost-identity": "http://127.0.0.1:8091/health/ready",
    "waypost-push-gateway": "http://127.0.0.1:5001/health/ready",
}
# A first version closes no bug, and the folder of secrets is nobody's but root's.
ACCEPTED = "initial-upload-closes-no-bugs,non-standard-dir-perm"


def build(folder):
    """Builds both packages. Returns {name: path}."""
    for needed in ("dpkg-shlibdeps", "strip", "git"):
        tool(needed)
    # What is squeezed hard takes a minute, with programs that are built for debugging.
    environment = {
        **os.environ,
        "WAYPOST_BIN_DIR": str(program(NAMES[0]).parent),
        "DPKG_DEB_COMPRESSOR_TYPE": "gzip",
        "DPKG_DEB_COMPRESSOR_LEVEL": "1",
    }
    run(ROOT / "deploy" / "debian" / "build", folder, env=environment)
    return {path.name.split("_")[0]: path for path in sorted(folder.glob("*.deb"))}


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    return build(tmp_path_factory.mktemp("packages"))


@pytest.fixture(params=NAMES)
def name(request):
    return request.param


def short(name):
    return name.removeprefix("waypost-")


# --- What is in them --------------------------------------------------------------------------------------------------


def test_each_package_says_what_it_is(packages, name):
    fields = dict(
        line.split(": ", 1) for line in run("dpkg-deb", "--field", packages[name]).stdout.splitlines() if ": " in line
    )
    assert fields["Package"] == name
    assert fields["Version"] == f"{VERSION}-1"
    assert fields["Architecture"] == run("dpkg", "--print-architecture").stdout.strip()
    assert "libc6 (>=" in fields["Depends"]
    info = run("dpkg-deb", "--info", packages[name]).stdout
    for script in ("conffiles", "md5sums", "postinst", "postrm", "prerm"):
        assert script in info


def test_each_package_has_all_its_files(packages, name):
    listed = run("dpkg-deb", "--contents", packages[name]).stdout
    files = {line.split()[5][1:]: line.split()[:2] for line in listed.splitlines()}
    assert {owner for _, owner in files.values()} == {"root/root"}
    for path, mode in {
        f"/usr/bin/{name}": "-rwxr-xr-x",
        f"/lib/systemd/system/{name}.service": "-rw-r--r--",
        f"/etc/waypost/{short(name)}.toml": "-rw-r--r--",
        f"/etc/waypost/{short(name)}-secrets/": "drwx------",
        f"/usr/share/man/man1/{name}.1.gz": "-rw-r--r--",
        f"/usr/share/bash-completion/completions/{name}": "-rw-r--r--",
        f"/usr/share/zsh/vendor-completions/_{name}": "-rw-r--r--",
        f"/usr/share/fish/vendor_completions.d/{name}.fish": "-rw-r--r--",
        f"/usr/share/doc/{name}/copyright": "-rw-r--r--",
        f"/usr/share/doc/{name}/changelog.gz": "-rw-r--r--",
        f"/usr/share/doc/{name}/changelog.Debian.gz": "-rw-r--r--",
        f"/usr/share/doc/{name}/examples/grafana-dashboard.json": "-rw-r--r--",
        f"/usr/share/doc/{name}/examples/prometheus-alerts.yaml": "-rw-r--r--",
    }.items():
        assert files.get(path, ["missing"])[0] == mode, path
    assert not [path for path in files if "@" in path]


def test_manual_pages_and_completions_are_what_shells_and_man_read(packages, name, tmp_path):
    run("dpkg-deb", "--extract", packages[name], tmp_path)
    pages = sorted((tmp_path / "usr/share/man/man1").glob("*.gz"))
    assert len(pages) > 2, "a page for each command"
    for page in pages:
        assert re.search(r"^\.TH ", gzip.open(page, "rt").read(), re.M), page
    completion = tmp_path / f"usr/share/bash-completion/completions/{name}"
    run("bash", "-n", completion)
    assert "check-config" in completion.read_text()
    assert f"#compdef {name}" in (tmp_path / f"usr/share/zsh/vendor-completions/_{name}").read_text()
    assert f"complete -c {name}" in (tmp_path / f"usr/share/fish/vendor_completions.d/{name}.fish").read_text()


def test_the_configuration_is_the_sample_with_the_data_in_its_place(packages, name, tmp_path):
    run("dpkg-deb", "--extract", packages[name], tmp_path)
    installed = (tmp_path / f"etc/waypost/{short(name)}.toml").read_text().splitlines()
    sample = (ROOT / short(name) / "config.sample.toml").read_text().splitlines()
    assert len(installed) == len(sample)
    changed = [new for old, new in zip(sample, installed) if old != new]
    assert changed == (['data_dir = "/var/lib/waypost-identity"'] if name == "waypost-identity" else [])


def test_the_same_programs_make_the_same_packages(packages, tmp_path):
    for name, again in build(tmp_path).items():
        assert again.read_bytes() == packages[name].read_bytes(), name


def test_lintian_finds_nothing(packages):
    lintian = tool("lintian")
    done = run(lintian, "--fail-on", "error,warning", "--suppress-tags", ACCEPTED, *packages.values(), check=False)
    assert done.returncode == 0, done.stdout


def test_lintian_would_find_something(packages, tmp_path):
    """The check above can fail: a package without its copyright does."""
    run("dpkg-deb", "--raw-extract", packages["waypost-push-gateway"], tmp_path / "root")
    (tmp_path / "root/usr/share/doc/waypost-push-gateway/copyright").unlink()
    (tmp_path / "root/usr/bin/waypost-push-gateway").unlink()
    run("dpkg-deb", "--root-owner-group", "-Zgzip", "-z1", "--build", tmp_path / "root", tmp_path / "broken.deb")
    done = run(tool("lintian"), "--fail-on", "error", tmp_path / "broken.deb", check=False)
    assert done.returncode != 0
    assert "no-copyright-file" in done.stdout


# --- Installed, and run by systemd ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def original(packages):
    """A Debian with both packages, which no test changes."""
    with in_memory() as folder:
        unpacked(folder)
        for path in packages.values():
            shutil.copy(path, folder / "root")
        said = inside(folder, "dpkg", "--install", *[f"/root/{path.name}" for path in packages.values()]).stdout
        for name in NAMES:
            assert f"systemctl enable --now {name}" in said
        yield folder


@pytest.fixture
def installed(original):
    """A copy of it, not booted."""
    with in_memory() as folder:
        yield copied(original, folder)


@pytest.fixture
def machine(installed):
    """The same, booted."""
    with booted(installed) as machine:
        machine.folder = installed
        yield machine


def configure(folder, change):
    path = folder / "etc/waypost/identity.toml"
    text = path.read_text()
    changed = change(text)
    assert changed != text
    path.write_text(changed)


def with_internal_listener(text):
    """As docs/systemd.md says: a secret in the folder, and its path in the configuration."""
    return text.replace('# internal = "127.0.0.1:8092"', 'internal = "127.0.0.1:8092"').replace(
        '# secret_file = "/run/secrets/internal"',
        'secret_file = "/run/credentials/waypost-identity.service/secrets_internal"',
    )


def start(machine, *names):
    """Starts services; a failure shows their logs."""
    done = machine.run("systemctl", "start", *names, check=False)
    assert done.returncode == 0, done.stderr + "".join(machine.log(name) for name in names)


def test_the_installed_program_runs_and_takes_its_configuration(installed, name):
    assert inside(installed, name, "--version").stdout.split() == [name, VERSION]
    done = inside(installed, name, "--config", f"/etc/waypost/{short(name)}.toml", "check-config")
    assert "The configuration is good." in done.stdout


def test_installing_starts_and_enables_nothing(machine):
    for name in NAMES:
        assert machine.run("systemctl", "is-active", name, check=False).stdout.strip() == "inactive"
        assert machine.run("systemctl", "is-enabled", name, check=False).stdout.strip() == "disabled"


def test_a_started_service_is_ready_and_locked_up(machine):
    start(machine, *NAMES)
    for name in NAMES:
        # At once: systemctl comes back when the service has said that it is ready.
        assert machine.status(READY[name]) == 200
        status = machine.run("cat", f"/proc/{machine.show(name, 'MainPID')}/status").stdout
        fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
        assert fields["Seccomp"].strip() == "2"
        assert fields["NoNewPrivs"].strip() == "1"
        assert int(fields["CapBnd"], 16) == 0
        assert 61184 <= int(fields["Uid"].split()[0]) <= 65519, "a dynamic user"
    assert machine.status(f"{IDENTITY}/_matrix/identity/versions") == 200
    assert machine.status(f"{PUSH}/_matrix/push/v1/notify", "--data", '{"notification":{"devices":[]}}') == 200


def test_a_service_gets_its_secrets_and_nobody_else_does(machine):
    (machine.folder / "etc/waypost/identity-secrets/internal").write_text(SECRET)
    configure(machine.folder, with_internal_listener)
    start(machine, "waypost-identity")
    url = "http://127.0.0.1:8092/_matrix/identity/internal/erase"
    body = ["--data", '{"mxid":"@alice:example.com"}']
    assert machine.status(url, *body, "--header", f"Authorization: Bearer {SECRET}") == 200
    assert machine.status(url, *body, "--header", "Authorization: Bearer another") == 401
    for path in (
        "/etc/waypost/identity-secrets/internal",
        "/run/credentials/waypost-identity.service/secrets_internal",
    ):
        done = machine.run("setpriv", "--reuid=nobody", "--clear-groups", "cat", path, check=False)
        assert done.returncode != 0 and SECRET not in done.stdout, path


def test_a_wrong_configuration_ends_the_service_for_good(machine):
    configure(machine.folder, lambda text: text.replace('[listen]\n', '[listen]\npublik = "127.0.0.1:1"\n'))
    assert machine.run("systemctl", "start", "waypost-identity", check=False).returncode != 0
    assert machine.show("waypost-identity", "ExecMainStatus") == "2"
    assert machine.show("waypost-identity", "ActiveState") == "failed"
    assert machine.show("waypost-identity", "NRestarts") == "0"
    assert "unknown key `publik`; did you mean `public`?" in machine.log("waypost-identity")


def test_a_killed_service_comes_back(machine, name):
    start(machine, name)
    before = machine.show(name, "MainPID")
    machine.run("systemctl", "kill", "--signal=KILL", name)
    wait_for(lambda: machine.show(name, "MainPID") not in ("0", before) and machine.status(READY[name]) == 200,
             f"{name} is back")


def test_a_reload_takes_a_good_configuration_and_refuses_a_bad_one(machine, name):
    start(machine, name)
    before = machine.show(name, "MainPID")
    path = machine.folder / f"etc/waypost/{short(name)}.toml"
    good = path.read_text()
    for text, said in (
        (good.replace('level = "info"', 'level = "debug"'), "configuration reloaded"),
        (good.replace('level = "info"', 'level = "loud"'), "new configuration refused"),
    ):
        assert text != good
        path.write_text(text)
        machine.run("systemctl", "reload", name)
        wait_for(lambda: said in machine.log(name), f"{name} says: {said}")
        assert machine.show(name, "ActiveState") == "active"
        assert machine.show(name, "MainPID") == before
        assert machine.status(READY[name]) == 200


def test_commands_of_root_leave_the_files_to_the_service(machine):
    start(machine, "waypost-identity")
    command = ["waypost-identity", "--config", "/etc/waypost/identity.toml"]
    assert "The previous one is accepted until" in machine.run(*command, "pepper", "rotate").stdout
    assert len(machine.run(*command, "pepper", "list").stdout.splitlines()) == 2
    assert machine.run(*command, "doctor").returncode == 0
    owners = machine.run("find", "/var/lib/private/waypost-identity", "-printf", "%U\\n").stdout.split()
    process = machine.run("stat", "--format=%u", f"/proc/{machine.show('waypost-identity', 'MainPID')}").stdout.split()
    assert set(owners) == set(process) != {"0"}
    machine.run("systemctl", "restart", "waypost-identity")
    assert len(machine.run(*command, "pepper", "list").stdout.splitlines()) == 2


def test_a_restored_folder_is_given_to_the_service(machine):
    """What docs/backup.md says of the data folder after a restore."""
    start(machine, "waypost-identity")
    machine.run("systemctl", "stop", "waypost-identity")
    machine.run("cp", "--archive", "/var/lib/private/waypost-identity", "/root/backup")
    machine.run("rm", "--recursive", "/var/lib/private/waypost-identity")
    machine.run("cp", "--recursive", "/root/backup", "/var/lib/private/waypost-identity")
    machine.run("chown", "--recursive", "root:", "/var/lib/private/waypost-identity")
    start(machine, "waypost-identity")
    assert machine.status(READY["waypost-identity"]) == 200
    assert "generated a new key" not in machine.log("waypost-identity").split("Stopped")[-1]


def test_an_upgrade_restarts_and_keeps_the_configuration(machine, packages):
    configure(machine.folder, lambda text: text.replace('level = "info"', 'level = "debug"'))
    start(machine, "waypost-identity")
    before = machine.show("waypost-identity", "MainPID")
    said = machine.run("dpkg", "--install", *[f"/root/{packages[name].name}" for name in NAMES]).stdout
    assert "systemctl enable" not in said
    assert machine.show("waypost-identity", "MainPID") not in ("0", before)
    assert machine.status(READY["waypost-identity"]) == 200
    # What did not run still does not.
    assert machine.run("systemctl", "is-active", "waypost-push-gateway", check=False).stdout.strip() == "inactive"
    assert 'level = "debug"' in (machine.folder / "etc/waypost/identity.toml").read_text()


def test_removing_stops_and_never_takes_the_keys(machine):
    start(machine, *NAMES)
    machine.run("dpkg", "--remove", *NAMES)
    for name in NAMES:
        assert machine.run("systemctl", "is-active", name, check=False).stdout.strip() == "inactive"
        assert not (machine.folder / f"usr/bin/{name}").exists()
    assert (machine.folder / "etc/waypost/identity.toml").exists()
    said = machine.run("dpkg", "--purge", *NAMES).stdout
    assert "/var/lib/private/waypost-identity stays" in said
    assert (machine.folder / "var/lib/private/waypost-identity/storage.key").exists()
    assert not pathlib.Path(machine.folder / "etc/waypost").exists()
