#!/usr/bin/env bash
# Certificates with which QEMU encrypts the memory of a VM on its way to another host.
#
#   migration-certificate.sh ca FOLDER                  once for a cluster, on a machine that stays offline
#   migration-certificate.sh host FOLDER NAME ADDRESS   once for a host; writes FOLDER/NAME/
#
# QEMU needs its private key in a file, so this is not the host's identity at the authority: that key
# never leaves the TPM. A stolen migration key lets somebody who is also on the network between the
# hosts pose as a destination's QEMU; it opens no VM key and moves no VM that was not offered.
set -euo pipefail
umask 077

fail() { printf 'migration-certificate: %s\n' "$*" >&2; exit 2; }
curve=(-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes)

authority() {
    mkdir -p "$1"
    [ -e "$1/ca-key.pem" ] && fail "$1 has a CA already"
    openssl req -x509 "${curve[@]}" -days 3650 -subj "/CN=migration of protected VMs" \
        -addext basicConstraints=critical,CA:TRUE,pathlen:0 -addext keyUsage=critical,keyCertSign \
        -keyout "$1/ca-key.pem" -out "$1/ca-cert.pem" 2>/dev/null
}

host() {
    local folder=$1 name=$2 address=$3 kind=DNS
    [ -e "$folder/ca-key.pem" ] || fail "$folder has no CA"
    [[ $address =~ ^[0-9.]+$|: ]] && kind=IP
    mkdir -p "$folder/$name"
    openssl req "${curve[@]}" -subj "/CN=$name" -keyout "$folder/$name/server-key.pem" -out "$folder/$name.csr" 2>/dev/null
    openssl x509 -req -in "$folder/$name.csr" -CA "$folder/ca-cert.pem" -CAkey "$folder/ca-key.pem" -days 365 \
        -extfile <(printf 'subjectAltName=%s:%s,DNS:%s\nkeyUsage=critical,digitalSignature\nextendedKeyUsage=serverAuth,clientAuth\n' \
        "$kind" "$address" "$name") -out "$folder/$name/server-cert.pem" 2>/dev/null
    rm "$folder/$name.csr"
    cp "$folder/$name/server-cert.pem" "$folder/$name/client-cert.pem"
    cp "$folder/$name/server-key.pem" "$folder/$name/client-key.pem"
    cp "$folder/ca-cert.pem" "$folder/$name/ca-cert.pem"
    chmod 0640 "$folder/$name"/*-key.pem
    chmod 0644 "$folder/$name"/*-cert.pem
}

case "${1:-}" in
    ca) [ $# -eq 2 ] || fail "usage: $0 ca FOLDER"; authority "$2" ;;
    host) [ $# -eq 4 ] || fail "usage: $0 host FOLDER NAME ADDRESS"; host "$2" "$3" "$4" ;;
    *) fail "usage: $0 ca FOLDER | host FOLDER NAME ADDRESS" ;;
esac
