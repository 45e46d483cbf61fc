"""Who may have a VM key, and the blob that only one TPM opens."""
