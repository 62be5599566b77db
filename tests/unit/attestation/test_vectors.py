"""A quote that another project's RSA attestation key made, in tpm2-tools' files."""

import hashlib
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from provisioning.attestation.endorsement import ek_id_of_public
from provisioning.attestation.evidence import verify_attestation_key
from provisioning.attestation.keys import spki, verify_signature
from provisioning.attestation.quote import verify_quote
from provisioning.attestation.structures import name_of, parse_quote, parse_signature
from provisioning.refusals import AkAttributesRefused, AkNotInEndorsementHierarchy, SignatureWrong
from wire.binding import key_id
from wire.messages import Attestation, PcrSelection

QUOTE = Path(__file__).resolve().parents[4] / "shared" / "vectors" / "quote"
pytestmark = pytest.mark.skipif(not QUOTE.is_dir(), reason="no quote: ../shared/vectors is absent")


def file(name):
    return (QUOTE / name).read_bytes()


def area(name):
    """tpm2-tools write TPM2B_PUBLIC: the size goes before."""
    return file(name)[2:]


def test_the_key_and_its_name_are_read():
    ak = verify_attestation_key(area("ak.pub"))
    assert ak.name == name_of(area("ak.pub")) == file("ak.name")
    assert spki(ak.key) == spki(load_pem_public_key(file("akpub.pem")))
    assert ek_id_of_public(area("ek.pub")) == key_id(spki(load_pem_public_key(file("ekpub.pem"))))


def test_the_quote_verifies_and_a_changed_one_does_not():
    ak = verify_attestation_key(area("ak.pub"))
    signature, message = parse_signature(file("quotesig.out")), file("quote.out")
    verify_signature(ak.key, ak.scheme, signature, message)
    for at in range(len(message)):
        with pytest.raises(SignatureWrong):
            verify_signature(ak.key, ak.scheme, signature, message[:at] + bytes([message[at] ^ 1]) + message[at + 1 :])


def test_the_quoted_digest_is_over_the_values_in_their_order():
    """The file of tpm2_quote: TPML_PCR_SELECTION and TPML_DIGESTs as C structures, little-endian."""
    quoted = parse_quote(file("quote.out")).quoted
    digests, data = [], file("quotepcr.out")
    at = data.index((3).to_bytes(4, "little") + (32).to_bytes(2, "little")) + 4
    for _ in quoted.pcrs:
        assert int.from_bytes(data[at : at + 2], "little") == 32
        digests.append(data[at + 2 : at + 34])
        at += 66
    assert hashlib.sha256(b"".join(digests)).digest() == quoted.digest


def test_it_is_refused_as_evidence_by_its_own_name():
    """That AK is a child of the EK and its nonce has 20 bytes: authentic, and still no answer to a challenge."""
    ak = verify_attestation_key(area("ak.pub"))
    quote = Attestation(file("quote.out"), file("quotesig.out"))
    with pytest.raises(AkNotInEndorsementHierarchy):
        verify_quote(quote, {}, PcrSelection("sha256", (15, 16, 22)), ak, b"")


def test_an_ek_is_no_ak():
    with pytest.raises(AkAttributesRefused):
        verify_attestation_key(area("ek.pub"))
