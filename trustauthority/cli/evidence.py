"""``ta evidence``: judge evidence from files, offline.

Each command lives in a module of its own and adds itself here; none of them needs a server, a key or a
configuration. Also runs by itself: ``python -m trustauthority.cli.evidence``.
"""

from collections.abc import Sequence

import cyclopts

from trustauthority.cli import (
    evidence_bundle,
    evidence_endorsement,
    evidence_eventlog,
    evidence_ima,
    evidence_quote,
)

evidence_app = cyclopts.App(
    name="evidence",
    help="Judge quotes, certificates, boot logs and runtime logs from files, without a server.",
    result_action="return_value",
)
evidence_eventlog.register(evidence_app)
evidence_ima.register(evidence_app)
evidence_quote.register(evidence_app)
evidence_endorsement.register(evidence_app)
evidence_bundle.register(evidence_app)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command of ``ta evidence`` (by default of the process) and return its exit status."""
    status = evidence_app(arguments)
    return status if isinstance(status, int) else 0


if __name__ == "__main__":
    raise SystemExit(main())
