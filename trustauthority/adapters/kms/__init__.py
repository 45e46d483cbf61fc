"""KMS back ends. Only the child of the key room talks to a KMS: ``adapters.keyroom``."""
