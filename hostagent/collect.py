"""One attestation round: quote first, then the logs, verbatim, and only what is news.

Stage: I/O of the agent. Trusts nothing it reads: logs and TPM structures go out as they are, never
parsed. Guarantees that logs are read after the quote, that the boot log's body is sent only when its
hash is not known, that the IMA log starts at the offset the authority verified in this very boot,
and that messages stay small. Does not judge, retry or keep time.
Source: design section 6.2; qualifyingData as in docs of the protocol (see ``qualifying_data``).
"""

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from hostagent.channel import AuthorityLink
from hostagent.failure import CallFailed, local_failure
from hostagent.keys import HostKeys
from hostagent.ports import TpmPort
from hostagent.tpm import BankSelection, Quoted, TpmError
from trustauthority.v1.attestation_pb2 import (
    AttestRequest,
    AttestResponse,
    GetChallengeRequest,
    KnownLogs,
    QuoteEvidence,
)
from trustauthority.v1.common_pb2 import PcrSelection

CHUNK = 256 * 1024
"""Bytes of a log per message."""
MAX_BOOT_LOG = 16 * 1024 * 1024
"""Bytes: well above the largest boot log a firmware leaves; the authority has its own limit."""
_MARGIN_MS = 2_000
"""A kept challenge that ends sooner than this is not used."""
_LABEL = b"trustauthority/qualifying-data/v1"


@dataclass(frozen=True, slots=True, kw_only=True)
class LogPaths:
    """Where the kernel shows its logs."""

    boot: Path
    ima: Path
    userspace: Path
    """What user space keeps of its own measurements: not of the kernel, and often not there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """What the next attestation builds on: a challenge and what the authority knows."""

    challenge: bytes
    asked_at_ms: int
    """When the request that brought the challenge was sent."""
    expires_at_ms: int
    selections: tuple[PcrSelection, ...]
    known: KnownLogs


@dataclass(frozen=True, slots=True, kw_only=True)
class BootLog:
    """The boot log as read; empty when the kernel has none."""

    body: bytes

    @property
    def digest(self) -> bytes:
        """SHA-256 of the body; empty without one."""
        return hashlib.sha256(self.body).digest() if self.body else b""


def qualifying_data(challenge: bytes, tls_key_name: bytes, purpose: str = "attest") -> bytes:
    """What the TPM puts into a quote: 32 bytes that bind challenge, TLS key and purpose.

    SHA-256 over the label ``trustauthority/qualifying-data/v1``, the token, the TPM name of the TLS
    identity and the purpose, each after its length as two big-endian bytes.
    """
    parts = (_LABEL, challenge, tls_key_name, purpose.encode("ascii"))
    return hashlib.sha256(b"".join(len(p).to_bytes(2, "big") + p for p in parts)).digest()


class Attestor:
    """Runs rounds and keeps, between them, the challenge that came with the last reply."""

    def __init__(
        self, tpm: TpmPort, keys: HostKeys, logs: LogPaths, clock_ms: Callable[[], int]
    ) -> None:
        self._tpm = tpm
        self._keys = keys
        self._logs = logs
        self._clock_ms = clock_ms
        self._next: Round | None = None
        self.challenged_at_ms: int | None = None
        """When the challenge of the newest quote that was judged was asked for, by our clock."""

    async def attest(
        self, link: AuthorityLink, *, timeout_ms: int, fresh: bool = False
    ) -> AttestResponse:
        """Run one round. A FAILED verdict is an answer. Raises CallFailed.

        Args:
            link: the connection.
            timeout_ms: for each of the at most two calls.
            fresh: ask for a new challenge instead of using the kept one.
        """
        kept, self._next = self._next, None  # a challenge is used once, whatever comes of it
        if fresh or kept is None or kept.expires_at_ms - _MARGIN_MS < self._clock_ms():
            kept = await self._challenge(link, timeout_ms)
        try:
            first, boot, userspace, offset = await asyncio.to_thread(self._evidence, kept)
        except (TpmError, OSError) as failure:
            raise CallFailed(local_failure("EVIDENCE_NOT_COLLECTED", failure)) from failure
        sent_at_ms = self._clock_ms()
        first.round_trip_ms = sent_at_ms - kept.asked_at_ms
        body = b"" if boot.digest == kept.known.boot_log_sha256 else boot.body
        stream = self._stream(first, body, userspace, offset)
        reply = await link.answer(
            link.attestation.Attest(stream, timeout=timeout_ms / 1000, metadata=link.metadata())
        )
        self.challenged_at_ms = kept.asked_at_ms
        self._next = Round(
            challenge=reply.next_challenge,
            asked_at_ms=sent_at_ms,
            expires_at_ms=sent_at_ms + reply.next_challenge_expires_in_ms,
            selections=tuple(reply.selections),
            known=reply.known_logs,
        )
        if not reply.next_challenge:
            self._next = None
        return reply

    async def _challenge(self, link: AuthorityLink, timeout_ms: int) -> Round:
        asked_at_ms = self._clock_ms()
        reply = await link.answer(
            link.attestation.GetChallenge(
                GetChallengeRequest(), timeout=timeout_ms / 1000, metadata=link.metadata()
            )
        )
        return Round(
            challenge=reply.challenge,
            asked_at_ms=asked_at_ms,
            expires_at_ms=asked_at_ms + reply.expires_in_ms,
            selections=tuple(reply.selections),
            known=reply.known_logs,
        )

    def _evidence(self, asked: Round) -> tuple[QuoteEvidence, BootLog, bytes, int]:
        # (1) the quote, over what was asked for, in the banks that this TPM has
        quoted = quote(
            self._tpm,
            self._keys,
            active_selections(self._tpm, asked.selections),
            qualifying_data(asked.challenge, self._keys.identity.name),
        )
        # (2) only then the logs, so that they hold at least what the PCRs hold
        boot = read_boot_log(self._logs.boot)
        userspace = read_userspace_log(self._logs.userspace)
        # (3) an offset counts within one boot; another boot starts from nothing
        clock = self._tpm.read_clock()
        same_boot = (clock.reset_count, clock.restart_count) == (
            asked.known.reset_count,
            asked.known.restart_count,
        )
        offset = asked.known.ima_offset if same_boot else 0
        first = QuoteEvidence(
            challenge=asked.challenge,
            attest=quoted.attest,
            signature=quoted.signature,
            pcr_values=quoted.pcr_values,
            boot_log_sha256=boot.digest,
            ima_offset=offset,
        )
        return first, boot, userspace, offset

    async def _stream(
        self, first: QuoteEvidence, boot: bytes, userspace: bytes, offset: int
    ) -> AsyncIterator[AttestRequest]:
        yield AttestRequest(quote=first)
        for part in chunks(boot):
            yield AttestRequest(boot_log_chunk=part)
        for part in chunks(userspace):
            yield AttestRequest(userspace_log_chunk=part)
        ima = ima_chunks(self._logs.ima, offset)
        while part := await asyncio.to_thread(next, ima, b""):
            yield AttestRequest(ima_chunk=part)


def active_selections(tpm: TpmPort, asked: Iterable[PcrSelection]) -> tuple[BankSelection, ...]:
    """What was asked for, without banks that have no PCRs here. Raises TpmError when none is left.

    Many machines come without a SHA-1 bank; TPM2_Quote over one fails. Leaving out one that is active gains a
    host nothing: the boot log says which banks firmware measured into.
    """
    active = {bank.bank for bank in tpm.active_banks()}
    asked = tuple(asked)
    selections = tuple(
        BankSelection(bank=each.bank, indices=tuple(each.indices))
        for each in asked
        if each.bank in active
    )
    if not selections:
        wanted = ", ".join(each.bank for each in asked)
        raise TpmError(f"none of the banks that are asked for ({wanted}) is active in this TPM")
    return selections


def quote(
    tpm: TpmPort, keys: HostKeys, selections: tuple[BankSelection, ...], qualifying: bytes
) -> Quoted:
    """Quote with the AK. Raises TpmError."""
    return tpm.quote(keys.ak, selections, qualifying)


def read_boot_log(path: Path) -> BootLog:
    """The boot log as the kernel shows it. Raises OSError, also when it is absurdly long."""
    try:
        with path.open("rb") as file:
            body = file.read(MAX_BOOT_LOG + 1)
    except FileNotFoundError:
        return BootLog(body=b"")
    if len(body) > MAX_BOOT_LOG:
        raise OSError(f"{path} has more than {MAX_BOOT_LOG} bytes")
    return BootLog(body=body)


def read_userspace_log(path: Path) -> bytes:
    """The log that systemd keeps, or nothing. Raises OSError when it is absurdly long.

    systemd makes it for root alone: an agent that may not read it goes on without it, and a host whose policy
    asks for what it explains then fails by the PCR.
    """
    try:
        return read_boot_log(path).body
    except PermissionError:
        return b""


def ima_chunks(path: Path, offset: int) -> Iterator[bytes]:
    """The binary IMA log from ``offset`` to its present end; nothing when the kernel has none."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return
    with file:
        file.seek(offset, os.SEEK_SET)
        yield from _filled(file)


def chunks(body: bytes) -> Iterable[bytes]:
    """Cut bytes into messages."""
    return (body[start : start + CHUNK] for start in range(0, len(body), CHUNK))


def _filled(file: BinaryIO) -> Iterator[bytes]:
    """Full chunks although securityfs gives a page at a time."""
    while part := file.read(CHUNK):
        yield part
