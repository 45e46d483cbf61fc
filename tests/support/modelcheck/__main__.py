"""``python -m support.modelcheck [--large] [--only WORDS] [--limit STATES]``: search and report.

Exits 0 when no promise is broken and every planted bug is found.
"""

import argparse
import sys
import time

from support.modelcheck.bugs import PLANTED
from support.modelcheck.explore import search
from support.modelcheck.prove import prove
from support.modelcheck.scenarios import large, short


def main() -> int:
    """Run the searches and the planted bugs."""
    parser = argparse.ArgumentParser(prog="support.modelcheck", description=__doc__)
    parser.add_argument("--large", action="store_true", help="larger bounds: hours")
    parser.add_argument("--only", default="", help="scenarios whose name contains this")
    parser.add_argument("--limit", type=int, default=3_000_000, help="states per scenario")
    asked = parser.parse_args()
    bad = 0
    for scenario in large() if asked.large else short():
        if asked.only not in scenario.name:
            continue
        started = time.monotonic()
        proof = prove(scenario, limit=asked.limit)
        bad += bool(proof.broken)
        extent = "complete" if proof.complete else "stopped at the limit"
        print(
            f"{scenario.name:34} {proof.states:>9,} states {proof.steps:>10,} steps  {extent}, "
            f"{proof.settled:,} settled  {time.monotonic() - started:6.1f} s",
            flush=True,
        )
        if proof.broken:
            print(proof.broken)
    for planted in PLANTED:
        result = search(planted.scenario, planted.variant)
        print(f"\nplanted: {planted.variant.name}\n{result.told()}", flush=True)
        found = result.violation.startswith(planted.breaks)
        bad += not found or len(result.trace) > planted.longest
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
