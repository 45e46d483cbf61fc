"""Two hosts for a worker, made once; each test finds them as after set-up, watched by a referee."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.chronicle import Chronicle
from support.referee import Referee
from support.two_hosts import BRIEF, NAMES, VM, TwoHosts

_CHRONICLE = pytest.StashKey[Chronicle]()
_REFEREE = pytest.StashKey[Referee]()


@pytest.fixture(scope="session")
def hosts() -> Iterator[TwoHosts]:
    """The hosts; what they said stays behind in KEEP_LOGS, if that names a folder."""
    if os.geteuid() != 0:
        pytest.skip("two libvirt hosts on one machine need root")
    made = TwoHosts(lease="standard")
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


@contextmanager
def _watched(hosts: TwoHosts, vm: str, item: pytest.Item) -> Iterator[TwoHosts]:
    item.stash[_CHRONICLE] = Chronicle(hosts.folder)
    hosts.vm = vm
    hosts.fresh()
    referee = Referee({name: hosts.uri(name) for name in NAMES}, vm, hosts.ticks)
    item.stash[_REFEREE] = hosts.referee = referee
    referee.begin()
    try:
        yield hosts
    finally:
        referee.verdict()


@pytest.fixture
def two(hosts: TwoHosts, request: pytest.FixtureRequest) -> Iterator[TwoHosts]:
    """Both hosts with nothing running; at the end, never two that ran. Leases outlast a test."""
    with _watched(hosts, VM, request.node) as made:
        yield made


@pytest.fixture
def brief(hosts: TwoHosts, request: pytest.FixtureRequest) -> Iterator[TwoHosts]:
    """The same with a VM whose lease is short, for tests in which it ends."""
    hosts.protect(BRIEF, "strict")
    with _watched(hosts, BRIEF, request.node) as made:
        yield made


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long tests first, so that no worker begins one when the others are through."""
    items.sort(key=lambda item: item.get_closest_marker("long") is None)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Iterator[pytest.TestReport]:
    """A failure comes with what every process said during the test."""
    report = yield
    if report.failed and _CHRONICLE in item.stash:
        report.sections += item.stash[_CHRONICLE].said()
        if _REFEREE in item.stash:
            report.sections.append(("the referee saw", item.stash[_REFEREE].told()))
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """A test that passed at its second try says why the first one failed."""
    for report in terminalreporter.stats.get("rerun", ()):
        terminalreporter.section(f"tried again: {report.nodeid} ({report.when})")
        terminalreporter.write_line(report.longreprtext)
        for title, text in report.sections:
            terminalreporter.section(title, sep="-")
            terminalreporter.write_line(text)
