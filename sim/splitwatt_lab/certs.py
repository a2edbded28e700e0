"""Certificates of one control plane: its own authorities, made afresh each time and worth nothing elsewhere.

Two authorities, so that no client of the API server can speak to etcd: `cluster` signs the servers and the users, `etcd`
signs etcd and the API server's way to it. Elliptic keys (P-256) because RSA keys would cost seconds on a small machine.
A user's rights follow from the subject: common name = user, organisations = groups.
"""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

VALIDITY: Final = datetime.timedelta(days=7)
"""Longer than any run of the lab, short enough to be useless later."""
_BACKDATED: Final = datetime.timedelta(minutes=5)


@dataclass(frozen=True, slots=True)
class KeyPair:
    """Paths of a PEM certificate and its PEM private key."""

    certificate: Path
    key: Path


class Authority:
    """One certificate authority; `directory/<name>.crt` is what its clients trust."""

    def __init__(self, directory: Path, name: str) -> None:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._directory = directory
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"splitwatt-lab-{name}")])
        certificate = (
            _builder(self._subject, self._subject, self._key.public_key())
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(certificate_authority=True), critical=True)
            .sign(self._key, hashes.SHA256())
        )
        self.certificate = directory / f"{name}.crt"
        self.certificate.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))

    def server(self, name: str, *, dns_names: Sequence[str], addresses: Sequence[str]) -> KeyPair:
        """A server's certificate for these names and IP addresses; also good as a client's (etcd's peers need both)."""
        alternatives: list[x509.GeneralName] = [x509.DNSName(n) for n in dns_names]
        alternatives += [x509.IPAddress(ipaddress.ip_address(a)) for a in addresses]
        return self._issue(
            name,
            subject=[x509.NameAttribute(NameOID.COMMON_NAME, name)],
            purposes=[ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH],
            alternatives=alternatives,
        )

    def client(self, name: str, *, user: str, groups: Sequence[str] = ()) -> KeyPair:
        """A user's certificate, in files called `name`."""
        subject = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, group) for group in groups]
        subject.append(x509.NameAttribute(NameOID.COMMON_NAME, user))
        return self._issue(name, subject=subject, purposes=[ExtendedKeyUsageOID.CLIENT_AUTH], alternatives=[])

    def _issue(
        self,
        name: str,
        *,
        subject: Sequence[x509.NameAttribute[str]],
        purposes: Sequence[x509.ObjectIdentifier],
        alternatives: Sequence[x509.GeneralName],
    ) -> KeyPair:
        key = ec.generate_private_key(ec.SECP256R1())
        builder = (
            _builder(x509.Name(subject), self._subject, key.public_key())
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(certificate_authority=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
        )
        if alternatives:
            builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        pair = KeyPair(self._directory / f"{name}.crt", self._directory / f"{name}.key")
        pair.certificate.write_bytes(builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
        write_private_key(pair.key, key)
        return pair


def service_account_keys(directory: Path) -> KeyPair:
    """The pair that signs and checks service account tokens; `certificate` is the bare public key."""
    key = ec.generate_private_key(ec.SECP256R1())
    pair = KeyPair(directory / "service-accounts.pub", directory / "service-accounts.key")
    pair.certificate.write_bytes(
        key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    write_private_key(pair.key, key)
    return pair


def write_private_key(path: Path, key: ec.EllipticCurvePrivateKey) -> None:
    """PEM, SEC 1 form, readable by its owner alone."""
    path.touch(mode=0o600)
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
        )
    )


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATED)
        .not_valid_after(now + VALIDITY)
    )


def _usage(*, certificate_authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=certificate_authority,
        crl_sign=certificate_authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
