"""Device paths with the highest bit of every number set; DER, names and keys at their bounds."""

import struct
from uuid import UUID

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import NameOID

from provisioning.attestation import der as shape
from provisioning.attestation.eventtext import decode
from provisioning.attestation.eventtext_paths import NODES_MOST, device_path, file_of
from provisioning.attestation.jwk import jwk_of
from provisioning.attestation.keys import public_key_of, verify_allowed, verify_authority_key, verify_signature
from provisioning.attestation.names import attribute_of, name_key, name_text
from provisioning.attestation.structures import EccPoint, Scheme, Signature
from provisioning.refusals import AlgorithmRefused, CertificateMalformed, SignatureWrong, StructureMalformed, WeakKey
from tests.support.ek_certificates import ec_key, element, rsa_key
from tests.unit.attestation.test_keys import area, ecdsa, roca_modulus  # noqa: F401  a fixture, by its name

GUID = UUID("11111111-2222-3333-4444-555555555555")
RAW = GUID.bytes_le
HIGH16, HIGH32, HIGH64 = 0x8001, 0x80000001, 2**63 + 1


def both_sides(refusal, call, *arguments):
    with pytest.raises(refusal) as refused:
        call(*arguments)
    return refused.value.expected, refused.value.actual


def node(kind, subtype, data=b""):
    return struct.pack("<BBH", kind, subtype, 4 + len(data)) + data


END = node(0x7F, 0xFF)
X16, X32, X64 = f"{HIGH16:#x}", f"{HIGH32:#x}", f"{HIGH64:#x}"

NODES = [
    (1, 1, b"\x81\x91", "Pci(0x91,0x81)"),
    (1, 2, b"\x81", "PcCard(0x81)"),
    (1, 3, struct.pack("<IQQ", HIGH32, HIGH64, HIGH64 + 1), f"MemoryMapped({X32},{X64},{HIGH64 + 1:#x})"),
    (1, 4, RAW, f"VenHw({GUID})"),
    (1, 4, RAW + b"\x80\x81", f"VenHw({GUID},8081)"),
    (1, 5, struct.pack("<I", HIGH32), f"Ctrl({X32})"),
    (1, 6, struct.pack("<BQ", 0x81, HIGH64), f"BMC(0x81,{X64})"),
    (2, 1, struct.pack("<II", 0x0A0341D0, HIGH32), f"PciRoot({X32})"),
    (2, 1, struct.pack("<II", 0x8A0341D0, HIGH32), f"Acpi(PNP8A03,{X32})"),
    (2, 2, struct.pack("<III", 0x8A0841D0, HIGH32, 0) + b"\0\0\0", f"AcpiEx(PNP8A08,0,{X32})"),
    (2, 2, struct.pack("<III", 1, 2, 0) + b"H\0U\0", "AcpiEx(H,0,U)"),
    (2, 2, struct.pack("<III", 1, 2, 3) + b"H\0U", "AcpiEx(H,"),
    (2, 2, struct.pack("<III", 1, 2, 0) + b"\xff\0U\0", "AcpiEx(\ufffd,0,U)"),
    (2, 3, struct.pack("<9I", *[HIGH32] * 9), f"AcpiAdr({','.join([X32] * 8)})"),
    (3, 1, struct.pack("<BBH", 0x81, 0x82, HIGH16), f"Ata(0x81,0x82,{X16})"),
    (3, 2, struct.pack("<HH", HIGH16, HIGH16 + 1), f"Scsi({X16},{HIGH16 + 1:#x})"),
    (3, 3, struct.pack("<IQQ", HIGH32, HIGH64, HIGH64 + 1), f"Fibre({X64},{HIGH64 + 1:#x})"),
    (3, 11, bytes(range(32)) + b"\0", "MAC(000102030405,0x0)"),
    (3, 11, bytes(range(32)) + b"\1", "MAC(000102030405,0x1)"),
    (3, 11, bytes(range(32)) + b"\2", f"MAC({bytes(range(32)).hex()},0x2)"),
    (
        3,
        12,
        bytes([192, 0, 2, 1, 192, 0, 2, 2]) + struct.pack("<HHHB", HIGH16, HIGH16 + 1, HIGH16 + 2, 1),
        f"IPv4(192.0.2.2:{HIGH16 + 1},{HIGH16 + 2:#x},Static,192.0.2.1)",
    ),
    (
        3,
        13,
        bytes(15) + b"\1" + bytes(15) + b"\2" + struct.pack("<HHHB", HIGH16, HIGH16 + 1, HIGH16 + 2, 0x81),
        f"IPv6([::2]:{HIGH16 + 1},{HIGH16 + 2:#x},0x81,::1)",
    ),
    *((3, 14, struct.pack("<IQBBB", HIGH32, HIGH64, 0x81, one, 1), f"Uart({HIGH64},129,{text},1)")
      for one, text in enumerate("DNEOMS6")),
    *((3, 14, struct.pack("<IQBBB", 0, 1, 8, 1, one), f"Uart(1,8,N,{text})")
      for one, text in enumerate(("D", "1", "1.5", "2", "4"))),
    (3, 19, struct.pack("<HHQH", HIGH16, HIGH16, HIGH64, HIGH16) + b"iqn", f"iSCSI(iqn,{X16},{X64})"),
    (3, 31, b"\0" + bytes([192, 0, 2, 1]) * 2, "Dns(192.0.2.1,192.0.2.1)"),
    (3, 31, b"\1" + bytes(15) + b"\1", "Dns(::1)"),
    (3, 31, b"\0" + bytes([9, 9, 9, 9] * 9), f"Dns({','.join(['9.9.9.9'] * 8)})"),
    (
        4,
        1,
        struct.pack("<IQQ", HIGH32, HIGH64, HIGH64 + 1) + RAW + b"\x81\2",
        f"HD({HIGH32},GPT,{GUID},{X64},{HIGH64 + 1:#x})",
    ),
    (
        4,
        1,
        struct.pack("<IQQ", 1, HIGH64, 2) + struct.pack("<I", 0xCAFE) + b"\xff" * 12 + b"\1\1",
        f"HD(1,MBR,0x0000cafe,{X64},0x2)",
    ),
    (4, 8, struct.pack("<IQQ", HIGH32, HIGH64, HIGH64 + 1), f"Offset({X64},{HIGH64 + 1:#x})"),
    (4, 9, struct.pack("<QQ", HIGH64, HIGH64 + 1) + RAW + b"\3\x80", f"RamDisk({X64},{HIGH64 + 1:#x},{0x8003},{GUID})"),
    (5, 1, struct.pack("<HH", HIGH16, HIGH16 + 1) + b"Disk\0", f"BBS({X16},Disk,{HIGH16 + 1:#x})"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "subtype", "data", "text"), NODES)
def test_a_node_with_high_numbers(kind, subtype, data, text):
    shown = device_path(node(kind, subtype, data) + END)
    assert shown == text or (text.endswith(",") and shown.startswith(text))


def test_a_path_is_bounded_and_says_so():
    one = node(1, 2, b"\1")
    assert device_path(one * NODES_MOST + END) == "/".join(["PcCard(0x1)"] * NODES_MOST)
    assert device_path(one * (NODES_MOST + 2) + END) == "/".join(["PcCard(0x1)"] * NODES_MOST) + "/…"
    file = node(4, 4, "a".encode("utf-16-le"))
    assert file_of(file * (NODES_MOST + 5) + END).count("a") == NODES_MOST


def test_an_event_whose_data_lies_has_its_bytes():
    words = decode(0x80000010, b"other", {})
    assert words.details == {"malformed": "other in the place of HCRTM", "value": b"other".hex()}


# --- DER ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "expected", "actual"),
    [
        (b"", "a DER element", "none, or one of a high tag number"),
        (b"\x30", "a DER element", "none, or one of a high tag number"),
        (b"\x1f\x01\x00", "a DER element", "none, or one of a high tag number"),
        (b"\x30\x80\0\0", "DER", "an element of indefinite length"),
        (b"\x30\x85\0\0\0\0\0", "a length of at most 4 octets", "5 octets"),
        (b"\x30\x84\0\0\0", "a length of at most 4 octets", "4 octets"),
        (b"\x30\x03ab", "5 octets", "4 octets"),
        (b"\x30\x82\1\2a", "262 octets", "5 octets"),
    ],
)
def test_what_is_no_der_says_why(data, expected, actual):
    assert both_sides(CertificateMalformed, shape.first, data) == (expected, actual)
    behind = element(0x04, b"x") + data
    if data:
        assert both_sides(CertificateMalformed, lambda: list(shape.elements(behind))) == (expected, actual)


def test_lengths_of_der():
    for content in (b"", b"a" * 127, b"a" * 128, b"a" * 255, b"a" * 256, b"a" * 70000):
        one = shape.first(element(0x04, content) + b"behind")
        assert (one.tag, one.content, one.raw) == (0x04, content, element(0x04, content))
    assert shape.first(b"\x04\x84\0\0\0\1a").content == b"a"
    assert shape.first(b"\x04\x81\0").content == b""
    inner = element(0x02, b"\1") + element(0x04, b"\2\3")
    assert [(one.tag, one.content) for one in shape.children(element(0x30, inner), 0x30)] == [(2, b"\1"), (4, b"\2\3")]
    told = both_sides(CertificateMalformed, shape.children, element(0x31, inner), 0x30)
    assert told == ("one element of tag 0x30", "tag 0x31")
    told = both_sides(CertificateMalformed, shape.children, element(0x30, inner) + b"\0", 0x30)
    assert told == ("one element of tag 0x30", "tag 0x30")


# --- names --------------------------------------------------------------------------------------------------------


def named(text, oid=NameOID.COMMON_NAME):
    return x509.Name([x509.NameAttribute(oid, text)]).public_bytes()


def test_names_that_differ_in_blanks_and_case_are_one():
    assert name_key(named("A  b")) == name_key(named(" a B "))
    assert name_key(named("\ufb01x")) == name_key(named("FIX"))
    assert name_key(named("straße")) == name_key(named("STRASSE"))
    assert name_key(named("ab")) != name_key(named("a b"))
    assert name_key(named("a")) != name_key(named("a", NameOID.ORGANIZATION_NAME))


def test_a_name_with_more_behind_it_is_no_name():
    good = named("a")
    assert name_text(good) == "Common Name: a"
    assert name_text(good + b"\0") == (good + b"\0").hex()
    assert name_text(named("a\x1bb")) == "Common Name: a?b"
    assert attribute_of(good, "common_name") == "a"
    assert attribute_of(good + b"\0", "common_name") == ""
    assert name_key(good + b"\5\0") != name_key(good)


# --- keys ---------------------------------------------------------------------------------------------------------


def test_a_refused_key_says_what_it_is():
    n = rsa_key().public_key().public_numbers().n
    allowed = "RSA of 2048, 3072 or 4096 bits, exponent 65537"
    assert both_sides(AlgorithmRefused, verify_allowed, rsa_key(1024).public_key()) == (
        allowed,
        "RSA of 1024 bits, exponent 65537",
    )
    assert both_sides(AlgorithmRefused, verify_allowed, rsa.RSAPublicNumbers(3, n).public_key()) == (
        allowed,
        "RSA of 2048 bits, exponent 3",
    )
    kinds = "RSA, P-256 or P-384"
    assert both_sides(AlgorithmRefused, verify_allowed, ec_key(ec.SECP521R1).public_key()) == (kinds, "secp521r1")
    assert both_sides(AlgorithmRefused, verify_allowed, "text") == (kinds, "str")
    ed = ed25519.Ed25519PrivateKey.generate().public_key()
    assert both_sides(AlgorithmRefused, verify_authority_key, ed) == (kinds, type(ed).__name__)


def of_bits(bits, exponent=65537):
    """A public key of so many bits, of which nobody has the other half."""
    return rsa.RSAPublicNumbers(exponent, (1 << (bits - 1)) + 0x10F).public_key()


def test_authorities_have_2048_to_8192_bits():
    allowed = "RSA of 2048 to 8192 bits, exponent 65537"
    for bits in (2048, 2049, 3000, 4096, 8191, 8192):
        assert verify_authority_key(of_bits(bits)).key_size == bits
    for bits in (2047, 8193):
        told = both_sides(AlgorithmRefused, verify_authority_key, of_bits(bits))
        assert told == (allowed, f"RSA of {bits} bits, exponent 65537")
    told = both_sides(AlgorithmRefused, verify_authority_key, of_bits(2056, 3))
    assert told == (allowed, "RSA of 2056 bits, exponent 3")


def test_a_weak_modulus_is_named(roca_modulus):  # noqa: F811  the fixture
    told = both_sides(WeakKey, verify_allowed, rsa.RSAPublicNumbers(65537, roca_modulus).public_key())
    assert told == ("a modulus without the ROCA fingerprint", "CVE-2017-15361")


def test_a_point_that_is_none_is_named():
    told = both_sides(StructureMalformed, public_key_of, area(EccPoint(3, b"\1" * 32, b"\1" * 32)))
    assert told == ("a point on the curve", "a point that is not")


def test_a_wrong_signature_says_in_which_scheme():
    key, scheme = ec_key().public_key(), Scheme(0x18, 0x0B)
    told = both_sides(SignatureWrong, verify_signature, key, scheme, ecdsa(b"m"), b"n")
    assert told == ("ECDSA with sha256 by the AK", "a signature that is not")
    told = both_sides(SignatureWrong, verify_signature, key, scheme, Signature(scheme, b"s" * 64), b"m")
    assert told == ("ECDSA with sha256", "a signature of another kind of key")
    told = both_sides(SignatureWrong, verify_signature, key, scheme, Signature(Scheme(0x1A, 0x0C), (1, 1)), b"m")
    assert told == ("ECDSA with sha256", "? with sha384")
    for number, title in ((0x14, "RSASSA"), (0x16, "RSAPSS")):
        other = Signature(Scheme(number, 0x0D), b"")
        told = both_sides(SignatureWrong, verify_signature, key, scheme, other, b"m")
        assert told == ("ECDSA with sha256", f"{title} with sha512")


def test_an_rsa_key_is_written_without_leading_zeros():
    jwk = jwk_of(rsa_key().public_key())
    assert (jwk["kty"], jwk["e"]) == ("RSA", "AQAB")
    assert len(jwk["n"]) == 342
