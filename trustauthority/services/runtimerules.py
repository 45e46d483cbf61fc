"""Runtime rules documents: uploaded once, named by policies, loaded once per process.

What it guarantees: a document is stored only when it decodes, under the hash of its bytes; what is
loaded is checked against that hash again, never changes, and is shared by all hosts. What it does
not do: put a document in force. A policy that names it does (design.md 6.2).
"""

import asyncio
from collections import OrderedDict

from trustauthority.codec.runtimerules import decode_runtime_rules
from trustauthority.errors import FailedPrecondition, NotFound
from trustauthority.model.audit import AuditEvent
from trustauthority.model.runtimerules import RuntimeRules
from trustauthority.ports import Store, Transaction

MAX_LOADED = 8
"""Documents in memory: those in force, and the ones before them."""
MAX_LOADED_BYTES = 128 * 1024 * 1024
"""Bytes of those documents; loaded they take some five times as much."""


class RuntimeRulesService:
    """Uploads and reads documents."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def upload(self, document: bytes, *, by: str, dry_run: bool) -> tuple[RuntimeRules, bool]:
        """Keep a document so that a policy can name it; says whether it is new.

        Raises:
            PolicyInvalid: it is not one; nothing was kept.
        """
        rules = await asyncio.to_thread(decode_runtime_rules, document)
        if dry_run:
            return rules, False
        async with self._store.transaction() as tx:
            new = await tx.catalogue.put_rules(rules.sha256, document, by=by)
            if new:
                await tx.audit.append(
                    AuditEvent(
                        actor=by,
                        operation="runtime-rules.upload",
                        subject=rules.sha256,
                        decision="done",
                        details={"files": len(rules.digests), "excluded": len(rules.excluded)},
                    )
                )
        return rules, new

    async def document(self, sha256: str) -> bytes:
        """A document as it was uploaded. Raises NotFound."""
        async with self._store.snapshot() as tx:
            document = await tx.catalogue.rules(sha256)
        if document is None:
            raise NotFound(f"no runtime rules {sha256}", kind="runtime-rules", name=sha256)
        return document


class LoadedRules:
    """Decoded documents by hash: immutable, a few of them, the newest used stay."""

    def __init__(self) -> None:
        self._loaded: OrderedDict[str, tuple[RuntimeRules, int]] = OrderedDict()
        self._loading = asyncio.Lock()

    async def of(self, tx: Transaction, sha256: str) -> RuntimeRules | None:
        """The rules that a policy names; None when it names none.

        Raises:
            FailedPrecondition: the document is gone or not what its name says; nothing is judged.
        """
        if not sha256:
            return None
        async with self._loading:  # a fleet that comes at once loads a document once
            if sha256 not in self._loaded:
                self._loaded[sha256] = await self._load(tx, sha256)
            self._loaded.move_to_end(sha256)
            self._make_room()
            return self._loaded[sha256][0]

    async def _load(self, tx: Transaction, sha256: str) -> tuple[RuntimeRules, int]:
        document = await tx.catalogue.rules(sha256)
        if document is None:
            raise FailedPrecondition("the policy names runtime rules that are not here")
        rules = await asyncio.to_thread(decode_runtime_rules, document)
        if rules.sha256 != sha256:
            raise FailedPrecondition("the stored runtime rules are not those of their hash")
        return rules, len(document)

    def _make_room(self) -> None:
        """Forget the documents that were not used for longest; the newest always stays."""
        while len(self._loaded) > 1 and (
            len(self._loaded) > MAX_LOADED
            or sum(size for _, size in self._loaded.values()) > MAX_LOADED_BYTES
        ):
            self._loaded.popitem(last=False)
