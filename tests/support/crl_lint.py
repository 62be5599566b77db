"""pkilint over a CRL."""

from pkilint import loader, pkix
from pkilint.pkix import crl as pkix_crl
from pkilint.pkix import extension, name

from provisioning.app.lint import findings


def lint_crl(der: bytes) -> list[str]:
    """What pkilint finds wrong with a CRL (DER)."""
    document = loader.RFC5280CertificateListDocumentLoader().load_der_document(der, "crl")
    linter = pkix_crl.create_pkix_crl_validator_container(
        [
            pkix.create_attribute_decoder(name.ATTRIBUTE_TYPE_MAPPINGS),
            pkix.create_extension_decoder(extension.EXTENSION_MAPPINGS),
        ],
        [
            pkix_crl.create_issuer_validator_container([]),
            pkix_crl.create_validity_validator_container([]),
            pkix_crl.create_extensions_validator_container([]),
        ],
    )
    return findings(linter.validate(document.root))
