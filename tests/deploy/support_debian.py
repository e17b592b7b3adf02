"""A Debian of its own, to install packages into and to boot with the real systemd: a folder, and Linux' namespaces."""

import contextlib
import os
import pathlib
import shutil
import subprocess
import time

import pytest

from support_waypost import ROOT, run, tool, wait_for

CACHE = pathlib.Path(os.environ.get("XDG_CACHE_HOME", pathlib.Path.home() / ".cache")) / "waypost-tests/deploy"
ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"}

# Runs as process 1 of new namespaces: makes the folder $1 its root and becomes systemd. Both kinds of control groups
# are tried, as machines have the one or the other.
BOOT = """
set -e
mount --make-rprivate /
mount --bind "$1" "$1"
cd "$1"
mount -t proc proc proc
mount -t sysfs -o ro sysfs sys
mount -t tmpfs -o mode=755 tmpfs dev
for device in null zero full random urandom tty; do touch dev/$device; mount --bind /dev/$device dev/$device; done
mkdir dev/shm dev/pts
mount -t tmpfs tmpfs dev/shm
mount -t devpts -o newinstance,ptmxmode=666 devpts dev/pts
ln -s pts/ptmx dev/ptmx
mount -t tmpfs -o mode=755 tmpfs run
mount -t tmpfs tmpfs tmp
if [ -e /sys/fs/cgroup/cgroup.controllers ]; then
    mount -t cgroup2 cgroup2 sys/fs/cgroup
else
    mount -t tmpfs -o mode=755 tmpfs sys/fs/cgroup
    mkdir sys/fs/cgroup/systemd
    mount -t cgroup -o none,name=systemd,xattr cgroup sys/fs/cgroup/systemd
fi
mkdir -p .old
pivot_root . .old
umount -l /.old
# Credentials are mounted in a namespace of their own, and have to be seen from here.
mount --make-rshared /
exec env -i container=waypost-tests PATH=/usr/sbin:/usr/bin:/sbin:/bin \
    /lib/systemd/systemd --log-target=journal --show-status=no --unit=multi-user.target
"""


def need_root():
    """Namespaces and chroot need root; as another user this fails, and never skips."""
    if os.geteuid() != 0:
        pytest.fail("this test boots a Debian of its own, which needs root: sudo --preserve-env=WAYPOST_BIN_DIR …")


def base_system():
    """A tar file with a small Debian that has systemd, which tests/deploy/install-debian makes."""
    found = sorted(CACHE.glob("debian-systemd-????-??.tar"))
    if not found:
        pytest.fail(f"there is no Debian in {CACHE}. Type: sudo {ROOT / 'tests' / 'deploy' / 'install-debian'}")
    return found[-1]


def unpacked(folder):
    """A new Debian in `folder`, without the services that are nothing to these tests."""
    need_root()
    folder.mkdir(parents=True)
    run("tar", "-C", folder, "--exclude=./dev/*", "-xf", base_system())
    for unit in ("systemd-resolved", "systemd-networkd", "systemd-logind", "e2scrub_reap", "getty@tty1"):
        (folder / "etc" / "systemd" / "system" / f"{unit}.service").symlink_to("/dev/null")
    return folder


def inside(folder, *command, check=True):
    """Runs a command in the folder as root directory, with nothing booted."""
    return run("chroot", folder, *command, check=check, env=ENVIRONMENT)


class Machine:
    """A booted Debian, with a network of its own that has loopback only."""

    def __init__(self, init):
        self.enter = ["nsenter", f"--target={init}", "--mount", "--pid", "--uts", "--ipc", "--cgroup", "--net"]
        self.network = ["nsenter", f"--target={init}", "--net"]

    def run(self, *command, check=True):
        """Runs a command in it, as root. Returns the completed process."""
        return run(*self.enter, *command, check=check, env=ENVIRONMENT)

    def show(self, unit, name):
        """A property of a unit."""
        return self.run("systemctl", "show", "--value", f"--property={name}", unit).stdout.strip()

    def log(self, unit):
        """What the unit logged."""
        return self.run("journalctl", "--no-pager", "--output=cat", f"--unit={unit}").stdout

    def status(self, url, *arguments):
        """The HTTP status that curl on its loopback gets; 0 where nobody answers."""
        curl = tool("curl")
        options = ["--silent", "--output", "/dev/null", "--write-out", "%{http_code}"]
        done = run(*self.network, curl, *options, *arguments, url, check=False)
        return int(done.stdout or 0)


@contextlib.contextmanager
def booted(folder):
    """Boots the Debian in `folder`. It is gone, with all its processes, at the end of the block."""
    tool("unshare")
    namespaces = ["--pid", "--mount", "--ipc", "--uts", "--cgroup", "--net"]
    command = ["unshare", "--kill-child", "--fork", *namespaces, "sh", "-c", BOOT, "boot", str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        def first():
            if process.poll() is not None:
                pytest.fail(f"no namespaces, no systemd: {process.stdout.read().decode()}")
            children = pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            names = [pathlib.Path(f"/proc/{child}/comm").read_text().strip() for child in children]
            return children[0] if names == ["systemd"] else None

        machine = Machine(wait_for(first, "systemd is process 1"))
        state = lambda: machine.run("systemctl", "is-system-running", check=False).stdout.strip()
        wait_for(lambda: state() in ("running", "degraded"), "the machine has booted", 60)
        yield machine
    finally:
        process.kill()
        process.wait()


def removed(folder):
    """Removes a Debian. Its processes are ended by the kernel a moment after their first one."""
    for attempt in range(50):
        with contextlib.suppress(OSError):
            shutil.rmtree(folder)
            return
        time.sleep(0.1)
    shutil.rmtree(folder)
