"""The canonical form of a verdict, whose hash is the verdict's id."""

import json
from dataclasses import asdict

from trustauthority.model.baseline import Component, MatchedVariant
from trustauthority.model.identifiers import ClusterId, HostId
from trustauthority.model.verdict import Check, CheckState, Verdict
from trustauthority.services.policies import parse_policy
from trustauthority.services.verdicts import verdict_document

LEAF = Check(id="boot.pcr-8", title='said "x"\n', state=CheckState.FAILED, found="ü", pcr=8)
VERDICT = Verdict(
    host_id=HostId("h"),
    cluster=ClusterId("c"),
    passed=False,
    checks=(
        LEAF,
        Check(id="boot", title="boot", state=CheckState.WARNING, children=(LEAF, LEAF)),
    ),
    policy="default",
    policy_sha256="ab",
    policy_epoch=3,
    baseline="golden",
    decided_at_ms=5,
    attested_until_ms=6,
    variants=(MatchedVariant(component=Component.KERNEL, name="golden"),),
)


def test_it_holds_every_field_of_every_check() -> None:
    """The document is the whole verdict, byte for byte what a plain conversion gives (rule 67)."""
    plain = json.dumps(
        asdict(VERDICT) | {"evidence_sha256": "cd"}, sort_keys=True, separators=(",", ":")
    )
    assert verdict_document(VERDICT, "cd") == plain


def test_a_policy_is_parsed_once_per_text() -> None:
    """The same text gives the same policy, another text never does (N04)."""
    text = 'name = "once"\n'
    assert parse_policy(text) is parse_policy("".join(text))
    assert parse_policy('name = "other"\n').name == "other"
