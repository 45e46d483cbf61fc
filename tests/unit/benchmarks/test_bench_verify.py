"""``make bench-verify`` itself: what it times is right, and its bounds can be missed."""

import sys
from itertools import chain, repeat
from pathlib import Path

import pytest
from support import tpm_structures as build

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
try:
    import rounds
    import subjects
    import verify
finally:
    sys.path.remove(str(BENCHMARKS))

KEYS = {"RSA-2048": build.SoftwareKey.rsa, "P-256": build.SoftwareKey.ecdsa}


@pytest.mark.parametrize("count", [8, 24])
@pytest.mark.parametrize("name", KEYS)
def test_quotes_are_verified_not_refused(name, count):
    """Each contender does the whole check and passes; a refusal would be a fast nothing."""
    quote = subjects.Quote(name, KEYS[name](), count)
    for check in (quote.bare(), quote.whole(), quote.pytss()):
        check()
    assert quote.for_keylime()["count"] == str(count)


def test_logs_are_verified_not_refused():
    """Boot and runtime logs pass their checks, in each way that is timed."""
    boot = subjects.boot_log(120)
    assert boot.events == 120
    for check in (boot.cold(), boot.known(), boot.hashed()):
        check()
        check()
    runtime = subjects.runtime_log(30)
    runtime.whole()()
    runtime.from_text()()


def test_a_wrong_log_is_not_timed():
    """The checks assert their outcome: another register value is an error, not a figure."""
    runtime = subjects.runtime_log(5)
    wrong = subjects.Runtime(
        raw=runtime.raw,
        text=runtime.text,
        register=bytes(32),
        rules=runtime.rules,
        digests=runtime.digests,
        entries=6,
    )
    with pytest.raises(AssertionError):
        wrong.whole()()
    with pytest.raises(AssertionError):
        wrong.from_text()()


@pytest.mark.parametrize(
    ("value", "limit", "sense", "missed"),
    [
        (18.7, 15, "at_most", False),
        (18.8, 15, "at_most", True),
        (3.21, 4, "at_least", False),
        (3.19, 4, "at_least", True),
    ],
)
def test_a_bound_is_missed_beyond_a_quarter(capsys, value, limit, sense, missed):
    """A stated bound fails the run when it is missed by more than 25 %, in either direction."""
    for judged in (True, False):
        bounds = verify.Bounds(judged)
        getattr(bounds, sense)("it", value, limit, "")
        assert bounds.missed == (["it"] if missed and judged else [])
        assert ("MISSED" in capsys.readouterr().out) == missed


def test_rounds_in_which_the_machine_changed_its_speed_are_dropped(monkeypatch):
    """A canary more than 15 % off costs its round; ratios are those within the others."""
    canaries = chain.from_iterable(repeat(pair, 2) for pair in [(1, 1), (1, 1), (1.2, 1), (1, 1)])
    monkeypatch.setattr(rounds, "_canaries", lambda: next(canaries))
    times = iter([5.0, 1.0, 2.0, 90.0, 3.0])
    found = rounds.interleave({"one": lambda: next(times), "other": lambda: 1.0}, 4)
    assert found.dropped == 1
    assert [each["one"] for each in found.rounds] == [1.0, 2.0, 3.0]
    assert found.ratio("one", "other") == found.over("one", "other") + 1 == 2.0


def test_a_machine_that_differs_from_itself_is_not_trusted(monkeypatch, capsys):
    """When A/A fails three times no bound is judged, and that is said."""
    monkeypatch.setattr(verify, "same_twice", lambda *_: 1.2)
    assert verify.trusted(lambda: 1.0) is False
    assert "no bound is judged" in capsys.readouterr().out
    monkeypatch.setattr(verify, "same_twice", lambda *_: 0.97)
    assert verify.trusted(lambda: 1.0) is True


def test_a_missing_peer_is_named(monkeypatch, capsys, tmp_path):
    """Without its environment Keylime is said to be missing, not left out in silence."""
    monkeypatch.setattr(verify, "PEERS", verify.ROOT / ".build" / "nothing-here")
    with verify.keylime(tmp_path) as peer:
        assert peer is None
    assert "missing: Keylime" in capsys.readouterr().out
