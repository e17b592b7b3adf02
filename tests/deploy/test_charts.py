"""The charts as they are written: values, their schema and table, and what Helm refuses."""

import json
import re
import sys
import tarfile

import pytest
import yaml
from tools import (
    ALL_CI,
    CHARTS,
    CI_IDS,
    HELM_FOLDER,
    HELMS,
    REPO,
    ci_values,
    documents,
    helm,
    run,
    template,
    values_options,
)

COMMON = HELM_FOLDER / "common"

# What the least of a chart is, so that a mistake beside it is the only one.
LEAST = {"identity": {"serverName": "id.example.com"}, "push-gateway": {}}
KEYS = {
    "secrets.databaseUrl.value": "postgres://waypost@db/waypost",
    "secrets.storageKey.value": "s",
    "secrets.signingKey.value": "s",
}


def test_the_tables_of_the_readmes_are_up_to_date():
    done = run(sys.executable, HELM_FOLDER / "generate", "--check", check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@pytest.mark.parametrize("chart", CHARTS)
def test_what_charts_share_stands_once(chart):
    """A file that differs in one chart only would be changed in the other and forgotten here."""
    links = {
        "templates/common": HELM_FOLDER / "common",
        "files/alerts.yaml": REPO / f"deploy/alerts/{chart}.yaml",
        "files/dashboard.json": REPO / f"deploy/dashboards/{chart}.json",
    }
    folder = HELM_FOLDER / chart
    assert {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_symlink()} == set(links)
    for link, target in links.items():
        # Relative, so that it leads to the same place in every checkout.
        assert not (folder / link).readlink().is_absolute()
        assert (folder / link).resolve() == target


@pytest.mark.parametrize("chart", CHARTS)
def test_the_table_of_the_readme_names_each_value_with_its_default(chart):
    values = yaml.safe_load((HELM_FOLDER / chart / "values.yaml").read_text())
    rows = dict(re.findall(r"^\| `([^`]+)` \| (?:`(.*?)`)? \|", (HELM_FOLDER / chart / "README.md").read_text(), re.M))

    def leaves(tree: dict, path: str = ""):
        for key, value in tree.items():
            here = f"{path}.{key}" if path else key
            if here in rows and rows[here]:
                yield here, value
            elif isinstance(value, dict) and value:
                yield from leaves(value, here)
            else:
                yield here, value

    for path, default in leaves(values):
        assert json.loads(rows[path]) == default, path
    assert len(rows) > 50


@pytest.mark.parametrize("chart", CHARTS)
def test_schema_and_values_have_the_same_keys(chart):
    values = yaml.safe_load((HELM_FOLDER / chart / "values.yaml").read_text())
    schema = json.loads((HELM_FOLDER / chart / "values.schema.json").read_text())

    def of_values(tree: dict, path: tuple = ()) -> set:
        found = set()
        for key, value in tree.items():
            found.add((*path, key))
            if isinstance(value, dict):
                found |= of_values(value, (*path, key))
        return found

    def of_schema(tree: dict, path: tuple = ()) -> set:
        found = set()
        for key, value in tree.get("properties", {}).items():
            found.add((*path, key))
            found |= of_schema(value, (*path, key))
        return found

    assert of_schema(schema) == of_values(values)


@pytest.mark.parametrize("chart", CHARTS)
@pytest.mark.parametrize("version", HELMS)
def test_a_misspelt_value_is_refused(chart, version):
    for wrong in ({"replicas": 2}, {"image.tags": "1"}, {"service.type": "Cluster"}, {"replicaCount": "two"}):
        done = template(chart, LEAST[chart], wrong, version=version, check=False)
        assert done.returncode != 0, wrong
        (key,) = wrong
        assert key.split(".")[0] in done.stderr, done.stderr


REFUSED = [
    ("identity", {"serverName": ""}, "serverName is needed"),
    ("identity", {"replicaCount": 2}, "database.type sqlite is for one replica"),
    ("identity", {"autoscaling.enabled": True}, "database.type sqlite is for one replica"),
    (
        "identity",
        {"secrets.databaseUrl.value": "postgres://db"},
        "secrets.databaseUrl is set and database.type is sqlite",
    ),
    ("identity", {"database.type": "postgresql"}, "is needed with database.type postgresql"),
    *(
        (
            "identity",
            {"database.type": "postgresql", **KEYS, missing: ""},
            f"{missing[:-6]} is needed with database.type",
        )
        for missing in KEYS
    ),
    ("identity", {"internal.enabled": True}, "secrets.internalSecret is needed with internal.enabled"),
    (
        "identity",
        {"secrets.smtpPassword": {"value": "a", "existingSecret": "b"}},
        "secrets.smtpPassword: set value or existingSecret, not both",
    ),
    ("identity", {"extraSecrets.ca": {"existingSecret": "our-ca"}}, "extraSecrets.ca.key is needed"),
    ("identity", {"terminationGracePeriodSeconds": 30}, "terminationGracePeriodSeconds must be 36 or more"),
    (
        "identity",
        {"config.server.shutdown_grace_secs": 100, "terminationGracePeriodSeconds": 90},
        "terminationGracePeriodSeconds must be 106 or more",
    ),
    ("push-gateway", {"secrets.redisUrl.value": "redis://r"}, "secrets.memorySecret is needed with secrets.redisUrl"),
    ("push-gateway", {"config.apps": [{"id": "a"}]}, "config.apps is not read here"),
    (
        "push-gateway",
        {"apps": [{"id": "a", "webpush": {}, "secrets": {"vapid_key_file": {}}}]},
        "apps.0.secrets.vapid_key_file needs value or existingSecret",
    ),
    ("push-gateway", {"apps": [{"id": "a", "type": "fcm"}]}, "apps.0 needs one of apns, fcm, webpush and unifiedpush"),
    ("push-gateway", {"apps": [{"id": "a", "apns": {}, "fcm": {}}]}, "apps.0 needs one of apns, fcm, webpush and"),
    ("push-gateway", {"ingress.enabled": True}, "ingress.hosts is needed"),
    ("push-gateway", {"httpRoute.enabled": True}, "httpRoute.parentRefs is needed"),
]


@pytest.mark.parametrize("version", HELMS)
@pytest.mark.parametrize(("chart", "values", "why"), REFUSED, ids=[f"{c}-{'-'.join(v)}" for c, v, _ in REFUSED])
def test_what_would_not_run_is_refused_with_the_reason(chart, values, why, version):
    done = template(chart, LEAST[chart], values, version=version, check=False)
    assert done.returncode != 0, "it was rendered"
    assert re.search(why, done.stderr), done.stderr


@pytest.mark.parametrize("version", HELMS)
@pytest.mark.parametrize(("chart", "values"), ALL_CI, ids=CI_IDS)
def test_lint_finds_nothing(chart, values, version, ci):
    done = helm(version, "lint", "--strict", HELM_FOLDER / chart, *values_options(ci(chart, values)))
    # That there is no icon is for information; all else counts.
    found = [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("[")]
    assert all("icon is recommended" in line for line in found), found
    assert "Fail" not in done.stderr


@pytest.mark.parametrize(("chart", "values"), ALL_CI, ids=CI_IDS)
def test_helm_3_and_4_render_the_same(chart, values, ci):
    three, four = (documents(template(chart, *ci(chart, values), version=version).stdout) for version in HELMS)
    assert three == four
    assert len(three) >= 5


@pytest.mark.parametrize("version", HELMS)
@pytest.mark.parametrize("chart", CHARTS)
def test_a_package_holds_the_chart_and_not_its_tests(chart, version, tmp_path):
    """With files in the place of links, since a package is installed where there is nothing to link to."""
    helm(version, "package", HELM_FOLDER / chart, "--destination", tmp_path)
    (package,) = tmp_path.glob("*.tgz")
    with tarfile.open(package) as archive:
        assert all(member.isfile() for member in archive)
        packed = {name.split("/", 1)[1]: archive.extractfile(name).read() for name in archive.getnames()}
    # Helm writes Chart.yaml anew.
    assert {"Chart.yaml", "README.md", "values.schema.json", "templates/_service.tpl"} <= set(packed)
    shared = {
        **{f"templates/common/{path.relative_to(COMMON)}": path for path in COMMON.rglob("*") if path.is_file()},
        "files/alerts.yaml": REPO / f"deploy/alerts/{chart}.yaml",
        "files/dashboard.json": REPO / f"deploy/dashboards/{chart}.json",
    }
    assert len(shared) > 15
    for name, source in shared.items():
        assert packed[name] == source.read_bytes(), name
    assert not any(name.startswith("ci/") for name in packed)
    assert ci_values(chart)
    # And what is packed renders as the folder does.
    more = [LEAST[chart], {"prometheusRule.enabled": True, "dashboard.enabled": True}]
    folder, archive = (template(chart, *more, version=version, folder=f).stdout for f in (None, package))
    assert documents(archive) == documents(folder)


@pytest.mark.parametrize("chart", CHARTS)
def test_the_chart_is_of_the_version_of_the_programs(chart):
    about = yaml.safe_load((HELM_FOLDER / chart / "Chart.yaml").read_text())
    assert f'\nversion = "{about["appVersion"]}"\n' in (REPO / "Cargo.toml").read_text()
    annotations = about["annotations"]
    assert annotations["artifacthub.io/license"] == "Apache-2.0"
    assert all(
        set(change) == {"kind", "description"} for change in yaml.safe_load(annotations["artifacthub.io/changes"])
    )


@pytest.mark.parametrize("chart", CHARTS)
def test_nothing_is_drawn_by_chance_or_looked_up(chart):
    """So that no upgrade, rollback or rendering elsewhere can change a key."""
    chance = re.compile(
        r"\b(rand\w*|gen[A-Z]\w*|lookup|uuidv4|now|date\w*|derivePassword|htpasswd|bcrypt|encryptAES)\b"
    )
    own = (HELM_FOLDER / chart / "templates").glob("*.*")
    for path in [*own, *COMMON.rglob("*.*")]:
        for code in re.findall(r"\{\{(.*?)\}\}", path.read_text(), re.S):
            if not code.lstrip("- ").startswith("/*"):
                quoted = re.sub(r'"[^"]*"|`[^`]*`', "", code)
                assert not chance.search(quoted), f"{path}: {code}"


@pytest.mark.parametrize("version", HELMS)
@pytest.mark.parametrize(("chart", "values"), ALL_CI, ids=CI_IDS)
def test_an_upgrade_changes_no_key(chart, values, version, ci):
    """Of a later version of the image and another configuration: Secrets and the volume stay as they are."""
    kept = ("Secret", "PersistentVolumeClaim")
    first = documents(template(chart, *ci(chart, values), version=version).stdout)
    same = template(chart, *ci(chart, values), version=version, more=["--is-upgrade"]).stdout
    assert documents(same) == first
    changes = {"image.tag": "9.9.9", "config.log.level": "trace", "resources.limits.cpu": "3"}
    later = documents(template(chart, *ci(chart, values), changes, version=version, more=["--is-upgrade"]).stdout)
    assert later != first

    def without_version(manifests):
        for manifest in manifests:
            manifest["metadata"]["labels"].pop("app.kubernetes.io/version", None)
        return [manifest for manifest in manifests if manifest["kind"] in kept]

    assert without_version(later) == without_version(first)


def notes(chart: str, folder, *values) -> str:
    """What Helm would say after an install: it prints that only with a cluster, so it is put into a ConfigMap here."""
    # The links are followed, as they would lead nowhere from there.
    run("cp", "-rL", HELM_FOLDER / chart, folder / "chart")
    templates = folder / "chart/templates"
    text = (templates / "NOTES.txt").read_text()
    (templates / "NOTES.txt").unlink()
    (templates / "_notes.tpl").write_text('{{- define "notes" -}}\n' + text + "{{- end -}}\n")
    (templates / "notes.yaml").write_text(
        'apiVersion: v1\nkind: ConfigMap\nmetadata: {name: notes}\ndata:\n  text: {{ include "notes" . | toJson }}\n'
    )
    rendered = documents(template(chart, *values, folder=folder / "chart").stdout)
    (found,) = [manifest["data"]["text"] for manifest in rendered if manifest["metadata"]["name"] == "notes"]
    return found


def test_the_notes_of_identity_have_the_well_known_file_and_the_hint_for_synapse(tmp_path):
    text = notes("identity", tmp_path, {"serverName": "id.example.com", "publicBaseUrl": "https://id.example.com:8443"})
    well_known = json.loads(text[text.index("{") : text.index("}\n\n") + 1])
    assert well_known["m.identity_server"] == {"base_url": "https://id.example.com:8443"}
    hint = re.search(r"( +ip_range_whitelist:\n +- \S+\n)", text).group(1)
    assert yaml.safe_load(hint) == {"ip_range_whitelist": ["10.0.0.0/8"]}
    assert "WARNING" in text and "rel-waypost-identity-data" in text


def test_the_notes_of_push_gateway_warn_of_what_is_missing(tmp_path):
    text = notes("push-gateway", tmp_path, {"replicaCount": 2})
    assert "ip_range_whitelist" in text
    assert "there are no apps" in text and "no Redis" in text


@pytest.mark.parametrize("chart", CHARTS)
def test_the_examples_of_the_readme_are_rendered(chart, tmp_path):
    page = (HELM_FOLDER / chart / "README.md").read_text()
    examples = re.findall(r"```yaml\n(.*?)```", page, re.S)
    assert examples
    for number, example in enumerate(examples):
        (tmp_path / f"{number}.yaml").write_text(example)
        assert documents(template(chart, LEAST[chart], tmp_path / f"{number}.yaml").stdout)


PAGE = (REPO / "docs/kubernetes.md").read_text()


def test_the_values_in_the_manual_are_rendered(tmp_path):
    """Each example by one of the charts at least; those that name the chart's own values by that one."""
    examples = re.findall(r"```yaml\n(.*?)```", PAGE, re.S)
    assert len(examples) >= 4
    for number, example in enumerate(examples):
        (tmp_path / f"{number}.yaml").write_text(example)
        keys = yaml.safe_load(example)
        charts = ["identity"] if "serverName" in keys else ["push-gateway"] if "apps" in keys else CHARTS
        if "autoscaling" in keys:
            # SQLite is for one replica.
            charts = ["push-gateway"]
        for chart in charts:
            assert documents(template(chart, LEAST[chart], tmp_path / f"{number}.yaml").stdout)


def test_the_commands_of_the_manual_install_what_it_says(tmp_path):
    """Rendered instead of installed; and what later commands name is there then."""
    examples = re.findall(r"```yaml\n(.*?)```", PAGE, re.S)
    files = {"identity.yaml": examples[0], "push.yaml": examples[1]}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    commands = re.findall(r"^helm install ((?:.*\\\n)*.*)$", PAGE, re.M)
    assert len(commands) == 3
    made = set()
    for command in commands:
        release, chart, *options = command.replace("\\\n", " ").split()
        options = [str(tmp_path / option) if option in files else option for option in options]
        for manifest in documents(helm("helm4", "template", release, REPO / chart, *options).stdout):
            made.add(f"{manifest['kind'].lower()}/{manifest['metadata']['name']}")
    named = set(re.findall(r"\bdeployment/[\w-]+", PAGE))
    assert len(named) == 2 and named <= made
    assert "persistentvolumeclaim/id-waypost-identity-data" in made
