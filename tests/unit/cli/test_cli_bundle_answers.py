"""``ta evidence show``: a bundle's quote is genuine under its own keys, or refused; its manifest is held to its format."""

from dataclasses import replace

import pytest
from support.bundle_parts import good_bundle

from trustauthority.appraisal.rejudge import authenticate_bundle
from trustauthority.cli.bundle_answers import describe_bundle
from trustauthority.codec.bundle import encode_bundle
from trustauthority.errors import MalformedEvidence, QuoteSignatureInvalid

MADE = {"created_at": "2026-01-01T00:00:00Z"}


def shown(**manifest: object):
    """The answer on the good bundle, with other fields in its manifest."""
    bundle = good_bundle()
    data = encode_bundle({**bundle.manifest, **MADE, **manifest}, bundle.parts, made_at_s=1)
    return describe_bundle(data).document


def test_the_good_bundle_is_shown():
    """What the refusals below are measured against (rule 67)."""
    assert shown()["source"] == "authority"
    assert shown(source="host")["source"] == "host"


@pytest.mark.parametrize("source", [None, 1, True, [], {}, "", "somebody", "9" * 5000])
def test_a_source_that_no_bundle_has(source):
    """Who wrote it is one of two, or the answer would not fit its schema (rule 65)."""
    with pytest.raises(MalformedEvidence, match="source"):
        shown(source=source)


@pytest.mark.parametrize("part", ["ak.public", "ek.public"])
def test_the_signer_is_the_ak_under_the_ek(part):
    """A key area that was changed where no signature looks has another name (rule 18)."""
    bundle = good_bundle()
    area = bytearray(bundle.parts[part])
    area[6] ^= 0x04  # noDA: of no consequence for the signature, but part of the name
    changed = replace(bundle, parts={**bundle.parts, part: bytes(area)})
    with pytest.raises(QuoteSignatureInvalid, match="qualified"):
        authenticate_bundle(changed)
    assert authenticate_bundle(bundle).extra_data
