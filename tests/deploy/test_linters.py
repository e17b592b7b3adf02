"""What other people's programs say of the rendered charts, the values and the Dockerfile."""

import json
import os
import re

import kubernetes_validate
import pytest
from tools import (
    ALL_CI,
    CHARTS,
    CI_IDS,
    CUSTOM_KINDS,
    HELM_FOLDER,
    HELMS,
    REPO,
    documents,
    run,
    template,
)
from yamllint import linter
from yamllint.config import YamlLintConfig

HERE = REPO / "tests/deploy"
RULES = (HERE / "yamllint.yaml").read_text()


# The oldest that the charts are for, and the newest that helm 4 was built with.
@pytest.mark.parametrize("kubernetes", ["1.30", "1.35"])
@pytest.mark.parametrize(("chart", "values"), ALL_CI, ids=CI_IDS)
def test_each_manifest_is_what_kubernetes_takes(chart, values, kubernetes, ci):
    checked = set()
    for manifest in documents(template(chart, *ci(chart, values)).stdout):
        if manifest["kind"] not in CUSTOM_KINDS:
            kubernetes_validate.validate(manifest, kubernetes, strict=True)
            checked.add(manifest["kind"])
    assert {"Deployment", "Service", "ConfigMap", "NetworkPolicy", "Pod"} <= checked


def test_a_manifest_that_kubernetes_would_not_take_is_noticed():
    """So that the test above is known to look."""
    manifests = documents(template("push-gateway").stdout)
    (deployment,) = [manifest for manifest in manifests if manifest["kind"] == "Deployment"]
    deployment["spec"]["template"]["spec"]["containers"][0]["readynessProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(deployment, "1.35", strict=True)


@pytest.mark.parametrize("version", HELMS)
@pytest.mark.parametrize(("chart", "values"), ALL_CI, ids=CI_IDS)
def test_yamllint_finds_nothing_in_what_is_rendered(chart, values, version, ci):
    rules = YamlLintConfig(RULES.replace("{max: 120}", "disable"))
    text = template(chart, *ci(chart, values), version=version).stdout
    assert [str(problem) for problem in linter.run(text, rules)] == []


def test_yamllint_finds_nothing_in_what_is_written():
    rules = YamlLintConfig(RULES)
    files = [REPO / "deploy/compose.yaml", *HERE.glob("*.yaml")]
    for chart in CHARTS:
        files += [HELM_FOLDER / chart / "values.yaml", HELM_FOLDER / chart / "Chart.yaml"]
        files += (HELM_FOLDER / chart / "ci").glob("*.yaml")
    problems = {str(file): [str(p) for p in linter.run(file.read_text(), rules)] for file in files}
    assert {file: found for file, found in problems.items() if found} == {}
    assert len(files) >= 12


def test_checkov_finds_nothing(tmp_path, ci):
    for chart, values in ALL_CI:
        text = template(chart, *ci(chart, values)).stdout
        manifests = [manifest for manifest in documents(text) if manifest["kind"] not in CUSTOM_KINDS]
        # The dashboard is long, and nothing that checkov knows of.
        manifests = [m for m in manifests if not m["metadata"]["name"].endswith("-dashboard")]
        listed = {"apiVersion": "v1", "kind": "List", "items": manifests}
        (tmp_path / f"{chart}-{values.stem}.json").write_text(json.dumps(listed))
    # It does not see what an ARG stands for.
    dockerfile = (REPO / "deploy/Dockerfile").read_text()
    for name, image in re.findall(r"^ARG (\w+_IMAGE)=(\S+)$", dockerfile, re.M):
        dockerfile = dockerfile.replace(f"${{{name}}}", image)
    (tmp_path / "Dockerfile").write_text(dockerfile)
    found = checkov(tmp_path)
    assert set(found) == {"kubernetes", "dockerfile"}
    # The pod for `helm test` ends by itself and serves nobody: there is nothing to probe, and nobody to keep away.
    of_tests = re.compile(r"(CKV_K8S_[89]|CKV2_K8S_6) .*: Pod\.waypost\.[a-z-]+-test ")
    left = [line for lines in found.values() for line in lines if not of_tests.match(line)]
    assert not left, "\n".join(left)


def test_checkov_would_find_something(tmp_path):
    text = template("push-gateway", {"securityContext.allowPrivilegeEscalation": True}).stdout
    (tmp_path / "pod.yaml").write_text(text)
    (tmp_path / "Dockerfile").write_text("FROM scratch\nUSER root\n")
    found = checkov(tmp_path)
    assert any("CKV_K8S_20" in failed for failed in found["kubernetes"])
    assert any("CKV_DOCKER_8" in failed for failed in found["dockerfile"])


def checkov(folder) -> dict[str, list[str]]:
    """What checkov finds in a folder, by kind of file."""
    environment = {**os.environ, "LOG_LEVEL": "ERROR", "BC_ROOT_DIR": str(folder)}
    done = run(
        os.environ["DEPLOY_CHECKOV"], "-m", "checkov.main", "--directory", folder, "--config-file", HERE / "checkov.yaml",
        "--output", "json", env=environment, check=False,
    )  # fmt: skip
    assert done.stdout.startswith(("[", "{")), done.stdout + done.stderr
    reports = json.loads(done.stdout)
    found = {}
    for report in reports if isinstance(reports, list) else [reports]:
        assert report["summary"]["parsing_errors"] == 0, report
        failed = report["results"]["failed_checks"]
        assert report["summary"]["passed"] > 0
        found[report["check_type"]] = [
            f"{c['check_id']} {c['check_name']}: {c['resource']} {c['file_path']}" for c in failed
        ]
    return found
