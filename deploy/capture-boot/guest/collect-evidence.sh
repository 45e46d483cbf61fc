#!/bin/sh
# Runs inside the guest: read what the kernel logged, let the TPM quote it, hand both out.
#
# The third disk is the only channel. Its first 64 bytes hold the nonce (hexadecimal) of the
# capture; this script overwrites the disk with a tar of the evidence and powers the guest off.
# The nonce does not travel on the kernel command line, because that is measured.
set -u
export PATH=/usr/sbin:/usr/bin:/sbin:/bin TPM2TOOLS_TCTI=device:/dev/tpmrm0

CHANNEL=/dev/disk/by-id/nvme-QEMU_NVMe_Ctrl_evidence
EVENT_LOG=/sys/kernel/security/tpm0/binary_bios_measurements
IMA_LOG=/sys/kernel/security/ima/binary_runtime_measurements
IMA_COUNT=/sys/kernel/security/ima/runtime_measurements_count
EVIDENCE=/run/evidence
SCRATCH=/run/evidence-scratch
ALL_PCRS=0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23

say() { echo "guest: $*"; }

hand_out() {
    tar -cf "$SCRATCH/evidence.tar" -C "$EVIDENCE" .
    dd if="$SCRATCH/evidence.tar" of="$CHANNEL" bs=64k conv=fsync status=none
    sync
}

# A systemd that is still starting units appends to the IMA log. Evidence is consistent when no
# entry came between the reading of the PCRs and the reading of the log, so try again until then.
quote_in_a_quiet_moment() {
    attempt=0
    while [ "$attempt" -lt 8 ]; do
        attempt=$((attempt + 1))
        before=$(cat "$IMA_COUNT")
        tpm2_pcrread >"$EVIDENCE/pcrs.yaml"
        tpm2_quote -Q -c "$SCRATCH/ak.ctx" -l "sha256:$ALL_PCRS" -q "$NONCE" -g sha256 \
            -m "$EVIDENCE/quote.msg" -s "$EVIDENCE/quote.sig"
        tpm2_quote -Q -c "$SCRATCH/ak.ctx" -l "sha1:$ALL_PCRS+sha256:$ALL_PCRS" -q "$NONCE" -g sha256 \
            -m "$EVIDENCE/quote-both-banks.msg" -s "$EVIDENCE/quote-both-banks.sig"
        cat "$IMA_LOG" >"$EVIDENCE/ima.bin"
        [ "$(cat "$IMA_COUNT")" = "$before" ] && return 0
    done
    return 1
}

mkdir -p "$EVIDENCE" "$SCRATCH"
NONCE=$(dd if="$CHANNEL" bs=64 count=1 status=none)
say "up for $(cut -d' ' -f1 /proc/uptime) s"

cat /proc/cmdline >"$EVIDENCE/cmdline"
uname -a >"$EVIDENCE/uname"
printf '%s\n' "$NONCE" >"$EVIDENCE/nonce"
cat "$EVENT_LOG" >"$EVIDENCE/eventlog.bin"

exec 2>"$EVIDENCE/errors.txt"
tpm2_nvread -Q -C o 0x01c00002 -o "$EVIDENCE/ek-rsa.cert.der"
tpm2_nvread -Q -C o 0x01c00016 -o "$EVIDENCE/ek-p384.cert.der"
tpm2_createek -Q -G rsa -c "$SCRATCH/ek.ctx" -u "$EVIDENCE/ek.pub"
tpm2_createak -Q -C "$SCRATCH/ek.ctx" -c "$SCRATCH/ak.ctx" -G rsa -g sha256 -s rsassa \
    -u "$EVIDENCE/ak.pub" -n "$EVIDENCE/ak.name"
tpm2_readpublic -Q -c "$SCRATCH/ak.ctx" -f pem -o "$EVIDENCE/ak.pem"
tpm2_readclock >"$EVIDENCE/clock.yaml"
quote_in_a_quiet_moment || echo "the IMA log never came to rest" >&2

say "evidence ready after $(cut -d' ' -f1 /proc/uptime) s"
hand_out
say "handed out"
systemctl poweroff --force --force
