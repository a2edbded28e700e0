"""The agent's own certificate: made at its start, known by its fingerprint, and never on a disk."""

from __future__ import annotations

import os
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

LIFE: Final = timedelta(days=3650)
"""Nobody looks at the dates: who connects compares the fingerprint. Some libraries refuse a certificate without them."""


@dataclass(frozen=True, slots=True)
class OwnCertificate:
    """`context`: for a server. `sha256`: of the certificate (DER), in hexadecimal digits."""

    context: ssl.SSLContext
    sha256: str


def make(node: str) -> OwnCertificate:
    """A key and a certificate of its own for this process. Raises OSError where the system gives no memory file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, node[:64])])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + LIFE)
        .sign(key, hashes.SHA256())
    )
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ) + certificate.public_bytes(serialization.Encoding.PEM)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    _load(context, pem)
    return OwnCertificate(context, certificate.fingerprint(hashes.SHA256()).hex())


def _load(context: ssl.SSLContext, pem: bytes) -> None:
    """The ssl module reads files alone: one that lives in memory, and dies with its descriptor."""
    file = os.memfd_create("certificate", os.MFD_CLOEXEC)
    try:
        os.write(file, pem)
        context.load_cert_chain(f"/proc/self/fd/{file}")
    finally:
        os.close(file)
