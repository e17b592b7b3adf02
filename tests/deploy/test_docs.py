"""The manual: its pages hang together, its examples are understood, and its recipes work with the real programs."""

import contextlib
import http.client
import json
import os
import re
import shlex
import socket
import ssl

import pytest
import yaml

from support_waypost import ROOT, ask, free_port, program, run, serving, started, tool, wait_for

DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
# Read beside the manual, and linked from it.
OTHERS = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
PROGRAMS = ("waypost-identity", "waypost-push-gateway")


# --- Pages ------------------------------------------------------------------------------------------------------------


def without_code(text):
    """A page without its blocks of code and what stands in backquotes."""
    text = re.sub(r"^( *)```.*?^\1```", "", text, flags=re.M | re.S)
    return re.sub(r"(`+)(?!`).+?(?<!`)\1(?!`)", "", text, flags=re.S)


def anchors(page):
    """The #names of a page's headings, as mdBook and GitHub make them."""
    text = re.sub(r"^( *)```.*?^\1```", "", page.read_text(), flags=re.M | re.S)
    found = set()
    for title in re.findall(r"^#+ (.*)$", text, flags=re.M):
        title = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", title)
        found.add(re.sub(r"[^\w -]", "", title.lower()).strip().replace(" ", "-"))
    return found


def links(page):
    """(text, target) of a page's links, without those in code."""
    return re.findall(r"\[([^]]*)\]\(([^)\s]+)\)", without_code(page.read_text()))


def test_links_and_anchors_are_found_in_text(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# One `two`, [three](x.md)!\n\n```sh\n# not one\n[no](a)\n```\nA [b\nc](d.md#e) and `[f](g)`.\n")
    assert anchors(page) == {"one-two-three"}
    assert links(page) == [("three", "x.md"), ("b\nc", "d.md#e")]


def test_the_summary_has_every_page_and_no_other():
    listed = [DOCS / target for _, target in links(DOCS / "SUMMARY.md")]
    assert len(listed) == len(set(listed)), "a page is listed twice"
    assert sorted(listed) == [page for page in PAGES if page.name != "SUMMARY.md"]


@pytest.mark.parametrize("page", [*PAGES, *OTHERS], ids=lambda page: str(page.relative_to(ROOT)))
def test_each_link_leads_somewhere(page):
    broken = []
    for text, target in links(page):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists():
            broken.append(f"[{text}]({target}): no such file")
        elif anchor and anchor not in anchors(file):
            broken.append(f"[{text}]({target}): no such heading")
    assert not broken, "\n".join(broken)


def test_each_page_is_reached_from_the_first_one():
    """By links in the text itself, so that it is found where it is needed. The summary does not count."""
    reached, ahead = set(), [DOCS / "index.md"]
    while ahead:
        page = ahead.pop()
        if page in reached or page.suffix != ".md" or DOCS not in page.parents or not page.exists():
            continue
        reached.add(page)
        for _, target in links(page):
            if not re.match(r"[a-z]+:|#", target):
                ahead.append((page.parent / target.partition("#")[0]).resolve())
    assert not [str(page.relative_to(DOCS)) for page in PAGES if page not in reached and page.name != "SUMMARY.md"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_is_finished_and_begins_with_its_title(page):
    # A page that is made begins with how.
    text = re.sub(r"\A<!-- Made of .* -->\n\n", "", page.read_text())
    assert text.startswith("# ")
    assert len(re.findall(r"^# ", without_code(text), re.M)) == (1 if page.name != "SUMMARY.md" else 5)
    assert not re.search(r"TODO|FIXME|XXX", text)


@pytest.mark.parametrize("folder", ["shared/src", "identity/src", "push-gateway/src", "tests", "deploy"])
def test_the_page_on_the_architecture_names_what_is_there(folder):
    """Each module, and each folder; not files of tests."""
    page = (DOCS / "architecture.md").read_text()
    listed = re.search(rf"^{folder}/\s.*?(?=\n\n|```)", page, re.M | re.S).group()
    there = set()
    for path in (ROOT / folder).iterdir():
        if path.is_dir() and path.name not in ("__pycache__", "fixtures") or path.suffix == ".rs":
            there.add(path.stem)
    there = {name for name in there if not name.endswith("_tests") and name != "lib"}
    assert len(there) >= 4
    assert not {name for name in there if not re.search(rf"\b{re.escape(name)}\b", listed)}


# --- Examples ---------------------------------------------------------------------------------------------------------


def blocks(*languages):
    """(where, text) of the blocks of code in these languages, of the manual and the README."""
    for page in [*PAGES, ROOT / "README.md"]:
        for match in re.finditer(r"^( *)```(\S*)\n(.*?)^\1```", page.read_text(), re.M | re.S):
            indent, language, text = match.groups()
            if language in languages:
                line = page.read_text()[: match.start()].count("\n") + 2
                yield f"{page.relative_to(ROOT)}:{line}", re.sub(f"^{indent}", "", text, flags=re.M)


def ids(cases):
    return [where for where, _ in cases]


TOML, JSON, YAML, SHELL = (list(blocks(*names)) for names in (["toml"], ["json"], ["yaml"], ["sh"]))


@pytest.fixture(scope="module")
def secrets(tmp_path_factory):
    """Makes files in the place of those that examples name, with what belongs into them."""
    folder = tmp_path_factory.mktemp("secrets")
    openssl = tool("openssl")
    ec = run(openssl, "genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:prime256v1").stdout
    rsa = run(openssl, "genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048").stdout
    account = {
        "type": "service_account",
        "project_id": "example-1234",
        "private_key_id": "1",
        "private_key": rsa,
        "client_email": "push@example-1234.iam.gserviceaccount.com",
        "token_uri": "https://oauth2.googleapis.com/token",
    }
    vapid = run(program("waypost-push-gateway"), "vapid").stdout

    def content(name):
        for part, text in {
            ".p8": ec,
            "service-account": json.dumps(account),
            "vapid": vapid,
            "redis-url": "redis://redis.example.com:6379/0",
            "proxy-url": "http://user:password@proxy.example.com:3128",
            "database-url": "postgres://waypost@db.example.com/waypost",
        }.items():
            if part in name:
                return text
        return "0123456789abcdef0123456789abcdef"

    def place(text):
        """The text with paths of `folder` in the place of those below /etc/waypost and /run."""
        def made(match):
            path = folder / match.group(1).replace("/", "_")
            path.write_text(content(path.name))
            return f'"{path}"'

        return re.sub(r'"(/(?:etc/waypost|run)/[^"]+)"', made, text)

    return place


def understood(text, folder):
    """What check-config of each service says; empty for one that takes it."""
    (folder / "waypost.toml").write_text(text)
    environment = {key: value for key, value in os.environ.items() if not key.startswith("WAYPOST_")}
    said = []
    for name in PROGRAMS:
        command = [program(name), "--config", "waypost.toml", "check-config"]
        done = run(*command, check=False, cwd=folder, env=environment)
        said.append("" if done.returncode == 0 else done.stdout + done.stderr)
    return said


@pytest.mark.parametrize("text", [text for _, text in TOML], ids=ids(TOML))
def test_one_of_the_services_takes_each_configuration(text, secrets, tmp_path):
    said = understood(secrets(text), tmp_path)
    assert "" in said, "\n".join(said)


def test_a_wrong_configuration_is_noticed(secrets, tmp_path):
    assert all(understood('[identity]\nserver_nam = "id.example.com"\n', tmp_path))
    no_key = '[[apps]]\nid = "a"\n[apps.webpush]\nvapid_key_file = "/etc/waypost/x"\n'
    assert all(understood(secrets(no_key), tmp_path))


@pytest.mark.parametrize("text", [text for _, text in JSON], ids=ids(JSON))
def test_each_json_is_json(text):
    json.loads(text)


@pytest.mark.parametrize("text", [text for _, text in YAML], ids=ids(YAML))
def test_each_yaml_is_yaml(text):
    assert isinstance(yaml.safe_load(text), dict)


@pytest.mark.parametrize("text", [text for _, text in SHELL], ids=ids(SHELL))
def test_each_command_is_one(text, tmp_path):
    """Shells understand the block, and the programs know each of their commands and options in it."""
    script = tmp_path / "block.sh"
    script.write_text(text)
    run("bash", "-n", script)
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        for name in PROGRAMS:
            at = next((i for i, word in enumerate(words) if word == name or word.endswith(f"/{name}")), None)
            if at is None or words[at - 1] in ("--unit", "--now", "restart", "cp"):
                continue
            wanted = words[at + 1:]
            end = next((i for i, word in enumerate(wanted) if word in ("|", "&&", ">", ";")), len(wanted))
            known = check_command(name, wanted[:end])
            assert known is None, f"{line}: {known}"


def check_command(name, words):
    """None, or what of `words` the program does not know."""
    path, position = [], 0
    while position < len(words):
        word = words[position]
        if word == "--config":
            position += 2
            continue
        if word.startswith("-") or "Commands:" not in run(program(name), *path, "--help").stdout:
            break
        path.append(word)
        if run(program(name), *path, "--help", check=False).returncode != 0:
            return f"no command {' '.join(path)}"
        position += 1
    told = run(program(name), *path, "--help").stdout
    for word in words[position:]:
        if word.startswith("--") and word not in re.findall(r"--[a-z-]+", told):
            return f"{' '.join(path)} has no option {word}"
    return None


def test_an_unknown_command_is_noticed():
    assert check_command("waypost-identity", ["--config", "x", "pepper", "rotate"]) is None
    assert check_command("waypost-identity", ["pepper", "turn"]) == "no command pepper turn"
    assert check_command("waypost-push-gateway", ["send-test", "--application", "x"]) == (
        "send-test has no option --application"
    )


# --- Backup, restore and rotation -------------------------------------------------------------------------------------

INTERNAL = """
[listen]
internal = "127.0.0.1:{port}"
[internal]
secret = "a secret for the internal listener"
"""


def bind(port, address):
    body = json.dumps({"medium": "email", "address": address, "mxid": "@alice:example.com"})
    headers = {"Authorization": "Bearer a secret for the internal listener"}
    assert ask(port, "POST", "/_matrix/identity/internal/bind", body, headers)[0] == 200


def block_with(page, text):
    """The block of code of a page that has this text in it."""
    found = [block for where, block in blocks("sh", "nginx", "caddyfile") if where.startswith(page) and text in block]
    assert len(found) == 1, f"{page}: {len(found)} blocks with {text}"
    return found[0]


def test_a_backup_is_made_while_the_service_runs_and_can_be_restored(tmp_path):
    tool("sqlite3")
    folder, port = tmp_path / "service", free_port()
    with serving("waypost-identity", folder, INTERNAL.format(port=port)):
        bind(port, "alice@example.com")
        backup = block_with("docs/backup.md", ".backup")
        for old, new in (("/var/lib/waypost-identity", folder / "waypost-data"), ("/var/backups", tmp_path)):
            backup = backup.replace(old, str(new))
        run("bash", "-e", "-c", backup)
        bind(port, "later@example.com")

    # Restored elsewhere, by the block of docs/backup.md.
    trial = block_with("docs/backup.md", "mkdir trial")
    for old, new in (("/var/backups", tmp_path), ("/media/safe", folder / "waypost-data")):
        trial = trial.replace(old, str(new))
    environment = {**os.environ, "PATH": f"{program('waypost-identity').parent}:{os.environ['PATH']}"}
    said = run("bash", "-e", "-c", trial, cwd=tmp_path, env=environment).stdout
    assert "good  storage keys: trial/storage.key is what the database was written with" in said
    environment["WAYPOST_IDENTITY__DATA_DIR"] = "trial"
    command = [program("waypost-identity"), "association", "list", "--mxid", "@alice:example.com"]
    listed = run(*command, cwd=tmp_path, env=environment).stdout
    assert "alice@example.com" in listed and "later@example.com" not in listed

    # With other keys it is of no use, and says so.
    (tmp_path / "trial/storage.key").write_text(run(program("waypost-identity"), "keys", "storage").stdout)
    done = run(*command, cwd=tmp_path, env=environment, check=False)
    assert done.returncode == 1
    assert "are not those that this database was written with" in done.stderr


def test_a_signing_key_is_rotated_without_a_restart(tmp_path):
    commands = block_with("docs/rotation.md", "keys signing")
    with serving("waypost-identity", tmp_path) as (public, _):
        path = "/_matrix/identity/v2/pubkey/ed25519:"
        first = ask(public, "GET", path + "0")
        assert first[0] == 200 and ask(public, "GET", path + "1")[0] == 404
        environment = {**os.environ, "PATH": f"{program('waypost-identity').parent}:{os.environ['PATH']}"}
        run("bash", "-e", "-c", commands, cwd=tmp_path / "waypost-data", env=environment)
        wait_for(lambda: ask(public, "GET", path + "1")[0] == 200, "the new key is known")
        assert ask(public, "GET", path + "0")[2] == first[2]


# --- Reverse proxies --------------------------------------------------------------------------------------------------


class Through:
    """Requests by TLS to a proxy on loopback, for any name."""

    def __init__(self, port, authority):
        self.port = port
        self.context = ssl.create_default_context(cafile=str(authority))

    def ask(self, name, method, path, body=None, headers=None, source="127.0.0.1"):
        plain = socket.create_connection(("127.0.0.1", self.port), timeout=10, source_address=(source, 0))
        connection = http.client.HTTPSConnection(name, timeout=10)
        connection.sock = self.context.wrap_socket(plain, server_hostname=name)
        return ask(self.port, method, path, body, headers, connection=connection)


@pytest.fixture
def services(tmp_path):
    """Both services behind a proxy of loopback, with a small budget for registrations. Yields their public ports."""
    behind = '[server]\ntrusted_proxies = ["127.0.0.1/32"]\n'
    few = "[limits]\nregister_per_source = { burst = 2, refill_secs = 3600.0 }\n"
    with serving("waypost-identity", tmp_path / "identity", behind + few) as (identity, _):
        with serving("waypost-push-gateway", tmp_path / "push", behind) as (push, _):
            yield identity, push


def check_proxy(through):
    """What a recipe for a reverse proxy has to do."""
    status, headers, body = through.ask("id.example.com", "GET", "/_matrix/identity/v2")
    assert (status, body) == (200, "{}")
    assert headers["access-control-allow-origin"] == "*"
    assert through.ask("id.example.com", "GET", "/_matrix/identity/versions")[0] == 200
    # Pages of policies: Waypost's own 404, which is a page.
    assert "<html" in through.ask("id.example.com", "GET", "/_waypost/terms/a/1.0/en")[2]
    empty = '{"notification":{"devices":[]}}'
    status, _, body = through.ask("push.example.com", "POST", "/_matrix/push/v1/notify", empty)
    assert (status, json.loads(body)) == (200, {"rejected": []})

    # Nothing else is public, and no error of Waypost's is replaced by the proxy's.
    for name in ("id.example.com", "push.example.com"):
        for path in ("/", "/metrics", "/health/ready", "/status", "/_matrix/client/versions"):
            status, _, body = through.ask(name, "GET", path)
            assert status == 404 and "errcode" not in body, (name, path)
    status, _, body = through.ask("id.example.com", "GET", "/_matrix/identity/v2/nothing")
    assert (status, json.loads(body)["errcode"]) == (404, "M_UNRECOGNIZED")
    unknown = '{"notification":{"event_id":"$1","devices":[{"app_id":"a","pushkey":"k"}]}}'
    status, headers, _ = through.ask("push.example.com", "POST", "/_matrix/push/v1/notify", unknown)
    assert status == 503 and "retry-after" in headers

    # Events with large contents get through; what is over Waypost's limit does not.
    large = json.dumps({"notification": {"content": {"body": "x" * 900_000}, "devices": []}})
    assert through.ask("push.example.com", "POST", "/_matrix/push/v1/notify", large)[0] == 200
    # Waypost answers without waiting for the rest. A proxy that is sending it may take that for a failure (502), or
    # hang up on us in the same way.
    with contextlib.suppress(OSError):
        assert through.ask("push.example.com", "POST", "/_matrix/push/v1/notify", "x" * 2_000_000)[0] in (413, 502)

    # Each client has its own budget, and cannot get another one by what it claims.
    register = "/_matrix/identity/v2/account/register"
    # A homeserver that the address guard refuses: nobody is called.
    token = {"access_token": "t", "token_type": "Bearer", "matrix_server_name": "127.0.0.1:1", "expires_in": 3600}
    seen = []
    for attempt in range(3):
        claimed = {"X-Forwarded-For": f"192.0.2.{attempt}"}
        seen.append(through.ask("id.example.com", "POST", register, json.dumps(token), claimed)[0])
    assert seen == [502, 502, 429]
    assert through.ask("id.example.com", "POST", register, json.dumps(token), source="127.0.0.2")[0] == 502


SECRETS = ("secret-token", "secret-client-secret", "secret-sid", "secret-access-token", "secret-key", "secret-referer")


def ask_with_secrets(through):
    """Requests whose queries and headers hold secrets, to existing and to other paths, good and bad."""
    token, client_secret, sid, access_token, private_key, referer = SECRETS
    link = f"token={token}&client_secret={client_secret}&sid={sid}"
    headers = {"Referer": f"https://id.example.com/_matrix/identity/v2/validate/email/submitToken?token={referer}"}
    for path in (
        f"/_matrix/identity/v2/validate/email/submitToken?{link}",
        f"/_matrix/identity/v2/account?access_token={access_token}",
        f"/_matrix/identity/v2/sign-ed25519?token={token}&private_key={private_key}",
        f"/_matrix/identity/v2/nothing?{link}",
        f"/nothing?{link}",
    ):
        for method in ("GET", "POST"):
            through.ask("id.example.com", method, path, "{}" if method == "POST" else None, headers)


def assert_no_secrets(folder, *logs):
    """That a proxy's logs have lines, and in none of them a secret."""
    texts = {log: log.read_text(errors="replace") for log in [*logs, *folder.glob("*.log")] if log.exists()}
    assert any("/_matrix/identity/v2/validate/email/submitToken" in text for text in texts.values()), texts
    for log, text in texts.items():
        assert not [secret for secret in SECRETS if secret in text], (log, text)


def certificate(folder):
    """A certificate for both names, which is its own authority. Returns the paths of it and its key."""
    names = "subjectAltName=DNS:id.example.com,DNS:push.example.com"
    made = folder / "fullchain.pem", folder / "privkey.pem"
    new_key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", made[1]]
    run(tool("openssl"), "req", "-x509", *new_key, "-days", "2", "-subj", "/CN=id.example.com", "-addext", names,
        "-out", made[0])
    return made


def test_the_recipe_for_nginx_works(services, tmp_path):
    identity, push = services
    public, key = certificate(tmp_path)
    port = free_port()
    text = block_with("docs/recipes/nginx.md", "upstream waypost_identity")
    for pattern, new in (
        (r"listen 443 ", f"listen 127.0.0.1:{port} "),
        (r" *listen \[::\]:443 .*\n", ""),
        (r"/etc/letsencrypt/\S+/fullchain.pem", str(public)),
        (r"/etc/letsencrypt/\S+/privkey.pem", str(key)),
        (r"127\.0\.0\.1:8090\b", f"127.0.0.1:{identity}"),
        (r"127\.0\.0\.1:5000\b", f"127.0.0.1:{push}"),
        (r"/var/log/nginx/", f"{tmp_path}/"),
    ):
        text, times = re.subn(pattern, new, text)
        assert times, pattern
    temporary = "".join(f"{kind}_temp_path {tmp_path}/{kind};\n" for kind in
                        ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    user = "user root;\n" if os.geteuid() == 0 else ""
    file = tmp_path / "nginx.conf"
    file.write_text(f"{user}daemon off;\npid {tmp_path}/pid;\nerror_log stderr;\nevents {{}}\n"
                    f"http {{\naccess_log off;\n{temporary}{text}}}\n")
    nginx, log = tool("nginx"), tmp_path / "nginx.log"
    told = run(nginx, "-t", "-c", file, "-e", "stderr")
    assert "[warn]" not in told.stderr, told.stderr
    with started([nginx, "-c", file, "-e", "stderr"], log):
        wait_for(lambda: listens(port), "nginx listens")
        check_proxy(Through(port, public))
        ask_with_secrets(Through(port, public))
    # What the proxy cannot reach is what it likes to write about.
    text = file.read_text().replace(f"127.0.0.1:{identity}", f"127.0.0.1:{free_port()}")
    file.write_text(text)
    with started([nginx, "-c", file, "-e", "stderr"], log):
        wait_for(lambda: listens(port), "nginx listens")
        ask_with_secrets(Through(port, public))
    assert_no_secrets(tmp_path)


def listens(port):
    with contextlib.suppress(OSError):
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
        return True
    return False


def at_home(folder):
    """The environment of a program that keeps what it makes in `folder`."""
    return {**os.environ, "HOME": str(folder), "XDG_DATA_HOME": str(folder), "XDG_CONFIG_HOME": str(folder)}


def test_the_recipe_for_caddy_works(services, tmp_path):
    identity, push = services
    port = free_port()
    text = block_with("docs/recipes/caddy.md", "@waypost")
    assert text.count("127.0.0.1:8090") == 1 and text.count("127.0.0.1:5000") == 1
    text = text.replace("127.0.0.1:8090", f"127.0.0.1:{identity}").replace("127.0.0.1:5000", f"127.0.0.1:{push}")
    # An authority of its own instead of one of the internet, and no other ports.
    options = "{\n\tlocal_certs\n\tskip_install_trust\n\tadmin off\n\tauto_https disable_redirects\n"
    options += f"\tdefault_bind 127.0.0.1\n\thttp_port {free_port()}\n\thttps_port {port}\n}}\n"
    file = tmp_path / "Caddyfile"
    file.write_text(options + text)
    environment = at_home(tmp_path)
    command = [tool("caddy"), "run", "--adapter", "caddyfile", "--config", file]
    authority = tmp_path / "caddy/pki/authorities/local/root.crt"
    with started(command, tmp_path / "caddy.log", env=environment):
        wait_for(lambda: authority.exists() and listens(port), "Caddy listens")
        through = Through(port, authority)

        def certified():
            with contextlib.suppress(ssl.SSLError):
                return all(through.ask(name, "GET", "/")[0] for name in ("id.example.com", "push.example.com"))

        wait_for(certified, "Caddy has certificates")
        check_proxy(through)
        ask_with_secrets(through)
    assert_no_secrets(tmp_path)


def test_caddy_understands_the_recipe_for_replicas(tmp_path):
    file = tmp_path / "Caddyfile"
    file.write_text(block_with("docs/recipes/caddy.md", "health_uri"))
    environment = at_home(tmp_path)
    adapted = run(tool("caddy"), "adapt", "--validate", "--adapter", "caddyfile", "--config", file, env=environment)
    assert '"uri":"/health/ready"' in adapted.stdout


def test_traefik_would_find_what_its_recipe_names():
    """Traefik is no package of Debian, so only the form is held: every name that is used is there."""
    static, dynamic = (yaml.safe_load(text) for where, text in YAML if where.startswith("docs/recipes/traefik.md"))
    assert static["providers"]["file"]["filename"] == "/etc/traefik/waypost.yml"
    resolver = static["entryPoints"]["websecure"]["http"]["tls"]["certResolver"]
    assert resolver in static["certificatesResolvers"]
    services = dynamic["http"]["services"]
    for router in dynamic["http"]["routers"].values():
        assert router["service"] in services
        assert set(router["entryPoints"]) <= set(static["entryPoints"])
        parts = re.sub(r"(Host|Path|PathPrefix)\(`[\w./-]+`\)", "x", router["rule"])
        assert re.fullmatch(r"[x()&| ]+", parts), router["rule"]
    ports = {"waypost-identity": ("8090", 8091), "waypost-push-gateway": ("5000", 5001)}
    for name, service in services.items():
        public, operations = ports[name]
        assert service["loadBalancer"]["servers"][0]["url"].endswith(f":{public}")
        assert service["loadBalancer"]["healthCheck"]["port"] == operations
