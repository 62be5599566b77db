"""Reading what a token says about its keys: points, attributes, protection."""

from types import SimpleNamespace

import pkcs11
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st
from pkcs11 import Attribute, KeyType

from hsm.ceremony import check_protection, protection_faults
from hsm.errors import KeyNotProtected, KeyUnsupported
from hsm.kinds import CURVES, PARAMETERS, decode_ec_point
from hsm.objects import KeyInfo, describe_key

P256 = PARAMETERS["secp256r1"]
GOOD = {
    Attribute.LABEL: "issuing",
    Attribute.ID: b"\x01",
    Attribute.KEY_TYPE: KeyType.EC,
    Attribute.SENSITIVE: True,
    Attribute.EXTRACTABLE: False,
    Attribute.ALWAYS_SENSITIVE: True,
    Attribute.NEVER_EXTRACTABLE: True,
    Attribute.LOCAL: True,
    Attribute.PRIVATE: True,
}


class Key(dict):
    """A private key with these attributes; asked for another, it answers as a token does."""

    def __missing__(self, attribute):
        raise pkcs11.AttributeTypeInvalid


def point_of(curve):
    public_key = ec.generate_private_key(curve).public_key()
    encoding, form = serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint
    return public_key, public_key.public_bytes(encoding, form)


@pytest.mark.parametrize(("parameters", "curve"), CURVES.items(), ids=PARAMETERS)
def test_a_point_is_read_bare_and_in_an_octet_string(parameters, curve):
    public_key, point = point_of(curve)
    header = bytes([0x04, len(point)]) if len(point) < 128 else bytes([0x04, 0x81, len(point)])
    assert decode_ec_point(parameters, point) == public_key
    assert decode_ec_point(parameters, header + point) == public_key


def test_the_parameters_are_the_named_curves():
    for parameters, curve in CURVES.items():
        spki = ec.generate_private_key(curve).public_key()
        encoding, form = serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        assert parameters in spki.public_bytes(encoding, form)


def bad_points():
    _, point = point_of(ec.SECP256R1())
    return {
        "empty": b"",
        "only the header": b"\x04",
        "truncated": point[:-1],
        "truncated in an octet string": b"\x04\x40" + point[:-1],
        "one byte more": b"\x00" + point,
        "wrong length": b"\x04\x42" + point,
        "other tag": b"\x03\x41" + point,
        "off the curve": point[:-1] + bytes([point[-1] ^ 1]),
        "infinity": b"\x00",
        "compressed": b"\x02" + point[1:33],
        "hybrid": bytes([6 + (point[-1] & 1)]) + point[1:],
        "of another curve": point_of(ec.SECP384R1())[1],
    }


@pytest.mark.parametrize("point", bad_points().values(), ids=bad_points())
def test_what_is_no_point_is_refused(point):
    with pytest.raises(KeyUnsupported, match="point"):
        decode_ec_point(P256, point)


@given(st.binary(max_size=200), st.sampled_from([*CURVES]))
def test_hostile_points_are_refused_by_name(point, parameters):
    with pytest.raises(KeyUnsupported):
        decode_ec_point(parameters, point)


@pytest.mark.parametrize("parameters", [b"", b"\x05\x00", bytes.fromhex("06052b8104000a"), P256 + b"\x00"])
def test_another_curve_is_refused(parameters):
    with pytest.raises(KeyUnsupported, match="P-256"):
        decode_ec_point(parameters, point_of(ec.SECP256R1())[1])


def test_a_good_key_has_no_fault():
    info = describe_key(Key(GOOD))
    assert info == KeyInfo("issuing", b"\x01", "ec", "", True, False, True, True, True, True)
    assert protection_faults(info) == []


FAULTS = [
    (Attribute.SENSITIVE, "plain text"),
    (Attribute.EXTRACTABLE, "can be wrapped"),
    (Attribute.ALWAYS_SENSITIVE, "could once be read"),
    (Attribute.NEVER_EXTRACTABLE, "could once be taken"),
    (Attribute.LOCAL, "made elsewhere"),
    (Attribute.PRIVATE, "without the PIN"),
]


@pytest.mark.parametrize(("attribute", "meaning"), FAULTS)
def test_each_missing_protection_is_a_fault_of_its_own(attribute, meaning):
    for key in (Key(GOOD | {attribute: not GOOD[attribute]}), Key({k: v for k, v in GOOD.items() if k != attribute})):
        (fault,) = protection_faults(describe_key(key))
        assert meaning in fault


def test_a_vendors_own_kind_of_key_is_described():
    assert describe_key(Key(GOOD | {Attribute.KEY_TYPE: 0x80000001})).kind == "0x80000001"


def test_the_check_names_every_fault_of_every_key():
    weak = describe_key(Key(GOOD | {Attribute.LABEL: "weak", Attribute.LOCAL: False, Attribute.EXTRACTABLE: True}))
    open_ = describe_key(Key(GOOD | {Attribute.LABEL: "open", Attribute.PRIVATE: False}))
    token = SimpleNamespace(label="ca", keys=lambda: [describe_key(Key(GOOD)), weak, open_])
    with pytest.raises(KeyNotProtected) as refusal:
        check_protection(token)
    text = str(refusal.value)
    assert "issuing" not in text
    assert all(part in text for part in ("'weak' can be wrapped", "'weak' was made elsewhere", "'open' can be used"))
    assert "\n" not in text
