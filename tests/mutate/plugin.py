"""The pytest side: what each test reaches and costs, one mutant per fork, or one in a new process.

``MUTATE_TASK`` names a JSON file that says which; the answers are appended to its ``answers`` file.
"""

import json
import os
import resource
import select
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import coverage
import pytest

from mutate.install import all_functions, install_before_import, install_into_functions
from mutate.mutants import Mutant, as_mutant

TASK = json.loads(Path(os.environ["MUTATE_TASK"]).read_text(encoding="utf-8"))
MEMORY = 12 << 30
"""Of address space: a mutant that allocates without end is stopped, and killed by that."""


def answer(value: object) -> None:
    """Append one line to the answers."""
    with Path(TASK["answers"]).open("a", encoding="utf-8") as file:
        file.write(json.dumps(value) + "\n")


if TASK["kind"] == "fresh":
    install_before_import(as_mutant(TASK["mutant"]))
MEASURED = (
    coverage.Coverage(data_file=TASK["coverage"], source=[TASK["package"]], config_file=False)
    if TASK["kind"] == "survey"
    else None
)
if MEASURED is not None:
    MEASURED.start()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Count what runs for a test as reached by it, set-up and all."""
    if MEASURED is not None:
        MEASURED.switch_context(item.nodeid)
    return (yield)


def pytest_sessionfinish() -> None:
    """Keep what was measured."""
    if MEASURED is not None:
        MEASURED.stop()
        MEASURED.save()


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Note durations where that is the task."""
    if TASK["kind"] == "survey" and report.when == "call":
        answer([report.nodeid, report.duration, report.outcome])


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the tests of the task alone, in its order."""
    if TASK["kind"] == "fresh":
        order = {name: number for number, name in enumerate(TASK["tests"])}
        items[:] = sorted(
            (item for item in items if item.nodeid in order), key=lambda item: order[item.nodeid]
        )


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> bool | None:
    """Fork once per mutant, from a process that has collected all tests.

    Tests that killed before are tried first: few tests kill most mutants of a file.
    """
    if TASK["kind"] != "forks":
        return None
    items = {item.nodeid: item for item in session.items}
    functions = all_functions(Path(TASK["package"]))
    kills: Counter[str] = Counter()
    for number, job in enumerate(TASK["jobs"]):
        names = sorted(job["tests"], key=lambda name: -kills[name])
        chosen = [items[name] for name in names if name in items]
        began = time.monotonic()
        sys.stdout.flush()
        reader, writer = os.pipe()
        os.set_blocking(reader, False)
        child = os.fork()
        if child == 0:
            _child(as_mutant(job["mutant"]), functions, chosen, writer)
        os.close(writer)
        outcome = _wait(child, job["limit_s"])
        killer = _said(reader)
        if killer:
            kills[killer] += 1
        answer([number, outcome, time.monotonic() - began, killer])
    return True


def _said(reader: int) -> str:
    """What a child that ended wrote, if it did."""
    try:
        return os.read(reader, 4096).decode()
    except BlockingIOError:
        return ""
    finally:
        os.close(reader)


def _child(mutant: Mutant, functions: Any, chosen: list[pytest.Item], writer: int) -> None:
    """Run tests until the first that fails: status 1; 0 when none does, 3 when nothing changed.

    The name of the test that failed is written to ``writer``.
    """
    status = 1
    try:
        with Path(os.devnull).open("w") as nothing:
            os.dup2(nothing.fileno(), 1)
            os.dup2(nothing.fileno(), 2)
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        changed = install_into_functions(mutant, functions)
        killer = _first_failure(chosen) if changed else ""
        os.write(writer, killer.encode()[:4096])
        status = int(bool(killer)) if changed else 3
    finally:
        os._exit(status)


def _first_failure(chosen: list[pytest.Item]) -> str:
    """The name of the first test that fails, or nothing."""
    failed: list[str] = []

    class Watch:
        @pytest.hookimpl
        def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
            if report.failed:
                failed.append(report.nodeid)

    for item, after in zip(chosen, [*chosen[1:], None], strict=True):
        if not failed and not item.config.pluginmanager.hasplugin("mutate-watch"):
            item.config.pluginmanager.register(Watch(), "mutate-watch")
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=after)
        if failed:
            return failed[0]
    return ""


def _wait(child: int, limit_s: float) -> str:
    watched = os.pidfd_open(child)
    poll = select.poll()
    poll.register(watched, select.POLLIN)
    in_time = poll.poll(limit_s * 1000)
    if not in_time:
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    os.close(watched)
    if not in_time:
        return "timeout"
    return {0: "survived", 3: "unreached"}.get(os.waitstatus_to_exitcode(status), "killed")
