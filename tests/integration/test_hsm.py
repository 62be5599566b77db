"""Keys in real tokens (SoftHSM2, NSS, SoftHSM2 through p11-kit): making keys, signing, and what is refused."""

import datetime as dt
import hashlib
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pkcs11
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed
from cryptography.x509.oid import NameOID
from pkcs11 import Attribute, KeyType, ObjectClass
from securesystemslib.signer import CryptoSigner, SSlibKey

from hsm.ceremony import check_protection, protection_faults, token_facts
from hsm.errors import (
    KeyAmbiguous,
    KeyExists,
    KeyNotFound,
    KeyNotProtected,
    KeyPairMismatch,
    KeyUnsupported,
    TokenAmbiguous,
    TokenNotFound,
    TokenRefused,
    TokenUnavailable,
    WrongPin,
)
from hsm.key import sign_message, verify_message
from hsm.kinds import KeyKind, kind_of
from hsm.module import TokenName
from hsm.softhsm import settings
from hsm.token import Token
from tests.integration.hsm_box import Box, close_all_sessions, finalize, log_out
from tests.support.tokens import TOKENS, Nss, P11Kit

SHA256 = ec.ECDSA(hashes.SHA256())
DAY = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)


@pytest.fixture
def box(tmp_path):
    made = Box(tmp_path / "softhsm")
    made.create("ca")
    return made


@pytest.fixture(params=TOKENS.values(), ids=TOKENS)
def place(request, tmp_path):
    made = request.param(tmp_path / "place")
    yield made
    made.close()


@pytest.fixture
def token(place):
    with place.token(sessions=3) as opened:
        yield opened


def put_key(token, *, label="foreign", private=None, public_of=None):
    """Bring a software key into the token, as an attacker or a careless operator would."""
    key = ec.generate_private_key(ec.SECP256R1())
    common = {
        Attribute.TOKEN: True,
        Attribute.LABEL: label,
        Attribute.KEY_TYPE: KeyType.EC,
        Attribute.EC_PARAMS: bytes.fromhex("06082a8648ce3d030107"),
    }
    numbers = (public_of or key.public_key()).public_numbers()
    point = b"\x04\x41\x04" + numbers.x.to_bytes(32, "big") + numbers.y.to_bytes(32, "big")
    with token._sessions._login.token.open(rw=True) as session:
        session.create_object(common | {Attribute.CLASS: ObjectClass.PUBLIC_KEY, Attribute.EC_POINT: point})
        secret = key.private_numbers().private_value.to_bytes(32, "big")
        template = {Attribute.CLASS: ObjectClass.PRIVATE_KEY, Attribute.SIGN: True, Attribute.VALUE: secret}
        session.create_object(common | template | (private or {}))


# --- keys -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("curve", [None, ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()])
def test_a_made_key_signs_and_is_found_again(token, curve):
    made = token.generate_ec_key("issuing", curve)
    found = token.ec_key("issuing")
    assert found.curve.name == (curve or ec.SECP256R1()).name
    assert found.public_key() == made.public_key()
    for algorithm in (hashes.SHA256(), hashes.SHA384(), hashes.SHA512()):
        made.public_key().verify(found.sign(b"data", ec.ECDSA(algorithm)), b"data", ec.ECDSA(algorithm))
    assert token.signatures == 3


def test_without_session_copies_the_tokens_own_object_signs(place):
    with place.token(sessions=2, settings=replace(place.settings, session_copies=False)) as token:
        key = token.generate_ec_key("issuing")
        key.public_key().verify(key.sign(b"data", SHA256), b"data", SHA256)
        objects = list(token._sessions._login.get_objects({Attribute.CLASS: ObjectClass.PRIVATE_KEY}))
        assert [found[Attribute.TOKEN] for found in objects] == [True]


@pytest.mark.parametrize("kind", KeyKind)
def test_a_key_of_every_kind_that_the_token_makes_is_protected_and_signs(place, token, kind):
    if kind not in place.makes:
        with pytest.raises(TokenRefused, match="MechanismInvalid"):
            token.generate_key("issuing", kind)
        assert token.keys() == []
        return
    key = token.generate_key("issuing", kind)
    assert kind_of(key.public_key()) == kind
    verify_message(key.public_key(), b"data", sign_message(key, b"data"))
    assert_builders_take_it(key, None if kind is KeyKind.ED25519 else hashes.SHA256())
    if isinstance(key, rsa.RSAPrivateKey):
        assert_rsa_signs_in_both_ways(key)
    (info,) = token.keys()
    assert (info.algorithm, info.label, info.id) == (kind, "issuing", key.reference.id)
    assert protection_faults(info) == ([] if place.tells_local else ["was made elsewhere and brought in"])


def assert_rsa_signs_in_both_ways(key):
    public = key.public_key()
    for algorithm in (hashes.SHA256(), hashes.SHA384(), hashes.SHA512()):
        schemes = (padding.PKCS1v15(), pss(algorithm, padding.PSS.DIGEST_LENGTH), pss(algorithm, 20))
        for scheme in (*schemes, pss(algorithm, padding.PSS.MAX_LENGTH)):
            public.verify(key.sign(b"data", scheme, algorithm), b"data", scheme, algorithm)
    digest = hashlib.sha256(b"data").digest()
    signature = key.sign(digest, padding.PKCS1v15(), Prehashed(hashes.SHA256()))
    public.verify(signature, b"data", padding.PKCS1v15(), hashes.SHA256())


def pss(algorithm, salt):
    return padding.PSS(padding.MGF1(algorithm), salt)


def test_a_key_is_found_by_label_by_id_and_by_both(token):
    one, two = token.generate_key("one"), token.generate_key("two")
    assert token.key("one").public_key() == one.public_key()
    assert token.key(identity=two.reference.id).public_key() == two.public_key()
    assert token.key("two", identity=two.reference.id).label == "two"
    for label, identity in (("one", two.reference.id), (None, b"no such id"), ("nobody", None)):
        with pytest.raises(KeyNotFound):
            token.key(label, identity=identity)
    with pytest.raises(KeyUnsupported, match="named"):
        token.key()


def test_a_token_is_found_by_its_serial_number_alone_and_by_all_that_it_says(place):
    with place.token(sessions=1) as token:
        made = token.generate_key("issuing")
        facts = token_facts(token)
    names = [TokenName(None, facts.serial), TokenName(place.label, facts.serial, facts.manufacturer, facts.model)]
    if isinstance(place, Nss):  # both of its slots say 0
        with pytest.raises(TokenAmbiguous):
            Token(place.settings, names.pop(0), place.pin_file.read_text).open()
    for name in names:
        with Token(place.settings, name, place.pin_file.read_text, sessions=1) as token:
            assert token.key("issuing").public_key() == made.public_key()
    for name in (TokenName(place.label, "0"), TokenName(place.label, model="another"), TokenName("another")):
        with pytest.raises(TokenNotFound):
            Token(place.settings, name, place.pin_file.read_text).open()


def test_a_wrong_pin_is_tried_once(place):
    pins = []

    def read():
        pins.append(1)
        return "not-the-pin"

    token = Token(place.settings, place.label, read)
    for _ in range(3):
        with pytest.raises(WrongPin):
            token.open()
    assert len(pins) == 1


def test_a_token_is_closed_and_opened_again(place):
    with place.token(sessions=2) as token:
        made = token.generate_key("issuing")
        token.close()
        with pytest.raises(TokenUnavailable, match="not open"):
            sign_message(made, b"data")
        token.open()
        verify_message(made.public_key(), b"data", sign_message(made, b"data"))


def end_its_life(place, token, fault):
    """What a token that was reset does, by the means that this module has."""
    if isinstance(place, P11Kit):
        place.kill()
        place.start()
    else:
        fault(token)


# python-pkcs11 ends a search that never began, and cannot raise what comes of it.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("fault", [close_all_sessions, log_out, finalize])
def test_a_token_that_forgot_us_signs_makes_and_lists_keys_within_the_call(place, token, fault):
    key = token.generate_key("issuing")
    end_its_life(place, token, fault)
    verify_message(key.public_key(), b"data", sign_message(key, b"data"))
    end_its_life(place, token, fault)
    assert token.generate_key("second").label == "second"
    end_its_life(place, token, fault)
    assert [info.label for info in token.keys()] == ["issuing", "second"]  # noqa: SIM118 (no dict)
    assert token.key("issuing").public_key() == key.public_key()


def test_threads_sign_at_once(place, token):
    key = token.generate_key("issuing")
    with ThreadPoolExecutor(6) as pool:
        made = list(pool.map(lambda _: sign_message(key, b"data"), range(600)))
    for signature in made:
        verify_message(key.public_key(), b"data", signature)
    assert len(set(made)) == token.signatures == 600


def test_a_made_key_cannot_leave(place, token):
    token.generate_ec_key("issuing")
    if place.tells_local:
        (info,) = check_protection(token)
        assert (info.label, info.kind, len(info.id)) == ("issuing", "ec", 16)
        assert info.local
    else:
        (info,) = token.keys()
        with pytest.raises(KeyNotProtected, match=r"'issuing' was made elsewhere and brought in$"):
            check_protection(token)
    assert info.sensitive
    assert info.always_sensitive
    assert info.never_extractable
    assert info.needs_login
    assert not info.extractable


def test_the_token_gives_the_private_value_of_neither_key_nor_session_copy(token):
    token.ec_key(token.generate_ec_key("issuing").label)
    found = list(token._sessions._login.get_objects({Attribute.CLASS: ObjectClass.PRIVATE_KEY}))
    assert {key[Attribute.TOKEN] for key in found} == {True, False}
    for key in found:
        assert key[Attribute.SENSITIVE]
        assert not key[Attribute.EXTRACTABLE]
        assert not key[Attribute.DERIVE]
        assert not key[Attribute.DECRYPT]
        with pytest.raises(pkcs11.AttributeSensitive):
            key[Attribute.VALUE]
        with pytest.raises(pkcs11.PKCS11Error):
            key[Attribute.EXTRACTABLE] = True
        with pytest.raises(pkcs11.PKCS11Error):
            key[Attribute.SENSITIVE] = False


def test_an_existing_label_is_refused_and_the_key_stays(token):
    key = token.generate_ec_key("issuing")
    with pytest.raises(KeyExists, match="'issuing'"):
        token.generate_ec_key("issuing")
    assert token.ec_key("issuing").public_key() == key.public_key()
    assert len(token.keys()) == 1


def test_a_curve_and_a_label_that_are_not_ours_are_refused(token):
    with pytest.raises(KeyUnsupported, match="P-256"):
        token.generate_ec_key("issuing", ec.SECP256K1())
    for label in ("", "a\nb"):
        with pytest.raises(KeyUnsupported, match="label"):
            token.generate_ec_key(label)
    assert token.keys() == []


def test_a_missing_key_is_named(token):
    token.generate_ec_key("issuing")
    with pytest.raises(KeyNotFound, match=rf"'{token.label}'.*'nobody'"):
        token.ec_key("nobody")


def test_a_deleted_key_is_not_found_and_no_other_signs_in_its_place(token):
    key = token.generate_ec_key("issuing")
    with token._sessions._login.token.open(rw=True) as session:
        for found in list(session.get_objects({Attribute.LABEL: "issuing", Attribute.TOKEN: True})):
            found.destroy()
    token.generate_ec_key("issuing")
    token._sessions._seats[:] = [replace(seat, keys={}) for seat in token._sessions._seats]
    with pytest.raises(KeyNotFound):
        key.sign(b"data", SHA256)


def test_two_keys_of_one_label_are_refused(token):
    put_key(token, label="twice")
    put_key(token, label="twice")
    with pytest.raises(KeyAmbiguous, match="2 private keys 'twice'"):
        token.ec_key("twice")


def test_a_public_key_that_is_not_the_private_keys_is_refused(token):
    put_key(token, public_of=ec.generate_private_key(ec.SECP256R1()).public_key())
    with pytest.raises(KeyPairMismatch, match="'foreign'"):
        token.ec_key("foreign")


def test_a_key_that_is_too_small_is_refused(token):
    with token._sessions._login.token.open(rw=True) as session:
        session.generate_keypair(KeyType.RSA, 2048, label="rsa", store=True)
    with pytest.raises(KeyUnsupported, match="2048 bits"):
        token.key("rsa")


def test_a_key_that_is_no_ec_key_is_not_taken_for_one(token):
    token.generate_key("rsa", KeyKind.RSA3072)
    with pytest.raises(KeyUnsupported, match="'rsa' is no elliptic curve key"):
        token.ec_key("rsa")


@pytest.mark.parametrize(
    ("private", "faults"),
    [
        ({}, ["made elsewhere", "could once be taken"]),
        ({Attribute.SENSITIVE: False}, ["plain text"]),
        ({Attribute.EXTRACTABLE: True}, ["can be wrapped"]),
        ({Attribute.PRIVATE: False}, ["without the PIN"]),
    ],
)
def test_a_key_that_was_brought_in_fails_the_ceremonys_check(place, token, private, faults):
    put_key(token, private=private)
    if isinstance(place, Nss) and Attribute.PRIVATE in private:
        faults = ["made elsewhere"]  # NSS makes it private all the same
    with pytest.raises(KeyNotProtected) as refusal:
        check_protection(token)
    assert all(f"'foreign' {fault}" in str(refusal.value) or fault in str(refusal.value) for fault in faults)


# --- use ------------------------------------------------------------------------------------------------------------


def assert_builders_take_it(key, algorithm):
    """Certificates, requests and revocation lists."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Test CA")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(DAY)
        .not_valid_after(DAY + dt.timedelta(days=1))
        .sign(key, algorithm)
    )
    certificate.verify_directly_issued_by(certificate)
    assert x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, algorithm).is_signature_valid
    revoked = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(name)
        .last_update(DAY)
        .next_update(DAY + dt.timedelta(days=1))
        .sign(key, algorithm)
    )
    assert revoked.is_signature_valid(key.public_key())


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1()])
def test_it_signs_update_metadata(token, curve):
    key = token.generate_ec_key("targets", curve)
    signature = CryptoSigner(key).sign(b"metadata")
    SSlibKey.from_crypto(key.public_key()).verify_signature(signature, b"metadata")


@pytest.mark.parametrize("locking", ["os", "null"])
def test_threads_sign_at_once_with_either_locking(box, locking):
    opened = Token(replace(settings(box.directory), locking=locking), "ca", lambda: "user-pin", sessions=3)
    with opened as token:
        key = token.generate_ec_key("issuing")
        made = []

        def run():
            made.extend(key.sign(b"data", SHA256) for _ in range(300))

        threads = [threading.Thread(target=run) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(set(made)) == token.signatures == 1800
        for signature in made:
            key.public_key().verify(signature, b"data", SHA256)


def test_what_the_token_refuses_is_named_and_harms_nothing(token):
    key = token.generate_ec_key("issuing")
    generation = token._sessions._generation
    with pytest.raises(TokenRefused, match=f"'{token.label}': Template"):
        token._sessions.run(lambda seat: seat.session.create_object({Attribute.CLASS: ObjectClass.PUBLIC_KEY}))
    assert token._sessions._generation == generation
    key.public_key().verify(key.sign(b"data", SHA256), b"data", SHA256)
