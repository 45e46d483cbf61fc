"""The vectors NAME = DEFECT: each is judged as its index says, and can be rebuilt byte by byte."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from vectors.ekcerts import build_vectors

from trustauthority.cli.evidence_endorsement import Grounds, describe, judge_file
from trustauthority.codec.x509 import decode_certificate
from trustauthority.errors import TrustAuthorityError
from trustauthority.model.endorsement import CaAnchor, EndorsementPolicy, Revocations
from trustauthority.verification.endorsement import verify_endorsement
from trustauthority.verification.endorsement_chain import AnchorSet, CertificatePool

FOLDER = Path(build_vectors.__file__).parent
INDEX = json.loads((FOLDER / "index.json").read_text())
NOW = datetime(2026, 6, 1, tzinfo=UTC)
GROUNDS = Grounds(
    anchors=AnchorSet(
        [CaAnchor(certificate=decode_certificate((FOLDER / "root.pem").read_bytes()))]
    ),
    intermediates=CertificatePool([decode_certificate((FOLDER / "intermediate.pem").read_bytes())]),
    revocations=Revocations(),
    policy=EndorsementPolicy(),
    now=NOW,
)


def test_the_script_rebuilds_every_vector() -> None:
    """Issue 3: vectors come from a script, and nothing else lies in the folder."""
    rebuilt = build_vectors.files()
    there = {file.name for file in FOLDER.iterdir() if file.is_file()} - {"build_vectors.py"}
    assert there == set(rebuilt)
    assert [name for name in rebuilt if (FOLDER / name).read_bytes() != rebuilt[name]] == []


@pytest.mark.parametrize("name", sorted(INDEX))
def test_a_vector_is_judged_as_its_name_says(name: str) -> None:
    """N20, rules 14, 15, 24-28: result, reason, rule and malformed part."""
    document = describe(judge_file(FOLDER / name, GROUNDS))
    expected = INDEX[name]
    assert {key: document.get(key) for key in expected} == expected


@pytest.mark.parametrize("name", sorted(INDEX))
def test_only_the_genuine_vectors_become_an_endorsement(name: str) -> None:
    """I-A: whatever the tool thinks a certificate is, enrolment takes EK certificates only."""
    try:
        endorsement = verify_endorsement(
            (FOLDER / name).read_bytes(),
            intermediates=GROUNDS.intermediates,
            anchors=GROUNDS.anchors,
            now=NOW,
        )
    except TrustAuthorityError as error:
        outcome = error.reason
    else:
        outcome = endorsement.anchor_id
    good = INDEX[name]["result"] == "genuine"
    assert outcome.startswith("ca-certificate:") == good
