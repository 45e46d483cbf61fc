"""Any bytes become a model or a refusal, through every public decoder; none is left out."""

import importlib
import inspect
import pkgutil
import tracemalloc
from collections.abc import Mapping

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from support.decoders import DECODERS, Decoder

import trustauthority.codec
from trustauthority.errors import MalformedEvidence

QUICK = settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
IDS = [f"{decoder.name}-{number}" for number, decoder in enumerate(DECODERS)]
MODULES = [
    importlib.import_module(f"trustauthority.codec.{module.name}")
    for module in pkgutil.iter_modules(trustauthority.codec.__path__)
]
NO_DECODERS: Mapping[str, str] = {
    "bundle.encode_bundle": "writes what we made",
    "der.context": "makes a tag",
    "efi_text.printable": "text to text, under every decoder of the EFI family",
    "evidence.decode_evidence": "checks sizes and keeps the bytes; tests/unit/codec/test_evidence_parts.py",
    "ima.encode_digest_and_path": "writes what was read",
    "runtimerules.encode_runtime_rules": "writes what we made",
    "runtimerules.key_id": "takes a key that was read",
    "tlog.leaf_hash": "hashes whatever it is given",
    "tlog.node_hash": "hashes whatever it is given",
    "tlog.frontier_of": "hashes our own entries",
    "tlog.tree_root": "hashes our own entries",
    "tlog.inclusion_proof": "made of our own entries",
    "tlog.consistency_proof": "made of our own entries",
    "tlog.encode_checkpoint": "writes what we made",
    "tlog.encode_note": "writes what we made",
    "tlog.key_id": "hashes whatever it is given",
    "tpm_key.public_key": "takes a public that was read; under tpm_public.decode_public here",
    "tpm_key.public_from_key": "takes a key that was read",
    "tpm_public.encode_public": "writes what was read",
    "tpm_public.object_name": "hashes what was read; under tpm_public.decode_public here",
    "tpm_public.qualified_name": "hashes names that were computed",
    "tpm_public.primary_qualified_name": "hashes names that were computed",
    "tpm_reader.encode_sized": "writes what we made",
    "x509_extensions.extension_value": "looks into what was read",
    "x509_keys.certificate_key": "takes what was read; under x509.decode_certificate here",
    "x509_keys.uses_sha1": "takes what was read; under x509.decode_certificate here",
    "x509_keys.check_certificate_signature": "tests/unit/codec/test_codec_x509_keys.py",
}


def try_one(decoder: Decoder, data: bytes) -> None:
    """Decode; an error must be one that the decoder announces, and point into the bytes."""
    where = 0
    try:
        decoder.run(data)
    except MalformedEvidence as error:
        where = error.offset
        if not issubclass(MalformedEvidence, decoder.errors):
            raise
    except decoder.errors:
        return
    assert where >= 0


@st.composite
def mutated(draw: st.DrawFn, seeds: list[bytes]) -> bytes:
    """A seed with bytes exchanged, a part left out, doubled or cut off."""
    raw = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(0, 4))):
        if raw:
            raw[draw(st.integers(0, len(raw) - 1))] = draw(st.integers(0, 255))
    start = draw(st.integers(0, len(raw)))
    end = draw(st.integers(start, len(raw)))
    middle = draw(st.sampled_from([raw[start:end], b"", raw[start:end] * 2]))
    return bytes(raw[:start] + middle + raw[end:])


@pytest.mark.parametrize("decoder", DECODERS, ids=IDS)
def test_any_bytes_are_a_model_or_refused(decoder):
    """Every public decoder is total: any bytes give a model or its announced errors (rule 65, N45)."""
    seeds = decoder.seeds()

    @QUICK
    @given(st.one_of(st.binary(max_size=200), mutated(seeds)))
    @example(b"")
    def holds(data: bytes) -> None:
        try_one(decoder, data)

    holds()


@pytest.mark.parametrize("decoder", DECODERS, ids=IDS)
def test_every_prefix_of_a_good_input_is_a_model_or_refused(decoder):
    """A structure cut at any byte is refused or another whole one, never a crash (N12)."""
    for seed in decoder.seeds()[:3]:
        for size in range(min(len(seed), 600)):
            try_one(decoder, seed[:size])


@pytest.mark.parametrize("decoder", DECODERS, ids=IDS)
def test_the_seeds_reach_the_model(decoder):
    """At least one seed decodes, or the properties above would test refusals alone."""
    decoded = 0
    for seed in decoder.seeds():
        try:
            decoder.run(seed)
        except decoder.errors:
            continue
        decoded += 1
    assert decoded


@pytest.mark.parametrize("decoder", DECODERS, ids=IDS)
def test_depth_and_repetition_cost_little(decoder):
    """Nesting and repetition of a seed's head need no recursion and no memory beyond the input's (rule 45)."""
    seed = decoder.seeds()[0][:64] or b"0"
    inputs = [byte * 60_000 for byte in (b"\x30\x80", b"[", b'{"a":', b"(", b"\0", b"\xff")]
    inputs.append(seed * (120_000 // len(seed)))
    for data in inputs:
        tracemalloc.start()
        try_one(decoder, data)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 64 << 20


def test_no_decoder_is_left_out():
    """A new public function of the codec has a property here, or a reason why not."""
    found = {
        f"{module.__name__.rpartition('.')[2]}.{name}"
        for module in MODULES
        for name, function in vars(module).items()
        if inspect.isfunction(inspect.unwrap(function) if callable(function) else None)
        and function.__module__ == module.__name__
        and not name.startswith("_")
    }
    known = {decoder.name for decoder in DECODERS} | NO_DECODERS.keys()
    assert found - known == set()
    assert not {decoder.name for decoder in DECODERS} & NO_DECODERS.keys()
    assert NO_DECODERS.keys() <= found
