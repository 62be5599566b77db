"""pkilint over our certificates. Imported late: it costs a second and some 60 MiB.

What it finds of warning or worse counts, but for the findings below, each of which is a rule that does not bind us.
"""

from collections.abc import Iterable
from functools import cache
from typing import Protocol, cast

from pkilint import loader
from pkilint.pkix import certificate as pkix_certificate
from pkilint.pkix import extension, name
from pkilint.validation import ValidationFindingSeverity, ValidationResult

KNOWN_FINDINGS = (
    # It takes no `spiffe:` URI: it wants a host of the web in it.
    ("pkix.invalid_uri_syntax", "spiffe://"),
    # It wants a dot in a DNS name; RFC 1034 section 3.5, to which RFC 5280 refers, takes a single label.
    ("pkix.invalid_domain_name_syntax", '"localhost"'),
)
"""Code, and what the message must hold."""


class _Linter(Protocol):
    def validate(self, node: object) -> Iterable[ValidationResult]: ...


def lint_certificate(der: bytes) -> list[str]:
    """What pkilint finds wrong with a certificate (DER). Raises: ValueError, where it cannot read it."""
    document = loader.RFC5280CertificateDocumentLoader().load_der_document(der, "certificate")
    return findings(_certificate_linter().validate(document.root))


def findings(results: Iterable[ValidationResult]) -> list[str]:
    """Each that counts, in a line."""
    return [
        f"{description.finding.severity.name} {description.finding.code} {description.message or ''}".strip()
        for result in results
        for description in result.finding_descriptions
        if description.finding.severity <= ValidationFindingSeverity.WARNING
        and not any(
            description.finding.code == code and holds in (description.message or "") for code, holds in KNOWN_FINDINGS
        )
    ]


@cache
def _certificate_linter() -> _Linter:
    made = pkix_certificate.create_pkix_certificate_validator_container(
        pkix_certificate.create_decoding_validators(name.ATTRIBUTE_TYPE_MAPPINGS, extension.EXTENSION_MAPPINGS),
        [
            pkix_certificate.create_issuer_validator_container([]),
            pkix_certificate.create_validity_validator_container(),
            pkix_certificate.create_subject_validator_container([]),
            pkix_certificate.create_extensions_validator_container([]),
            pkix_certificate.create_spki_validator_container([]),
        ],
    )
    return cast("_Linter", made)
