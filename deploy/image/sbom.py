#!/usr/bin/env python3
"""Prints what an image is made of, as CycloneDX 1.5 JSON (a software bill of materials).

    deploy/image/sbom.py --lock Cargo.lock --root waypost-identity [--dpkg FOLDER]

The crates are those that Cargo.lock reaches from the root. It does not say which of them only build or test, so these
are in the list too: it is longer than the program, never shorter. The Debian packages are those whose records are in
the folder. The same input gives the same bytes.
"""

import argparse
import hashlib
import json
import pathlib
import sys
import tomllib
import uuid


class NotInLock(Exception):
    """A package that is needed is not in Cargo.lock."""


def closure(packages: list[dict], root: str) -> dict[str, dict]:
    """The packages that `root` needs, itself included, by `name version`, each with its `needs`: such names."""
    by_name: dict[str, list[dict]] = {}
    for package in packages:
        by_name.setdefault(package["name"], []).append(package)

    def find(dependency: str) -> dict:
        # "name", or "name version" where there are several, or "name version (source)".
        name, *rest = dependency.split(" ")
        found = [p for p in by_name.get(name, []) if not rest or p["version"] == rest[0]]
        if len(found) != 1:
            raise NotInLock(f"{dependency}: {len(found)} packages of Cargo.lock fit")
        return found[0]

    def key(package: dict) -> str:
        return f"{package['name']} {package['version']}"

    wanted, reached = [find(root)], {}
    while wanted:
        package = wanted.pop()
        if key(package) in reached:
            continue
        needs = [find(dependency) for dependency in package.get("dependencies", [])]
        reached[key(package)] = {**package, "needs": sorted(key(need) for need in needs)}
        wanted.extend(needs)
    return reached


def crate(package: dict) -> dict:
    """A component for a crate of Cargo.lock."""
    name, version = package["name"], package["version"]
    purl = f"pkg:cargo/{name}@{version}"
    component = {"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl}
    if "checksum" in package:
        component["hashes"] = [{"alg": "SHA-256", "content": package["checksum"]}]
    return component


def debian(record: str) -> dict:
    """A component for a package of Debian, from its record in dpkg's format."""
    fields = dict(line.split(": ", 1) for line in record.splitlines() if not line.startswith(" ") and ": " in line)
    name, version, arch = fields["Package"], fields["Version"], fields["Architecture"]
    purl = f"pkg:deb/debian/{name}@{version.replace('+', '%2B').replace(':', '%3A')}?arch={arch}"
    return {"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl}


def sbom(lock: str, root: str, records: list[str]) -> dict:
    """The whole document. Raises NotInLock when Cargo.lock does not hold what it should."""
    crates = closure(tomllib.loads(lock)["package"], root)
    components = {key: crate(package) for key, package in crates.items()}
    top = next(key for key in components if key.split(" ")[0] == root)
    system = [debian(record) for record in records]
    depends = [
        {
            "ref": components[key]["bom-ref"],
            "dependsOn": [components[need]["bom-ref"] for need in package["needs"]]
            + ([component["bom-ref"] for component in system] if key == top else []),
        }
        for key, package in sorted(crates.items())
    ]
    others = [component for key, component in sorted(components.items()) if key != top]
    document = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {"component": {**components[top], "type": "application"}},
        "components": others + system,
        "dependencies": depends,
    }
    digest = hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()
    return {"serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_OID, digest)}", **document}


def main() -> int:
    """Reads the command line and prints; 1 when Cargo.lock does not hold what it should."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lock", type=pathlib.Path, required=True)
    parser.add_argument("--root", required=True, help="the crate that the list is of")
    parser.add_argument("--dpkg", type=pathlib.Path, help="a folder with a record of each Debian package")
    options = parser.parse_args()
    records = [file.read_text() for file in sorted(options.dpkg.iterdir())] if options.dpkg else []
    try:
        document = sbom(options.lock.read_text(), options.root, records)
    except NotInLock as error:
        print(error, file=sys.stderr)
        return 1
    print(json.dumps(document, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
