#!/usr/bin/env bash
# Prepare a Debian 12 (or newer) for `make test-libvirt` and `make demo-libvirt`: libvirt and QEMU.
#
# Installs what is missing and nothing else. It starts no service; where systemd runs, Debian's
# packages start libvirtd as they always do, and the tests leave that one alone.
set -euo pipefail

fail() { printf 'setup-libvirt: %s\n' "$*" >&2; exit 1; }

PACKAGES=(libvirt-daemon-system libvirt-clients libvirt-daemon-driver-qemu qemu-system-x86 qemu-utils iproute2)

missing=()
for package in "${PACKAGES[@]}"; do
    dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q '^install ok installed$' || missing+=("$package")
done
[ ${#missing[@]} -eq 0 ] && exit 0
command -v apt-get >/dev/null || fail "apt-get is not here; on another distribution install the counterparts of: ${missing[*]}"
sudo=()
if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null || fail "these Debian packages are missing: ${missing[*]}. Run once as root, or install sudo."
    sudo=(sudo)
fi
printf 'setup-libvirt: installing Debian packages (about half a minute): %s\n' "${missing[*]}" >&2
"${sudo[@]}" apt-get update -qq || fail "apt-get update failed; check that this machine reaches a Debian mirror"
DEBIAN_FRONTEND=noninteractive "${sudo[@]}" apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null \
    || fail "apt-get could not install: ${missing[*]}"
