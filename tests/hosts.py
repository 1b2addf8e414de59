"""Two hosts on one machine: network namespaces joined by a cable that can be cut, each with its name and processes."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest


@dataclass
class Host:
    """One of two. Its processes see neither the other's nor this machine's network and process ids."""

    name: str
    """As `hostname` says there, and in error lines."""
    namespace: str
    address: str
    interface: str
    """What GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME are to be."""
    started: list[subprocess.Popen] = field(default_factory=list)

    def popen(self, words, **options) -> subprocess.Popen:
        """As subprocess.Popen, on this host. When what was started ends or is killed, so is all that it started."""
        alone = ["unshare", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc"]
        named = ["sh", "-c", 'hostname "$0"; "$@"', self.name]  # a shell as process 1: signals do their default there
        run = subprocess.Popen(["ip", "netns", "exec", self.namespace, *alone, *named, *map(str, words)], **options)
        self.started.append(run)
        return run

    def cut(self) -> None:
        """Pull the cable out, for both."""
        _ip("-n", self.namespace, "link", "set", self.interface, "down")


def why_no_hosts() -> str:
    """Why this machine cannot have them; "" if it can."""
    if missing := [tool for tool in ("ip", "unshare") if shutil.which(tool) is None]:
        return f"needs {' and '.join(missing)} (iproute2, util-linux)"
    if os.geteuid() != 0:
        return "needs root, for network namespaces"
    name = f"splitnet-{os.getpid()}"
    tried = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
    subprocess.run(["ip", "netns", "del", name], capture_output=True)
    return "" if tried.returncode == 0 else f"no network namespaces here: {tried.stderr.strip()}"


@contextmanager
def two_hosts() -> Iterator[tuple[Host, Host]]:
    """Two hosts that reach each other and nothing else. Skips the test, with the reason, where that is not possible."""
    if why := why_no_hosts():
        pytest.skip(why)
    hosts = tuple(
        Host(f"host-{end}", f"splitnet-{os.getpid()}-{end}", f"10.77.0.{number}", f"cable-{end}")
        for number, end in enumerate("ab", 1)
    )
    a, b = hosts
    try:
        for host in hosts:
            _ip("netns", "add", host.namespace)
        _ip(*f"-n {a.namespace} link add {a.interface} type veth peer name {b.interface} netns {b.namespace}".split())
        for host in hosts:
            _ip("-n", host.namespace, "address", "add", f"{host.address}/24", "dev", host.interface)
            for link in ("lo", host.interface):
                _ip("-n", host.namespace, "link", "set", link, "up")
        yield a, b
    finally:
        for host in hosts:
            for run in host.started:
                run.kill()
                run.wait()
                for pipe in filter(None, (run.stdin, run.stdout, run.stderr)):
                    pipe.close()
            subprocess.run(["ip", "netns", "del", host.namespace], capture_output=True)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)
