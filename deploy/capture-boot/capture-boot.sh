#!/usr/bin/env bash
# Capture measured boots: boot a Debian guest under QEMU with a software TPM and keep what it logged.
#
# usage: deploy/capture-boot/capture-boot.sh [CAPTURE...]      (no argument: all of them)
#
#   good                the baseline host: OVMF with Microsoft keys, Secure Boot on, Debian's shim,
#                       GRUB and 6.1 cloud kernel, systemd on ext4, IMA with ima_policy=tcb
#   good-second-boot    the same host, booted again
#   changed-cmdline     the same host, one more kernel argument; every signature still valid
#   other-kernel-build  the same host with Debian's 6.12 cloud kernel
#   secureboot-off      the same host with firmware that has no keys enrolled
#
# No KVM is used, so this runs wherever QEMU runs. It needs root (a Debian tree is built and
# packages are installed) and takes about 3 minutes to prepare and 1 to 3 minutes a boot.
# Everything intermediate stays in .build/capture-boot; delete it to start afresh, which also
# makes a new host: another TPM, another endorsement key.
set -euo pipefail

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
PROJECT=$(cd "$HERE/../.." && pwd)
WORK=${CAPTURE_WORK:-$PROJECT/.build/capture-boot}
VECTORS=${CAPTURE_OUT:-$PROJECT/tests/vectors/boots}
# where this machine gets its own packages from
MIRROR=${CAPTURE_MIRROR:-$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' | sed -n 's|/debian/$||p' | head -1)}
: "${MIRROR:?set CAPTURE_MIRROR, the address before /debian: apt names none here}"
BOOT_LIMIT=${CAPTURE_BOOT_LIMIT:-600} # seconds until a boot counts as hung

ALL_CAPTURES=(good good-second-boot changed-cmdline other-kernel-build secureboot-off)
TOOLS=(qemu-system-x86 ovmf swtpm swtpm-tools gnutls-bin mtools dosfstools gdisk mmdebstrap e2fsprogs python3 xxd)
BOOT_CHAIN=(shim-signed grub-efi-amd64-signed)
GUEST_PACKAGES=(systemd-sysv udev kmod zstd initramfs-tools tpm2-tools libtss2-tcti-device0)
KERNEL=linux-image-cloud-amd64
OTHER_KERNEL=linux-image-6.12-cloud-amd64

# Fixed names, so that two captures of this host differ only where their boots differ: the
# firmware measures the partition table (PCR 5) and GRUB the command line (PCR 8).
DISK_GUID=6d0f2b5e-7f5c-4d3a-9a55-2f0f6a3c1e01
ESP_GUID=6d0f2b5e-7f5c-4d3a-9a55-2f0f6a3c1e02
ROOT_UUID=6d0f2b5e-7f5c-4d3a-9a55-2f0f6a3c1e03
ESP_SERIAL=6d0f2b5e
CMDLINE="root=UUID=$ROOT_UUID ro quiet console=ttyS0,115200 panic=5 systemd.show_status=0 ima_policy=tcb ima_hash=sha256"

say() { printf 'capture-boot: %s\n' "$*" >&2; }
fail() {
    say "$*"
    exit 1
}

install_tools() {
    local missing=() tool
    for tool in "${TOOLS[@]}"; do
        dpkg-query -W -f='${Status}' "$tool" 2>/dev/null | grep -q '^install ok installed$' || missing+=("$tool")
    done
    [ ${#missing[@]} -eq 0 ] && return
    say "installing ${missing[*]}"
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null ||
        fail "apt-get could not install: ${missing[*]}"
}

# The signed first and second stage are unpacked, never installed: the machine that captures
# must not have its own boot loader touched.
fetch_boot_chain() {
    [ -e "$WORK/chain/.complete" ] && return
    say "fetching ${BOOT_CHAIN[*]}"
    rm -rf "$WORK/chain"
    mkdir -p "$WORK/chain"
    (
        cd "$WORK/chain"
        apt-get download -qq -o APT::Sandbox::User=root "${BOOT_CHAIN[@]}"
        for package in *.deb; do
            dpkg -x "$package" tree
            dpkg-deb -f "$package" Package Version | paste -sd' ' | sed -E 's/Package: (\S+) Version: /\1 /' >>versions
        done
    )
    touch "$WORK/chain/.complete"
}

# shellcheck disable=SC2016 # $1 in the hooks is for the shell that mmdebstrap starts
build_guest() {
    [ -e "$WORK/guest.img" ] && return
    say "building the guest (about two minutes)"
    local packages
    packages=$(IFS=,; echo "${GUEST_PACKAGES[*]},$KERNEL,$OTHER_KERNEL")
    rm -rf "$WORK/guest"
    # The initial RAM disk holds no modules: NVMe, ext4, TPM and IMA are built into the cloud kernel.
    mmdebstrap --quiet --variant=minbase --include="$packages" \
        --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
        --dpkgopt='path-exclude=/usr/share/locale/*' \
        --essential-hook='mkdir -p "$1/etc/initramfs-tools/conf.d" && echo MODULES=list >"$1/etc/initramfs-tools/conf.d/no-modules"' \
        --customize-hook='echo captured-host >"$1/etc/hostname"; rm -f "$1/etc/resolv.conf"' \
        --customize-hook="install -m755 '$HERE/guest/collect-evidence.sh' \"\$1/usr/local/sbin/collect-evidence\"" \
        --customize-hook="install -m644 '$HERE/guest/collect-evidence.service' \"\$1/etc/systemd/system/\"" \
        --customize-hook='systemctl --root="$1" enable --quiet collect-evidence.service' \
        --customize-hook='systemctl --root="$1" mask --quiet apt-daily.timer apt-daily-upgrade.timer systemd-firstboot.service' \
        bookworm "$WORK/guest" \
        "deb $MIRROR/debian bookworm main" "deb $MIRROR/debian-security bookworm-security main"
    dpkg-query --admindir="$WORK/guest/var/lib/dpkg" -W -f='${Package} ${Version}\n' |
        grep -E '^(linux-image-[0-9].*|systemd|initramfs-tools|tpm2-tools|libtss2-esys.*|libtss2-tcti-device0) ' >"$WORK/guest-versions"
    truncate -s 1536M "$WORK/guest.img.part"
    mkfs.ext4 -q -L root -U "$ROOT_UUID" -E "hash_seed=$ROOT_UUID" -d "$WORK/guest" "$WORK/guest.img.part"
    mv "$WORK/guest.img.part" "$WORK/guest.img"
}

# One TPM is one host: its endorsement key certificates come from a private certificate authority.
make_tpm() {
    [ -e "$WORK/tpm/.complete" ] && return
    say "manufacturing the host's TPM"
    rm -rf "$WORK/tpm"
    mkdir -p "$WORK/tpm/ca" "$WORK/tpm/state"
    cat >"$WORK/tpm/localca.conf" <<CONF
statedir = $WORK/tpm/ca
signingkey = $WORK/tpm/ca/signkey.pem
issuercert = $WORK/tpm/ca/issuercert.pem
certserial = $WORK/tpm/ca/certserial
CONF
    cat >"$WORK/tpm/localca.options" <<CONF
--platform-manufacturer Example
--platform-model CapturedHost
--platform-version 1.0
CONF
    cat >"$WORK/tpm/setup.conf" <<CONF
create_certs_tool = $(command -v swtpm_localca)
create_certs_tool_config = $WORK/tpm/localca.conf
create_certs_tool_options = $WORK/tpm/localca.options
active_pcr_banks = sha1,sha256
CONF
    swtpm_setup --tpm2 --tpmstate "$WORK/tpm/state" --config "$WORK/tpm/setup.conf" --runas root \
        --create-ek-cert --create-platform-cert --lock-nvram --pcr-banks sha1,sha256 \
        --vmid captured-host --logfile "$WORK/tpm/setup.log" >/dev/null ||
        fail "swtpm_setup failed, see $WORK/tpm/setup.log"
    touch "$WORK/tpm/.complete"
}

kernel_release() { # kernel_release 6.1: the newest installed release of that series in the guest
    find "$WORK/guest/boot" -name "vmlinuz-$1*" -printf '%f\n' | sed 's/^vmlinuz-//' | sort -V | tail -n 1
}

# make_boot_disk IMAGE KERNEL-RELEASE LOADER CMDLINE
make_boot_disk() {
    local image=$1 release=$2 loader=$3 cmdline=$4 esp start=1048576
    esp=$(mktemp -p "$WORK")
    truncate -s 112M "$image"
    sgdisk -o -U "$DISK_GUID" -n 1:2048:0 -t 1:ef00 -c 1:ESP -u "1:$ESP_GUID" "$image" >/dev/null
    truncate -s 110M "$esp"
    mkfs.vfat -F 32 -s 1 -n ESP -i "$ESP_SERIAL" "$esp" >/dev/null
    dd if="$esp" of="$image" bs=1M seek=1 conv=notrunc status=none
    rm "$esp"
    {
        echo 'set timeout=0'
        echo 'serial --unit=0 --speed=115200'
        echo 'terminal_output serial'
        echo "menuentry 'Debian GNU/Linux' {"
        if [ "$loader" = linux ]; then
            printf '  linux /vmlinuz %s\n  initrd /initrd.img\n' "$cmdline"
        else
            # Without Secure Boot, Debian's GRUB enters the kernel past its EFI stub and the event
            # log is lost; started as an EFI program the kernel keeps it.
            printf '  chainloader /vmlinuz initrd=initrd.img %s\n' "$cmdline"
        fi
        echo '}'
    } >"$WORK/grub.cfg"
    mmd -i "$image@@$start" ::EFI ::EFI/BOOT ::EFI/debian
    mcopy -i "$image@@$start" "$WORK/chain/tree/usr/lib/shim/shimx64.efi.signed" ::EFI/BOOT/BOOTX64.EFI
    mcopy -i "$image@@$start" "$WORK/chain/tree/usr/lib/grub/x86_64-efi-signed/grubx64.efi.signed" ::EFI/BOOT/grubx64.efi
    mcopy -i "$image@@$start" "$WORK/grub.cfg" ::EFI/debian/grub.cfg
    mcopy -i "$image@@$start" "$WORK/guest/boot/vmlinuz-$release" ::vmlinuz
    mcopy -i "$image@@$start" "$WORK/guest/boot/initrd.img-$release" ::initrd.img
}

# boot RUN-DIRECTORY FIRMWARE VARIABLES: run the guest to its own power-off; the evidence disk is filled then
boot() {
    local run=$1 code=$2 variables=$3 sockets tpm_pid started=$SECONDS
    sockets=$(mktemp -d) # a Unix socket path may have 107 bytes only
    cp "$variables" "$run/variables.fd"
    truncate -s 16M "$run/evidence.disk"
    xxd -l 32 -p -c 64 /dev/urandom | tr -d '\n' | dd of="$run/evidence.disk" conv=notrunc status=none
    swtpm socket --tpm2 --tpmstate "dir=$WORK/tpm/state" --ctrl "type=unixio,path=$sockets/tpm" \
        --flags not-need-init --terminate --log "file=$run/swtpm.log" &
    tpm_pid=$!
    for _ in $(seq 100); do
        [ -S "$sockets/tpm" ] && break
        sleep 0.05
    done
    timeout "$BOOT_LIMIT" nice qemu-system-x86_64 -name "${run##*/}" \
        -machine q35,smm=on -accel tcg,thread=multi -cpu max -smp 1 -m 1024 \
        -nodefaults -display none -no-reboot \
        -global driver=cfi.pflash01,property=secure,value=on \
        -drive "if=pflash,unit=0,format=raw,readonly=on,file=$code" \
        -drive "if=pflash,unit=1,format=raw,file=$run/variables.fd" \
        -drive "if=none,id=esp,format=raw,snapshot=on,file=$run/boot.disk" -device nvme,drive=esp,serial=esp,bootindex=1 \
        -drive "if=none,id=root,format=raw,snapshot=on,file=$WORK/guest.img" -device nvme,drive=root,serial=root \
        -drive "if=none,id=evidence,format=raw,file=$run/evidence.disk" -device nvme,drive=evidence,serial=evidence \
        -chardev "socket,id=tpm,path=$sockets/tpm" -tpmdev emulator,id=tpm0,chardev=tpm -device tpm-tis,tpmdev=tpm0 \
        -object rng-random,filename=/dev/urandom,id=entropy -device virtio-rng-pci,rng=entropy \
        -serial "file:$run/serial.log" ||
        say "QEMU ended with status $?, see $run/serial.log"
    kill "$tpm_pid" 2>/dev/null || true
    wait "$tpm_pid" 2>/dev/null || true
    rm -rf "$sockets"
    say "booted in $((SECONDS - started)) s"
}

record_sources() { # record_sources DIRECTORY RELEASE FIRMWARE VARIABLES
    {
        echo "captured $(date -u +%Y-%m-%d) by deploy/capture-boot/capture-boot.sh on $(sed -n 's/^PRETTY_NAME="\(.*\)"/\1/p' /etc/os-release)"
        echo "kernel $2, firmware ${3##*/} with ${4##*/}, QEMU TCG (no KVM), machine q35, tpm-tis"
        echo
        echo '# on the capturing machine'
        dpkg-query -W -f='${Package} ${Version}\n' qemu-system-x86 ovmf swtpm swtpm-tools libtpms0
        echo '# boot chain, signed by Microsoft and Debian'
        cat "$WORK/chain/versions"
        echo '# in the guest'
        cat "$WORK/guest-versions"
    } >"$1/SOURCES"
}

capture() {
    local name=$1 run=$WORK/run/$1 out=$VECTORS/$1
    local release loader=linux cmdline=$CMDLINE
    local firmware=/usr/share/OVMF/OVMF_CODE_4M.ms.fd variables=/usr/share/OVMF/OVMF_VARS_4M.ms.fd
    release=$(kernel_release 6.1.)
    case $name in
    good | good-second-boot) ;;
    changed-cmdline) cmdline="$CMDLINE systemd.debug_shell=1" ;;
    other-kernel-build) release=$(kernel_release 6.12.) ;;
    secureboot-off)
        variables=/usr/share/OVMF/OVMF_VARS_4M.fd
        loader=chainloader
        ;;
    *) fail "no capture is called $name; there are: ${ALL_CAPTURES[*]}" ;;
    esac
    say "$name: booting $release"
    rm -rf "$run"
    mkdir -p "$run/evidence"
    make_boot_disk "$run/boot.disk" "$release" "$loader" "$cmdline"
    boot "$run" "$firmware" "$variables"
    tar -xf "$run/evidence.disk" -C "$run/evidence" 2>/dev/null ||
        fail "$name: the guest handed out no evidence; its console is in $run/serial.log"
    record_sources "$run/evidence" "$release" "$firmware" "$variables"
    PYTHONDONTWRITEBYTECODE=1 PYTHONPATH="$PROJECT/tests" python3 "$HERE/check_capture.py" "$run/evidence" ||
        fail "$name: the evidence is not consistent and was not kept; it is in $run/evidence"
    rm -rf "$out"
    mkdir -p "$out"
    rm "$run/evidence/pcrs.yaml" "$run/evidence/errors.txt" # judged by the check, pcrs.json says it better
    cp -r "$run/evidence/." "$out/"
    chmod -R u=rwX,go=rX "$out"
    chown -R --reference="$PROJECT" "$out"
}

keep_certificate_authority() {
    mkdir -p "$VECTORS/ca"
    cp "$WORK/tpm/ca/swtpm-localca-rootca-cert.pem" "$VECTORS/ca/root.pem"
    cp "$WORK/tpm/ca/issuercert.pem" "$VECTORS/ca/issuer.pem"
    chown -R --reference="$PROJECT" "$VECTORS/ca"
}

main() {
    [ "$(id -u)" -eq 0 ] || fail "run this as root: it installs packages and builds a Debian tree"
    [ $# -gt 0 ] || set -- "${ALL_CAPTURES[@]}"
    mkdir -p "$WORK"
    install_tools
    fetch_boot_chain
    make_tpm
    build_guest
    keep_certificate_authority
    local name
    for name in "$@"; do capture "$name"; done
    say "captured: $*"
}

main "$@"
