"""The Kubernetes KMS v2 plug-in of an attested control-plane host.

``kms_v2_pb2*`` are generated from ``kms_v2.proto`` by ``make proto`` and never edited.
"""
