#!/usr/bin/env python3
"""Make the certificates of the TLS tests again (needs the package `cryptography`).

    python3 tests/certificates/make.py

All are made-up and guard nothing: a private authority, and server certificates by it
that are good, expired, or for another host; and one that is signed by itself. They
follow X.509 to the letter, as Python 3.13 demands, and hold for a hundred years.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

HERE = Path(__file__).parent
BEGIN = dt.datetime(2026, 1, 1)
END = BEGIN + dt.timedelta(days=36500)
HOSTS = ("localhost", "service.test")


def certificate(
    name: str,
    key: ec.EllipticCurvePrivateKey,
    issuer: str,
    issuer_key: ec.EllipticCurvePrivateKey,
    hosts: tuple[str, ...] = (),
    end: dt.datetime = END,
) -> bytes:
    """One certificate, as PEM; an authority if it names no hosts."""
    public = key.public_key()
    authority = not hosts
    usage = {
        "digital_signature": not authority,
        "key_cert_sign": authority,
        "crl_sign": authority,
        **dict.fromkeys(("content_commitment", "key_encipherment", "data_encipherment"), False),
        **dict.fromkeys(("key_agreement", "encipher_only", "decipher_only"), False),
    }
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(min(BEGIN, end - dt.timedelta(days=1)))
        .not_valid_after(end)
        .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        .add_extension(x509.KeyUsage(**usage), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()),
            critical=False,
        )
    )
    if hosts:
        names: list[x509.GeneralName] = [x509.DNSName(host) for host in hosts]
        if "localhost" in hosts:
            names.append(x509.IPAddress(ipaddress.ip_address("127.0.0.1")))
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        server = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])
        builder = builder.add_extension(server, critical=False)
    return builder.sign(issuer_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def main() -> None:
    """Write them all."""
    authority_key = ec.generate_private_key(ec.SECP256R1())
    key = ec.generate_private_key(ec.SECP256R1())
    authority = "Sandbox authority"
    secret = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    expired = dt.datetime(2020, 1, 1)
    wrong = certificate("wrong", key, authority, authority_key, ("elsewhere.test",))
    files = {
        "authority.pem": certificate(authority, authority_key, authority, authority_key),
        "good.pem": certificate("good", key, authority, authority_key, HOSTS) + secret,
        "expired.pem": certificate("old", key, authority, authority_key, HOSTS, expired) + secret,
        "wrong-host.pem": wrong + secret,
        "self-signed.pem": certificate("self", key, "self", key, HOSTS) + secret,
    }
    for name, content in files.items():
        (HERE / name).write_bytes(content)


if __name__ == "__main__":
    main()
