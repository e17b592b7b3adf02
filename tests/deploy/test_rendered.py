"""What is in the rendered charts: what fits to what, and what is there when."""

import json
import re

import pytest
import tools
from tools import (
    ALL_CI,
    CHARTS,
    CI_IDS,
    HELM_FOLDER,
    all_of,
    config,
    container,
    of_kind,
    pod_spec,
    port_of,
    render,
)

IDENTITY, PUSH = ({path.stem.removesuffix("-values"): path for path in tools.ci_values(chart)} for chart in CHARTS)
PROGRAM = {"identity": "waypost-identity", "push-gateway": "waypost-push-gateway"}


@pytest.fixture(scope="module", params=ALL_CI, ids=CI_IDS)
def rendered(request, ci):
    """Chart and manifests of each of the values."""
    chart, values = request.param
    return chart, render(chart, *ci(chart, values))


def test_ports_are_those_of_the_configuration(rendered):
    chart, manifests = rendered
    listen = {name: int(address.rsplit(":", 1)[1]) for name, address in config(manifests)["listen"].items()}
    ports = {port["name"]: port["containerPort"] for port in container(manifests)["ports"]}
    assert ports == {{"public": "http"}.get(name, name): number for name, number in listen.items()}
    for service in all_of(manifests, "Service"):
        for port in service["spec"]["ports"]:
            assert port_of(manifests, port["targetPort"]) == ports[port["name"]], service["metadata"]["name"]
        # A load balancer shows what is public and nothing else.
        if service["spec"]["type"] != "ClusterIP":
            assert [port["name"] for port in service["spec"]["ports"]] == ["http"]
    for policy in all_of(manifests, "NetworkPolicy"):
        for rule in policy["spec"]["ingress"]:
            assert all(port["port"] in ports for port in rule["ports"])
    # And they are those that the image shows.
    exposed = re.search(rf"AS {chart}\n.*?EXPOSE ([\d ]+)", (tools.REPO / "deploy/Dockerfile").read_text(), re.S).group(
        1
    )
    assert exposed.split() == [str(ports["http"]), str(ports["operations"])]


def test_selectors_meet_the_pods(rendered):
    _, manifests = rendered
    deployment = of_kind(manifests, "Deployment")
    labels = deployment["spec"]["template"]["metadata"]["labels"].items()
    selectors = [deployment["spec"]["selector"]["matchLabels"]]
    selectors += [service["spec"]["selector"] for service in all_of(manifests, "Service")]
    selectors += [p["spec"]["podSelector"]["matchLabels"] for p in all_of(manifests, "NetworkPolicy")]
    selectors += [p["spec"]["selector"]["matchLabels"] for p in all_of(manifests, "PodDisruptionBudget")]
    selectors += [s["labelSelector"]["matchLabels"] for s in pod_spec(manifests).get("topologySpreadConstraints", [])]
    for selector in selectors:
        assert selector.items() <= labels
    # The pod for tests must get no requests of the service.
    for pod in all_of(manifests, "Pod"):
        assert not selectors[0].items() <= pod["metadata"]["labels"].items()


def test_probes_are_on_the_operations_port(rendered):
    _, manifests = rendered
    paths = {"startupProbe": "/health/live", "livenessProbe": "/health/live", "readinessProbe": "/health/ready"}
    for probe, path in paths.items():
        assert container(manifests)[probe]["httpGet"] == {"path": path, "port": "operations"}
    # A start may take minutes: reading all associations, or waiting for another replica's migration.
    startup = container(manifests)["startupProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] >= 300


def test_a_pod_may_do_nothing_that_it_need_not(rendered):
    """The standard "restricted", and no token."""
    _, manifests = rendered
    pods = [pod_spec(manifests)] + [pod["spec"] for pod in all_of(manifests, "Pod")]
    for pod in pods:
        assert pod["automountServiceAccountToken"] is False
        assert pod["enableServiceLinks"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] > 10000
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
        for part in pod["containers"]:
            assert part["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert set(part["resources"]["requests"]) == set(part["resources"]["limits"]) == {"cpu", "memory"}
    for account in all_of(manifests, "ServiceAccount"):
        assert account["automountServiceAccountToken"] is False
        assert account["metadata"]["name"] == pod_spec(manifests)["serviceAccountName"]


def test_there_is_time_to_end_in(rendered):
    _, manifests = rendered
    drain = config(manifests).get("server", {}).get("shutdown_grace_secs", 30)
    before = container(manifests).get("lifecycle", {"preStop": {"sleep": {"seconds": 0}}})["preStop"]["sleep"][
        "seconds"
    ]
    assert pod_spec(manifests)["terminationGracePeriodSeconds"] > before + drain


def test_no_secret_is_where_everybody_may_read(rendered):
    """Whatever is inline is in the Secret only, and the configuration names files that are mounted."""
    _, manifests = rendered
    values = [value.strip() for secret in tools.secret_values(manifests).values() for value in secret.values()]
    others = json.dumps([manifest for manifest in manifests if manifest["kind"] != "Secret"])
    assert not [value for value in values if value in others or json.dumps(value)[1:-1] in others]
    mounts = {mount["mountPath"]: mount for mount in container(manifests)["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pod_spec(manifests)["volumes"]}
    # Not for everybody, which `doctor` calls bad for a key: for root, and the volumes' group, which is the process's.
    security = pod_spec(manifests)["securityContext"]
    assert security["fsGroup"] == security["runAsGroup"] != 0
    files = re.findall(r'"(/etc/waypost/secrets/[^"]+)"', tools.toml_text(manifests))
    for file in files:
        mount = mounts[file.rsplit("/", 1)[0]]
        secret = volumes[mount["name"]]["secret"]
        assert mount["readOnly"] and secret["defaultMode"] == 0o440
        (item,) = secret["items"]
        assert item["path"] == file.rsplit("/", 1)[1]
        made = tools.secret_values(manifests).get(secret["secretName"])
        assert made is None or item["key"] in made
    inline = sum(len(secret) for secret in tools.secret_values(manifests).values())
    assert len(files) >= inline


def test_names_are_the_releases_and_all_is_in_its_namespace(rendered):
    _, manifests = rendered
    for manifest in manifests:
        expected = "monitoring" if manifest["metadata"]["name"] == "rel-waypost-push-gateway-dashboard" else "waypost"
        assert manifest["metadata"]["namespace"] == expected
        assert manifest["metadata"]["labels"]["app.kubernetes.io/instance"] == "rel"
    kinds = [(manifest["kind"], manifest["metadata"]["name"]) for manifest in manifests]
    assert len(set(kinds)) == len(kinds)


def test_one_replica_has_no_disruption_budget_and_several_have():
    assert not all_of(render("identity", IDENTITY["sqlite"]), "PodDisruptionBudget")
    assert not all_of(render("push-gateway"), "PodDisruptionBudget")
    for values in ({"replicaCount": 2}, {"autoscaling.enabled": True}):
        budget = of_kind(render("push-gateway", values), "PodDisruptionBudget")
        assert budget["spec"]["maxUnavailable"] == 1
    assert not all_of(
        render("push-gateway", {"replicaCount": 2, "podDisruptionBudget.enabled": False}), "PodDisruptionBudget"
    )


def test_sqlite_is_one_process_with_a_volume_and_postgresql_is_updated_with_a_surge(ci):
    alone = render("identity", IDENTITY["sqlite"])
    spec = of_kind(alone, "Deployment")["spec"]
    assert (spec["replicas"], spec["strategy"]) == (1, {"type": "Recreate"})
    claim = of_kind(alone, "PersistentVolumeClaim")
    assert claim["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
    volumes = {volume["name"]: volume for volume in pod_spec(alone)["volumes"]}
    assert volumes["data"]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    mounts = {mount["name"]: mount["mountPath"] for mount in container(alone)["volumeMounts"]}
    assert mounts["data"] == config(alone)["identity"]["data_dir"]

    many = render("identity", *ci("identity", IDENTITY["inline"]))
    spec = of_kind(many, "Deployment")["spec"]
    assert spec["replicas"] == 2
    assert spec["strategy"] == {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}
    assert not all_of(many, "PersistentVolumeClaim")
    there = render("identity", IDENTITY["sqlite"], {"persistence.existingClaim": "mine"})
    assert not all_of(there, "PersistentVolumeClaim")


def test_a_horizontal_autoscaler_takes_the_place_of_the_number():
    manifests = render("identity", IDENTITY["postgresql"])
    assert "replicas" not in of_kind(manifests, "Deployment")["spec"]
    scaler = of_kind(manifests, "HorizontalPodAutoscaler")["spec"]
    assert scaler["scaleTargetRef"]["name"] == of_kind(manifests, "Deployment")["metadata"]["name"]
    assert (scaler["minReplicas"], scaler["maxReplicas"]) == (3, 9)


@pytest.mark.parametrize("chart", CHARTS)
def test_pods_are_replaced_when_what_they_read_changes(chart, ci):
    def sums(*more):
        values = (IDENTITY if chart == "identity" else PUSH)["inline"]
        pod = of_kind(render(chart, *ci(chart, values), *more), "Deployment")["spec"]["template"]
        return {key: value for key, value in pod["metadata"]["annotations"].items() if key.startswith("checksum/")}

    first = sums()
    assert sums() == first
    changed = sums({"config.server.max_connections": 17})
    assert changed["checksum/config"] != first["checksum/config"]
    assert changed["checksum/secrets"] == first["checksum/secrets"]
    changed = sums({"secrets.proxyUrl.value": "http://proxy"})
    assert changed["checksum/secrets"] != first["checksum/secrets"]


def ports(rule: dict) -> set[int]:
    return {port["port"] for port in rule["ports"]}


@pytest.mark.parametrize(
    ("chart", "values", "needed"),
    [
        ("identity", "sqlite", [{53}, {443, 8448}, {25, 465, 587}]),
        ("identity", "postgresql", [{53}, {443, 8448}, {25, 465, 587}, {5432}, {3128}]),
        ("push-gateway", "default", [{53}, {443}]),
        ("push-gateway", "redis", [{53}, {443, 8443}, {6379}]),
        ("push-gateway", "google", [{53}, {443}]),
    ],
)
def test_the_network_policy_lets_out_what_is_needed_and_never_to_metadata(chart, values, needed, ci):
    path = (IDENTITY if chart == "identity" else PUSH)[values]
    policy = of_kind(render(chart, *ci(chart, path)), "NetworkPolicy")["spec"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert [ports(rule) for rule in policy["egress"]] == needed
    for rule in policy["egress"]:
        # Only DNS may go anywhere.
        assert ("to" in rule) == (ports(rule) != {53})
        for peer in rule.get("to", []):
            block = peer.get("ipBlock")
            if block and block["cidr"] in ("0.0.0.0/0", "::/0"):
                refused = set(block.get("except", []))
                assert (refused == set()) == (values == "google"), refused
                if block["cidr"] == "0.0.0.0/0" and values != "google":
                    assert refused == {"169.254.0.0/16"}
                elif values != "google":
                    assert refused == {"fe80::/10", "fd00:ec2::254/128"}


def test_who_may_come_in_is_who_was_named():
    rules = {
        rule["ports"][0]["port"]: rule for rule in of_kind(render("push-gateway"), "NetworkPolicy")["spec"]["ingress"]
    }
    assert set(rules) == {"http", "operations"}
    assert "from" not in rules["http"] and rules["operations"]["from"]
    manifests = render("identity", IDENTITY["postgresql"])
    rules = {rule["ports"][0]["port"]: rule for rule in of_kind(manifests, "NetworkPolicy")["spec"]["ingress"]}
    assert set(rules) == {"http", "operations", "internal"}
    assert all(rule["from"] for rule in rules.values())
    assert not all_of(render("push-gateway", {"networkPolicy.enabled": False}), "NetworkPolicy")


@pytest.mark.parametrize(("chart", "values"), [("identity", "postgresql"), ("push-gateway", "redis")])
def test_ingress_and_route_lead_to_the_public_service(chart, values, ci):
    manifests = render(chart, *ci(chart, (IDENTITY if chart == "identity" else PUSH)[values]))
    public = of_kind(manifests, "Service", f"rel-{PROGRAM[chart]}")
    ingress = of_kind(manifests, "Ingress")["spec"]
    (rule,) = ingress["rules"]
    assert ingress["tls"][0]["hosts"] == [rule["host"]]
    paths = [path["path"] for path in rule["http"]["paths"]]
    for path in rule["http"]["paths"]:
        backend = path["backend"]["service"]
        assert (backend["name"], backend["port"]) == (public["metadata"]["name"], {"name": "http"})
    route = of_kind(manifests, "HTTPRoute")
    assert route["apiVersion"] == "gateway.networking.k8s.io/v1"
    assert set(route["spec"]) == {"parentRefs", "hostnames", "rules"}
    assert route["spec"]["parentRefs"][0]["name"] == "public"
    (rule,) = route["spec"]["rules"]
    assert [match["path"] for match in rule["matches"]] == [{"type": "PathPrefix", "value": path} for path in paths]
    port = public["spec"]["ports"][0]["port"]
    assert rule["backendRefs"] == [{"name": public["metadata"]["name"], "port": port}]
    # The internal API is on another port; nothing but what is public is named.
    assert all(path.startswith(("/_matrix/identity", "/_matrix/push", "/_waypost")) for path in paths)


@pytest.mark.parametrize(("chart", "values"), [("identity", "postgresql"), ("push-gateway", "redis")])
def test_what_the_prometheus_operator_and_grafana_take(chart, values, ci):
    manifests = render(chart, *ci(chart, (IDENTITY if chart == "identity" else PUSH)[values]))
    monitor = of_kind(manifests, "ServiceMonitor")
    assert monitor["apiVersion"] == "monitoring.coreos.com/v1"
    assert monitor["metadata"]["labels"]["release"] == "prometheus"
    (endpoint,) = monitor["spec"]["endpoints"]
    selector = monitor["spec"]["selector"]["matchLabels"].items()
    chosen = [service for service in all_of(manifests, "Service") if selector <= service["metadata"]["labels"].items()]
    assert [service["metadata"]["name"] for service in chosen] == [f"rel-{PROGRAM[chart]}-operations"]
    assert endpoint["port"] in [port["name"] for port in chosen[0]["spec"]["ports"]]
    assert endpoint["path"] == "/metrics"

    rules = of_kind(manifests, "PrometheusRule")
    assert rules["apiVersion"] == "monitoring.coreos.com/v1"
    assert set(rules["spec"]) == {"groups"}
    original = tools.yaml.safe_load((HELM_FOLDER / chart / "files/alerts.yaml").read_text())
    assert rules["spec"] == original
    alerts = [rule for group in rules["spec"]["groups"] for rule in group["rules"]]
    assert alerts and all(rule["expr"] for rule in alerts)

    dashboard = of_kind(manifests, "ConfigMap", f"rel-{PROGRAM[chart]}-dashboard")
    assert dashboard["metadata"]["labels"]["grafana_dashboard"] == "1"
    (text,) = dashboard["data"].values()
    assert json.loads(text) == json.loads((HELM_FOLDER / chart / "files/dashboard.json").read_text())


def test_numbers_switches_and_texts_are_the_same_in_toml():
    """Values that Helm's own TOML gets wrong, or that would break a string or a key."""
    given = {
        "server": {"max_body_bytes": 16777216, "max_connections": 100000},
        "limits": {"mail_total": {"burst": 0, "refill_secs": 0.0002}},
        "tokens": {"allow_in_query": False},
        "log": {"format": "text"},
        "terms": {
            "policies": {"a.b": {"version": "1", "languages": {"en": {"name": '"<&>\\\n\t', "url": "https://é"}}}}
        },
        "outbound": {"hosts": {"hs.example.com": "10.0.0.5"}, "allowed_ranges": [], "no_proxy": ["*", "a"]},
        "sms": {"http": {"headers": {}, "body": None}},
    }
    read = config(render("identity", IDENTITY["sqlite"], {"config": given}))
    del given["sms"]["http"]["body"]
    for section, content in given.items():
        assert read[section] == content
    assert isinstance(read["server"]["max_body_bytes"], int)
    # What the chart sets stays beside it.
    assert read["identity"]["server_name"] == "id.example.com"


def test_entries_of_apps_keep_their_order_and_get_the_paths_of_their_secrets():
    read = config(render("push-gateway", PUSH["redis"]))
    assert [app["id"] for app in read["apps"]] == [
        "org.example.ios", "org.example.android.*", "org.example.web", "org.example.unified",
    ]  # fmt: skip
    assert read["apps"][0]["apns"]["key_file"] == "/etc/waypost/secrets/app-0-key/value"
    assert read["apps"][2]["webpush"]["vapid_key_file"] == "/etc/waypost/secrets/app-2-vapid-key/value"
    assert read["apps"][2]["webpush"]["ttl_secs"] == 600
    assert all("secrets" not in app for app in read["apps"])
