"""The host agent: ships TPM bytes verbatim, keeps leases, opens keys inside the TPM."""
