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
    """Fork once per mutant, from a process that has collected all tests."""
    if TASK["kind"] != "forks":
        return None
    items = {item.nodeid: item for item in session.items}
    functions = all_functions(Path(TASK["package"]))
    for number, job in enumerate(TASK["jobs"]):
        chosen = [items[name] for name in job["tests"] if name in items]
        began = time.monotonic()
        sys.stdout.flush()
        child = os.fork()
        if child == 0:
            _child(as_mutant(job["mutant"]), functions, chosen)
        outcome = _wait(child, job["limit_s"])
        answer([number, outcome, time.monotonic() - began])
    return True


def _child(mutant: Mutant, functions: Any, chosen: list[pytest.Item]) -> None:
    """Run tests until the first that fails: status 1; 0 when none does, 3 when nothing changed."""
    status = 1
    try:
        with Path(os.devnull).open("w") as nothing:
            os.dup2(nothing.fileno(), 1)
            os.dup2(nothing.fileno(), 2)
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        changed = install_into_functions(mutant, functions)
        status = int(_any_fails(chosen)) if changed else 3
    finally:
        os._exit(status)


def _any_fails(chosen: list[pytest.Item]) -> bool:
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
            return True
    return False


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
