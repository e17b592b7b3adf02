"""The systemd units by themselves. test_debian.py boots a machine and runs them."""

import re
import subprocess

import pytest

from support_waypost import ROOT, program, run, tool

# Of 10. What is left is what the services are for: the network.
MOST_EXPOSURE = 1.1
NAMES = ["waypost-identity", "waypost-push-gateway"]


@pytest.fixture(params=NAMES)
def name(request):
    return request.param


def unit(name):
    return (ROOT / "deploy" / "systemd" / f"{name}.service").read_text()


def exposure(text, name, folder):
    """What systemd-analyze says of how exposed a service is, from 0 to 10."""
    file = folder / f"{name}.service"
    file.write_text(text)
    done = run(tool("systemd-analyze"), "security", "--offline=yes", "--no-pager", file)
    return float(re.search(r"Overall exposure level for \S+: ([\d.]+)", done.stdout).group(1))


def test_systemd_understands_the_unit(name, tmp_path):
    file = tmp_path / f"{name}.service"
    # The program is not in /usr/bin here; that of this checkout stands for it.
    file.write_text(unit(name).replace(f"/usr/bin/{name}", str(program(name))))
    done = run(tool("systemd-analyze"), "verify", "--man=no", file)
    assert done.stdout + done.stderr == ""


def test_a_mistake_in_a_unit_is_noticed(name, tmp_path):
    file = tmp_path / f"{name}.service"
    file.write_text(unit(name).replace(f"/usr/bin/{name}", str(program(name))).replace("ProtectHome=", "ProtectHone="))
    analyze = tool("systemd-analyze")
    done = subprocess.run([analyze, "verify", "--man=no", file], capture_output=True, text=True, timeout=60)
    assert "ProtectHone" in done.stderr


def test_a_service_is_little_exposed(name, tmp_path):
    assert exposure(unit(name), name, tmp_path) <= MOST_EXPOSURE
    assert exposure(unit(name).replace("SystemCallFilter=@system-service\n", ""), name, tmp_path) > MOST_EXPOSURE


def test_what_the_manual_promises_is_in_the_unit(name):
    lines = unit(name).splitlines()
    for line in [
        "Type=notify",
        'ExecReload=/bin/sh -c "kill -HUP $MAINPID"',
        "DynamicUser=yes",
        "NoNewPrivileges=yes",
        "ProtectSystem=strict",
        "MemoryDenyWriteExecute=yes",
        "RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX",
        "SystemCallFilter=@system-service",
        "SystemCallFilter=~@privileged @resources",
        "RestartPreventExitStatus=2",
    ]:
        assert line in lines
    short = name.removeprefix("waypost-")
    assert f"LoadCredential=secrets:/etc/waypost/{short}-secrets" in lines
    # Only the identity server keeps anything on disk.
    assert (f"StateDirectory={name}" in lines) == (name == "waypost-identity")
