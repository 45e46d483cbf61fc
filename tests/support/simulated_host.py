"""A host whose TPM is software, so that it can lie about one thing at a time.

Its keys are real, its TPMT_PUBLICs correct, its logs those of a captured boot, its EK certified by
the test vendor. What an honest TPM would do it does; each lie is a method, or a field that a test
sets before the next certification or quote. What only a real TPM refuses is tested in tests/tpm.
"""

import hashlib
import hmac
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from cryptography.hazmat.decrepit.ciphers.modes import CFB
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from hostagent.collect import qualifying_data
from hostagent.grant import GrantRequest, open_key_grant
from hostagent.sealed import SealedSecret, TpmError
from support import ek_certificates, tpm_structures
from support.bootlogs import ImaMeasurement, read_event_log, read_ima_log, replay
from support.logbuilder import userspace_record
from support.logslices import event_slices
from support.storage_key import SoftwareStorage
from support.tpm_structures import POLICY_A, SoftwareKey, name_of, public_area, qualified
from trustauthority.codec.evidence import decode_evidence
from trustauthority.codec.tpm import decode_public, encode_public
from trustauthority.keyrelease.wrap import encode_selection, policy_digest
from trustauthority.model.digest import HashAlgorithm
from trustauthority.model.evidence import Evidence
from trustauthority.services.attestation import Invitation
from trustauthority.services.enrolment import EnrolmentClaim, PendingCredential
from trustauthority.services.keys import ReleasedKey
from trustauthority.verification.protect import kdfa, kdfe
from trustauthority.verification.residency import KeyCertification

BOOTS = Path(__file__).parent.parent / "vectors" / "boots"
GOOD = BOOTS / "good"
EK_ATTRIBUTES = 0x000300B2
SOUND_FIRMWARE = 0x0007_0055_0000_0000
"""7.85: no flaw of this maker's firmware is published for it."""
OWNER, ENDORSEMENT = b"\x40\x00\x00\x01", b"\x40\x00\x00\x0b"
_LABEL = b"trustauthority/enrol/v1\0"


def derived_key(seed: str) -> ec.EllipticCurvePrivateKey:
    """The P-256 key of a text."""
    number = int.from_bytes(hashlib.sha512(seed.encode()).digest(), "big")
    return ec.derive_private_key(number % (2**256 - 2**225), ec.SECP256R1())


@dataclass(frozen=True)
class SimulatedTpm:
    """Keys of one TPM. Two hosts with one of these are one machine."""

    serial: str
    generation: int = 1
    """What an owner's Clear changes: all keys but the EK."""

    @property
    def ek(self) -> ec.EllipticCurvePrivateKey:
        """The endorsement key, template L-2."""
        return derived_key(f"{self.serial}/ek")

    @property
    def ek_public(self) -> bytes:
        """Its TPMT_PUBLIC."""
        return public_area(
            self.ek.public_key(),
            EK_ATTRIBUTES,
            symmetric=tpm_structures.AES_128_CFB,
            policy=POLICY_A,
        )

    @property
    def certificate_serial(self) -> int:
        """Serial number of the vendor's certificate."""
        return int.from_bytes(hashlib.sha256(self.serial.encode()).digest()[:8], "big")

    @property
    def ek_certificate(self) -> bytes:
        """The vendor's certificate over it."""
        info = self.ek.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        return ek_certificates.ecc_endorsement(
            256, public_key_info=info, serial=self.certificate_serial
        )

    def key(self, role: str) -> ec.EllipticCurvePrivateKey:
        """A key that the TPM made for a role."""
        return derived_key(f"{self.serial}/{self.generation}/{role}")


@dataclass
class Lies:
    """What the next certification or quote says instead of the truth; all off at first."""

    enrol_data: Callable[[bytes], bytes] = lambda honest: honest
    certified_name: dict[str, bytes] = field(default_factory=dict)
    certified_qualified_name: dict[str, bytes] = field(default_factory=dict)
    qualifying: bytes | None = None
    signer: bytes | None = None
    signing_key: SoftwareKey | None = None
    quote_fields: dict[str, int] = field(default_factory=dict)
    change_attest: Callable[[bytes], bytes] = lambda honest: honest
    resign: bool = True
    """Whether ``change_attest`` comes before the signature (a lying TPM) or after it (a tamperer)."""
    pcrs: dict[tuple[str, int], bytes] = field(default_factory=dict)
    banks: tuple[str, ...] = ("sha1", "sha256")
    left_out: frozenset[int] = frozenset()


class SimulatedHost:
    """One host: enrols, attests, asks for keys, and opens them, or lies."""

    def __init__(
        self,
        name: str,
        *,
        cluster: str = "prod",
        capture: Path = GOOD,
        tpm: SimulatedTpm | None = None,
        authority_ca_sha256: bytes,
    ) -> None:
        self.name, self.cluster = name, cluster
        self.authority_ca_sha256 = authority_ca_sha256
        self.tpm = tpm or SimulatedTpm(name)
        self.ak = SoftwareKey(private=self.tpm.key("ak"))
        self.tls_area = public_area(self.tpm.key("tls").public_key(), tpm_structures.TLS_ATTRIBUTES)
        self.storage = SoftwareStorage(self.tpm.key("storage"))
        self.storage_area = encode_public(self.storage.public)
        self.boot(capture)
        self.clock, self.reset_count, self.restart_count, self.safe = 100_000, 5, 2, True
        self.firmware = SOUND_FIRMWARE
        self.lies = Lies()
        self.host_id = ""

    # --- its boot ------------------------------------------------------------------------------

    def boot(self, capture: Path) -> None:
        """Measure a captured boot, truly."""
        self.event_log = (capture / "eventlog.bin").read_bytes()
        self.ima_log = (capture / "ima.bin").read_bytes()
        self.userspace_log = b""
        self.phases: list[tuple[int, str]] = []
        self._measure()

    def reboot(self, capture: Path = GOOD) -> None:
        """Start again: another reset count, a clock that goes on."""
        self.boot(capture)
        self.reset_count += 1
        self.restart_count = 0
        self.clock += 30_000

    def pass_ms(self, length: int) -> None:
        """The TPM's clock goes on."""
        self.clock += length

    def measure_file(self, path: str, content: bytes, *, violation: bool = False) -> None:
        """A program is loaded: one more entry of the IMA log, and PCR 10 extended by it."""
        digest = b"sha256:\0" + hashlib.sha256(content).digest()
        hint = path.encode() + b"\0"
        data = b"".join(len(each).to_bytes(4, "little") + each for each in (digest, hint, b""))
        hashed = bytes(20) if violation else hashlib.sha1(data, usedforsecurity=False).digest()
        entry = ImaMeasurement(template_hash=hashed, template="ima-sig", data=data)
        self.ima_log += entry.encode()
        self._measure()

    def measure_phase(self, word: str, pcr: int = 11, *, logged: bool = True) -> None:
        """User space extends a PCR with a word, and logs it as systemd does."""
        self.phases.append((pcr, word))
        if logged:
            self.userspace_log += userspace_record(word, pcr)
        self._measure()

    def _measure(self) -> None:
        events = read_event_log(self.event_log)
        entries = read_ima_log(self.ima_log)
        self.pcrs = {bank: replay(events, entries, bank) for bank in ("sha1", "sha256")}
        for bank, values in self.pcrs.items():
            for pcr, word in self.phases:
                digest = hashlib.new(bank, word.encode()).digest()
                values[pcr] = hashlib.new(bank, values[pcr] + digest).digest()

    # --- lies ----------------------------------------------------------------------------------

    def lie_about_pcr(self, pcr: int, bank: str = "sha256") -> None:
        """Something else was extended into a PCR than the log says."""
        self.lies.pcrs[bank, pcr] = hashlib.new(bank, b"another boot").digest()

    def rollback_clock(self, length: int) -> None:
        """The state of the TPM is an older one."""
        self.clock -= length

    def relay_nonce(self, challenge: bytes, *, tls_area: bytes) -> None:
        """Quote a challenge for another agent, which shows another TLS key."""
        self.lies.qualifying = qualifying_data(challenge, name_of(tls_area))

    def drop_event(self, number: int) -> None:
        """Leave an event out of the log."""
        header, events = event_slices(self.event_log)
        self.event_log = header + b"".join(events[:number] + events[number + 1 :])

    def duplicate_event(self, number: int) -> None:
        """Log an event twice."""
        header, events = event_slices(self.event_log)
        self.event_log = header + b"".join([*events[: number + 1], *events[number:]])

    def swap_events(self, one: int, other: int) -> None:
        """Log two events in the wrong order."""
        header, events = event_slices(self.event_log)
        events[one], events[other] = events[other], events[one]
        self.event_log = header + b"".join(events)

    def use_ak(self, seed: str) -> None:
        """Sign with an AK that was never enrolled."""
        self.lies.signing_key = SoftwareKey(private=derived_key(seed))

    def claim_qualified_name(self, role: str) -> None:
        """Certify a key as if it hung below the endorsement hierarchy."""
        area = self.tls_area if role == "tls" else self.storage_area
        self.lies.certified_qualified_name[role] = qualified(ENDORSEMENT, name_of(area))

    def set_attributes(self, role: str, attributes: int) -> None:
        """Make a key with other attributes; what the AK certifies follows."""
        private = self.tpm.key(role)
        if role == "ak":
            self.ak = SoftwareKey(private=private, attributes=attributes)
        elif role == "tls":
            self.tls_area = public_area(private.public_key(), attributes)
        else:
            self.storage_area = public_area(
                private.public_key(), attributes, symmetric=tpm_structures.AES_128_CFB
            )

    # --- enrolment -----------------------------------------------------------------------------

    @property
    def ak_qualified_name(self) -> bytes:
        """Of the AK, a child of the EK."""
        return qualified(
            qualified(ENDORSEMENT, name_of(self.tpm.ek_public)), name_of(self.ak.public)
        )

    def claim(self, challenge: bytes) -> EnrolmentClaim:
        """What the host shows to enrol."""
        return EnrolmentClaim(
            cluster=self.cluster,
            name=self.name,
            challenge=challenge,
            ek_public=self.tpm.ek_public,
            ek_certificate=self.tpm.ek_certificate,
            ek_intermediates=(ek_certificates.intermediate(),),
            ak_public=self.ak.public,
            tls_public=self.tls_area,
            storage_public=self.storage_area,
            tls_certification=self.certify("tls", challenge),
            storage_certification=self.certify("storage", challenge),
        )

    def certify(self, role: str, challenge: bytes) -> KeyCertification:
        """TPM2_Certify of one of the two keys by the AK."""
        area = self.tls_area if role == "tls" else self.storage_area
        ak_name = name_of(self.ak.public)
        parts = (self.cluster.encode(), self.name.encode(), challenge, self.tpm.ek_public, ak_name)
        hashes = b"".join(hashlib.sha256(part).digest() for part in (*parts, role.encode()))
        honest = hashlib.sha256(_LABEL + self.authority_ca_sha256 + hashes).digest()
        attest, signature = tpm_structures.make_certification(
            self.lies.signing_key or self.ak,
            name=self.lies.certified_name.get(role, name_of(area)),
            qualified_name=self.lies.certified_qualified_name.get(
                role, qualified(OWNER, name_of(area))
            ),
            signer=self.lies.signer or self.ak_qualified_name,
            extra_data=self.lies.enrol_data(honest),
            clock=self._clock_info,
        )
        return KeyCertification(attest=attest, signature=signature)

    def open_credential(self, pending: PendingCredential) -> bytes:
        """TPM2_ActivateCredential beside this host's AK. Raises TpmError when it is for another."""
        point = pending.encrypted_secret[2:]
        size = int.from_bytes(point[:2], "big")
        x, y = point[2 : 2 + size], point[4 + size :]
        peer = ec.EllipticCurvePublicNumbers(
            int.from_bytes(x, "big"), int.from_bytes(y, "big"), ec.SECP256R1()
        ).public_key()
        own_x = self.tpm.ek.public_key().public_numbers().x.to_bytes(32, "big")
        shared = self.tpm.ek.exchange(ec.ECDH(), peer)
        seed = kdfe(HashAlgorithm.SHA256, shared, b"IDENTITY", x, own_x, 256)
        name = name_of(self.ak.public)
        mac, encrypted = pending.credential_blob[4:36], pending.credential_blob[36:]
        mac_key = kdfa(HashAlgorithm.SHA256, seed, b"INTEGRITY", b"", b"", 256)
        if not hmac.compare_digest(hmac.digest(mac_key, encrypted + name, "sha256"), mac):
            raise TpmError("integrity check of the credential failed", 0x1DF)
        cipher_key = kdfa(HashAlgorithm.SHA256, seed, b"STORAGE", name, b"", 128)
        decryptor = Cipher(algorithms.AES(cipher_key), CFB(bytes(16))).decryptor()
        return decryptor.update(encrypted)[2:]

    def proof(self, pending: PendingCredential) -> bytes:
        """The answer to a pending row."""
        return hmac.digest(self.open_credential(pending), pending.pending_sha256, "sha256")

    # --- evidence ------------------------------------------------------------------------------

    @property
    def _clock_info(self) -> tuple[int, int, int, int]:
        return (self.clock, self.reset_count, self.restart_count, int(self.safe))

    @property
    def counters(self) -> bytes:
        """``resetCount`` and ``restartCount``."""
        return self.reset_count.to_bytes(4, "big") + self.restart_count.to_bytes(4, "big")

    def evidence(self, invitation: Invitation, *, challenge: bytes | None = None) -> Evidence:
        """Quote for a challenge, then read the logs; time passes a little."""
        challenge = invitation.challenge if challenge is None else challenge
        lies, self.clock = self.lies, self.clock + 50
        pcrs = {
            str(each.bank): {
                index: lies.pcrs.get((str(each.bank), index), self.pcrs[each.bank][index])
                for index in each.indices
                if index not in lies.left_out
            }
            for each in invitation.selections
            if str(each.bank) in lies.banks
        }
        honest = qualifying_data(challenge, name_of(self.tls_area))
        key = lies.signing_key or self.ak
        quote = tpm_structures.make_quote(
            key,
            pcrs=pcrs,
            extra_data=honest if lies.qualifying is None else lies.qualifying,
            signer=self.ak_qualified_name if lies.signer is None else lies.signer,
            clock=self._clock_info,
            **({"firmware": self.firmware} | lies.quote_fields),
        )
        attest = lies.change_attest(quote.attest)
        known = invitation.known_logs
        same_boot = (known.reset_count, known.restart_count) == (
            self.reset_count,
            self.restart_count,
        )
        offset = known.ima_offset if same_boot else 0
        return decode_evidence(
            challenge=challenge,
            attest=attest,
            signature=key.sign(attest) if lies.resign else quote.signature,
            pcr_values=quote.pcr_values,
            boot_log=self.event_log,
            ima_offset=offset,
            ima_log=self.ima_log[offset:],
            userspace_log=self.userspace_log,
        )

    # --- keys ----------------------------------------------------------------------------------

    def open(
        self,
        released: ReleasedKey,
        *,
        vm: str,
        release_key: ec.EllipticCurvePublicKey,
        purpose: str = "run",
        wire: bytes | None = None,
        **expected: object,
    ) -> bytes:
        """Open a grant as the agent does. Raises GrantRefused."""
        asked = GrantRequest(
            vm_id=vm,
            host_id=self.host_id,
            storage_name=self.storage.key.name,
            request_id=released.request_id,
            purpose=purpose,
        )
        opened = open_key_grant(
            released.key_grant if wire is None else wire,
            asked=replace(asked, **expected),  # type: ignore[arg-type]
            release_keys=[release_key],
            tpm=self,
            storage=self.storage.key,
        )
        return bytes(opened)

    def import_and_unseal(self, storage: object, sealed: SealedSecret) -> bytearray:
        """TPM2_Import and Unseal of this TPM: the policy is compared with what the TPM holds now."""
        bound = int.from_bytes(sealed.clock_bound, "big")
        if self.clock >= bound:
            raise TpmError("PolicyCounterTimer: the clock is past the bound", 0x126)
        policy = policy_digest(self._selected(sealed.pcr_selection), self.counters, bound)
        if decode_public(sealed.public).auth_policy != policy:
            raise TpmError("the policy does not hold", 0x99D)
        try:
            return self.storage.import_and_unseal(self.storage.key, sealed)
        except Exception as error:
            raise TpmError(f"integrity of the blob: {error}", 0x1DF) from error

    def _selected(self, selection: bytes) -> dict[HashAlgorithm, dict[int, bytes]]:
        """Values of the PCRs that a selection names."""
        for bank in (HashAlgorithm.SHA256, HashAlgorithm.SHA1):
            bitmap = int.from_bytes(selection[7:10], "little")
            indices = [index for index in range(24) if bitmap >> index & 1]
            values = {
                index: self.lies.pcrs.get((str(bank), index), self.pcrs[bank][index])
                for index in indices
            }
            if encode_selection({bank: values}) == selection:
                return {bank: values}
        raise TpmError("the selection names a bank that this TPM has not")
