"""What is known of a boot's runtime log, as it is stored: read back whole, or the log begins anew."""

import json
from dataclasses import replace

import pytest
from support.small_bundle import RULES
from support.verdict_trees import VERIFIED

from trustauthority.appraisal.appraise import judge_runtime
from trustauthority.appraisal.runtimefiles import RefusedEntry
from trustauthority.appraisal.runtimestate import KnownRuntime, decode_runtime, encode_runtime

NAMED = RefusedEntry(number=3, path="/evil", digest="sha256:ee", why="unknown")
FILES = judge_runtime(VERIFIED.runtime, RULES, None)
assert FILES is not None
KNOWN = KnownRuntime(
    progress=VERIFIED.runtime.progress, files=replace(FILES, refused=1, named=(NAMED,))
)
UNJUDGED = replace(KNOWN, files=None)


def test_nothing_stored_is_nothing_known():
    """A host of which nothing is stored sends its log from the first entry (rule 55)."""
    assert decode_runtime(b"", RULES.sha256) is None
    assert decode_runtime(b"", "") is None


@pytest.mark.parametrize("known", [KNOWN, UNJUDGED], ids=["judged", "unjudged"])
def test_what_is_known_comes_back_as_it_was(known):
    """Refused files and counts are not forgotten over a restart (rule 54)."""
    assert decode_runtime(encode_runtime(known), "") == known


@pytest.mark.parametrize(
    ("known", "rules", "usable"),
    [
        (KNOWN, RULES.sha256, True),
        (KNOWN, "00" * 32, False),
        (UNJUDGED, RULES.sha256, False),
        (UNJUDGED, "", True),
    ],
)
def test_other_rules_read_the_log_from_its_first_entry(known, rules, usable):
    """Entries that these rules never saw are approved by nobody: the log is read again (rule 55)."""
    assert (decode_runtime(encode_runtime(known), rules) is not None) is usable


@pytest.mark.parametrize("aggregate", [None, 1, "", "pcrs-0-8"])
def test_an_aggregate_that_is_none_is_refused(aggregate):
    """What ties the log to the boot is one of few words (rule 65)."""
    values = json.loads(encode_runtime(KNOWN))
    values["progress"]["aggregate"] = aggregate
    with pytest.raises((ValueError, TypeError)):
        decode_runtime(json.dumps(values).encode(), "")
