"""KMS back ends behind the Kms port."""
