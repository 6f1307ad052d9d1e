"""An authority of its own for each control plane, and what it signs."""

from __future__ import annotations

import ipaddress
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

_VALID = timedelta(days=1)


class Authority:
    """Signs certificates into files in `folder`: `<name>.crt` and `<name>.key`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _name("control-plane-tests")
        certificate = (
            _unsigned(self._name, self._name, self._key, _VALID)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .sign(self._key, hashes.SHA256())
        )
        self.certificate = self._write("authority", certificate, self._key)

    def server(self, name: str, *addresses: str) -> Path:
        """For a server at these addresses."""
        names = [
            *(x509.IPAddress(ipaddress.ip_address(address)) for address in addresses),
            x509.DNSName("localhost"),
            x509.DNSName("kubernetes.default.svc"),
        ]
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = (
            _unsigned(_name(name), self._name, key, _VALID)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        return self._write(name, certificate, key)

    def client(self, user: str, groups: tuple[str, ...] = (), valid: timedelta = _VALID) -> Path:
        """For a user of Kubernetes: the common name is the user, organizations are the groups.

        A negative `valid` gives a certificate that ran out that long ago.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = (
            _unsigned(_name(user, groups), self._name, key, valid)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        return self._write(user, certificate, key)

    def _write(
        self, name: str, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey
    ) -> Path:
        file = self._folder / f"{name}.crt"
        file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        write_key(self._folder / f"{name}.key", key)
        return file


def write_key(file: Path, key: ec.EllipticCurvePrivateKey) -> Path:
    """The key as PEM, without a password."""
    file.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.TraditionalOpenSSL,
            serialization.NoEncryption(),
        )
    )
    return file


def service_account_key(folder: Path) -> Path:
    """The key that signs the tokens of service accounts."""
    return write_key(folder / "service-accounts.key", ec.generate_private_key(ec.SECP256R1()))


def _name(common_name: str, organizations: tuple[str, ...] = ()) -> x509.Name:
    attributes = [x509.NameAttribute(NameOID.COMMON_NAME, common_name)]
    attributes += [x509.NameAttribute(NameOID.ORGANIZATION_NAME, name) for name in organizations]
    return x509.Name(attributes)


def _unsigned(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, valid: timedelta
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5) + min(valid, timedelta(0)))
        .not_valid_after(now + valid)
    )
