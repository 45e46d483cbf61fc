"""Talk to one TPM over ESAPI and leave nothing behind in it.

Stage: I/O of the host agent. Trusts the driver (TCTI) to deliver bytes; what must not be trusted to
it (secrets) goes through salted sessions in ``unseal``. Guarantees that each object and session
opened through it is flushed, also on failure, that at most three objects are loaded at a time, that
what an agent left behind which was killed in the middle takes no room, and that calls from several
threads are served one after the other. Knows no key's meaning.
Source: TPM 2.0 Library part 1, context management; part 3, 28 (contexts), 31 (non-volatile storage).
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

from tpm2_pytss import ESAPI, constants, types
from tpm2_pytss.TSS2_Exception import TSS2_Exception

from hostagent.sealed import TpmError

_NV_BLOCK = 512
"""Bytes per NV read: below the buffer limit of every TPM seen so far."""
_NV_LIMIT = 8192
"""Longest NV index read, in bytes; EK certificates have 1 to 2 KiB."""
_PCRS_PER_READ = 8
_PCR_COUNT = 24
_CHAIN_FIRST, _CHAIN_LAST = 0x01C00100, 0x01C001FF
"""NV range of issuing certificates (EK Credential Profile 2.6, section 2.2.1.5.2)."""

_RESOURCE_MANAGERS = ("tpmrm", "tabrmd")
"""In names of TCTIs behind which each connection has objects of its own, that end with it."""
_LOADED = (0x80000000, 0x02000000)
"""First handles of transient objects and of loaded sessions (TPM 2.0 part 2, 7.2)."""

Handle: TypeAlias = Any
"""An ESYS_TR: an object or session as ESAPI numbers it."""
NO_SESSION = constants.ESYS_TR.NONE
PASSWORD = constants.ESYS_TR.PASSWORD
AES_CFB_SESSION = "aes128cfb"


@contextmanager
def reported(action: str) -> Iterator[None]:
    """Turn a failure of the TPM software stack into a ``TpmError`` that says what was tried."""
    try:
        yield
    except TSS2_Exception as failure:
        raise TpmError(f"{action}: {failure} (0x{failure.rc:X})", int(failure.rc)) from failure


class SavedObject:
    """An object that lives outside the TPM as a saved context and is loaded for each use.

    Contexts die with a TPM reset (a hibernated host keeps its process); ``derive`` then makes the
    object again from the seed or from its blobs.
    """

    __slots__ = ("_context", "_derive", "name", "public")

    def __init__(
        self, *, public: bytes, name: bytes, context: Any, derive: Callable[[], Handle]
    ) -> None:
        self.public = public
        """TPMT_PUBLIC."""
        self.name = name
        self._context = context
        self._derive = derive

    def load(self, device: "TpmDevice") -> Handle:
        """Put it into the TPM and return its handle. The caller flushes it."""
        try:
            return device.esapi.context_load(self._context)
        except TSS2_Exception:
            handle = self._derive()
        if device.name_of(handle) != self.name:
            device.flush(handle)
            raise TpmError("the TPM made another key than at start: was it cleared?")
        self._context = device.esapi.context_save(handle)
        return handle


class TpmDevice:
    """One ESAPI connection, used by one thread at a time."""

    def __init__(self, tcti: str) -> None:
        with reported(f"open TPM {tcti}"):
            self.esapi = ESAPI(tcti)
            if not any(word in str(tcti) for word in _RESOURCE_MANAGERS):
                self._make_room()
        self.lock = threading.RLock()
        """Held during each public operation of ``HostTpm``."""

    def _make_room(self) -> None:
        """Flush what is loaded. Without a resource manager one process at a time has the TPM: it is of a dead one."""
        for first in _LOADED:
            _, capability = self.esapi.get_capability(constants.TPM2_CAP.HANDLES, first, 64)
            for handle in capability.data.handles:
                if int(handle) >> 24 == first >> 24:
                    self.flush(self.esapi.tr_from_tpmpublic(int(handle)))

    def close(self) -> None:
        """Close the connection. Nothing of ours is loaded between operations."""
        self.esapi.close()

    def flush(self, handle: Handle) -> None:
        """Forget an object or a session; a handle that the TPM lost already is fine."""
        try:
            self.esapi.flush_context(handle)
        except TSS2_Exception:
            return

    @contextmanager
    def flushed(self, handle: Handle) -> Iterator[Handle]:
        """Lend a handle and flush it afterwards, whatever happened."""
        try:
            yield handle
        finally:
            self.flush(handle)

    @contextmanager
    def loaded(self, key: SavedObject) -> Iterator[Handle]:
        """Lend the handle of a saved object."""
        with self.flushed(key.load(self)) as handle:
            yield handle

    def name_of(self, handle: Handle) -> bytes:
        """The name that ESAPI computed from the object's public area."""
        return bytes(self.esapi.tr_get_name(handle))

    def save(self, handle: Handle, public: Any, derive: Callable[[], Handle]) -> SavedObject:
        """Turn a loaded object into a saved one and flush it."""
        with self.flushed(handle):
            return SavedObject(
                public=bytes(public.publicArea.marshal()),
                name=self.name_of(handle),
                context=self.esapi.context_save(handle),
                derive=derive,
            )

    def create_primary(self, template: Any, hierarchy: Handle) -> tuple[Handle, Any]:
        """Derive a primary key; returns its handle and TPM2B_PUBLIC."""
        handle, public, *_ = self.esapi.create_primary(
            types.TPM2B_SENSITIVE_CREATE(), template, hierarchy
        )
        return handle, public

    def primary(self, template: Any, hierarchy: Handle) -> SavedObject:
        """Derive a primary key and keep it saved."""
        handle, public = self.create_primary(template, hierarchy)
        return self.save(handle, public, lambda: self.create_primary(template, hierarchy)[0])

    def nv_indices(self, first: int, last: int) -> tuple[int, ...]:
        """The NV indices that exist between ``first`` and ``last``."""
        _, capability = self.esapi.get_capability(constants.TPM2_CAP.HANDLES, first, 256)
        return tuple(int(h) for h in capability.data.handles if first <= int(h) <= last)

    def nv_read(self, index: int) -> bytes | None:
        """The whole contents of an NV index readable with its own empty auth, or None without it."""
        if index not in self.nv_indices(index, index):
            return None
        handle = self.esapi.tr_from_tpmpublic(index)
        try:
            public, _ = self.esapi.nv_read_public(handle)
            size = int(public.nvPublic.dataSize)
            if size > _NV_LIMIT:
                raise TpmError(f"NV index 0x{index:08x} has {size} bytes, more than {_NV_LIMIT}")
            blocks = [
                bytes(self.esapi.nv_read(handle, min(_NV_BLOCK, size - offset), offset))
                for offset in range(0, size, _NV_BLOCK)
            ]
        finally:
            self.esapi.tr_close(handle)
        return b"".join(blocks)

    def nv_chain(self) -> tuple[bytes, ...]:
        """The contents of all NV indices that may hold issuers of the EK certificate."""
        contents = (self.nv_read(i) for i in self.nv_indices(_CHAIN_FIRST, _CHAIN_LAST))
        return tuple(content for content in contents if content)

    def banks(self) -> dict[int, tuple[int, ...]]:
        """Allocated PCRs by TPM_ALG_ID of their bank; banks without PCRs are left out."""
        _, capability = self.esapi.get_capability(constants.TPM2_CAP.PCRS, 0, 256)
        found = {}
        for selection in capability.data.assignedPCR:
            bits = int.from_bytes(bytes(selection.pcrSelect), "little")
            indices = tuple(i for i in range(bits.bit_length()) if bits >> i & 1)
            if indices:
                found[int(selection.hash)] = indices
        return found

    def pcr_values(self, bank: int, indices: tuple[int, ...]) -> bytes:
        """The values of ``indices`` of one bank, joined in ascending order.

        Raises TpmError when the TPM does not hold one of them.
        """
        values = []
        for start in range(0, len(indices), _PCRS_PER_READ):
            part = indices[start : start + _PCRS_PER_READ]
            _, selected, digests = self.esapi.pcr_read(selection_list([(bank, part)]))
            if bytes(selected.marshal()) != bytes(selection_list([(bank, part)]).marshal()):
                raise TpmError(f"the TPM does not hold all of PCRs {part} in bank 0x{bank:04x}")
            values += [bytes(digest) for digest in digests]
        return b"".join(values)


def selection_list(banks: list[tuple[int, tuple[int, ...]]]) -> Any:
    """TPML_PCR_SELECTION with three bytes per bank."""
    return types.TPML_PCR_SELECTION(
        [
            types.TPMS_PCR_SELECTION(hash=bank, sizeofSelect=3, pcrSelect=_bitmap(indices))
            for bank, indices in banks
        ]
    )


def _bitmap(indices: tuple[int, ...]) -> bytes:
    if not all(0 <= index < _PCR_COUNT for index in indices):
        raise TpmError(f"PCRs are numbered 0 to {_PCR_COUNT - 1}, not {indices}")
    return sum(1 << index for index in indices).to_bytes(3, "little")
