"""Keylime's side of ``make bench-verify``: runs in an environment of its own and times one thing per line.

    python keylime_worker.py FOLDER       then "ima", "boot", "quote-RSA-2048" or "quote-P-256" on standard input

Answers each line with JSON: microseconds of CPU per unit (entries of the log, whole logs, quotes), children
included, or the error. FOLDER holds what ``verify.py`` wrote. Keylime's verdict is checked: a fast refusal is no time.

What is not Keylime's own here: the module ``gpg`` is an empty stand-in (it needs Debian's libgpgme, and
nothing that is timed calls it), and so is its enrichment of boot logs where libefivar is missing, which
makes Keylime faster than it is. Both are said on the first line.
"""

import base64
import json
import logging
import resource
import sys
import types
from collections.abc import Callable
from pathlib import Path

logging.disable(logging.CRITICAL)
sys.modules["gpg"] = types.ModuleType("gpg")

from keylime.agentstates import AgentAttestState
from keylime.common.algorithms import Hash
from keylime.ima import ima
from keylime.mba.elparsing import tpm2_tools_elparser
from keylime.tpm import tpm_util

NOTES = ["without gpg, which nothing here calls"]
try:
    from keylime.mba.elparsing import tpm_bootlog_enrich
except (ImportError, OSError, AttributeError):
    stand_in = types.ModuleType("keylime.mba.elparsing.tpm_bootlog_enrich")
    stand_in.enrich = lambda _: None
    sys.modules[stand_in.__name__] = stand_in
    import keylime.mba.elparsing

    keylime.mba.elparsing.tpm_bootlog_enrich = stand_in
    NOTES.append("boot logs without its enrichment: libefivar1 is missing")
else:
    del tpm_bootlog_enrich


def cpu_us() -> float:
    """CPU of this process and of the programs it ran, in microseconds."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used) * 1e6


def tasks(folder: Path) -> dict[str, Callable[[], float]]:
    """What can be timed: each runs once and returns how many units that were."""
    text = (folder / "ima.txt").read_text()
    policy = dict(ima.EMPTY_RUNTIME_POLICY)
    policy["digests"] = json.loads((folder / "digests.json").read_text())
    register = (folder / "pcr10.hex").read_text()
    boot = base64.b64encode((folder / "boot.bin").read_bytes()).decode()
    expected = json.loads((folder / "boot-pcrs.json").read_text())

    def runtime() -> float:
        lines = text.split("\n")
        state = AgentAttestState("bench")
        _, failure = ima.process_measurement_list(
            state, lines, policy, pcrval=register, hash_alg=Hash.SHA256
        )
        assert not failure
        assert state.get_next_ima_ml_entry() == len(lines) - 1
        return len(lines) - 1

    def boot_log() -> float:
        pcrs, _, _, failure = tpm2_tools_elparser.bootlog_parse(boot, "sha256")
        assert not failure
        assert {pcr: int(pcrs[pcr]) for pcr in expected} == {
            pcr: int(value, 16) for pcr, value in expected.items()
        }
        return 1

    found: dict[str, Callable[[], float]] = {"ima": runtime, "boot": boot_log}
    for path in sorted(folder.glob("quote-*.json")):
        found[path.stem] = quote(json.loads(path.read_text()))
    return found


def quote(parts: dict[str, str]) -> Callable[[], float]:
    """The check of a quote: signature, nonce, digest of the PCR values."""
    key, nonce = parts["key"].encode(), parts["nonce"]
    signature, attest, values = (
        bytes.fromhex(parts[name]) for name in ("signature", "attest", "pcrs")
    )

    def check() -> float:
        for _ in range(20):
            found = tpm_util.checkquote(key, nonce, signature, attest, values, "sha256")
        assert len(found) == int(parts["count"])
        return 20

    return check


def main() -> None:
    """Serve until standard input ends."""
    known = tasks(Path(sys.argv[1]))
    print(json.dumps({"notes": NOTES}), flush=True)
    for line in sys.stdin:
        start = cpu_us()
        try:
            units = known[line.strip()]()
        except Exception as error:  # noqa: BLE001 - a peer that fails is named, whatever it raises
            print(json.dumps({"error": f"{type(error).__name__}: {error}"}), flush=True)
        else:
            print(json.dumps({"us": (cpu_us() - start) / units}), flush=True)


if __name__ == "__main__":
    main()
