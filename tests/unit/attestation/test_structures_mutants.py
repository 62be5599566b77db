"""What a refused TPM structure says: which field, what would have been right, what was found. And each bound, twice."""

import hashlib
import struct

import pytest

from provisioning.attestation.algorithms import ATTRIBUTE_NAMES, attribute_names
from provisioning.attestation.structures import (
    EccPoint,
    name_of,
    parse_certify,
    parse_public,
    parse_quote,
    parse_signature,
)
from provisioning.refusals import AlgorithmRefused, NotGeneratedByTpm, StructureMalformed, WrongAttestationType
from tests.unit.attestation.test_structures import attest, certify, ecc_public, ecdsa, quote, rsa_public, sized

AES_CFB = struct.pack(">HHH", 6, 128, 0x43)
RSASSA = struct.pack(">HH", 0x14, 0x0B)
PUBLIC = ["type: 2", "nameAlg: 2", "objectAttributes: 4", "authPolicy: 2", "authPolicy: 32", "symmetric: 2"]
ATTEST = [
    *("magic: 4", "type: 2", "qualifiedSigner: 2", "qualifiedSigner: 34", "extraData: 2", "extraData: 32"),
    "clockInfo: 25",
]
POINT = ["curveID: 2", "kdf: 2", "unique.x: 2", "unique.x: 32", "unique.y: 2", "unique.y: 32"]
CUT = {
    "an ECC key": (
        parse_public,
        ecc_public(policy=b"p" * 32),
        "TPMT_PUBLIC",
        [*PUBLIC, "scheme: 2", "scheme.hash: 2", *POINT],
    ),
    "an RSA storage key": (
        parse_public,
        rsa_public(symmetric=AES_CFB, scheme=b"\0\x10"),
        "TPMT_PUBLIC",
        [
            *(field for field in PUBLIC if field != "authPolicy: 32"),
            *("symmetric.keyBits: 2", "symmetric.mode: 2", "scheme: 2", "keyBits: 2", "exponent: 4"),
            *("unique: 2", "unique: 256"),
        ],
    ),
    "a quote": (
        parse_quote,
        quote(),
        "TPMS_ATTEST",
        [
            *ATTEST,
            *("attested.pcrSelect.count: 4", "attested.pcrSelect.hash: 2", "attested.pcrSelect.sizeofSelect: 1"),
            *("attested.pcrSelect: 3", "attested.pcrDigest: 2", "attested.pcrDigest: 32"),
        ],
    ),
    "a certification": (
        parse_certify,
        certify(),
        "TPMS_ATTEST",
        [
            *ATTEST,
            *("attested.name: 2", "attested.name: 34", "attested.qualifiedName: 2", "attested.qualifiedName: 34"),
        ],
    ),
    "an ECDSA signature": (
        parse_signature,
        ecdsa(),
        "TPMT_SIGNATURE",
        ["sigAlg: 2", "sigAlg.hash: 2", "signatureR: 2", "signatureR: 32", "signatureS: 2", "signatureS: 32"],
    ),
    "an RSA signature": (
        parse_signature,
        RSASSA + sized(b"s" * 256),
        "TPMT_SIGNATURE",
        ["sigAlg: 2", "sigAlg.hash: 2", "sig: 2", "sig: 256"],
    ),
    "a public area, for its name": (name_of, b"\0\x23\0\x0b", "TPMT_PUBLIC", ["type: 2", "nameAlg: 2"]),
}


@pytest.mark.parametrize(("parse", "data", "structure", "fields"), CUT.values(), ids=CUT)
def test_a_cut_structure_says_which_field_is_missing(parse, data, structure, fields):
    found, left = [], []
    for length in range(len(data)):
        with pytest.raises(StructureMalformed) as refused:
            parse(data[:length])
        if refused.value.expected not in found:
            found.append(refused.value.expected)
            left.append(refused.value.actual)
    assert found == [f"{structure}.{field} bytes" for field in fields]
    assert set(left) == {"0"}


ATTRIBUTES = 0x00050072
REFUSED = {
    "another type": (parse_public, ecc_public(kind=0x08), AlgorithmRefused, "TPMT_PUBLIC.type: RSA or ECC", "0x0008"),
    "SHA-1": (
        parse_public,
        ecc_public(name_alg=4),
        AlgorithmRefused,
        "TPMT_PUBLIC.nameAlg: SHA-256, SHA-384 or SHA-512",
        "0x0004",
    ),
    "a reserved attribute": (
        parse_public,
        ecc_public(attributes=ATTRIBUTES | 1),
        StructureMalformed,
        "TPMT_PUBLIC.objectAttributes: no reserved bit",
        "0x00050073",
    ),
    "a policy of another size": (
        parse_public,
        ecc_public(policy=b"p" * 31),
        StructureMalformed,
        "TPMT_PUBLIC.authPolicy: empty, or a digest of nameAlg",
        "31 bytes",
    ),
    "too long a policy": (
        parse_public,
        ecc_public(policy=b"p" * 65),
        StructureMalformed,
        "TPMT_PUBLIC.authPolicy: at most 64 bytes",
        "65",
    ),
    "another cipher": (
        parse_public,
        ecc_public(symmetric=b"\0\x0a"),
        AlgorithmRefused,
        "TPMT_PUBLIC.symmetric: AES or NULL",
        "0x000a",
    ),
    "another size of cipher": (
        parse_public,
        ecc_public(symmetric=struct.pack(">HHH", 6, 192, 0x43)),
        AlgorithmRefused,
        "TPMT_PUBLIC.symmetric: AES-128 or AES-256 in CFB mode",
        "192 bits, mode 0x0043",
    ),
    "another mode": (
        parse_public,
        ecc_public(symmetric=struct.pack(">HHH", 6, 256, 0x44)),
        AlgorithmRefused,
        "TPMT_PUBLIC.symmetric: AES-128 or AES-256 in CFB mode",
        "256 bits, mode 0x0044",
    ),
    "another scheme": (
        parse_public,
        ecc_public(scheme=RSASSA),
        AlgorithmRefused,
        "TPMT_PUBLIC.scheme: a scheme of the allow-list",
        "0x0014",
    ),
    "another hash of the scheme": (
        parse_public,
        ecc_public(scheme=b"\0\x18\0\x04"),
        AlgorithmRefused,
        "TPMT_PUBLIC.scheme.hash: SHA-256, SHA-384 or SHA-512",
        "0x0004",
    ),
    "another curve": (
        parse_public,
        ecc_public(curve=5),
        AlgorithmRefused,
        "TPMT_PUBLIC.curveID: P-256 or P-384",
        "0x0005",
    ),
    "a derivation": (parse_public, ecc_public(kdf=0x20), AlgorithmRefused, "TPMT_PUBLIC.kdf: NULL", "0x0020"),
    "too long an x": (
        parse_public,
        ecc_public(x=b"\1" * 33),
        StructureMalformed,
        "TPMT_PUBLIC.unique.x: at most 32 bytes",
        "33",
    ),
    "too long a y": (
        parse_public,
        ecc_public(y=b"\1" * 33),
        StructureMalformed,
        "TPMT_PUBLIC.unique.y: at most 32 bytes",
        "33",
    ),
    "RSA-1024": (
        parse_public,
        rsa_public(bits=1024),
        AlgorithmRefused,
        "TPMT_PUBLIC.keyBits: 2048, 3072 or 4096",
        "1024",
    ),
    "another exponent": (
        parse_public,
        rsa_public(exponent=3),
        AlgorithmRefused,
        "TPMT_PUBLIC.exponent: 0 or 65537",
        "3",
    ),
    "an even modulus": (
        parse_public,
        rsa_public(modulus=b"\xff" * 255 + b"\xfe"),
        StructureMalformed,
        "TPMT_PUBLIC.unique: an odd modulus of 2048 bits",
        "256 bytes",
    ),
    "a short modulus": (
        parse_public,
        rsa_public(modulus=b"\xff" * 255),
        StructureMalformed,
        "TPMT_PUBLIC.unique: an odd modulus of 2048 bits",
        "255 bytes",
    ),
    "a long modulus": (
        parse_public,
        rsa_public(modulus=b"\xff" * 257),
        StructureMalformed,
        "TPMT_PUBLIC.unique: at most 256 bytes",
        "257",
    ),
    "something behind": (
        parse_public,
        ecc_public() + b"ab",
        StructureMalformed,
        "TPMT_PUBLIC.end: no more bytes",
        "2 bytes",
    ),
    "something behind a quote": (
        parse_quote,
        quote() + b"a",
        StructureMalformed,
        "TPMS_ATTEST.end: no more bytes",
        "1 bytes",
    ),
    "something behind a certification": (
        parse_certify,
        certify() + b"a",
        StructureMalformed,
        "TPMS_ATTEST.end: no more bytes",
        "1 bytes",
    ),
    "something behind a signature": (
        parse_signature,
        ecdsa() + b"a",
        StructureMalformed,
        "TPMT_SIGNATURE.end: no more bytes",
        "1 bytes",
    ),
    "not made by a TPM": (parse_quote, attest(magic=0x0F544347), NotGeneratedByTpm, "0xff544347", "0x0f544347"),
    "a certification for a quote": (
        parse_quote,
        certify(),
        WrongAttestationType,
        "0x8018 quote",
        "0x8017 certify",
    ),
    "a quote for a certification": (
        parse_certify,
        quote(),
        WrongAttestationType,
        "0x8017 certify",
        "0x8018 quote",
    ),
    "an attestation of time": (
        parse_certify,
        attest(kind=0x19),
        WrongAttestationType,
        "0x8017 certify",
        "0x0019 another",
    ),
    "too long a nonce": (
        parse_quote,
        attest(extra=b"e" * 67),
        StructureMalformed,
        "TPMS_ATTEST.extraData: at most 66 bytes",
        "67",
    ),
    "neither safe nor unsafe": (
        parse_quote,
        attest(safe=2),
        StructureMalformed,
        "TPMS_ATTEST.clockInfo.safe: 0 or 1",
        "2",
    ),
    "no bank": (parse_quote, quote(banks=0), StructureMalformed, "TPMS_ATTEST.attested.pcrSelect: one bank", "0"),
    "two banks": (parse_quote, quote(banks=2), StructureMalformed, "TPMS_ATTEST.attested.pcrSelect: one bank", "2"),
    "a bank of SHA-1": (
        parse_quote,
        quote(bank=4),
        AlgorithmRefused,
        "TPMS_ATTEST.attested.pcrSelect.hash: SHA-256, SHA-384 or SHA-512",
        "0x0004",
    ),
    "too wide a selection": (
        parse_quote,
        quote(select=b"\1\0\0\0\0"),
        StructureMalformed,
        "TPMS_ATTEST.attested.pcrSelect.sizeofSelect: at most 4",
        "5",
    ),
    "a PCR that no TPM has": (
        parse_quote,
        quote(select=b"\0\0\0\1"),
        StructureMalformed,
        "TPMS_ATTEST.attested.pcrSelect: PCRs 0 to 23",
        "0x1000000",
    ),
    "too long a digest": (
        parse_quote,
        quote(digest=b"d" * 65),
        StructureMalformed,
        "TPMS_ATTEST.attested.pcrDigest: at most 64 bytes",
        "65",
    ),
    "too long a name": (
        parse_certify,
        certify(name=b"n" * 67),
        StructureMalformed,
        "TPMS_ATTEST.attested.name: at most 66 bytes",
        "67",
    ),
    "too long a qualified name": (
        parse_certify,
        certify(qualified=b"n" * 67),
        StructureMalformed,
        "TPMS_ATTEST.attested.qualifiedName: at most 66 bytes",
        "67",
    ),
    "too long a signer": (
        parse_quote,
        struct.pack(">IH", 0xFF544347, 0x8018) + sized(b"s" * 67),
        StructureMalformed,
        "TPMS_ATTEST.qualifiedSigner: at most 66 bytes",
        "67",
    ),
    "no scheme": (
        parse_signature,
        b"\0\x10",
        AlgorithmRefused,
        "TPMT_SIGNATURE.sigAlg: RSASSA, RSAPSS or ECDSA",
        "0x0010",
    ),
    "a scheme off the list": (
        parse_signature,
        b"\0\x1a\0\x0b",
        AlgorithmRefused,
        "TPMT_SIGNATURE.sigAlg: a scheme of the allow-list",
        "0x001a",
    ),
    "too long an r": (
        parse_signature,
        ecdsa(r=b"\3" * 49),
        StructureMalformed,
        "TPMT_SIGNATURE.signatureR: at most 48 bytes",
        "49",
    ),
    "too long an s": (
        parse_signature,
        ecdsa(s=b"\3" * 49),
        StructureMalformed,
        "TPMT_SIGNATURE.signatureS: at most 48 bytes",
        "49",
    ),
    "too long a signature": (
        parse_signature,
        RSASSA + sized(b"s" * 513),
        StructureMalformed,
        "TPMT_SIGNATURE.sig: at most 512 bytes",
        "513",
    ),
}


@pytest.mark.parametrize(("parse", "data", "refusal", "expected", "actual"), REFUSED.values(), ids=REFUSED)
def test_a_refusal_says_the_field_and_both_sides(parse, data, refusal, expected, actual):
    with pytest.raises(refusal) as refused:
        parse(data)
    assert (refused.value.expected, refused.value.actual) == (expected, actual)


def test_the_largest_of_everything_is_read():
    assert parse_public(ecc_public(name_alg=0x0D, policy=b"p" * 64)).auth_policy == b"p" * 64
    assert parse_public(rsa_public(bits=4096, modulus=b"\xff" * 512)).key.bits == 4096
    assert parse_public(rsa_public(bits=3072, modulus=b"\xff" * 384)).key.bits == 3072
    assert parse_public(ecc_public(symmetric=struct.pack(">HHH", 6, 256, 0x43))).symmetric_bits == 256
    assert parse_public(ecc_public(attributes=sum(ATTRIBUTE_NAMES))).attributes == sum(ATTRIBUTE_NAMES)
    assert parse_quote(attest(extra=b"e" * 66, body=quote()[len(attest()) :])).extra_data == b"e" * 66
    assert parse_quote(quote(bank=0x0D, digest=b"d" * 64)).quoted.digest == b"d" * 64
    assert parse_quote(quote(select=b"\xff\xff\xff\0")).quoted.pcrs == tuple(range(24))
    assert parse_certify(certify(b"n" * 66, b"q" * 66)).certified.qualified_name == b"q" * 66
    assert parse_signature(ecdsa(b"\xff" * 48, b"\xff" * 48)).value == (2**384 - 1, 2**384 - 1)
    assert parse_signature(RSASSA + sized(b"s" * 512)).value == b"s" * 512


def test_short_coordinates_of_p384_are_padded_too():
    area = parse_public(ecc_public(curve=4, x=b"\7" * 47, y=b"\5"))
    assert area.key == EccPoint(4, b"\0" + b"\7" * 47, bytes(47) + b"\5")


def test_a_name_is_by_its_own_algorithm():
    area = ecc_public(name_alg=0x0C)
    assert name_of(area) == parse_public(area).name == b"\0\x0c" + hashlib.sha384(area).digest()


@pytest.mark.parametrize("bit", ATTRIBUTE_NAMES)
def test_each_attribute_has_its_name(bit):
    assert attribute_names(bit) == ATTRIBUTE_NAMES[bit]
    assert attribute_names(bit | 1) == ATTRIBUTE_NAMES[bit]
