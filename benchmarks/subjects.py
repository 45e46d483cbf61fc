"""What ``make bench-verify`` measures: quotes, boot logs and runtime logs, made here, and how each is verified.

Everything is built byte by byte by the tests' own builders, so no corpus is needed. Each check of ours is
the one that the authority makes, and its outcome is asserted.
"""

import hashlib
import json
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from support import tpm_structures as build
from support.logbuilder import IPL, VARIABLE_BOOT, LogBuilder, ima_record, ng_data, variable

from trustauthority.appraisal.appraise import judge_runtime
from trustauthority.appraisal.bootfacts import boot_facts
from trustauthority.appraisal.runtimefiles import judge_files
from trustauthority.codec.ima_log import decode_ima_log
from trustauthority.codec.runtimerules import decode_runtime_rules, encode_runtime_rules
from trustauthority.codec.tpm import decode_public
from trustauthority.model.digest import HashAlgorithm
from trustauthority.model.runtimerules import RuntimeRules
from trustauthority.model.tpm import ClockInfo, PcrSelection
from trustauthority.verification.bootreplay import KnownBoots, replay_boot
from trustauthority.verification.quote import QuoteExpectation, verify_quote
from trustauthority.verification.runtime import entry_findings, match_prefix
from trustauthority.verification.runtimelog import no_progress, replay_runtime_log

BANK = HashAlgorithm.SHA256
NONCE = "n" * 32
SIGNER = b"\0\x0b" + b"q" * 32
PCRS = frozenset(range(10))
Call = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Quote:
    """A quote of some PCRs of the SHA-256 bank by one key."""

    name: str
    key: build.SoftwareKey
    count: int

    def made(self) -> build.SignedQuote:
        """The quote, as a TPM makes it."""
        pcrs = {"sha256": {index: bytes([index]) * 32 for index in range(self.count)}}
        return build.make_quote(self.key, pcrs=pcrs, extra_data=NONCE.encode(), signer=SIGNER)

    def bare(self) -> Call:
        """The verification of the signature alone, everything prepared before."""
        quote, public = self.made(), self.key.private.public_key()
        if isinstance(self.key.private, ec.EllipticCurvePrivateKey):
            r, s = (int.from_bytes(quote.signature[at : at + 32], "big") for at in (6, 40))
            signature, scheme = encode_dss_signature(r, s), ec.ECDSA(hashes.SHA256())
            return lambda: public.verify(signature, quote.attest, scheme)
        block, pad, algorithm = quote.signature[6:], padding.PKCS1v15(), hashes.SHA256()
        return lambda: public.verify(block, quote.attest, pad, algorithm)

    def whole(self) -> Call:
        """The stage: structure, key, scheme, signature, signer, challenge, selection, digest, clock."""
        quote = self.made()
        expectation = QuoteExpectation(
            attestation_key=decode_public(self.key.public),
            qualified_name=SIGNER,
            qualifying_data=NONCE.encode(),
            selection=(PcrSelection(bank=BANK, indices=tuple(range(self.count))),),
            last_clock=ClockInfo(clock=1, reset_count=1, restart_count=1, safe=True),
        )
        return lambda: verify_quote(
            attest=quote.attest,
            signature=quote.signature,
            pcr_values=quote.pcr_values,
            expectation=expectation,
        )

    def pytss(self) -> Call | None:
        """The same by tpm2-pytss, as far as it goes: unmarshal, signature, nonce, digest; None without it."""
        try:
            from tpm2_pytss.types import TPM2B_PUBLIC, TPMS_ATTEST, TPMT_PUBLIC, TPMT_SIGNATURE
        except ImportError:
            return None
        quote = self.made()
        area, _ = TPMT_PUBLIC.unmarshal(self.key.public)
        public = TPM2B_PUBLIC(publicArea=area)

        def check() -> None:
            attest, _ = TPMS_ATTEST.unmarshal(quote.attest)
            signature, _ = TPMT_SIGNATURE.unmarshal(quote.signature)
            signature.verify_signature(public, quote.attest)
            digest = hashlib.sha256(quote.pcr_values).digest()
            assert bytes(attest.attested.quote.pcrDigest) == digest
            assert bytes(attest.extraData) == NONCE.encode()

        return check

    def for_keylime(self) -> dict[str, str]:
        """What Keylime's verifier takes; its PCR values come in the memory layout of tpm2-tools."""
        quote = self.made()
        bitmap = sum(1 << index for index in range(self.count)).to_bytes(3, "little")
        banks = struct.pack("<HB3s2x", 0x0B, 3, bitmap) + bytes(8 * 15)
        values = [quote.pcrs["sha256"][index] for index in range(self.count)]
        lists = [values[at : at + 8] for at in range(0, self.count, 8)]
        digests = b"".join(
            struct.pack("<I", len(each))
            + b"".join(struct.pack("<H64s", len(value), value) for value in each)
            + bytes(66 * (8 - len(each)))
            for each in lists
        )
        blob = struct.pack("<I", 1) + banks + struct.pack("<I", len(lists)) + digests
        return {
            "key": self.key.pem.decode(),
            "nonce": NONCE,
            "signature": quote.signature.hex(),
            "attest": quote.attest.hex(),
            "pcrs": blob.hex(),
            "count": str(self.count),
        }


# --- boot logs -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Boot:
    """A boot log and the registers that follow from it, as another program computed them."""

    raw: bytes
    quoted: dict[int, bytes]
    events: int

    def cold(self) -> Call:
        """Parse, replay of one bank, facts."""
        return self._check(replay_boot)

    def known(self) -> Call:
        """The same for a log that was seen before."""
        return self._check(KnownBoots().replay)

    def hashed(self) -> Call:
        """What nobody gets around."""
        return lambda: hashlib.sha256(self.raw).digest()

    def _check(self, replay: Callable[..., object]) -> Call:
        quoted = {BANK: self.quoted}

        def check() -> None:
            answer = replay(self.raw, quoted, pcrs=PCRS, quirks=frozenset())[BANK]
            assert answer.log.passed
            assert boot_facts(answer.log).secure_boot.enabled is True

        return check


def boot_log(events: int) -> Boot:
    """A boot with Secure Boot and GRUB: variables, boot options, and one record per GRUB command."""
    builder = LogBuilder(banks=("sha1", "sha256"))
    for number in range(6):
        builder.event(1, VARIABLE_BOOT, variable(f"Boot000{number}", b"\x01" + bytes(180)))
    builder.boot()
    while len(builder.offsets) < events:
        number = len(builder.offsets)
        command = f"set menu_entry_{number}=(hd0,gpt2)/boot/vmlinuz-6.1.0-{number}-amd64".encode()
        builder.event(8, IPL, b"grub_cmd: " + command + b"\0", hashed=command)
        builder.event(9, IPL, f"(hd0,gpt2)/boot/grub/x86_64-efi/{number}.mod".encode() + b"\0")
    zero = dict.fromkeys(PCRS, bytes(32))
    return Boot(builder.bytes, zero | builder.registers["sha256"], len(builder.offsets))


# --- runtime logs ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Runtime:
    """A runtime log in both of its forms, its register, and rules that know each file of it."""

    raw: bytes
    text: bytes
    register: bytes
    rules: RuntimeRules
    digests: dict[str, list[str]]
    entries: int

    def whole(self, rules: RuntimeRules | None = None) -> Call:
        """Parse, replay, the digest of each entry, the verdict on each file."""
        under = rules or self.rules
        quoted = {BANK: {10: self.register}}

        def check() -> None:
            replayed = replay_runtime_log(
                self.raw, no_progress(BANK), quoted, bank=BANK, rules=under
            )
            judged = judge_runtime(replayed, under, None)
            assert judged is not None
            assert judged.by_digest == self.entries

        return check

    def from_text(self) -> Call:
        """The same on the text form, as ``ta policy runtime check`` does it."""

        def check() -> None:
            entries = decode_ima_log(self.text).entries
            match = match_prefix(entries, self.register, BANK)
            assert match is not None
            assert not entry_findings(entries)
            assert judge_files(entries, self.rules).by_digest == self.entries

        return check


def runtime_log(entries: int) -> Runtime:
    """A log of ``ima-ng``: the boot aggregate, then files of packages."""
    register, records, lines, digests = bytes(32), [], [], {}
    for number in range(entries):
        package = f"/usr/lib/x86_64-linux-gnu/package{number % 997}/lib{number}.so.1"
        path = package if number else "boot_aggregate"
        data = ng_data(path.encode(), b"%d" % number)
        logged = hashlib.sha1(data, usedforsecurity=False).hexdigest()
        digest = hashlib.sha256(b"%d" % number).hexdigest()
        digests[path] = [digest]
        records.append(ima_record(data))
        lines.append(f"10 {logged} ima-ng sha256:{digest} {path}\n")
        register = hashlib.sha256(register + hashlib.sha256(data).digest()).digest()
    files = {path: ["sha256:" + each[0]] for path, each in digests.items() if path[0] == "/"}
    return Runtime(
        raw=b"".join(records),
        text="".join(lines).encode(),
        register=register,
        rules=decode_runtime_rules(encode_runtime_rules(files, {})),
        digests=digests,
        entries=entries,
    )


def write_for_keylime(folder: Path, quotes: list[Quote], boot: Boot, runtime: Runtime) -> None:
    """The same files for Keylime: its forms of policy and quote, the very same logs."""
    for quote in quotes:
        (folder / f"quote-{quote.name}.json").write_text(json.dumps(quote.for_keylime()))
    (folder / "boot.bin").write_bytes(boot.raw)
    expected = {str(pcr): boot.quoted[pcr].hex() for pcr in PCRS if any(boot.quoted[pcr])}
    (folder / "boot-pcrs.json").write_text(json.dumps(expected))
    (folder / "ima.txt").write_bytes(runtime.text)
    (folder / "digests.json").write_text(json.dumps(runtime.digests))
    (folder / "pcr10.hex").write_text(runtime.register.hex())
