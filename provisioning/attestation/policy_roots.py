"""Who may vouch for a model's TPMs: the part of a policy that names roots, in its text or in the store.

A policy is text and never changes; the store does. So a policy keeps what it selects (`StoreRoots`), and what that is
today is looked up when an EK is judged (`anchors`): a certificate that is imported or removed counts at once.
"""

import base64
import binascii
import re
from dataclasses import dataclass
from typing import Annotated

from provisioning.attestation.certificates import Certificate, parse_certificate
from provisioning.attestation.crls import Crl, CrlMalformed, parse_crl
from provisioning.attestation.ek_store import EkStore
from provisioning.attestation.manufacturers import NAME_MOST, VENDOR_IDS, named
from provisioning.refusals import AlgorithmRefused, CertificateMalformed, WeakKey
from wire.codec import Cap, MalformedMessage

_PEM = re.compile(r"-----BEGIN CERTIFICATE-----\s+([A-Za-z0-9+/=\s]+?)-----END CERTIFICATE-----")
_PEM_CRL = re.compile(r"-----BEGIN X509 CRL-----\s+([A-Za-z0-9+/=\s]+?)-----END X509 CRL-----")
_FINGERPRINT = re.compile(r"[0-9a-f]{64}")
_WAYS = ("certificate", "store", "fingerprint")


@dataclass(frozen=True, slots=True)
class EkRoot:
    """A certificate that vouches for EKs, and the manufacturers for whom it may (`id:` and eight hex digits)."""

    certificate: Certificate
    manufacturers: frozenset[str]


@dataclass(frozen=True, slots=True)
class StoreRoots:
    """Certificates of the store that vouch: all roots of a manufacturer, or one by its fingerprint.

    `where` is the field of the policy that says so.
    """

    manufacturer: str | None
    fingerprint: str | None
    manufacturers: frozenset[str]
    where: str

    def __str__(self) -> str:
        return f"store:{self.manufacturer}" if self.fingerprint is None else f"fingerprint:{self.fingerprint[:16]}…"


@dataclass(frozen=True, slots=True)
class RootText:
    """One `[[ek_roots]]` or `[[identity_roots]]` as it is written: exactly one of the first three."""

    certificate: Annotated[str, Cap(256 * 1024)] | None = None
    store: Annotated[str, Cap(NAME_MOST)] | None = None
    fingerprint: Annotated[str, Cap(128)] | None = None
    manufacturers: Annotated[tuple[Annotated[str, Cap(64)], ...], Cap(64)] = ()
    crls: Annotated[str, Cap(512 * 1024)] = ""


def roots(where: str, written: RootText) -> tuple[EkRoot | StoreRoots, ...]:
    """What one table of a policy names. Raises: MalformedMessage, whose `where` becomes a line."""
    given = [way for way in _WAYS if getattr(written, way) is not None]
    _demand(len(given) == 1, where, f"names {' and '.join(given) or 'nothing'}: write one of {', '.join(_WAYS)}")
    manufacturers = _manufacturers(where, written)
    if written.certificate is not None:
        bodies = _PEM.findall(written.certificate)
        _demand(bool(bodies), f"{where}.certificate", "holds no PEM certificate")
        return tuple(EkRoot(_anchor(f"{where}.certificate", body), manufacturers) for body in bodies)
    if written.fingerprint is not None:
        fingerprint = written.fingerprint.replace(":", "").lower()
        _demand(_FINGERPRINT.fullmatch(fingerprint) is not None, f"{where}.fingerprint", "is no SHA-256 in hex")
        return (StoreRoots(None, fingerprint, manufacturers, f"{where}.fingerprint"),)
    return (StoreRoots(named(written.store or ""), None, manufacturers, f"{where}.store"),)


def crls(where: str, written: RootText) -> tuple[Crl, ...]:
    """The revocation lists beside a root. Raises: MalformedMessage."""
    bodies = _PEM_CRL.findall(written.crls)
    _demand(bool(bodies) or not written.crls.strip(), f"{where}.crls", "holds no PEM CRL")
    try:
        return tuple(parse_crl(base64.b64decode("".join(body.split()), validate=True)) for body in bodies)
    except (binascii.Error, CrlMalformed) as error:
        raise MalformedMessage(f"{where}.crls", f"is not usable: {error}") from error


def anchors(named_roots: tuple[EkRoot | StoreRoots, ...], store: EkStore) -> tuple[EkRoot, ...]:
    """The certificates that the roots of a policy are today."""
    found: list[EkRoot] = []
    for root in named_roots:
        if isinstance(root, EkRoot):
            found.append(root)
        elif root.fingerprint is None:
            found += (EkRoot(one, root.manufacturers) for one in store.roots_of(root.manufacturer or ""))
        elif (one := store.of_fingerprint(root.fingerprint)) is not None:
            found.append(EkRoot(one, root.manufacturers))
    return tuple(found)


def missing(named_roots: tuple[EkRoot | StoreRoots, ...], store: EkStore) -> tuple[StoreRoots, ...]:
    """Those that name nothing that the store has."""
    return tuple(root for root in named_roots if isinstance(root, StoreRoots) and not anchors((root,), store))


def normal_manufacturer(text: str) -> str:
    """`id:` and upper-case hex, as the TCG writes it (EK Credential Profile, 3.2.9)."""
    prefix, colon, digits = text.partition(":")
    return prefix.lower() + colon + digits.upper()


def _manufacturers(where: str, written: RootText) -> frozenset[str]:
    for index, manufacturer in enumerate(written.manufacturers):
        known = re.fullmatch(r"id:[0-9A-F]{8}", normal_manufacturer(manufacturer))
        _demand(known is not None, f"{where}.manufacturers[{index}]", "is not like id:494E5443")
    manufacturers = frozenset(map(normal_manufacturer, written.manufacturers))
    if written.store is not None and not manufacturers:
        manufacturers = VENDOR_IDS.get(named(written.store), frozenset())
        _demand(bool(manufacturers), f"{where}.store", "is in no registry: write manufacturers = [...] beside it")
    _demand(bool(manufacturers), f"{where}.manufacturers", "is empty: no TPM could pass")
    return manufacturers


def _anchor(where: str, body: str) -> Certificate:
    try:
        certificate = parse_certificate(base64.b64decode("".join(body.split()), validate=True))
    except (binascii.Error, CertificateMalformed, AlgorithmRefused, WeakKey) as error:
        raise MalformedMessage(where, f"is not usable: {error}") from error
    signs = certificate.key_usage is None or "key_cert_sign" in certificate.key_usage
    _demand(certificate.is_ca and signs, where, "is not of a certificate authority")
    return certificate


def _demand(holds: bool, where: str, why: str) -> None:  # noqa: FBT001  the fact itself, not a flag
    if not holds:
        raise MalformedMessage(where, why)
