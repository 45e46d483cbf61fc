"""hostagent.spent and the hook's log: what the time of a start went into."""

import time
from types import SimpleNamespace

import pytest
from structlog.testing import capture_logs

from hostagent.hook_desk import HookDesk
from hostagent.spent import Spent, milliseconds_since

UUID = "7b000000-0000-4000-8000-000000000001"
MARKED = f"""<domain><name>web</name><uuid>{UUID}</uuid>
<metadata><ta:vm xmlns:ta="urn:trustauthority:vm:1" id="web"/></metadata><devices/></domain>"""


@pytest.fixture
def clock(monkeypatch) -> SimpleNamespace:
    """A clock that goes on when it is told to."""
    made = SimpleNamespace(now=100.0)
    monkeypatch.setattr(time, "monotonic", lambda: made.now)
    return made


def test_sums_by_name(clock) -> None:
    """Each block counts under its name, twice if it is gone through twice."""
    spent = Spent()
    for seconds in (0.25, 0.5):
        with spent.on("tpm"):
            clock.now += seconds
        clock.now += 9
    with spent.on("authority"):
        clock.now += 1
    assert spent.so_far() == {"tpm": 0.75, "authority": 1.0}


def test_a_block_that_fails_counts(clock) -> None:
    """A TPM that refuses took its time as well; the error goes on."""
    spent = Spent()

    def refuse() -> None:
        with spent.on("tpm"):
            clock.now += 2
            raise ValueError("refused")

    with pytest.raises(ValueError, match="refused"):
        refuse()
    assert spent.so_far() == {"tpm": 2.0}


def test_between_two_looks(clock) -> None:
    """Only what was spent in between, also in what was not known before."""
    spent = Spent()
    with spent.on("tpm"):
        clock.now += 1
    before = spent.so_far()
    with spent.on("tpm"):
        clock.now += 0.0014
    with spent.on("authority"):
        clock.now += 0.02
    after = spent.so_far()
    assert milliseconds_since(before, after) == {"authority_ms": 20, "tpm_ms": 1}
    assert milliseconds_since(after, after) == {"authority_ms": 0, "tpm_ms": 0}


async def test_the_hooks_log_tells_it(clock, monkeypatch) -> None:
    """The line of a hook says how long it took, and how long of that in what."""
    spent = Spent()
    desk = HookDesk(
        desk=SimpleNamespace(),
        vms=SimpleNamespace(),
        may_ask=lambda: True,
        patience_s=1,
        inspector=SimpleNamespace(),
        spent=spent.so_far,
    )

    async def answer(_self: HookDesk, _operation: str, _domain: object) -> dict:
        clock.now += 0.1
        with spent.on("tpm"):
            clock.now += 0.03
        return {"ok": True}

    monkeypatch.setattr(HookDesk, "_answer", answer)
    asked = {"operation": "prepare", "name": "web", "definition": MARKED}
    with capture_logs() as logged:
        assert (await desk.handle(asked))["ok"]
    (line,) = logged
    assert (line["ms"], line["tpm_ms"]) == (130, 30)
