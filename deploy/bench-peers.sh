#!/usr/bin/env bash
# Install the peers of `make bench-verify` from PyPI, pinned by hash, into .build/bench: an environment of their own.
# Without them the benchmark runs and says which are missing.
set -euo pipefail
cd "$(dirname "$0")/.."

LOCK=requirements/bench.txt
STAMP=.build/bench/.locked
fingerprint=$(sha256sum "$LOCK" | cut -d' ' -f1)-$(.venv/bin/python -V | tr -d ' ')
[ "$(cat "$STAMP" 2>/dev/null || true)" = "$fingerprint" ] && exit 0
rm -f "$STAMP"
[ -x .build/bench/bin/python ] || .build/bootstrap/bin/uv venv -q --python /usr/bin/python3 .build/bench
.build/bootstrap/bin/uv pip sync --quiet --python .build/bench/bin/python --require-hashes "$LOCK" \
    || { echo "bench-peers: the peers could not be installed; their rows will be missing" >&2; exit 1; }
printf '%s' "$fingerprint" >"$STAMP"
