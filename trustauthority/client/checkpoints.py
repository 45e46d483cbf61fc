"""Remember the highest audit checkpoint an authority showed, so that it can't go back unnoticed.

Stage: client. Trusts nothing on entry: a checkpoint comes from a server. Guarantees: when the audit
key is pinned, only a checkpoint that it signed replaces the kept one; a smaller or forked one never
does, and is reported. What is kept is echoed with every request, so that a database that was put
back meets a checkpoint ahead of its own tree (N91). Does not fetch proofs; ``ta audit`` does.
Source: C2SP tlog-checkpoint.
"""

from dataclasses import dataclass
from pathlib import Path

from trustauthority.client.contexts import AuditKey
from trustauthority.client.files import write_private
from trustauthority.codec import tlog
from trustauthority.errors import CheckpointInvalid

METADATA_KEY = "ta-checkpoint-bin"


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointKeeper:
    """The checkpoint kept for one context, in a file of its own."""

    path: Path
    audit_key: AuditKey | None

    def kept(self) -> str:
        """The kept note, or empty: nothing is kept, or the file is damaged."""
        try:
            note = self.path.read_text("utf-8")
            self._open(note)
        except (OSError, UnicodeDecodeError, CheckpointInvalid):
            return ""
        return note

    def kept_checkpoint(self) -> tlog.Checkpoint | None:
        """What the kept note says."""
        note = self.kept()
        return self._open(note) if note else None

    def observe(self, received: bytes) -> str:
        """Keep a received note when it is ahead. Return what is wrong with it, or empty."""
        try:
            note = received.decode("utf-8")
            checkpoint = self._open(note)
        except UnicodeDecodeError:
            return "the authority sent an audit checkpoint that is not text; it was not kept"
        except CheckpointInvalid as error:
            return f"the authority's audit checkpoint was not kept: {error.message}"
        before = self.kept_checkpoint()
        if before is not None and before.origin == checkpoint.origin:
            if (
                checkpoint.era > before.era
            ):  # the operators accepted a loss, under the log's own key
                self.keep(note)
                return ""
            if checkpoint.era < before.era or checkpoint.size < before.size:
                return (
                    f"the authority's audit log went back from {before.size} to {checkpoint.size} "
                    "entries: was an old database put back? Ask its operators before you rely on it"
                )
            if checkpoint.size == before.size:
                return _FORKED if checkpoint.root != before.root else ""
        self.keep(note)
        return ""

    def keep(self, note: str) -> None:
        """Keep a note whatever was kept before."""
        write_private(self.path, note.encode())

    def _open(self, note: str) -> tlog.Checkpoint:
        if self.audit_key is None:
            return tlog.unverified_checkpoint(note)
        return tlog.open_checkpoint(
            note, origin=self.audit_key.origin, public_key=self.audit_key.public_key
        )


_FORKED = (
    "the authority showed two different audit logs of the same size: one of them is forged. "
    "Run ta audit verify and keep both checkpoints as proof"
)


def checkpoint_path(contexts_path: Path, context_name: str) -> Path:
    """Where the checkpoint of a context is kept, beside the contexts file."""
    return contexts_path.parent / "checkpoints" / context_name
