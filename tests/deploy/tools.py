"""What the tests call: helm, podman, HTTP, and the parts of a rendered chart."""

import base64
import copy
import json
import os
import pathlib
import socket
import subprocess
import time
import tomllib
import urllib.error
import urllib.request

import yaml

REPO = pathlib.Path(__file__).resolve().parents[2]
HELM_FOLDER = REPO / "deploy/helm"
CHARTS = ("identity", "push-gateway")
HELMS = {"helm3": os.environ["DEPLOY_HELM3"], "helm4": os.environ["DEPLOY_HELM4"]}
RELEASE, NAMESPACE = "rel", "waypost"
# Kinds of which Kubernetes itself knows nothing, and so has no schema of.
CUSTOM_KINDS = {"ServiceMonitor", "PrometheusRule", "HTTPRoute"}


def run(*command, check=True, timeout=120, **options) -> subprocess.CompletedProcess:
    """Runs a program and takes what it prints, as text. Fails with all of that when it should end well and does not."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=timeout, **options)
    if check and done.returncode != 0:
        raise AssertionError(f"{' '.join(map(str, command))}: {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done


def until(what, seconds=30.0, every=0.05):
    """Calls `what` until it returns something that counts as true, and returns that. Fails after `seconds`."""
    end, last = time.monotonic() + seconds, None
    while time.monotonic() < end:
        try:
            if found := what():
                return found
        except (OSError, AssertionError) as error:
            last = error
        time.sleep(every)
    raise AssertionError(f"not within {seconds} s: {last or what}")


def http(url: str, body: bytes | None = None) -> tuple[int, str]:
    """Status and text of an answer, whatever the status. GET, or POST of a body."""
    request = urllib.request.Request(url, data=body, headers={"Content-Type": "application/json"} if body else {})
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def answers(url: str, status: int = 200):
    """For `until`: whether there is an answer with this status."""
    return lambda: http(url)[0] == status


def port_is_open(address: str, port: int):
    """For `until`: whether somebody listens."""

    def tried() -> bool:
        with socket.create_connection((address, port), timeout=1):
            return True

    return tried


# --- Charts ----------------------------------------------------------------------------------------------------------


def ci_values(chart: str) -> list[pathlib.Path]:
    """The values that a chart is tested with."""
    return sorted((HELM_FOLDER / chart / "ci").glob("*-values.yaml"))


ALL_CI = [(chart, path) for chart in CHARTS for path in ci_values(chart)]
CI_IDS = [f"{chart}-{path.stem.removesuffix('-values')}" for chart, path in ALL_CI]


def helm(version: str, *arguments, **options) -> subprocess.CompletedProcess:
    """Runs `helm3` or `helm4`, which know no cluster."""
    return run(HELMS[version], *arguments, **options)


def values_options(values: list) -> list[str]:
    """Options for helm of files, and of maps, which are written as JSON."""
    options = []
    for value in values:
        if isinstance(value, pathlib.Path):
            options += ["--values", str(value)]
        else:
            for key, content in value.items():
                options += ["--set-json", f"{key}={json.dumps(content)}"]
    return options


def template(chart: str, *values, version="helm4", more=(), folder=None, **options) -> subprocess.CompletedProcess:
    """`helm template` of a chart with values: paths of files, or maps of key to content."""
    return helm(
        version, "template", RELEASE, folder or HELM_FOLDER / chart, "--namespace", NAMESPACE,
        *values_options(list(values)), *more, **options,
    )  # fmt: skip


def documents(text: str) -> list[dict]:
    """The manifests of a text."""
    return [document for document in yaml.safe_load_all(text) if document]


def render(chart: str, *values, **options) -> list[dict]:
    """The manifests of a chart with values."""
    return documents(template(chart, *values, **options).stdout)


def of_kind(manifests: list[dict], kind: str, name: str | None = None) -> dict:
    """The one manifest of a kind, with this name if there are several."""
    found = [m for m in manifests if m["kind"] == kind and name in (None, m["metadata"]["name"])]
    assert len(found) == 1, f"{len(found)} of {kind} {name or ''}"
    return found[0]


def all_of(manifests: list[dict], kind: str) -> list[dict]:
    """All manifests of a kind."""
    return [manifest for manifest in manifests if manifest["kind"] == kind]


def pod_spec(manifests: list[dict]) -> dict:
    """The specification of the Deployment's pods."""
    return of_kind(manifests, "Deployment")["spec"]["template"]["spec"]


def container(manifests: list[dict]) -> dict:
    """The one container of the Deployment."""
    (only,) = pod_spec(manifests)["containers"]
    return only


def toml_text(manifests: list[dict]) -> str:
    """The configuration as it is rendered."""
    (found,) = [m["data"]["waypost.toml"] for m in all_of(manifests, "ConfigMap") if "waypost.toml" in m["data"]]
    return found


def config(manifests: list[dict]) -> dict:
    """The configuration, read as TOML by a reader that is not ours."""
    return tomllib.loads(toml_text(manifests))


def port_of(manifests: list[dict], name: str | int) -> int:
    """The number of the container's port with this name."""
    if isinstance(name, int):
        return name
    (found,) = [port["containerPort"] for port in container(manifests)["ports"] if port["name"] == name]
    return found


def secret_values(manifests: list[dict]) -> dict[str, dict[str, str]]:
    """The content of Secrets, by name and key."""
    return {
        secret["metadata"]["name"]: {key: base64.b64decode(value).decode() for key, value in secret["data"].items()}
        for secret in all_of(manifests, "Secret")
    }


def secret(name: str, content: dict[str, str]) -> dict:
    """A Secret, such as one that is there before the chart."""
    data = {key: base64.b64encode(value.encode()).decode() for key, value in content.items()}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "data": data}


def for_podman(manifests: list[dict], folder: pathlib.Path, more: list[dict] = (), with_claims: bool = True) -> str:
    """What `podman play kube` takes of a rendered chart.

    Left out are kinds that it does not know, and of the container the ports, which it maps only on networks of its own,
    and the probes, which it does with a `curl` in the image. The tests ask what the probes would. Secrets of chosen
    keys it does not know either: they are written to `folder`, with the owner, the group and the mode that Kubernetes
    would give them. `more` are Secrets that are there before the chart.
    """
    kinds = {"ConfigMap", "Deployment"} | ({"PersistentVolumeClaim"} if with_claims else set())
    taken = [copy.deepcopy(manifest) for manifest in manifests if manifest["kind"] in kinds]
    taken = [manifest for manifest in taken if not manifest["metadata"]["name"].endswith("-dashboard")]
    secrets = secret_values([*manifests, *more])
    for manifest in taken:
        if manifest["kind"] != "Deployment":
            continue
        manifest["spec"]["replicas"] = 1
        spec = manifest["spec"]["template"]["spec"]
        for part in spec["containers"]:
            for key in ("ports", "startupProbe", "livenessProbe", "readinessProbe"):
                part.pop(key)
        for volume in spec["volumes"]:
            if source := volume.pop("secret", None):
                volume["hostPath"] = {"path": str(folder / volume["name"]), "type": "Directory"}
                (folder / volume["name"]).mkdir(exist_ok=True)
                for item in source["items"]:
                    file = folder / volume["name"] / item["path"]
                    file.write_text(secrets[source["secretName"]][item["key"]])
                    os.chown(file, 0, spec["securityContext"]["fsGroup"])
                    file.chmod(source["defaultMode"])
                (folder / volume["name"]).chmod(0o755)
    return yaml.safe_dump_all(taken)
