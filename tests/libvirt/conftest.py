"""Two hosts for a worker, made once; each test finds them as after set-up, watched by a referee."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.referee import Referee
from support.two_hosts import NAMES, VM, TwoHosts


@pytest.fixture(scope="session")
def hosts() -> Iterator[TwoHosts]:
    """The hosts; what they said stays behind in KEEP_LOGS, if that names a folder."""
    if os.geteuid() != 0:
        pytest.skip("two libvirt hosts on one machine need root")
    made = TwoHosts()
    try:
        made.set_up()
        yield made
    finally:
        if os.environ.get("KEEP_LOGS"):
            target = Path(os.environ["KEEP_LOGS"]) / made.folder.name
            shutil.copytree(made.folder / "logs", target, dirs_exist_ok=True)
            for name in NAMES:
                log = made.folder / f"libvirt-{name}" / "log"
                shutil.copytree(log, target / name, dirs_exist_ok=True)
        made.close()


@pytest.fixture
def two(hosts: TwoHosts) -> Iterator[TwoHosts]:
    """Both hosts with nothing running; at the end, never two that ran."""
    hosts.fresh()
    referee = Referee({name: hosts.uri(name) for name in NAMES}, VM, hosts.ticks)
    referee.begin()
    try:
        yield hosts
    finally:
        referee.verdict()
