"""Files of the runtime log against the runtime rules: each proven entry is approved or named.

What it trusts: entries that a quoted PCR 10 proves, and rules that somebody put in force. What it
guarantees: an entry counts as approved only by its digest for its path, by a signature that a
keyring's key made over that digest, or by an exclusion; what can't be read, has a defect, or is
unknown is refused with a reason, and stays refused until the host reboots or the rules change. What
it does not do: look at entries that no quote proves (rule 54).

The judgement of one boot grows entry by entry and is kept per host, so that only news is judged.
Pitfalls 52, 53, 54, 57, 58.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from trustauthority.appraisal.states import state_of
from trustauthority.codec.ima import decode_ima_fields, path_and_digest, template_fields
from trustauthority.errors import TrustAuthorityError
from trustauthority.model.ima import BOOT_AGGREGATE, ImaEntry, ImaFields
from trustauthority.model.policy import RuntimePolicy
from trustauthority.model.runtimerules import RuntimeRules, path_matches
from trustauthority.model.verdict import Check, CheckState
from trustauthority.verification.imasignature import check_file_signature

MAX_NAMED = 20
"""Refused entries that are named; the others are counted."""
MAX_SHOWN_PATH = 300
_PLAIN = frozenset({"ima-ng", "ima-sig"})
_NOTHING: frozenset[tuple[str, bytes]] = frozenset()
REMEDY = (
    "Find out where the file comes from. If it belongs there: add it to the runtime policy (ta policy "
    "runtime create), upload it and name it in the policy. If not: drain the host and reinstall it."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RefusedEntry:
    """One measurement that nothing approves."""

    number: int
    """Number of the entry since boot."""
    path: str
    """Safe to show; cut when it is long."""
    digest: str
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FileJudgement:
    """What was found of one boot's entries so far, under one version of the rules."""

    rules: str
    """Hex SHA-256 of the rules document."""
    by_digest: int = 0
    by_signature: int = 0
    excluded: int = 0
    violations: int = 0
    refused: int = 0
    named: tuple[RefusedEntry, ...] = ()
    """The first of the refused ones."""


def judge_files(
    entries: Iterable[ImaEntry],
    rules: RuntimeRules,
    *,
    approved: int = 0,
    before: FileJudgement | None = None,
    defective: frozenset[int] = frozenset(),
    defects_cut: bool = False,
) -> FileJudgement:
    """Judge the entries that came since ``before``.

    Args:
        entries: proven ones only, in order.
        rules: the rules in force.
        approved: how many other new entries their list of files approves.
        before: the judgement of the same boot so far; one of other rules counts for nothing.
        defective: numbers of entries whose digest or form is wrong (rule 58): never approved.
        defects_cut: there were more defects than are listed: nothing after the last is approved.
    """
    start = before if before is not None and before.rules == rules.sha256 else None
    found = start or FileJudgement(rules=rules.sha256)
    last = max(defective, default=-1) if defects_cut else None
    accepted, hashes = rules.digests.get, rules.hashes
    refused, named = 0, list(found.named)
    counts = {"by_signature": 0, "excluded": 0, "violations": 0}
    for entry in entries:
        number = entry.number
        bad = number in defective or (last is not None and number > last)
        try:
            path, algorithm, digest = path_and_digest(entry)
            if (
                not bad
                and entry.template in _PLAIN
                and algorithm in hashes
                and (algorithm, digest) in accepted(path, _NOTHING)
                and any(entry.template_digest)
            ):
                approved += 1
                continue
            kind, why = _judge(entry, path, rules, bad=bad)
        except TrustAuthorityError as error:
            path, algorithm, digest = "", "", b""
            kind, why = "", f"the entry can't be read: {error.message}"
        if kind == "by_digest":
            approved += 1
        elif kind:
            counts[kind] += 1
        else:
            refused += 1
            if len(named) < MAX_NAMED:
                shown = f"{algorithm}:{digest.hex()}" if algorithm else ""
                named.append(RefusedEntry(number=number, path=_safe(path), digest=shown, why=why))
    return replace(
        found,
        by_digest=found.by_digest + approved,
        by_signature=found.by_signature + counts["by_signature"],
        excluded=found.excluded + counts["excluded"],
        violations=found.violations + counts["violations"],
        refused=found.refused + refused,
        named=tuple(named),
    )


def _judge(entry: ImaEntry, path: str, rules: RuntimeRules, *, bad: bool) -> tuple[str, str]:
    """Which count the entry belongs to, or "" and why not."""
    if bad:
        return "", "the entry's digest is not that of its content"
    if entry.violation:
        return "violations", ""  # nothing is known of the file; the check of violations judges it
    if entry.number == 0 and path == BOOT_AGGREGATE:
        return "by_digest", ""  # judged by its own check
    fields = decode_ima_fields(entry)
    if "buf" in template_fields(entry.template):
        known = (fields.algorithm, fields.digest) in rules.buffers.get(path, _NOTHING)
        return ("by_digest", "") if known else ("", "the rules do not name this measured buffer")
    return _judge_file(path, fields, rules)


def _judge_file(path: str, fields: ImaFields, rules: RuntimeRules) -> tuple[str, str]:
    wanted = (fields.algorithm, fields.digest)
    if fields.algorithm in rules.hashes and (
        wanted in rules.digests.get(path, _NOTHING) or wanted in rules.anywhere
    ):
        return "by_digest", ""
    if path_matches(path, rules.excluded):
        return "excluded", ""
    return _by_signature(path, fields, rules)


def _by_signature(path: str, fields: ImaFields, rules: RuntimeRules) -> tuple[str, str]:
    """Approval by a keyring, or what is wrong with the digest and with the signature."""
    known = path in rules.digests
    if fields.algorithm not in rules.hashes:
        why = f"{fields.algorithm} digests do not count here"
    else:
        why = "the file has another content" if known else "the rules do not name this file"
    said = ""
    for keyring in rules.keyrings:
        if not path_matches(path, keyring.paths):
            continue
        try:
            check_file_signature(fields, keyring.keys)
        except TrustAuthorityError as error:
            said = said or f"; keyring {keyring.name}: {error.message}"
        else:
            return "by_signature", ""
    return "", why + said


def file_checks(judgement: FileJudgement | None, policy: RuntimePolicy) -> tuple[Check, ...]:
    """The check of the files, with the refused ones below it.

    Args:
        judgement: None when there are no rules or the judging itself failed.
        policy: whether files count, and which rules they are judged by.
    """
    if judgement is None or judgement.rules != policy.rules:
        return (
            Check(
                id="runtime.files",
                title="every measured file is approved",
                state=state_of(policy.files, good=False),
                detail="the files were not judged: the runtime policy is not there"
                if policy.rules
                else "no runtime policy is named: files are not judged",
                remedy="ta policy runtime upload FILE, then name it in the policy: [runtime] rules",
            ),
        )
    approved = judgement.by_digest + judgement.by_signature
    return (
        Check(
            id="runtime.files",
            title="every measured file is approved",
            state=state_of(policy.files, good=not judgement.refused),
            pcr=10,
            expected="every file known by its digest or signed",
            found=f"{approved} approved ({judgement.by_signature} by signature), "
            f"{judgement.excluded} excluded, {judgement.refused} refused",
            detail=_first(judgement),
            remedy=REMEDY if judgement.refused else "",
            children=tuple(_refused(each, policy) for each in judgement.named),
        ),
    )


def _first(judgement: FileJudgement) -> str:
    if not judgement.named:
        return ""
    first = judgement.named[0]
    more = f", and {judgement.refused - 1} more" if judgement.refused > 1 else ""
    return f"{first.path or 'an entry'}: {first.why}{more}"


def _refused(entry: RefusedEntry, policy: RuntimePolicy) -> Check:
    state = state_of(policy.files, good=False)
    return Check(
        id="runtime.file",
        title=entry.path or "an entry that can't be read",
        state=CheckState(state),
        pcr=10,
        event_index=entry.number,
        found=entry.digest,
        detail=entry.why,
        remedy=REMEDY,
    )


def _safe(path: str) -> str:
    """A path as text that can't break a line or a terminal."""
    text = (
        path[:MAX_SHOWN_PATH].encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    )
    return "".join(letter if letter.isprintable() else f"\\x{ord(letter):02x}" for letter in text)
