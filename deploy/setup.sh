#!/usr/bin/env bash
# Prepare a fresh Debian 12 (or newer) for `make demo` and `make test`.
#
# Installs what is missing and nothing else: Debian packages by apt, the locked Python
# environment by uv into .venv. A second run finds its stamps and returns in milliseconds.
set -euo pipefail
cd "$(dirname "$0")/.."

fail() { printf 'setup: %s\n' "$*" >&2; exit 1; }
say() { printf 'setup: %s\n' "$*" >&2; }

PACKAGES=(systemd swtpm swtpm-tools libtss2-dev libtss2-tcti-swtpm0 tpm2-tools pkg-config gcc softhsm2 python3 python3-dev python3-venv cryptsetup-bin qemu-utils clevis clevis-luks jose)
LOCK=requirements/dev.txt
BOOTSTRAP=requirements/bootstrap.txt
STAMP=.venv/.locked

missing=()
for package in "${PACKAGES[@]}"; do
    dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q '^install ok installed$' || missing+=("$package")
done
if [ ${#missing[@]} -gt 0 ]; then
    command -v apt-get >/dev/null || fail "apt-get is not here; on another distribution install the counterparts of: ${missing[*]}"
    sudo=()
    if [ "$(id -u)" -ne 0 ]; then
        command -v sudo >/dev/null || fail "these Debian packages are missing: ${missing[*]}. Run once as root, or install sudo."
        sudo=(sudo)
    fi
    say "installing Debian packages (about half a minute): ${missing[*]}"
    "${sudo[@]}" apt-get update -qq || fail "apt-get update failed; check that this machine reaches a Debian mirror"
    DEBIAN_FRONTEND=noninteractive "${sudo[@]}" apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null \
        || fail "apt-get could not install: ${missing[*]}"
fi

PYTHON=/usr/bin/python3
"$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
    || fail "$PYTHON is older than 3.11; use Debian 12 or newer"

fingerprint=$(cat "$LOCK" "$BOOTSTRAP" | sha256sum | cut -d' ' -f1)-$("$PYTHON" -V | tr -d ' ')
[ "$(cat "$STAMP" 2>/dev/null || true)" = "$fingerprint" ] && exit 0

if ! [ -x .build/bootstrap/bin/uv ]; then
    say "installing uv from PyPI"
    "$PYTHON" -m venv .build/bootstrap
    .build/bootstrap/bin/pip install -q --require-hashes -r "$BOOTSTRAP" || fail "pip could not install uv; check that this machine reaches PyPI"
fi
[ -x .venv/bin/python ] || .build/bootstrap/bin/uv venv -q --python "$PYTHON" .venv
say "installing the locked Python environment; the first time tpm2-pytss is compiled, which takes about 1.5 minutes"
# compiled once here: where Python may not write bytecode, each start of a command would compile all it imports
.build/bootstrap/bin/uv pip sync --quiet --compile-bytecode --python .venv/bin/python --require-hashes "$LOCK" &
job=$!
seconds=0
while kill -0 "$job" 2>/dev/null; do
    sleep 1
    seconds=$((seconds + 1))
    [ $((seconds % 15)) -eq 0 ] && say "  still at it after ${seconds} s"
done
wait "$job" || fail "the Python environment could not be installed; the lines above say why"
.build/bootstrap/bin/uv pip install --quiet --python .venv/bin/python --no-deps --no-build-isolation -e . 2>/dev/null \
    || fail "the project itself could not be installed into .venv"
printf '%s' "$fingerprint" >"$STAMP"
say "ready"
