"""The dashboards, the alerts and the table of metrics in the manual, held to what the real programs show."""

import contextlib
import itertools
import json
import re
import subprocess
import urllib.parse

import pytest
import yaml

from support_waypost import ROOT, answers, ask, free_port, program, run, serving, started, tool, wait_for

SERVICES = {"identity": "waypost_identity_", "push-gateway": "waypost_push_gateway_"}
ROWS = {
    "identity": ["Traffic", "Errors", "Latency", "Outbox, lookups, index", "Limits", "Resources"],
    "push-gateway": ["Traffic", "Errors", "Latency", "Outcomes by provider", "Limits", "Resources"],
}
# Made by Prometheus itself for each target.
FROM_PROMETHEUS = {"up": set()}
TARGET_LABELS = {"job", "instance"}
# A status comes into being with its first answer, so only its form is checked.
FREE_VALUES = {"status", "le", "app", *TARGET_LABELS}

IDENTITY_CONFIG = """
[sms]
transport = "log"
[v1]
mode = "full"
allow = ["127.0.0.1/32"]
"""


# --- What the programs show -------------------------------------------------------------------------------------------


def parse(text):
    """OpenMetrics text as {family: type} and {name: {label: {values}}}."""
    families, samples = {}, {}
    for line in text.splitlines():
        if line.startswith("# TYPE "):
            family, kind = line.split()[2:]
            families[family + "_total" if kind == "counter" else family] = kind
        elif line and not line.startswith("#"):
            name, labels = re.match(r"([a-zA-Z_:]\w*)(?:\{(.*)\})? ", line).groups()
            known = samples.setdefault(name, {})
            for label, value in re.findall(r'(\w+)="((?:[^"\\]|\\.)*)"', labels or ""):
                known.setdefault(label, set()).add(value)
    return families, samples


def drive_identity(public):
    json_type = {"Content-Type": "application/json"}
    mail = {"client_secret": "abc", "email": "alice@example.org", "send_attempt": 1}
    phone = {"client_secret": "abc", "country": "GB", "phone_number": "07700900001", "send_attempt": 1}
    v1 = "/_matrix/identity/api/v1/validate"
    assert ask(public, "POST", f"{v1}/email/requestToken", json.dumps(mail), json_type)[0] == 200
    assert ask(public, "POST", f"{v1}/msisdn/requestToken", json.dumps(phone), json_type)[0] == 200
    assert ask(public, "POST", "/_matrix/identity/v2/lookup", "{}", json_type)[0] == 401
    assert ask(public, "POST", "/_matrix/identity/v2/account/register", "{}", json_type)[0] == 400


def push_config(folder):
    """Each kind of metric needs its reason: an app with a certificate, one without, and a shared memory."""
    vapid = run(program("waypost-push-gateway"), "vapid").stdout
    (folder / "vapid.pem").write_text(vapid)
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", folder / "apns.key"]
    run(tool("openssl"), "req", "-x509", *key, "-days", "90", "-subj", "/UID=org.example.app",
        "-out", folder / "apns.pem")
    return f"""
[seen]
redis_url = "redis://127.0.0.1:{free_port()}/0"
secret = "0123456789abcdef0123456789abcdef"
[[apps]]
id = "org.example.ios"
[apps.apns]
topic = "org.example.app"
certificate_file = "apns.pem"
certificate_key_file = "apns.key"
[[apps]]
id = "org.example.web"
[apps.webpush]
vapid_key_file = "vapid.pem"
vapid_contact = "ops@example.com"
"""


def drive_push(public):
    device = {"app_id": "org.example.unknown", "pushkey": "mine"}
    body = json.dumps({"notification": {"event_id": "$1", "devices": [device]}})
    assert ask(public, "POST", "/_matrix/push/v1/notify", body)[0] == 503


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """{service: (families, samples)} of the real programs, after a few requests."""
    result = {}
    folder = tmp_path_factory.mktemp("identity")
    with serving("waypost-identity", folder, IDENTITY_CONFIG) as (public, operations):
        drive_identity(public)
        # Some counters come with the first look at what is over, which is up to a minute after the start.
        def all_there():
            families, samples = parse(ask(operations, "GET", "/metrics")[2])
            return (families, samples) if "waypost_identity_rows_removed_total" in families else None

        result["identity"] = wait_for(all_there, "waypost_identity_rows_removed_total is shown", 90)
    folder = tmp_path_factory.mktemp("push")
    with serving("waypost-push-gateway", folder, push_config(folder)) as (public, operations):
        drive_push(public)
        result["push-gateway"] = parse(ask(operations, "GET", "/metrics")[2])
    return result


# --- What expressions ask for -----------------------------------------------------------------------------------------

KEYWORDS = {"and", "or", "unless", "by", "without", "on", "ignoring", "group_left", "group_right", "offset", "bool"}
TOKEN = re.compile(
    r'(?P<string>"(?:[^"\\]|\\.)*")|(?P<duration>\[[^\]]*\]|\d[\w.]*)'
    r"|(?P<name>[a-zA-Z_:][\w:]*)|(?P<sign>=~|!~|!=|==|\S)"
)


def asked(expression):
    """The (metric, [(label, operator, value)]) and the labels of by, on and the like that PromQL text names."""
    tokens = [(m.lastgroup, m.group()) for m in TOKEN.finditer(expression)]
    selectors, grouping, at = [], set(), 0
    while at < len(tokens):
        kind, text = tokens[at]
        following = tokens[at + 1][1] if at + 1 < len(tokens) else ""
        if kind == "name" and text in KEYWORDS:
            if following == "(":
                end = next(i for i in range(at, len(tokens)) if tokens[i][1] == ")")
                grouping |= {word for token, word in tokens[at + 2:end] if token == "name"}
                at = end
        elif kind == "name" and following not in {"(", "by", "without"}:
            matchers = []
            if following == "{":
                end = next(i for i in range(at, len(tokens)) if tokens[i][1] == "}")
                inside = [word for _, word in tokens[at + 2:end] if word != ","]
                matchers = [tuple(inside[i:i + 3]) for i in range(0, len(inside), 3)]
                at = end
            selectors.append((text, [(label, op, value.strip('"')) for label, op, value in matchers]))
        at += 1
    return selectors, grouping


def test_expressions_are_taken_apart():
    text = 'sum by (job, le) (rate(a_total{x="1",y=~"b|{c}"}[5m])) > 2 and on (job) b offset 1h or time() < 3e2'
    selectors, grouping = asked(text)
    assert selectors == [("a_total", [("x", "=", "1"), ("y", "=~", "b|{c}")]), ("b", [])]
    assert grouping == {"job", "le"}


def wrong(expression, samples):
    """What an expression names that the program does not show."""
    known = {**samples, **FROM_PROMETHEUS}
    selectors, grouping = asked(expression)
    assert selectors, f"no metric in {expression}"
    labels = set(TARGET_LABELS)
    for name, matchers in selectors:
        if name not in known:
            yield f"no metric {name}"
            continue
        labels |= set(known[name])
        for label, operator, value in matchers:
            if label not in set(known[name]) | TARGET_LABELS:
                yield f"{name} has no label {label}"
            elif label not in FREE_VALUES:
                for one in value.split("|") if "~" in operator else [value]:
                    if one not in known[name][label]:
                        yield f"{name} has no {label}={one}"
    for label in grouping - labels:
        yield f"no label {label} in {[name for name, _ in selectors]}"


def test_what_is_not_shown_is_noticed():
    samples = {"a_total": {"outcome": {"sent"}}}
    assert not list(wrong('sum by (job, outcome) (rate(a_total{outcome="sent",job=~"$job"}[5m])) + up', samples))
    assert list(wrong("rate(b_total[5m])", samples)) == ["no metric b_total"]
    assert list(wrong('a_total{app="x"}', samples)) == ["a_total has no label app"]
    assert list(wrong('a_total{outcome=~"sent|lost"}', samples)) == ["a_total has no outcome=lost"]
    assert list(wrong("sum by (table) (a_total)", samples)) == ["no label table in ['a_total']"]


# --- Dashboards -------------------------------------------------------------------------------------------------------


@pytest.fixture(params=SERVICES)
def service(request):
    return request.param


@pytest.fixture
def dashboard(service):
    return json.loads((ROOT / "deploy" / "dashboards" / f"{service}.json").read_text())


def panels(dashboard):
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def expressions(dashboard):
    """(where, expression) of all panels and annotations."""
    for panel in panels(dashboard):
        for target in panel["targets"]:
            yield panel["title"], target["expr"]
    for annotation in dashboard["annotations"]["list"]:
        if "expr" in annotation:
            yield annotation["name"], annotation["expr"]


def test_each_expression_of_a_dashboard_names_what_is_shown(service, dashboard, shown):
    samples = shown[service][1]
    mistakes = [f"{where}: {what}" for where, text in expressions(dashboard) for what in wrong(text, samples)]
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            metric, label = re.fullmatch(r"label_values\((\w+)(?:\{.*\})?,(\w+)\)", variable["definition"]).groups()
            if metric not in samples or label not in set(samples[metric]) | TARGET_LABELS:
                mistakes.append(f"variable {variable['name']}: {variable['definition']}")
    assert not mistakes, "\n".join(mistakes)


def test_each_metric_is_on_the_dashboard(service, dashboard, shown):
    named = {name for _, text in expressions(dashboard) for name, _ in asked(text)[0]}
    named = {re.sub(r"_(bucket|sum|count)$", "", name) for name in named}
    assert set(shown[service][0]) <= named


def test_a_dashboard_is_whole(service, dashboard):
    assert dashboard["schemaVersion"] >= 39
    assert dashboard["id"] is None
    variables = {variable["name"]: variable for variable in dashboard["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    assert variables["datasource"]["query"] == "prometheus"
    titles = [panel["title"] for panel in dashboard["panels"] if panel["type"] == "row"]
    assert titles == ["Overview", *ROWS[service]]
    for panel in panels(dashboard):
        assert len(panel["description"]) > 15, panel["title"]
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}, panel["title"]
        assert all(target["datasource"] == panel["datasource"] for target in panel["targets"]), panel["title"]
        shows = panel["options"]["yAxis"] if panel["type"] == "heatmap" else panel["fieldConfig"]["defaults"]
        assert shows["unit"], panel["title"]
        for variable in re.findall(r"\$(\w+)", json.dumps(panel["targets"])):
            assert variable in variables or variable == "__rate_interval", (panel["title"], variable)
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids)


def test_panels_do_not_lie_on_each_other(dashboard):
    taken = {}
    for panel in dashboard["panels"]:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        for cell in itertools.product(range(at["x"], at["x"] + at["w"]), range(at["y"], at["y"] + at["h"])):
            assert cell not in taken, f"{panel['title']} lies on {taken[cell]}"
            taken[cell] = panel["title"]


def test_prometheus_understands_each_expression_of_a_dashboard(dashboard, tmp_path):
    rules = [
        {"record": f"panel_{number}", "expr": re.sub(r"\$__\w+", "5m", text)}
        for number, (_, text) in enumerate(expressions(dashboard))
    ]
    file = tmp_path / "panels.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    run(tool("promtool"), "check", "rules", file)


# --- Alerts -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def alerts(service):
    groups = yaml.safe_load((ROOT / "deploy" / "alerts" / f"{service}.yaml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def test_each_expression_of_an_alert_names_what_is_shown(service, alerts, shown):
    samples = shown[service][1]
    mistakes = [f"{rule['alert']}: {what}" for rule in alerts for what in wrong(rule["expr"], samples)]
    assert not mistakes, "\n".join(mistakes)


def anchors(page):
    """The #names of a page's headings, as mdBook makes them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S)
    titles = re.findall(r"^#+ (.*)$", text, flags=re.M)
    return {re.sub(r"[^\w -]", "", title.lower()).strip().replace(" ", "-") for title in titles}


def test_each_alert_says_what_it_means_and_where_to_read_on(alerts):
    assert alerts
    for rule in alerts:
        assert rule["labels"]["severity"] in {"warning", "critical"}, rule["alert"]
        assert set(rule["annotations"]) == {"summary", "description", "runbook_url"}, rule["alert"]
        page, anchor = rule["annotations"]["runbook_url"].split("#")
        assert page == "docs/monitoring.md"
        assert anchor == rule["alert"].lower()
        assert anchor in anchors(ROOT / page), f"docs/monitoring.md has no section {rule['alert']}"


def test_each_alert_is_seen_firing_and_not_firing(service, alerts):
    seen = {}
    for file in sorted((ROOT / "deploy" / "alerts" / "tests").glob(f"{service}*.yaml")):
        tests = yaml.safe_load(file.read_text())
        assert tests["rule_files"] == [f"../{service}.yaml"]
        for case in tests["tests"]:
            for check in case["alert_rule_test"]:
                seen.setdefault(check["alertname"], set()).add(bool(check["exp_alerts"]))
    assert seen == {rule["alert"]: {True, False} for rule in alerts}


def test_prometheus_takes_the_alerts_and_their_tests_hold(service):
    promtool = tool("promtool")
    folder = ROOT / "deploy" / "alerts"
    run(promtool, "check", "rules", folder / f"{service}.yaml")
    tests = sorted((folder / "tests").glob(f"{service}*.yaml"))
    assert tests
    run(promtool, "test", "rules", *tests)


def test_a_wrong_expectation_is_noticed(service, tmp_path):
    """The tests of the rules can fail: with a threshold that nothing reaches, they do."""
    promtool = tool("promtool")
    text = (ROOT / "deploy" / "alerts" / f"{service}.yaml").read_text()
    changed = text.replace("process_max_fds > 0.8", "process_max_fds > 0.99")
    assert changed != text
    (tmp_path / f"{service}.yaml").write_text(changed)
    (tmp_path / "tests").mkdir()
    tests = tmp_path / "tests" / "tests.yaml"
    about = yaml.safe_load((ROOT / "deploy" / "alerts" / "tests" / f"{service}.yaml").read_text())
    # The others would hold as before, which takes its time.
    about["tests"] = [case for case in about["tests"] if "FilesRunOut" in json.dumps(case["alert_rule_test"])]
    tests.write_text(yaml.safe_dump(about))
    done = subprocess.run([promtool, "test", "rules", tests], capture_output=True, text=True, timeout=300)
    assert done.returncode != 0
    assert "FilesRunOut" in done.stdout + done.stderr


# --- The manual -------------------------------------------------------------------------------------------------------


def documented():
    """{metric: (type, labels)} of the tables in docs/monitoring.md."""
    manual = (ROOT / "docs" / "monitoring.md").read_text()
    rows = re.findall(r"^\| `([a-z_]+)` \| (counter|gauge|histogram) \|([^|]*)\|", manual, re.M)
    assert len(rows) == len({name for name, _, _ in rows}), "a metric is documented twice"
    return {name: (kind, set(re.findall(r"`(\w+)`", labels.split(":")[0]))) for name, kind, labels in rows}


def test_the_manual_has_each_metric_and_no_other(shown):
    real = {}
    for families, samples in shown.values():
        for name, kind in families.items():
            labels = samples[name + "_count" if kind == "histogram" else name]
            real[name] = (kind, set(labels))
    assert documented() == real


def query(port, expression):
    """The samples that Prometheus answers with at this moment."""
    status, _, text = ask(port, "GET", "/api/v1/query?" + urllib.parse.urlencode({"query": expression}))
    assert status == 200, text
    return json.loads(text)["data"]["result"]


def test_prometheus_reads_both_as_the_manual_says(tmp_path):
    """The real Prometheus, with the configuration of docs/monitoring.md: targets, rules and each panel's query."""
    manual = (ROOT / "docs" / "monitoring.md").read_text()
    block = re.search(r"```yaml\n(# prometheus.yml\n.*?)```", manual, re.S).group(1)
    with contextlib.ExitStack() as stack:
        for name, port in (("identity", "8091"), ("push-gateway", "5001")):
            _, operations = stack.enter_context(serving(f"waypost-{name}", tmp_path / name))
            assert f"127.0.0.1:{port}" in block
            block = block.replace(f"127.0.0.1:{port}", f"127.0.0.1:{operations}")
        assert block.count("/etc/prometheus/waypost/") == 2
        block = block.replace("/etc/prometheus/waypost", str(ROOT / "deploy" / "alerts"))
        (tmp_path / "prometheus.yml").write_text("global: {scrape_interval: 1s}\n" + block)
        port = free_port()
        command = [tool("prometheus"), f"--config.file={tmp_path / 'prometheus.yml'}",
                   f"--storage.tsdb.path={tmp_path / 'data'}", f"--web.listen-address=127.0.0.1:{port}"]
        log = tmp_path / "prometheus.log"
        stack.enter_context(started(command, log))
        wait_for(lambda: answers(port, "/-/ready"), "Prometheus is ready")
        wait_for(lambda: len([r for r in query(port, "up") if r["value"][1] == "1"]) == 2, "both targets are up")
        groups = json.loads(ask(port, "GET", "/api/v1/rules")[2])["data"]["groups"]
        assert {group["name"] for group in groups} == {"waypost-identity", "waypost-push-gateway"}
        for service in SERVICES:
            board = json.loads((ROOT / "deploy" / "dashboards" / f"{service}.json").read_text())
            for _, text in expressions(board):
                query(port, re.sub(r"\$(job|instance|app)", ".*", re.sub(r"\$__\w+", "5m", text)))
