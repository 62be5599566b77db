"""TPM structures: what a TPM writes is read exactly, and nothing else is read at all."""

import hashlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tpm2_pytss.constants import TPM2_ALG
from tpm2_pytss.types import (
    TPM2B_DATA,
    TPM2B_DIGEST,
    TPM2B_ECC_PARAMETER,
    TPM2B_NAME,
    TPM2B_PUBLIC,
    TPM2B_PUBLIC_KEY_RSA,
    TPML_PCR_SELECTION,
    TPMS_ATTEST,
    TPMS_CERTIFY_INFO,
    TPMS_CLOCK_INFO,
    TPMS_ECC_POINT,
    TPMS_QUOTE_INFO,
    TPMS_SIGNATURE_ECC,
    TPMS_SIGNATURE_RSA,
    TPMT_PUBLIC,
    TPMT_SIGNATURE,
    TPMU_ATTEST,
    TPMU_PUBLIC_ID,
    TPMU_SIGNATURE,
)

from provisioning.attestation import algorithms, structures
from provisioning.attestation.algorithms import FIXED_TPM, SIGN, attribute_names
from provisioning.attestation.structures import (
    EccPoint,
    RsaKey,
    name_of,
    parse_certify,
    parse_public,
    parse_quote,
    parse_signature,
)
from provisioning.refusals import AlgorithmRefused, NotGeneratedByTpm, StructureMalformed, WrongAttestationType

NAMED = (StructureMalformed, AlgorithmRefused, NotGeneratedByTpm, WrongAttestationType)


def sized(data):
    return struct.pack(">H", len(data)) + data


def ecc_public(  # noqa: PLR0917
    kind=0x23,
    name_alg=0x0B,
    attributes=0x00050072,
    policy=b"",
    symmetric=b"\0\x10",
    scheme=b"\0\x18\0\x0b",
    curve=3,
    kdf=0x10,
    x=b"\1" * 32,
    y=b"\2" * 32,
):
    head = struct.pack(">HHI", kind, name_alg, attributes) + sized(policy) + symmetric + scheme
    return head + struct.pack(">HH", curve, kdf) + sized(x) + sized(y)


def rsa_public(bits=2048, exponent=0, modulus=b"\xff" * 256, scheme=b"\0\x14\0\x0b", symmetric=b"\0\x10"):
    head = struct.pack(">HHI", 1, 0x0B, 0x00050072) + sized(b"") + symmetric + scheme
    return head + struct.pack(">HI", bits, exponent) + sized(modulus)


def attest(kind=0x8018, magic=0xFF544347, body=b"", safe=1, extra=b"e" * 32):
    clock = struct.pack(">QIIBQ", 1234, 5, 6, safe, 0x2026)
    return struct.pack(">IH", magic, kind) + sized(b"\0\x0b" + b"s" * 32) + sized(extra) + clock + body


def quote(bank=0x0B, select=b"\x91\0\0", banks=1, digest=b"d" * 32):
    body = struct.pack(">IHB", banks, bank, len(select)) + select + sized(digest)
    return attest(body=body)


def certify(name=b"\0\x0b" + b"k" * 32, qualified=b"\0\x0b" + b"q" * 32):
    return attest(kind=0x8017, body=sized(name) + sized(qualified))


def ecdsa(r=b"\3" * 32, s=b"\4" * 32):
    return struct.pack(">HH", 0x18, 0x0B) + sized(r) + sized(s)


VALID = [
    (parse_public, ecc_public()),
    (parse_public, rsa_public()),
    (parse_quote, quote()),
    (parse_certify, certify()),
    (parse_signature, ecdsa()),
    (parse_signature, struct.pack(">HH", 0x14, 0x0B) + sized(b"s" * 256)),
]


# --- what is read -------------------------------------------------------------------------------------------------


def test_an_ecc_public_area_is_read():
    area = parse_public(ecc_public())
    assert area.key == EccPoint(3, b"\1" * 32, b"\2" * 32)
    assert area.scheme == structures.Scheme(0x18, 0x0B)
    assert area.symmetric_bits is None
    assert attribute_names(area.attributes) == (
        "fixedTPM, fixedParent, sensitiveDataOrigin, userWithAuth, restricted, sign"
    )
    assert attribute_names(0) == "none"


def test_short_coordinates_are_padded():
    """Older TPMs leave leading zeros out."""
    assert parse_public(ecc_public(x=b"\7")).key == EccPoint(3, bytes(31) + b"\7", b"\2" * 32)


def test_an_rsa_public_area_is_read():
    area = parse_public(rsa_public(exponent=65537))
    assert area.key == RsaKey(b"\xff" * 256)
    assert area.key.bits == 2048


def test_a_storage_key_has_a_cipher():
    assert parse_public(rsa_public(symmetric=struct.pack(">HHH", 6, 128, 0x43))).symmetric_bits == 128


def test_a_key_may_have_no_scheme():
    assert parse_public(ecc_public(scheme=b"\0\x10")).scheme is None


def test_a_quote_is_read():
    parsed = parse_quote(quote())
    assert parsed.quoted == structures.QuotedPcrs(0x0B, (0, 4, 7), b"d" * 32)
    assert parsed.clock == structures.Clock(1234, 5, 6, safe=True)
    assert (parsed.firmware_version, parsed.extra_data) == (0x2026, b"e" * 32)
    assert parsed.qualified_signer == b"\0\x0b" + b"s" * 32


def test_four_octets_of_selection_may_be_given_and_none_too():
    assert parse_quote(quote(select=b"\1\0\x80\0")).quoted.pcrs == (0, 23)
    assert parse_quote(quote(select=b"")).quoted.pcrs == ()


def test_a_certification_is_read():
    parsed = parse_certify(certify())
    assert parsed.certified == structures.CertifiedName(b"\0\x0b" + b"k" * 32, b"\0\x0b" + b"q" * 32)
    assert not parse_certify(attest(kind=0x8017, safe=0, body=sized(b"") * 2)).clock.safe


def test_signatures_are_read():
    assert parse_signature(ecdsa()).value == (int.from_bytes(b"\3" * 32, "big"), int.from_bytes(b"\4" * 32, "big"))
    assert parse_signature(struct.pack(">HH", 0x16, 0x0C) + sized(b"s" * 384)).value == b"s" * 384


# --- what is refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("parse", "data"), VALID)
def test_nothing_may_be_missing_and_nothing_may_follow(parse, data):
    assert parse(data)
    for length in range(len(data)):
        with pytest.raises(NAMED):
            parse(data[:length])
    with pytest.raises(StructureMalformed):
        parse(data + b"\0")


@pytest.mark.parametrize(
    ("data", "field"),
    [
        (ecc_public(attributes=1), "objectAttributes"),
        (ecc_public(policy=b"p" * 20), "authPolicy"),
        (ecc_public(policy=b"p" * 65), "authPolicy"),
        (ecc_public(x=b"\1" * 33), "unique.x"),
        (ecc_public(y=b"\1" * 33), "unique.y"),
        (rsa_public(modulus=b"\xff" * 255), "unique"),
        (rsa_public(modulus=b"\xff" * 257), "unique"),
        (rsa_public(modulus=b"\x7f" + b"\xff" * 255), "unique"),
        (rsa_public(modulus=b"\xff" * 255 + b"\xfe"), "unique"),
        (rsa_public(modulus=b""), "unique"),
    ],
)
def test_a_malformed_public_area_is_refused(data, field):
    with pytest.raises(StructureMalformed) as refused:
        parse_public(data)
    assert refused.value.expected.startswith(f"TPMT_PUBLIC.{field}: ")


@pytest.mark.parametrize(
    ("data", "field"),
    [
        (ecc_public(kind=0x08), "type"),
        (ecc_public(kind=0x25), "type"),
        (ecc_public(name_alg=0x04), "nameAlg"),
        (ecc_public(name_alg=0x10), "nameAlg"),
        (ecc_public(name_alg=0x12), "nameAlg"),
        (ecc_public(symmetric=struct.pack(">HHH", 0x0A, 128, 0x43)), "symmetric"),
        (ecc_public(symmetric=struct.pack(">HHH", 6, 64, 0x43)), "symmetric"),
        (ecc_public(symmetric=struct.pack(">HHH", 6, 128, 0x42)), "symmetric"),
        (ecc_public(scheme=b"\0\x14\0\x0b"), "scheme"),
        (ecc_public(scheme=b"\0\x1a\0\x0b\0\0"), "scheme"),
        (ecc_public(scheme=b"\0\x18\0\x04"), "scheme.hash"),
        (ecc_public(curve=1), "curveID"),
        (ecc_public(curve=5), "curveID"),
        (ecc_public(kdf=0x20), "kdf"),
        (rsa_public(scheme=b"\0\x18\0\x0b"), "scheme"),
        (rsa_public(bits=1024, modulus=b"\xff" * 128), "keyBits"),
        (rsa_public(exponent=3), "exponent"),
    ],
)
def test_an_algorithm_off_the_list_is_refused(data, field):
    with pytest.raises(AlgorithmRefused) as refused:
        parse_public(data)
    assert refused.value.expected.startswith(f"TPMT_PUBLIC.{field}: ")


def test_magic_and_type_are_judged_before_anything_else():
    with pytest.raises(NotGeneratedByTpm):
        parse_quote(attest(magic=0xFF544346))
    with pytest.raises(WrongAttestationType, match="another type"):
        parse_quote(certify())
    with pytest.raises(WrongAttestationType):
        parse_certify(quote())
    with pytest.raises(WrongAttestationType) as refused:
        parse_quote(attest(kind=0x8014))
    assert refused.value.actual == "0x8014 another"


@pytest.mark.parametrize(
    "data",
    [
        quote(banks=0),
        quote(banks=2),
        quote(select=b"\1\0\0\0\0"),
        quote(select=b"\1\0\0\1"),
        quote(digest=b"d" * 65),
        attest(safe=2, body=b"\0" * 20),
        attest(extra=b"e" * 67),
    ],
)
def test_a_malformed_quote_is_refused(data):
    with pytest.raises(StructureMalformed):
        parse_quote(data)


def test_a_quote_of_a_sha1_bank_is_refused():
    with pytest.raises(AlgorithmRefused):
        parse_quote(quote(bank=0x04, digest=b"d" * 20))


@pytest.mark.parametrize("data", [b"\0\x10", struct.pack(">HH", 0x1A, 0x0B), struct.pack(">HH", 0x18, 0x04)])
def test_a_signature_off_the_list_is_refused(data):
    with pytest.raises(AlgorithmRefused):
        parse_signature(data)


def test_a_name_needs_a_name_algorithm():
    with pytest.raises(AlgorithmRefused):
        name_of(b"\0\x23\0\x04" + bytes(40))
    with pytest.raises(StructureMalformed):
        name_of(b"\0\x23\0")


# --- properties ---------------------------------------------------------------------------------------------------


@given(st.binary(max_size=400))
def test_arbitrary_bytes_are_refused_by_name(data):
    for parse in (parse_public, parse_quote, parse_certify, parse_signature, name_of):
        try:
            parse(data)
        except NAMED:
            continue


@given(st.sampled_from(VALID), st.data())
def test_mutated_structures_are_read_or_refused_by_name(case, data):
    parse, valid = case
    mutated = bytearray(valid)
    for _ in range(data.draw(st.integers(1, 4))):
        mutated[data.draw(st.integers(0, len(mutated) - 1))] = data.draw(st.integers(0, 255))
    try:
        parse(bytes(mutated))
    except NAMED:
        return


ECC_ALGORITHMS = ["ecc256:ecdsa-sha256:null", "ecc384:ecdsa-sha384:null", "ecc256:null:null"]
RSA_ALGORITHMS = ["rsa2048:rsassa-sha256:null", "rsa3072:rsapss-sha384:null", "rsa2048:null:aes128cfb"]


@given(st.sampled_from(ECC_ALGORITHMS + RSA_ALGORITHMS), st.integers(0, 2**12), st.binary(max_size=4))
def test_public_areas_agree_with_the_tss(algorithm, chosen, noise):
    """What tpm2-pytss marshals is read back field by field, and has the Name that it computes."""
    bits = [bit for number, bit in enumerate(algorithms.ATTRIBUTE_NAMES) if chosen >> number & 1]
    noise = hashlib.shake_256(noise).digest(600)
    stores = algorithms.RESTRICTED | algorithms.DECRYPT
    public = TPMT_PUBLIC.parse(algorithm, objectAttributes=stores if "aes" in algorithm else SIGN)
    public.objectAttributes = sum(bits)
    if algorithm.startswith("ecc"):
        size = 32 if "256:" in algorithm[:7] else 48
        x, y = noise[:size], noise[size : 2 * size]
        public.unique = TPMU_PUBLIC_ID(ecc=TPMS_ECC_POINT(x=TPM2B_ECC_PARAMETER(x), y=TPM2B_ECC_PARAMETER(y)))
        key = EccPoint(3 if size == 32 else 4, x, y)
    else:
        size = int(algorithm[3:7]) // 8
        modulus = b"\xc0" + noise[: size - 2] + b"\1"
        public.unique = TPMU_PUBLIC_ID(rsa=TPM2B_PUBLIC_KEY_RSA(modulus))
        key = RsaKey(modulus)
    raw = public.marshal()
    area = parse_public(raw)
    assert area.key == key
    assert area.attributes == int(public.objectAttributes) == sum(bits)
    assert area.name == name_of(raw) == bytes(TPM2B_PUBLIC(public).get_name())
    assert (area.symmetric_bits == 128) == ("aes128" in algorithm)
    assert (area.scheme is None) == (":null" in algorithm[:12])


@given(
    st.sets(st.integers(0, 23), min_size=1),
    st.sampled_from(["sha256", "sha384", "sha512"]),
    st.integers(0, 2**64 - 1),
    st.integers(0, 2**32 - 1),
    st.booleans(),
    st.binary(max_size=64),
)
def test_attestations_agree_with_the_tss(pcrs, bank, clock, resets, safe, extra):
    info = TPMS_CLOCK_INFO(clock=clock, resetCount=resets, restartCount=resets ^ 1, safe=safe)
    common = {"magic": 0xFF544347, "qualifiedSigner": TPM2B_NAME(b"\0\x0b" + b"n" * 32), "extraData": TPM2B_DATA(extra)}
    selection = TPML_PCR_SELECTION.parse(f"{bank}:{','.join(map(str, sorted(pcrs)))}")
    body = TPMU_ATTEST(quote=TPMS_QUOTE_INFO(pcrSelect=selection, pcrDigest=TPM2B_DIGEST(b"d" * 32)))
    parsed = parse_quote(
        TPMS_ATTEST(**common, type=0x8018, clockInfo=info, firmwareVersion=clock, attested=body).marshal()
    )
    assert parsed.quoted == structures.QuotedPcrs(algorithms.HASH_IDS[bank], tuple(sorted(pcrs)), b"d" * 32)
    assert parsed.clock == structures.Clock(clock, resets, resets ^ 1, safe)
    assert (parsed.extra_data, parsed.firmware_version) == (extra, clock)
    names = TPMS_CERTIFY_INFO(name=TPM2B_NAME(b"\0\x0b" + b"1" * 32), qualifiedName=TPM2B_NAME(b"\0\x0b" + b"2" * 32))
    body = TPMU_ATTEST(certify=names)
    parsed = parse_certify(
        TPMS_ATTEST(**common, type=0x8017, clockInfo=info, firmwareVersion=clock, attested=body).marshal()
    )
    assert parsed.certified == structures.CertifiedName(b"\0\x0b" + b"1" * 32, b"\0\x0b" + b"2" * 32)


@given(st.binary(min_size=1, max_size=48), st.binary(min_size=1, max_size=48), st.binary(min_size=256, max_size=256))
def test_signatures_agree_with_the_tss(r, s, rsa):
    value = TPMS_SIGNATURE_ECC(
        hash=TPM2_ALG.SHA256, signatureR=TPM2B_ECC_PARAMETER(r), signatureS=TPM2B_ECC_PARAMETER(s)
    )
    made = TPMT_SIGNATURE(sigAlg=TPM2_ALG.ECDSA, signature=TPMU_SIGNATURE(ecdsa=value))
    assert parse_signature(made.marshal()).value == (int.from_bytes(r, "big"), int.from_bytes(s, "big"))
    value = TPMS_SIGNATURE_RSA(hash=TPM2_ALG.SHA384, sig=TPM2B_PUBLIC_KEY_RSA(rsa))
    made = TPMT_SIGNATURE(sigAlg=TPM2_ALG.RSAPSS, signature=TPMU_SIGNATURE(rsapss=value))
    assert parse_signature(made.marshal()) == structures.Signature(structures.Scheme(0x16, 0x0C), rsa)


@given(st.binary(min_size=60, max_size=200))
def test_the_tss_reads_whatever_is_read_here(noise):
    """Nothing is accepted that libtss2 would read differently: same key, nothing left over."""
    data = ecc_public(x=noise[:32].ljust(32, b"\1"), y=noise[28:60])
    area = parse_public(data)
    theirs, used = TPMT_PUBLIC.unmarshal(data)
    assert used == len(data)
    assert bytes(theirs.unique.ecc.x) == area.key.x
    assert bytes(theirs.unique.ecc.y) == area.key.y
    assert int(theirs.objectAttributes) == area.attributes
    assert area.attributes & (FIXED_TPM | SIGN) == FIXED_TPM | SIGN
