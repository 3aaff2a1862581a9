"""TLS for Dask: an authority of our own, and a certificate for scheduler, workers and client.

Dask trusts whoever shows a certificate of the authority: each cluster has its own, and each local run.
"""

from __future__ import annotations

import datetime
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec

ROLES: Final = ("scheduler", "worker", "client")
DAYS: Final = 365
_SKEW: Final = datetime.timedelta(hours=1)
"""How far the clocks of two machines may be apart."""


def write_certificates(directory: Path, *, days: int = DAYS) -> list[Path]:
    """Make an authority and a certificate and key for each role, as PEM files that only the owner reads.

    The authority's own key is kept nowhere: nobody can make another certificate that this cluster trusts.

    Parameters
    ----------
    directory : Path
        Made with mode 0700 if it is missing.
    days : int
        How long they are good for.

    Returns
    -------
    list of Path
        ``ca.pem``, ``scheduler.pem``, ``scheduler-key.pem`` and so on.

    Raises
    ------
    FileExistsError
        If one is there already: whoever has the old ones would be locked out.
    """
    from cryptography.hazmat.primitives.asymmetric import ec

    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    authority_key = ec.generate_private_key(ec.SECP256R1())
    authority = _certificate("authority", authority_key, None, authority_key, days)
    files = [_write(directory / "ca.pem", _pem(authority))]
    for role in ROLES:
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = _certificate(role, key, authority, authority_key, days)
        files.append(_write(directory / f"{role}.pem", _pem(certificate)))
        files.append(_write(directory / f"{role}-key.pem", _pem(key)))
    return files


def certificate_files(directory: Path, role: str) -> tuple[Path, Path, Path]:
    """Return (authority, certificate, key) of a role; FileNotFoundError names the first that is missing."""
    files = (directory / "ca.pem", directory / f"{role}.pem", directory / f"{role}-key.pem")
    for file in files:
        if not file.is_file():
            raise FileNotFoundError(file)
    return files


def security_of(directory: Path) -> Any:
    """Return Dask's security for a cluster whose every end uses the certificates in `directory`."""
    import distributed

    roles = {role: certificate_files(directory, role) for role in ROLES}
    options = {f"tls_{role}_cert": str(files[1]) for role, files in roles.items()}
    options |= {f"tls_{role}_key": str(files[2]) for role, files in roles.items()}
    make: Any = distributed.Security
    return make(tls_ca_file=str(roles["client"][0]), require_encryption=True, **options)


def _certificate(
    name: str,
    key: ec.EllipticCurvePrivateKey,
    issuer: x509.Certificate | None,
    issuer_key: ec.EllipticCurvePrivateKey,
    days: int,
) -> x509.Certificate:
    """Return a certificate, the authority's own if there is no issuer."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.x509.oid import NameOID

    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"vpmu {name}")])
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject if issuer is None else issuer.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _SKEW)
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(
            x509.BasicConstraints(ca=issuer is None, path_length=0 if issuer is None else None), True
        )
        .add_extension(_usage(authority=issuer is None), True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), False)
    )
    return builder.sign(issuer_key, hashes.SHA256())


def _usage(*, authority: bool) -> x509.KeyUsage:
    from cryptography import x509

    return x509.KeyUsage(
        digital_signature=not authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=authority,
        crl_sign=authority,
        encipher_only=False,
        decipher_only=False,
    )


def _pem(item: x509.Certificate | ec.EllipticCurvePrivateKey) -> bytes:
    from cryptography import x509
    from cryptography.hazmat.primitives import serialization as form

    if isinstance(item, x509.Certificate):
        return item.public_bytes(form.Encoding.PEM)
    return item.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption())


def _write(file: Path, text: bytes) -> Path:
    """Write a new file that others cannot read, not even for a moment."""
    with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as out:
        out.write(text)
    return file
