"""Keys out of public areas: sound ones convert, weak ones are named, signatures verify in their own scheme only."""

from itertools import count
from math import prod

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from provisioning.attestation.keys import (
    public_key_of,
    spki,
    spki_of,
    verify_allowed,
    verify_modulus,
    verify_signature,
)
from provisioning.attestation.structures import EccPoint, PublicArea, RsaKey, Scheme, Signature
from provisioning.refusals import AlgorithmRefused, SignatureWrong, StructureMalformed, WeakKey
from tests.support.ek_certificates import ec_key, rsa_key

ECDSA, RSASSA, RSAPSS, SHA256, SHA384 = 0x18, 0x14, 0x16, 0x0B, 0x0C


def area(key):
    return PublicArea(b"", SHA256, 0, b"", None, None, key)


def point(key, curve, size):
    numbers = key.public_key().public_numbers()
    return EccPoint(curve, numbers.x.to_bytes(size, "big"), numbers.y.to_bytes(size, "big"))


@pytest.mark.parametrize(("curve", "number", "size"), [(ec.SECP256R1, 3, 32), (ec.SECP384R1, 4, 48)])
def test_the_constant_prefix_is_that_of_the_encoder(curve, number, size):
    key = ec_key(curve)
    public = area(point(key, number, size))
    expected = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert spki_of(public) == spki(public_key_of(public)) == expected


def test_an_rsa_key_converts():
    key = rsa_key()
    public = area(RsaKey(key.public_key().public_numbers().n.to_bytes(256, "big")))
    assert spki_of(public) == key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def test_a_point_off_its_curve_is_refused():
    with pytest.raises(StructureMalformed):
        public_key_of(area(EccPoint(3, b"\1" * 32, b"\1" * 32)))


def is_prime(number):
    return all(pow(base, number - 1, number) == 1 for base in (2, 3, 5, 7, 11, 13))


def roca_prime(bits, start):
    """A prime as the flawed library makes them: k * M + (65537 ** a mod M)."""
    primes = [p for p in range(2, 168) if all(p % q for q in range(2, int(p**0.5) + 1))]
    m = prod(primes)
    remainder = pow(65537, 12345 + start, m)
    first = (1 << (bits - 1)) // m + (1 << (bits - 2)) // m + 1 + start
    return next(p for k in count(first) if is_prime(p := k * m + remainder))


@pytest.fixture(scope="module")
def roca_modulus():
    return roca_prime(1024, 1) * roca_prime(1024, 2)


def test_a_roca_modulus_is_refused(roca_modulus):
    with pytest.raises(WeakKey):
        verify_modulus(roca_modulus)
    with pytest.raises(WeakKey):
        public_key_of(area(RsaKey(roca_modulus.to_bytes(256, "big"))))
    with pytest.raises(WeakKey):
        verify_allowed(rsa.RSAPublicNumbers(65537, roca_modulus).public_key())


def test_one_sound_factor_is_enough(roca_modulus):
    verify_modulus(rsa_key().public_key().public_numbers().n)
    verify_modulus(roca_modulus + 2)


def test_keys_off_the_list_are_refused():
    assert verify_allowed(ec_key().public_key())
    assert verify_allowed(rsa_key().public_key())
    n = rsa_key().public_key().public_numbers().n
    for key in (
        rsa_key(1024).public_key(),
        rsa.RSAPublicNumbers(3, n).public_key(),
        ec_key(ec.SECP521R1).public_key(),
        "a text",
    ):
        with pytest.raises(AlgorithmRefused):
            verify_allowed(key)


def ecdsa(message, algorithm=hashes.SHA256, name=SHA256):
    return Signature(Scheme(ECDSA, name), decode_dss_signature(ec_key().sign(message, ec.ECDSA(algorithm()))))


def test_an_ecdsa_signature_verifies_over_its_message_only():
    key = ec_key().public_key()
    verify_signature(key, Scheme(ECDSA, SHA256), ecdsa(b"m"), b"m")
    verify_signature(key, Scheme(ECDSA, SHA384), ecdsa(b"m", hashes.SHA384, SHA384), b"m")
    with pytest.raises(SignatureWrong) as refused:
        verify_signature(key, Scheme(ECDSA, SHA256), ecdsa(b"m"), b"n")
    assert refused.value.actual == "a signature that is not"
    with pytest.raises(SignatureWrong):
        verify_signature(ec_key(number=1).public_key(), Scheme(ECDSA, SHA256), ecdsa(b"m"), b"m")
    with pytest.raises(SignatureWrong):
        verify_signature(key, Scheme(ECDSA, SHA256), Signature(Scheme(ECDSA, SHA256), (0, 0)), b"m")


def test_the_keys_scheme_decides():
    """A true signature by another hash than the AK's: refused before it is verified."""
    with pytest.raises(SignatureWrong) as refused:
        verify_signature(ec_key().public_key(), Scheme(ECDSA, SHA256), ecdsa(b"m", hashes.SHA384, SHA384), b"m")
    assert (refused.value.expected, refused.value.actual) == ("ECDSA with sha256", "ECDSA with sha384")


@pytest.mark.parametrize(
    ("scheme", "pad"),
    [
        (RSASSA, padding.PKCS1v15()),
        (RSAPSS, padding.PSS(padding.MGF1(hashes.SHA256()), 32)),
        (RSAPSS, padding.PSS(padding.MGF1(hashes.SHA256()), padding.PSS.MAX_LENGTH)),
    ],
)
def test_rsa_signatures_verify_in_their_own_padding(scheme, pad):
    key = rsa_key()
    made = Signature(Scheme(scheme, SHA256), key.sign(b"m", pad, hashes.SHA256()))
    verify_signature(key.public_key(), Scheme(scheme, SHA256), made, b"m")
    with pytest.raises(SignatureWrong):
        verify_signature(key.public_key(), Scheme(scheme, SHA256), made, b"n")
    other = Scheme(RSASSA if scheme == RSAPSS else RSAPSS, SHA256)
    with pytest.raises(SignatureWrong):
        verify_signature(key.public_key(), other, Signature(other, made.value), b"m")


def test_a_signature_of_another_kind_of_key_is_refused():
    scheme = Scheme(ECDSA, SHA256)
    with pytest.raises(SignatureWrong, match="by the AK"):
        verify_signature(rsa_key().public_key(), scheme, ecdsa(b"m"), b"m")
    with pytest.raises(SignatureWrong):
        verify_signature(ec_key().public_key(), scheme, Signature(scheme, b"s" * 64), b"m")
