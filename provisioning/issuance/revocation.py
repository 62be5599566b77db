"""Certificate revocation lists (RFC 5280 section 5): the to-be-signed bytes, and the look before the CA key signs.

Our own writer, because `cryptography`'s builder takes quadratic time in the number of entries.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum

from cryptography import x509

from provisioning.issuance import der
from provisioning.issuance.profile import Issuer
from provisioning.issuance.tbs import UNPARSED, unsigned
from provisioning.refusals import Finding, ToBeSignedRefused

_VERSION_2 = der.integer(1)


class Reason(Enum):
    """Why a certificate is revoked: CRLReason of RFC 5280 section 5.3.1, by its name there.

    Not here: `removeFromCRL`, which only delta CRLs say.
    """

    UNSPECIFIED = 0
    KEY_COMPROMISE = 1
    CA_COMPROMISE = 2
    AFFILIATION_CHANGED = 3
    SUPERSEDED = 4
    CESSATION_OF_OPERATION = 5
    CERTIFICATE_HOLD = 6
    PRIVILEGE_WITHDRAWN = 9
    AA_COMPROMISE = 10

    @property
    def text(self) -> str:
        """As it stands in commands and in the database: `key-compromise`."""
        return self.name.lower().replace("_", "-")


REASONS: dict[str, Reason] = {reason.text: reason for reason in Reason}


@dataclass(frozen=True, slots=True)
class Revoked:
    """One entry of a CRL. `at` is in UTC."""

    serial: int
    at: datetime
    reason: Reason


@dataclass(frozen=True, slots=True)
class CrlToBeSigned:
    """A TBSCertList (`der`), complete: whatever it does not name, it declares good."""

    der: bytes
    number: int
    this_update: datetime
    next_update: datetime


def build_crl(
    entries: Iterable[Revoked], issuer: Issuer, *, number: int, this_update: datetime, next_update: datetime
) -> CrlToBeSigned:
    """The to-be-signed bytes of a full CRL, entries in the order of their serials.

    `number` must be higher than that of every CRL before it (section 5.2.3): the caller keeps it.
    Raises: ToBeSignedRefused.
    """
    this_update = this_update.astimezone(UTC).replace(microsecond=0)
    next_update = next_update.astimezone(UTC).replace(microsecond=0)
    if not this_update < next_update:
        raise ToBeSignedRefused(expected=f"a next update after {this_update}", actual=next_update)
    if not 0 <= number < 2**159:
        raise ToBeSignedRefused(expected="a CRL number of at most 20 octets", actual=number)
    ordered = sorted(entries, key=lambda entry: entry.serial)
    if len({entry.serial for entry in ordered}) != len(ordered):
        raise ToBeSignedRefused(expected="each serial once", actual="a serial twice")
    authority = der.extension("2.5.29.35", der.sequence(der.tlv(0x80, issuer.key_id)))
    tbs = der.sequence(
        _VERSION_2,
        issuer.algorithm.identifier,
        issuer.name,
        der.time(this_update),
        der.time(next_update),
        der.sequence(*map(_entry, ordered)) if ordered else b"",  # absent where empty (section 5.1.2.6)
        der.tlv(0xA0, der.sequence(authority, der.extension("2.5.29.20", der.integer(number)))),
    )
    return CrlToBeSigned(tbs, number, this_update, next_update)


def check_crl(tbs: CrlToBeSigned, entries: Iterable[Revoked], issuer: Issuer) -> None:
    """Does this CRL name exactly these serials, and is it that issuer's? Read again by `cryptography`.

    Does not prove that `number` is higher than the last one. Raises: ToBeSignedRefused.
    """
    extensions = [(False, x509.AuthorityKeyIdentifier(issuer.key_id, None, None)), (False, x509.CRLNumber(tbs.number))]
    try:
        found = x509.load_der_x509_crl(unsigned(tbs.der))
        facts = (
            ("algorithm", issuer.algorithm.oid, found.signature_algorithm_oid.dotted_string),
            ("issuer", issuer.name, found.issuer.public_bytes()),
            ("this update", tbs.this_update, found.last_update_utc),
            ("next update", tbs.next_update, found.next_update_utc),
            ("extensions", extensions, [(extension.critical, extension.value) for extension in found.extensions]),
            ("entries", *_first_difference(entries, found)),
        )
    except UNPARSED as error:
        raise ToBeSignedRefused(expected="a CRL that parses", actual=error) from error
    if wrong := tuple(Finding(what, str(right), str(actual)) for what, right, actual in facts if right != actual):
        names = ", ".join(finding.what for finding in wrong)
        raise ToBeSignedRefused(expected="a CRL of this issuer", actual=f"differs in: {names}", findings=wrong)


def _first_difference(entries: Iterable[Revoked], found: x509.CertificateRevocationList) -> tuple[object, object]:
    """The first entry that is another, as it is wanted and as it is; twice the same where there is none.

    One after the other, because a hundred thousand of them are too many to hold twice.
    """
    wanted = sorted(entries, key=lambda entry: entry.serial)
    if len(wanted) != len(found):
        return f"{len(wanted)} entries", f"{len(found)} entries"
    for right, entry in zip(wanted, found, strict=True):
        expected = (right.serial, right.at.astimezone(UTC).replace(microsecond=0), right.reason)
        actual = (entry.serial_number, entry.revocation_date_utc, _reason(entry))
        if expected != actual:
            return expected, actual
    return None, None


@dataclass(frozen=True, slots=True)
class ParsedCrl:
    """A CRL that was parsed and is not verified."""

    number: int
    parsed: x509.CertificateRevocationList

    def entries(self) -> list[Revoked]:
        """What it lists. Raises: ValueError, where an entry says something that none of ours does."""
        try:
            found = [(entry.serial_number, entry.revocation_date_utc, _reason(entry)) for entry in self.parsed]
        except UNPARSED as error:
            raise ValueError("a CRL whose entries cannot be read") from error
        return [Revoked(serial, at, reason) for serial, at, reason in map(_whole, found)]


def parse_crl(data: bytes) -> ParsedCrl:
    """A CRL with a number, out of its DER. Raises: ValueError."""
    try:
        parsed = x509.load_der_x509_crl(data)
        number = parsed.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
    except (*UNPARSED, x509.ExtensionNotFound) as error:
        raise ValueError("no CRL with a number") from error
    return ParsedCrl(number, parsed)


def _whole(found: tuple[int, datetime, Reason | None]) -> tuple[int, datetime, Reason]:
    serial, at, reason = found
    if reason is None:
        raise ValueError("an entry with an extension that is not known here")
    return serial, at, reason


def _entry(entry: Revoked) -> bytes:
    at = der.time(entry.at.astimezone(UTC))
    if entry.reason is Reason.UNSPECIFIED:  # should be absent instead (section 5.3.1)
        return der.sequence(der.integer(entry.serial), at)
    return der.sequence(der.integer(entry.serial), at, _REASON_EXTENSION[entry.reason])


_REASON_EXTENSION = {
    reason: der.sequence(der.extension("2.5.29.21", der.tlv(der.ENUMERATED, bytes((reason.value,)))))
    for reason in Reason
}
_REASON_FLAGS = {
    x509.ReasonFlags.key_compromise: Reason.KEY_COMPROMISE,
    x509.ReasonFlags.ca_compromise: Reason.CA_COMPROMISE,
    x509.ReasonFlags.affiliation_changed: Reason.AFFILIATION_CHANGED,
    x509.ReasonFlags.superseded: Reason.SUPERSEDED,
    x509.ReasonFlags.cessation_of_operation: Reason.CESSATION_OF_OPERATION,
    x509.ReasonFlags.certificate_hold: Reason.CERTIFICATE_HOLD,
    x509.ReasonFlags.privilege_withdrawn: Reason.PRIVILEGE_WITHDRAWN,
    x509.ReasonFlags.aa_compromise: Reason.AA_COMPROMISE,
}


def _reason(entry: x509.RevokedCertificate) -> Reason | None:
    """The entry's reason, None where it holds something that no entry here has."""
    extensions = list(entry.extensions)
    if not extensions:
        return Reason.UNSPECIFIED
    value = extensions[0].value
    if len(extensions) != 1 or not isinstance(value, x509.CRLReason):
        return None
    return _REASON_FLAGS.get(value.reason)
