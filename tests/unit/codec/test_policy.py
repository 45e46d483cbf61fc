"""Policy documents: every contradiction is named with its key, and nothing is silently ignored (N61, N23)."""

import pytest

from trustauthority.codec.policy import MAX_DOCUMENT_BYTES, decode_policy
from trustauthority.errors import PolicyInvalid
from trustauthority.model.policy import Policy, Requirement

BASE = 'name = "p"\n'
HASH = "ab" * 32


def problems(text: str) -> list[str]:
    """The problems of a document, as the operator reads them."""
    with pytest.raises(PolicyInvalid) as caught:
        decode_policy(BASE + text)
    assert caught.value.metadata["fields"] in ("", caught.value.message.replace("; ", ", "))
    return caught.value.message.split("; ")


def test_an_empty_document_is_the_default():
    """Defaults are the safe ones, and a name is needed."""
    assert decode_policy(BASE) == Policy(name="p")
    with pytest.raises(PolicyInvalid, match="name: Field required"):
        decode_policy("")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (
            "[evidence]\nreplayed_pcrs = [0, 15]",
            "evidence.replayed_pcrs: only PCRs of evidence.pcrs can be used",
        ),
        (
            "[boot]\nbaseline_pcrs = [0, 15]",
            "boot.baseline_pcrs: only PCRs of evidence.pcrs can be used",
        ),
        (
            "[grants]\nsealed_pcrs = [0, 22]",
            "grants.sealed_pcrs: only PCRs of evidence.pcrs can be used",
        ),
        (
            "[evidence]\npcrs = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 14, 23]\n[grants]\nsealed_pcrs = [0, 23]",
            "grants.sealed_pcrs: some stable PCRs, none that grows (10-13, 15, 16, 23)",
        ),
        (
            "[grants]\nsealed_pcrs = [0, 10]",
            "grants.sealed_pcrs: some stable PCRs, none that grows (10-13, 15, 16, 23)",
        ),
        (
            "[grants]\nsealed_pcrs = []",
            "grants.sealed_pcrs: some stable PCRs, none that grows (10-13, 15, 16, 23)",
        ),
        ('[evidence]\nbank = "sha384"', "evidence.quoted_banks: must contain evidence.bank"),
        ('[evidence]\nbank = "sha1"', "evidence.bank: no claim may rest on SHA-1"),
        ("[evidence]\nmax_age_ms = 0", "evidence.max_age_ms: must be positive"),
        ("[evidence]\nattest_interval_ms = -1", "evidence.attest_interval_ms: must be positive"),
        ("[leases]\nstrict_ms = 0", "leases.strict_ms: must be positive"),
        ("[leases]\nstandard_ms = 0", "leases.standard_ms: must be positive"),
        ("[grants]\nopen_by_ms = 0", "grants.open_by_ms: must be positive"),
        (
            '[runtime]\nfiles = "required"',
            "runtime.rules: the hash that ta policy runtime upload printed",
        ),
        (
            f'[runtime]\nfiles = "warn"\nrules = "{HASH.upper()}"',
            "runtime.rules: the hash that ta policy runtime upload printed",
        ),
        (
            f'[runtime]\nrules = "{HASH}"',
            "runtime.files: required or warn, or the rules judge nothing",
        ),
        (
            '[boot]\nhost_class = "required"\nbaseline = "warn"',
            "boot.host_class: required only together with boot.baseline",
        ),
        (
            '[boot]\nhost_class = "required"\nbaseline_pcrs = [4, 7]',
            "boot.host_class: boot.baseline_pcrs must show the firmware (PCR 0-3)",
        ),
        (
            f'[endorsement]\ndenied = ["{HASH[1:]}"]',
            "endorsement.denied: SHA-256 hashes, 64 characters of 0-9 a-f each",
        ),
    ],
)
def test_a_contradiction_is_named(text, found):
    """One key contradicts another: the document is refused, naming exactly that key."""
    assert problems(text) == [found]


@pytest.mark.parametrize("pcr", [-1, 24])
def test_a_register_that_no_tpm_has(pcr):
    """PCRs are numbered 0 to 23."""
    pcrs = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 14, pcr]
    assert problems(f"[evidence]\npcrs = {pcrs}") == ["evidence.pcrs: PCRs are numbered 0 to 23"]


def test_the_last_register():
    """23 is one, though no key may be sealed to it."""
    policy = decode_policy(BASE + "[evidence]\npcrs = [0, 2, 3, 4, 7, 8, 9, 14, 1, 5, 6, 10, 23]")
    assert 23 in policy.evidence.pcrs


def test_every_problem_is_told_at_once():
    """An operator mends a document once, not problem by problem."""
    found = problems(
        "[evidence]\nmax_age_ms = 0\n[leases]\nstrict_ms = 0\n[grants]\nopen_by_ms = 0"
    )
    assert [each.partition(":")[0] for each in found] == [
        "evidence.max_age_ms",
        "leases.strict_ms",
        "grants.open_by_ms",
    ]


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("speed = 1", "speed"),
        ("[evidence]\nmaximum_age = 5", "evidence.maximum_age"),
        ("[boot]\nsecure_boot = 'on'", "boot.secure_boot"),
        ("[tpm]\nfirmware = 'off'", "tpm.firmware"),
        ("[leases]\nstrict = 1", "leases.strict"),
        ("[grants]\nopen_by = 1", "grants.open_by"),
        ("[runtime]\nima_policy = 'x'", "runtime.ima_policy"),
        ("[endorsement]\nallow = []", "endorsement.allow"),
        ("[evidence]\npcrs = ['a']", "evidence.pcrs.0"),
        ("[boot]\nquirks = ['whatever']", "boot.quirks.0"),
    ],
)
def test_a_key_that_does_not_exist_or_fit(text, field):
    """A misspelt key would otherwise be a policy that is not in force."""
    (found,) = problems(text)
    assert found.startswith(f"{field}: ")


@pytest.mark.parametrize("text", ["x =", "[a", "= 1", "a = 1\na = 2"])
def test_what_is_no_toml(text):
    """Refused as such, with the place."""
    (found,) = problems(text)
    assert found.startswith("not TOML: ")


def test_the_size_limit():
    """A document of the limit is read, one character more is not."""
    whole = BASE + "#" * (MAX_DOCUMENT_BYTES - len(BASE))
    assert decode_policy(whole) == Policy(name="p")
    with pytest.raises(PolicyInvalid, match="more than 256 KiB"):
        decode_policy(whole + "#")


def test_what_is_said_counts():
    """Values arrive where they belong; a class with its baseline, files with their rules."""
    policy = decode_policy(
        BASE + f'[boot]\nhost_class = "required"\n[runtime]\nfiles = "warn"\nrules = "{HASH}"\n'
        f'[endorsement]\ndenied = ["{HASH}"]\n[leases]\nstrict_ms = 1\n'
    )
    assert policy.boot.host_class is Requirement.REQUIRED
    assert (policy.runtime.files, policy.runtime.rules) == (Requirement.WARN, HASH)
    assert policy.endorsement.denied == (HASH,)
    assert policy.leases.strict_ms == 1


@pytest.mark.parametrize(
    ("said", "counts"),
    [
        ('files = "required"', Requirement.REQUIRED),
        ('files = "required"\nviolations = "warn"', Requirement.WARN),
        ('files = "required"\nviolations = "off"', Requirement.OFF),
        ('files = "warn"', Requirement.WARN),
    ],
)
def test_a_violation_approves_nothing_where_files_must_be_approved(said, counts):
    """Rule 52: a host whose file was written while it was measured passes only where the policy says so."""
    policy = decode_policy(f'name = "p"\n[runtime]\nrules = "{HASH}"\n{said}\n')
    assert policy.runtime.violations is counts
