"""KeyGrant: what a host gets when a VM key is released to it.

Constructed in ``keyrelease.wrap`` only. Nothing in it is secret: the VM key is inside, encrypted
under a key that one TPM gives out, in one boot, for a few minutes, with the right PCRs.
Source: docs/reference/keygrant.md.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from trustauthority.model.digest import HashAlgorithm
from trustauthority.model.identifiers import HostId, RequestId, VmId
from trustauthority.model.placement import Purpose

MAX_VM_KEY = 4096
"""Bytes of the longest VM key: a LUKS or vTPM passphrase, not a disk."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GrantBinding:
    """What a released key is bound to: the authenticated data of its encryption."""

    vm_id: VmId
    host_id: HostId
    storage_name: bytes
    """TPM name of the storage parent that the host enrolled."""
    grant_epoch: int
    key_epoch: int
    request_id: RequestId
    purpose: Purpose
    clock_bound: int
    """T: the host's TPM clock, in milliseconds, from which on the grant no longer opens."""

    def __post_init__(self) -> None:
        for number in (self.grant_epoch, self.key_epoch, self.clock_bound):
            if not 0 <= number < 1 << 64:
                raise ValueError("epochs and the clock bound are unsigned 64-bit values")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseOrder:
    """What the key room needs to release one key. Nothing in it is secret."""

    binding: GrantBinding
    provider: str
    kek_id: str
    wrapped: bytes
    """The VM key under the KEK."""
    aad: bytes
    """What the wrapping is bound to: VM, key epoch, provider."""
    storage_public: bytes
    """TPMT_PUBLIC of the host's storage parent."""
    sealed_pcrs: Mapping[HashAlgorithm, Mapping[int, bytes]]
    counters: bytes
    """resetCount, restartCount: 8 bytes big-endian."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyGrant:
    """KeyGrant v1 and what it says in the clear."""

    binding: GrantBinding
    counters: bytes
    """resetCount ‖ restartCount of the only boot in which it opens."""
    wire: bytes
    """The signed bytes that travel to the host."""
