"""A Debian of its own, to install packages into and to boot with the real systemd: a folder, and Linux' namespaces."""

import contextlib
import os
import pathlib
import subprocess
import tempfile

import pytest

from support_waypost import run, tool, wait_for

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


@contextlib.contextmanager
def in_memory():
    """A folder in memory, which is gone at the end of the block."""
    need_root()
    folder = pathlib.Path(tempfile.mkdtemp(prefix="waypost-debian."))
    run("mount", "-t", "tmpfs", "-o", "mode=755", "waypost-debian", folder)
    try:
        yield folder
    finally:
        # Lazily, since the processes of a machine end a moment after their first one.
        run("umount", "--recursive", "--lazy", folder)
        folder.rmdir()


def unpacked(folder):
    """Unpacks a Debian into `folder`, without the services that are nothing to these tests."""
    run("tar", "-C", folder, "--exclude=./dev/*", "-xf", os.environ["DEPLOY_DEBIAN"])
    for unit in ("systemd-resolved", "systemd-networkd", "systemd-logind", "e2scrub_reap", "getty@tty1"):
        (folder / "etc" / "systemd" / "system" / f"{unit}.service").symlink_to("/dev/null")


def copied(original, folder):
    """A copy of a Debian that may be changed: a layer over it, or all its files where the kernel has no overlays."""
    for name in ("changes", "work", "root"):
        (folder / name).mkdir()
    layers = f"lowerdir={original},upperdir={folder}/changes,workdir={folder}/work"
    if run("mount", "-t", "overlay", "overlay", "-o", layers, folder / "root", check=False).returncode != 0:
        run("cp", "--archive", f"{original}/.", folder / "root")
    return folder / "root"


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
