"""Quotes in tpm2-tools' files: every form is read, every lie is refused by its name, what is not proven is said."""

import hashlib
import struct

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from provisioning.attestation.algorithms import ECDSA, RSAPSS, RSASSA, SHA256, SHA384
from provisioning.attestation.second_opinion import FILE_MOST, verify_tool_quote
from provisioning.export import tpm2_tools_pcrs
from provisioning.refusals import (
    AkAttributesRefused,
    AlgorithmRefused,
    AnswersAnotherChallenge,
    NotGeneratedByTpm,
    PcrSelectionWrong,
    PcrValuesNotQuoted,
    Refusal,
    SignatureWrong,
    StructureMalformed,
    WrongAttestationType,
)

HASHES = {SHA256: hashes.SHA256(), SHA384: hashes.SHA384()}
VALUES = {pcr: hashlib.sha256(bytes([pcr])).digest() for pcr in (0, 1, 2, 3, 4, 5, 7, 8, 9, 14)}
NONCE = b"\x0a\x0b\x0c"
RESTRICTED_AK = 0x00050472
"""restricted, sign, fixedTPM, fixedParent, sensitiveDataOrigin, userWithAuth, noDA."""
P256 = ec.generate_private_key(ec.SECP256R1())
RSA2048 = rsa.generate_private_key(65537, 2048)


def sized(data):
    return struct.pack(">H", len(data)) + data


def public_area(key, scheme=None, attributes=RESTRICTED_AK):
    numbers = key.public_key().public_numbers()
    head = struct.pack(">HI", SHA256, attributes) + sized(b"")
    if isinstance(key, rsa.RSAPrivateKey):
        area = b"\0\1" + head + struct.pack(">HHH", 0x10, scheme or RSASSA, SHA256) + struct.pack(">HI", 2048, 0)
        return area + sized(numbers.n.to_bytes(256, "big"))
    area = b"\0\x23" + head + struct.pack(">HHH", 0x10, ECDSA, SHA256) + struct.pack(">HH", 3, 0x10)
    return area + sized(numbers.x.to_bytes(32, "big")) + sized(numbers.y.to_bytes(32, "big"))


def attest(values=None, nonce=NONCE, signer=b"", hashed="sha256", bank=SHA256, magic=0xFF544347, kind=0x8018):
    values = VALUES if values is None else values
    bitmap = sum(1 << pcr for pcr in values).to_bytes(3, "little")
    digest = hashlib.new(hashed, b"".join(values[pcr] for pcr in sorted(values))).digest()
    return (
        struct.pack(">IH", magic, kind)
        + sized(signer)
        + sized(nonce)
        + struct.pack(">QIIBQ", 5000, 1, 2, 1, 0x20160511)
        + struct.pack(">IHB", 1, bank, 3)
        + bitmap
        + sized(digest)
    )


def sign(key, message, algorithm=SHA256, pss=False):
    if isinstance(key, rsa.RSAPrivateKey):
        scheme = padding.PSS(padding.MGF1(HASHES[algorithm]), 32) if pss else padding.PKCS1v15()
        return key.sign(message, scheme, HASHES[algorithm])
    return key.sign(message, ec.ECDSA(HASHES[algorithm]))


def tss(signature, scheme, algorithm=SHA256):
    head = struct.pack(">HH", scheme, algorithm)
    if scheme == ECDSA:
        r, s = decode_dss_signature(signature)
        return head + sized(r.to_bytes(32, "big")) + sized(s.to_bytes(32, "big"))
    return head + sized(signature)


def pem(key):
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


MESSAGE = attest()
EC_SIGNATURE, RSA_SIGNATURE = sign(P256, MESSAGE), sign(RSA2048, MESSAGE)
FILE = tpm2_tools_pcrs(SHA256, VALUES)
BARE = b"".join(VALUES[pcr] for pcr in sorted(VALUES))


@pytest.mark.parametrize("pcrs", [FILE, BARE], ids=["serialised", "bare"])
@pytest.mark.parametrize("form", ["pem", "TPM2B_PUBLIC", "TPMT_PUBLIC"])
@pytest.mark.parametrize("bare", [False, True])
@pytest.mark.parametrize("key", [P256, RSA2048], ids=["P-256", "RSA-2048"])
def test_every_form_of_a_good_quote_passes(key, form, bare, pcrs):
    area = public_area(key)
    ak = {"pem": pem(key), "TPM2B_PUBLIC": sized(area), "TPMT_PUBLIC": area}[form]
    signature, scheme = (EC_SIGNATURE, ECDSA) if key is P256 else (RSA_SIGNATURE, RSASSA)
    found = verify_tool_quote(ak, MESSAGE, signature if bare else tss(signature, scheme), NONCE, pcrs)
    assert found.values == VALUES
    assert found.bank == "sha256"
    assert found.scheme.algorithm == scheme
    assert (found.ak is None) == (form == "pem")
    assert any("restricted" in said for said in (found.not_proven if form == "pem" else found.proven))


@pytest.mark.parametrize("form", [b"", b"area"])
def test_pss_is_known_from_the_key_or_found(form):
    signature = sign(RSA2048, MESSAGE, pss=True)
    ak = public_area(RSA2048, RSAPSS) if form else pem(RSA2048)
    for data in (signature, tss(signature, RSAPSS)):
        assert verify_tool_quote(ak, MESSAGE, data, NONCE, FILE).scheme.algorithm == RSAPSS
    with pytest.raises(SignatureWrong):
        verify_tool_quote(public_area(RSA2048, RSASSA), MESSAGE, signature, NONCE, FILE)


def test_the_hash_of_the_scheme_makes_the_digest():
    message = attest(hashed="sha384")
    signature = sign(RSA2048, message, SHA384)
    for data in (signature, tss(signature, RSASSA, SHA384)):
        assert verify_tool_quote(pem(RSA2048), message, data, NONCE, FILE).scheme.hash == SHA384


def test_what_was_not_given_is_not_proven():
    found = verify_tool_quote(pem(P256), MESSAGE, EC_SIGNATURE, None, None)
    assert found.values == {}
    told = " ".join(found.not_proven)
    for missing in ("fresh", "restricted", "held", "TPM holds", "acceptable"):
        assert missing in told


def test_an_endorsement_primary_is_told_from_others():
    area = public_area(P256)
    name = b"\0\x0b" + hashlib.sha256(area).digest()
    signer = b"\0\x0b" + hashlib.sha256(b"\x40\0\0\x0b" + name).digest()
    message = attest(signer=signer)
    found = verify_tool_quote(area, message, sign(P256, message), NONCE, FILE)
    assert any("endorsement hierarchy" in said for said in found.proven)
    found = verify_tool_quote(area, MESSAGE, EC_SIGNATURE, NONCE, FILE)
    assert any("endorsement primary" in said for said in found.not_proven)


def refused(refusal, ak=None, message=MESSAGE, signature=EC_SIGNATURE, nonce=NONCE, pcrs=FILE):
    with pytest.raises(refusal):
        verify_tool_quote(pem(P256) if ak is None else ak, message, signature, nonce, pcrs)


def signed(**changes):
    message = attest(**changes)
    return {"message": message, "signature": sign(P256, message)}


def test_another_nonce_is_refused():
    for nonce in (b"", NONCE[:-1], NONCE + b"\0", b"\x0a\x0b\x0d"):
        refused(AnswersAnotherChallenge, nonce=nonce)


def test_an_empty_qualification_is_one():
    assert verify_tool_quote(pem(P256), **signed(nonce=b""), qualification=b"", pcrs=FILE).values
    with pytest.raises(AnswersAnotherChallenge):
        verify_tool_quote(pem(P256), **signed(nonce=b""), qualification=NONCE, pcrs=FILE)


def test_signatures_of_others_are_refused():
    other = ec.generate_private_key(ec.SECP256R1())
    refused(SignatureWrong, signature=sign(other, MESSAGE))
    refused(SignatureWrong, signature=tss(sign(other, MESSAGE), ECDSA))
    refused(SignatureWrong, ak=public_area(other))
    refused(SignatureWrong, ak=pem(RSA2048), signature=sign(rsa.generate_private_key(65537, 2048), MESSAGE))
    refused(SignatureWrong, ak=pem(RSA2048), signature=tss(EC_SIGNATURE, ECDSA))
    refused(SignatureWrong, signature=tss(RSA_SIGNATURE, RSASSA))
    refused(StructureMalformed, signature=b"\x30\0")
    refused(StructureMalformed, signature=b"")
    refused(AlgorithmRefused, ak=pem(RSA2048), signature=b"\0\0" + RSA_SIGNATURE[:-3])
    refused(StructureMalformed, ak=pem(RSA2048), signature=tss(RSA_SIGNATURE[:-1], RSASSA)[:-1])


def test_what_is_no_quote_is_refused():
    refused(NotGeneratedByTpm, **signed(magic=0xFF544346))
    refused(WrongAttestationType, **signed(kind=0x8017))
    refused(AlgorithmRefused, **signed(bank=4))
    refused(StructureMalformed, message=MESSAGE + b"\0")
    refused(StructureMalformed, message=b"")


def test_a_bare_signature_over_a_strange_digest_is_refused():
    message = attest(hashed="sha1")
    refused(StructureMalformed, message=message, signature=sign(P256, message))


def test_keys_that_are_no_ak_are_refused():
    refused(StructureMalformed, ak=b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n")
    refused(AlgorithmRefused, ak=b"nothing")
    refused(StructureMalformed, ak=b"")
    ed = ed25519.Ed25519PrivateKey.generate()
    refused(AlgorithmRefused, ak=pem(ed))
    refused(AlgorithmRefused, ak=pem(ec.generate_private_key(ec.SECP521R1())))
    refused(AlgorithmRefused, ak=pem(rsa.generate_private_key(65537, 1024)))  # noqa: S505  it is refused
    refused(AkAttributesRefused, ak=public_area(P256, attributes=RESTRICTED_AK & ~0x10000))
    refused(AkAttributesRefused, ak=public_area(P256, attributes=RESTRICTED_AK & ~2))


def test_values_that_were_not_quoted_are_refused():
    changed = VALUES | {7: bytes(32)}
    refused(PcrValuesNotQuoted, pcrs=tpm2_tools_pcrs(SHA256, changed))
    refused(PcrValuesNotQuoted, pcrs=b"".join(changed[pcr] for pcr in sorted(changed)))
    fewer = {pcr: value for pcr, value in VALUES.items() if pcr != 7}
    refused(PcrSelectionWrong, pcrs=tpm2_tools_pcrs(SHA256, fewer))
    refused(PcrSelectionWrong, pcrs=tpm2_tools_pcrs(SHA256, VALUES | {23: bytes(32)}))
    refused(PcrSelectionWrong, pcrs=tpm2_tools_pcrs(SHA384, VALUES))


@pytest.mark.parametrize(
    ("at", "value", "refusal"),
    [
        (0, 0, PcrSelectionWrong),
        (0, 2, PcrSelectionWrong),
        (0, 0xFFFFFFFF, PcrSelectionWrong),
        (132, 0, PcrValuesNotQuoted),
        (132, 1, PcrValuesNotQuoted),
        (132, 0xFFFFFFFF, PcrValuesNotQuoted),
        (136, 9, PcrValuesNotQuoted),
        (136, 0, PcrValuesNotQuoted),
        (136, 0xFFFFFFFF, PcrValuesNotQuoted),
    ],
)
def test_hostile_counts_in_a_pcr_file_are_refused(at, value, refusal):
    changed = FILE[:at] + struct.pack("<I", value) + FILE[at + 4 :]
    refused(refusal, pcrs=changed)


def test_hostile_sizes_in_a_pcr_file_are_refused():
    for size in (0, 31, 33, 64, 65, 0xFFFF):
        refused(PcrValuesNotQuoted, pcrs=FILE[:140] + struct.pack("<H", size) + FILE[142:])
    for select_bytes in (3, 4, 255):
        refused(PcrSelectionWrong, pcrs=FILE[:6] + bytes([select_bytes]) + b"\xff" * 4 + FILE[11:])
    for cut in (b"", FILE[:-1], FILE + b"\0", FILE[:135], FILE[:10]):
        refused(PcrValuesNotQuoted, pcrs=cut)


def test_files_of_any_size_are_refused():
    big = bytes(FILE_MOST + 1)
    for name in ("ak", "message", "signature", "pcrs"):
        refused(StructureMalformed, **{name: big})


@given(st.sampled_from(["ak", "message", "signature", "pcrs"]), st.data())
def test_no_change_of_any_file_passes(name, draw):
    files = {"ak": sized(public_area(P256)), "message": MESSAGE, "signature": tss(EC_SIGNATURE, ECDSA), "pcrs": FILE}
    data = bytearray(files[name])
    at = draw.draw(st.integers(0, len(data) - 1))
    data[at] ^= draw.draw(st.integers(1, 255))
    files[name] = bytes(data)
    try:
        found = verify_tool_quote(files["ak"], files["message"], files["signature"], NONCE, files["pcrs"])
    except Refusal:
        return
    # What nobody reads may change: unused slots of the PCR file; the key's name algorithm, and attributes
    # that count for nothing (its Name is another one then, and no TPM has such a key).
    assert name in {"pcrs", "ak"}
    assert found.values == VALUES
    assert name == "pcrs" or 4 <= at < 10
