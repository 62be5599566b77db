"""Certificate requests: the key and its holder's signature, and no word of the rest."""

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from provisioning.issuance import der
from provisioning.issuance.csr import verify_csr
from provisioning.refusals import CsrKeyNotCertified, CsrRefused, KeyPointRefused
from tests.support.ek_certificates import ec_key, rsa_key
from wire.messages import CSR_MOST

KEY = ec_key()


def spki(key):
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def request(key=KEY, algorithm=hashes.SHA256, subject=(), extensions=()):
    names = [x509.NameAttribute(NameOID.COMMON_NAME, text) for text in subject]
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name(names))
    for extension in extensions:
        builder = builder.add_extension(extension, critical=False)
    return builder.sign(key, algorithm and algorithm()).public_bytes(Encoding.DER)


@pytest.mark.parametrize("key", [KEY, ec_key(ec.SECP384R1), rsa_key()], ids=["P-256", "P-384", "RSA"])
@pytest.mark.parametrize("algorithm", [hashes.SHA256, hashes.SHA384, hashes.SHA512])
def test_the_holder_of_the_certified_key_is_accepted(key, algorithm):
    accepted = verify_csr(request(key, algorithm), spki(key))
    assert accepted.spki == spki(key)


def test_names_and_extensions_of_a_request_have_no_effect():
    """Whatever it asks for: the type has no place for it."""
    hostile = request(
        subject=["another-device"],
        extensions=[x509.BasicConstraints(ca=True, path_length=None), x509.SubjectAlternativeName([x509.DNSName("x")])],
    )
    accepted = verify_csr(hostile, spki(KEY))
    assert accepted.__slots__ == ("der", "spki")
    assert accepted.spki == verify_csr(request(), spki(KEY)).spki


@pytest.mark.parametrize("names", [0, 1, 2, 4, 6])
@pytest.mark.parametrize("key", [KEY, ec_key(ec.SECP384R1)], ids=["P-256", "P-384"])
def test_a_key_is_found_behind_a_subject_of_any_length(key, names):
    """A subject's own length takes one octet, two or three."""
    assert verify_csr(request(key, subject=["s" * 60] * names), spki(key)).spki == spki(key)


def test_a_compressed_point_is_the_same_key():
    point = KEY.public_key().public_bytes(Encoding.X962, PublicFormat.CompressedPoint)
    algorithm = der.sequence(der.oid("1.2.840.10045.2.1"), der.oid("1.2.840.10045.3.1.7"))
    signed = der.sequence(der.integer(0), der.sequence(), der.sequence(algorithm, der.bits(point)), b"\xa0\0")
    signature = KEY.sign(signed, ec.ECDSA(hashes.SHA256()))
    made = der.sequence(signed, der.sequence(der.oid("1.2.840.10045.4.3.2")), der.bits(signature))
    assert verify_csr(made, spki(KEY)).spki == spki(KEY)


def test_another_key_than_the_certified_one_is_refused():
    with pytest.raises(CsrKeyNotCertified):
        verify_csr(request(), spki(ec_key(number=1)))
    with pytest.raises(CsrKeyNotCertified):
        verify_csr(request(ec_key(number=1)), spki(KEY))


def test_a_request_that_somebody_else_signed_is_refused():
    """The certified key in it, but no proof of possession."""
    mine, theirs = request(), request(ec_key(number=1))
    parsed = x509.load_der_x509_csr(theirs)
    at = mine.index(x509.load_der_x509_csr(mine).signature)
    with pytest.raises(CsrRefused):
        verify_csr(mine[:at][: len(mine)] + parsed.signature[: len(mine) - at].ljust(len(mine) - at, b"\0"), spki(KEY))


def test_other_kinds_of_keys_and_hashes_are_refused():
    key = ed448.Ed448PrivateKey.generate()
    with pytest.raises(CsrRefused) as refused:
        verify_csr(request(key, None), spki(key))
    assert "Ed25519" in refused.value.expected
    with pytest.raises(CsrRefused):
        verify_csr(request(algorithm=hashes.SHA224), spki(KEY))


def test_the_holder_of_an_edwards_key_is_accepted_and_nobody_else():
    key = ed25519.Ed25519PrivateKey.generate()
    made = request(key, None)
    assert verify_csr(made, spki(key)).spki == spki(key)
    with pytest.raises(CsrRefused):
        verify_csr(made[:-1] + bytes([made[-1] ^ 1]), spki(key))


@pytest.mark.parametrize("curve", [ec.SECP256R1, ec.SECP384R1, ec.SECP521R1])
def test_a_point_that_is_not_on_its_curve_is_refused_by_its_name(curve):
    key = ec_key(curve)
    x = key.public_key().public_numbers().x.to_bytes((curve.key_size + 7) // 8, "big")
    with pytest.raises(KeyPointRefused):
        verify_csr(request(key).replace(x, x[:-1] + bytes([x[-1] ^ 1])), spki(key))


def test_a_request_over_its_cap_is_refused_unread():
    with pytest.raises(CsrRefused) as refused:
        verify_csr(request() + bytes(CSR_MOST), spki(KEY))
    assert refused.value.expected == f"at most {CSR_MOST} bytes"


VALID = request(subject=["device"], extensions=[x509.SubjectAlternativeName([x509.DNSName("x")])])
RSA = request(rsa_key())


@given(st.binary(max_size=300))
def test_arbitrary_bytes_are_refused_by_name(data):
    with pytest.raises(CsrRefused):
        verify_csr(data, spki(KEY))


@given(st.sampled_from([(VALID, spki(KEY)), (RSA, spki(rsa_key()))]), st.integers(0, 2**16), st.integers(1, 255))
def test_no_byte_of_a_request_can_be_changed(case, at, bits):
    """cryptography raises more than ValueError on hostile requests; each becomes the one refusal."""
    der, certified = case
    at %= len(der)
    with pytest.raises((CsrRefused, CsrKeyNotCertified, KeyPointRefused)):
        verify_csr(der[:at] + bytes([der[at] ^ bits]) + der[at + 1 :], certified)


def test_a_signature_that_is_not_of_whole_octets_is_refused():
    signature = x509.load_der_x509_csr(VALID).signature
    spoilt = bytearray(VALID)
    spoilt[-len(signature) - 1] = 1  # the count of unused bits
    spoilt[-1] &= 0xFE
    with pytest.raises(CsrRefused):
        verify_csr(bytes(spoilt), spki(KEY))
