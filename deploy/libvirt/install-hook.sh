#!/usr/bin/env bash
# Install the qemu hook where libvirtd looks for it. Run it as root; then restart libvirtd, which
# looks for hooks only when it starts. Running VMs stay.
#
#   install-hook.sh [ROOT]      ROOT: another root folder, for packages
set -euo pipefail
cd "$(dirname "$0")/../.."
root=${1:-}
install -D -m 0755 hostagent/hooks/qemu.py "$root/etc/libvirt/hooks/qemu.d/trustauthority"
[ -e "$root/etc/libvirt/hooks/trustauthority.json" ] \
    || printf '{"run_dir": "/run/trustauthority-hostagent"}\n' >"$root/etc/libvirt/hooks/trustauthority.json"
chmod 0644 "$root/etc/libvirt/hooks/trustauthority.json"
