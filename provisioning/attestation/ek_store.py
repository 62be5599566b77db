"""The certificates of TPM manufacturers that an operator imported: what of them may vouch, and for whom.

The store by itself trusts nothing: a model's policy names which of these certificates are its roots
(`policy_roots`). The others are only stones on the way from an EK certificate to one of those.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from functools import cached_property
from types import MappingProxyType

from provisioning.attestation.certificates import Certificate, parse_certificate
from provisioning.attestation.names import name_key, name_text
from provisioning.attestation.signatures import SHA1_SIGNATURES, WITH_SHA1, counts, why_not_signed
from provisioning.refusals import EkRootRefused, Finding

ISSUERS_MOST = 8
"""Certificates of one name that are tried at most: a renewed authority has two or three."""


class Role(StrEnum):
    """Why a certificate of the store is a root of its manufacturer, or that it is none. Said when it is imported."""

    SELF_SIGNED = "self-signed"
    ROOT_FOLDER = "root-folder"
    """It lay in a folder RootCA, as Microsoft sorts them: some manufacturers' roots are signed by another house."""
    TOPMOST = "topmost"
    """Nothing of its manufacturer that stands above it is there. It steps back when that is imported."""
    INTERMEDIATE = "intermediate"

    @property
    def is_root(self) -> bool:
        """Does a policy that names the manufacturer trust it?"""
        return self is not Role.INTERMEDIATE


@dataclass(frozen=True, slots=True)
class Judged:
    """A certificate that can vouch for others. Nothing yet says that it may: that is the policies'.

    `notes` are what an operator should know although it is taken.
    """

    certificate: Certificate
    fingerprint: str
    self_signed: bool
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Stored:
    """One certificate of the store. `subject` is the name's DER, `subject_key` its `name_key`."""

    fingerprint: str
    der: bytes
    subject: bytes
    subject_key: str
    manufacturer: str
    role: Role


def fingerprint_of(der: bytes) -> str:
    """SHA-256 over the certificate, lower hex."""
    return hashlib.sha256(der).hexdigest()


def judge(der: bytes, now: datetime) -> Judged:
    """Can this certificate vouch for EKs, or for authorities that do? Every mismatch is named.

    Not proven: that it is the manufacturer's; whoever imports it says so. An issuer's signature is judged where it
    is used. A root's own signature is judged here, as a check against damage: by any algorithm that can be judged.

    Raises: CertificateMalformed, AlgorithmRefused, WeakKey, EkRootRefused.
    """
    certificate = parse_certificate(der)
    self_signed = certificate.subject == certificate.issuer
    findings = []
    if not certificate.is_ca:
        findings.append(Finding("basic constraints", "a certificate authority", "an end entity"))
    if certificate.key_usage is not None and "key_cert_sign" not in certificate.key_usage:
        usages = ", ".join(sorted(certificate.key_usage)) or "none"
        findings.append(Finding("key usage", "keyCertSign", usages))
    if certificate.unhandled:
        findings.append(Finding("critical extensions", "known ones", ", ".join(certificate.unhandled)))
    oid = certificate.signature_algorithm
    if not counts(oid) and oid not in SHA1_SIGNATURES:
        findings.append(Finding("signature algorithm", "one that counts, or SHA-1", oid))
    elif self_signed and (why := why_not_signed(certificate, certificate.public_key, WITH_SHA1)):
        findings.append(Finding("self-signature", "to verify", why))
    if findings:
        told = "; ".join(f"{finding.what}: {finding.actual}" for finding in findings)
        raise EkRootRefused(expected="a certificate authority's certificate", actual=told, findings=tuple(findings))
    notes = []
    if certificate.not_after < now:
        notes.append(f"expired on {certificate.not_after:%Y-%m-%d}: counts for EKs that were made before")
    if certificate.not_before > now:
        notes.append(f"begins on {certificate.not_before:%Y-%m-%d}")
    if oid in SHA1_SIGNATURES and not self_signed:
        notes.append('signed with SHA-1: an intermediate only where a policy says sha1_authorities = "accept"')
    return Judged(certificate, fingerprint_of(der), self_signed, tuple(notes))


class EkStore:
    """What was imported, ready to be looked up. Certificates are parsed when one is needed, and once."""

    def __init__(self, stored: Iterable[Stored] = ()) -> None:
        self._all = {one.fingerprint: one for one in stored}
        self._parsed: dict[str, Certificate] = {}
        self._by_subject: dict[bytes, list[Stored]] = {}
        for one in self._all.values():
            self._by_subject.setdefault(one.subject, []).append(one)

    def __len__(self) -> int:
        return len(self._all)

    @cached_property
    def manufacturers(self) -> Mapping[str, tuple[Stored, ...]]:
        """The roots by the manufacturer under which they are kept, fingerprints ascending."""
        found: dict[str, list[Stored]] = {}
        for fingerprint in sorted(self._all):
            one = self._all[fingerprint]
            if one.role.is_root:
                found.setdefault(one.manufacturer, []).append(one)
        return MappingProxyType({name: tuple(some) for name, some in found.items()})

    def roots_of(self, manufacturer: str) -> tuple[Certificate, ...]:
        """The roots that are kept under this name."""
        return tuple(map(self.certificate, self.manufacturers.get(manufacturer, ())))

    def of_fingerprint(self, fingerprint: str) -> Certificate | None:
        """The certificate of that fingerprint, a root or not."""
        one = self._all.get(fingerprint)
        return None if one is None else self.certificate(one)

    @property
    def all(self) -> tuple[Stored, ...]:
        """Everything."""
        return tuple(self._all.values())

    def stored_of(self, fingerprint: str) -> Stored | None:
        """What has that fingerprint."""
        return self._all.get(fingerprint)

    def stored_as(self, name: bytes) -> tuple[Stored, ...]:
        """What has this subject (DER), at most `ISSUERS_MOST`; another encoding of it where nothing has it."""
        found = self._by_subject.get(name) or self._by_key.get(name_key(name), [])
        return tuple(found[:ISSUERS_MOST])

    def named(self, name: bytes) -> tuple[Certificate, ...]:
        """The certificates of that subject, as `stored_as` finds them."""
        return tuple(map(self.certificate, self.stored_as(name)))

    def certificate(self, one: Stored) -> Certificate:
        """The certificate itself. Raises: as `parse_certificate`, where the database was changed by hand."""
        known = self._parsed.get(one.fingerprint)
        if known is None:
            known = self._parsed[one.fingerprint] = parse_certificate(one.der)
        return known

    @cached_property
    def _by_key(self) -> dict[str, list[Stored]]:
        found: dict[str, list[Stored]] = {}
        for one in self._all.values():
            found.setdefault(one.subject_key, []).append(one)
        return found


EMPTY = EkStore()
"""The store of a service into which nothing was imported."""


def stored(judged: Judged, manufacturer: str, role: Role) -> Stored:
    """A judged certificate as the store keeps it."""
    der, subject = judged.certificate.der, judged.certificate.subject
    return Stored(judged.fingerprint, der, subject, name_key(subject), manufacturer, role)


def roles(added: Iterable[Stored], known: Iterable[Stored]) -> dict[str, Role]:
    """The roles of what is added, by fingerprint, and of what is known and steps back because of it.

    Those that came with a reason of their own keep it. A certificate whose signer is kept under the same manufacturer
    is an intermediate; without one it is the topmost. Nothing that is known ever becomes a root by this: who removes
    a root does not thereby trust what was below it.
    """
    added = tuple(added)
    both = EkStore((*known, *added))
    changed: dict[str, Role] = {}
    for one in added:
        if one.role is Role.INTERMEDIATE:
            changed[one.fingerprint] = Role.INTERMEDIATE if _has_signer(one, both) else Role.TOPMOST
        else:
            changed[one.fingerprint] = one.role
    names = {one.subject_key for one in added}
    for one in both.all:
        stands = one.role is Role.TOPMOST and one.fingerprint not in changed
        if stands and name_key(both.certificate(one).issuer) in names and _has_signer(one, both):
            changed[one.fingerprint] = Role.INTERMEDIATE
    return changed


def _has_signer(one: Stored, store: EkStore) -> bool:
    certificate = store.certificate(one)
    return any(
        above.manufacturer == one.manufacturer
        and above.fingerprint != one.fingerprint
        and why_not_signed(certificate, store.certificate(above).public_key, WITH_SHA1) is None
        for above in store.stored_as(certificate.issuer)
    )


def way_up(certificate: Certificate, store: EkStore, most: int = 8) -> tuple[str, ...]:
    """The names above a certificate, as far as the store has their signed certificates; for people, not for trust."""
    names: list[str] = []
    for _ in range(most):
        if certificate.subject == certificate.issuer:
            break
        above = next(
            (
                one
                for one in store.named(certificate.issuer)
                if why_not_signed(certificate, one.public_key, WITH_SHA1) is None
            ),
            None,
        )
        if above is None:
            return (*names, f"{name_text(certificate.issuer)} (not in the store)")
        names.append(name_text(above.subject))
        certificate = above
    return tuple(names)
