"""The Merkle log against the known answers of RFC 6962's reference tests, and against itself by Hypothesis."""

import base64
import hashlib
from datetime import UTC, datetime

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from provisioning.transparency import (
    Checkpoint,
    CheckpointMalformed,
    CheckpointNotAuthentic,
    ProofWrong,
    Tree,
    append,
    checkpoint_text,
    commitment,
    consistency_proof,
    inclusion_proof,
    leaf_bytes,
    leaf_hash,
    leaf_of,
    node_hash,
    note_key_id,
    parse_checkpoint,
    root_of,
    root_of_leaves,
    signature_line,
    signed_note,
    verify_checkpoint,
    verify_consistency,
    verify_inclusion,
)

# The leaves and answers of the Certificate Transparency project's own Merkle tree tests.
ENTRIES = ["", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"]
LEAVES = [leaf_hash(bytes.fromhex(entry)) for entry in ENTRIES]
ROOTS = [
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]
INCLUSION = {
    (0, 1): [],
    (0, 8): [
        "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
    ],
    (2, 3): ["fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125"],
}
CONSISTENCY = {
    (1, 1): [],
    (1, 8): INCLUSION[0, 8],
    (6, 8): [
        "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ],
}
sizes = st.integers(1, 70)
OTHER = hashlib.sha256(b"other").digest()


def some_leaves(count: int) -> list[bytes]:
    return [leaf_hash(number.to_bytes(4, "big")) for number in range(count)]


def recursive_root(leaves: list[bytes]) -> bytes:
    """MTH as RFC 6962 section 2.1 writes it down."""
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return leaves[0]
    split = 1
    while split * 2 < len(leaves):
        split *= 2
    return node_hash(recursive_root(leaves[:split]), recursive_root(leaves[split:]))


@pytest.mark.parametrize("size", range(9))
def test_roots_are_the_known_answers(size):
    assert root_of_leaves(LEAVES[:size]).hex() == ROOTS[size]


@pytest.mark.parametrize(("index", "size"), INCLUSION)
def test_inclusion_proofs_are_the_known_answers(index, size):
    proof = inclusion_proof(LEAVES[:size], index)
    assert [node.hex() for node in proof] == INCLUSION[index, size]
    verify_inclusion(LEAVES[index], index, size, proof, bytes.fromhex(ROOTS[size]))


@pytest.mark.parametrize(("old", "new"), CONSISTENCY)
def test_consistency_proofs_are_the_known_answers(old, new):
    proof = consistency_proof(LEAVES[:new], old)
    assert [node.hex() for node in proof] == CONSISTENCY[old, new]
    verify_consistency(old, bytes.fromhex(ROOTS[old]), new, bytes.fromhex(ROOTS[new]), proof)


@given(count=st.integers(0, 200), cut=st.integers(0, 200))
def test_a_tree_grown_in_steps_is_the_tree_of_the_definition(count, cut):
    leaves = some_leaves(count)
    grown = append(append(Tree(), leaves[:cut]), leaves[cut:])
    assert root_of(grown) == recursive_root(leaves)
    assert grown.size == count
    assert len(grown.peaks) == count.bit_count()


@given(size=sizes, data=st.data())
def test_every_leaf_is_proven_and_nothing_else_is(size, data):
    leaves = some_leaves(size)
    index = data.draw(st.integers(0, size - 1))
    root, proof = root_of_leaves(leaves), inclusion_proof(leaves, index)
    verify_inclusion(leaves[index], index, size, proof, root)
    wrong = [
        (OTHER, index, proof, root),
        (leaves[index], index, proof, OTHER),
        (leaves[index], index, (*proof, OTHER), root),
        (leaves[index], size, proof, root),
        (leaves[index], -1, proof, root),
    ]
    if size > 1:
        wrong.append((leaves[index], (index + 1) % size, proof, root))
        wrong.append((leaves[index], index, proof[:-1], root))
        at = data.draw(st.integers(0, len(proof) - 1))
        wrong.append((leaves[index], index, (*proof[:at], OTHER, *proof[at + 1 :]), root))
    for leaf, position, path, claimed in wrong:
        with pytest.raises(ProofWrong):
            verify_inclusion(leaf, position, size, path, claimed)


@given(size=sizes, data=st.data())
def test_every_beginning_is_proven_and_nothing_else_is(size, data):
    leaves = some_leaves(size)
    old = data.draw(st.integers(0, size))
    old_root, root, proof = root_of_leaves(leaves[:old]), root_of_leaves(leaves), consistency_proof(leaves, old)
    verify_consistency(old, old_root, size, root, proof)
    wrong = [(old, OTHER, root, proof), (old, old_root, root, (*proof, OTHER)), (size + 1, old_root, root, proof)]
    if old:
        wrong.append((old, old_root, OTHER, proof))
    if proof:
        wrong.append((old, old_root, root, proof[:-1]))
        at = data.draw(st.integers(0, len(proof) - 1))
        wrong.append((old, old_root, root, (*proof[:at], OTHER, *proof[at + 1 :])))
    for claimed_size, claimed_old, claimed_new, path in wrong:
        with pytest.raises(ProofWrong):
            verify_consistency(claimed_size, claimed_old, size, claimed_new, path)


def test_a_rewritten_history_is_not_consistent():
    honest = some_leaves(6)
    rewritten = [OTHER, *honest[1:], *some_leaves(2)]
    with pytest.raises(ProofWrong):
        verify_consistency(6, root_of_leaves(honest), 8, root_of_leaves(rewritten), consistency_proof(rewritten, 6))


def test_an_empty_proof_where_one_is_needed_is_refused():
    with pytest.raises(ProofWrong, match="empty"):
        verify_consistency(3, root_of_leaves(LEAVES[:3]), 8, root_of_leaves(LEAVES), [])


def test_proofs_of_what_is_not_there_are_not_made():
    with pytest.raises(IndexError):
        inclusion_proof(LEAVES, 8)
    with pytest.raises(IndexError):
        consistency_proof(LEAVES, 9)


# --- leaves -------------------------------------------------------------------------------------------------------


def test_a_leaf_is_readable_and_commits_to_salt_and_record():
    leaf = leaf_of("certificate", datetime(2026, 11, 21, 12, tzinfo=UTC), b"\x01" * 32, b"record")
    digest = base64.urlsafe_b64encode(hashlib.sha256(b"\x01" * 32 + b"record").digest()).rstrip(b"=").decode()
    text = f'{{"commitment":"{digest}","kind":"certificate","time":"2026-11-21T12:00:00Z"}}'
    assert leaf_bytes(leaf) == text.encode()


def test_a_commitment_needs_a_whole_salt():
    for salt in (b"", b"\x01" * 31, b"\x01" * 33):
        with pytest.raises(ValueError, match="32 bytes"):
            commitment(salt, b"record")


# --- checkpoints --------------------------------------------------------------------------------------------------

ORIGIN = "muster.example/log"
KEY = ec.generate_private_key(ec.SECP256R1())
PUBLIC = KEY.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
STRANGER = ec.generate_private_key(ec.SECP256R1())
STRANGER_PUBLIC = STRANGER.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
CHECKPOINT = Checkpoint(ORIGIN, 8, root_of_leaves(LEAVES))
TEXT = checkpoint_text(CHECKPOINT)
KEYS = {ORIGIN: [PUBLIC]}


def sign(key: ec.EllipticCurvePrivateKey, text: bytes) -> bytes:
    return key.sign(text, ec.ECDSA(hashes.SHA256()))


NOTE = signed_note(TEXT, ORIGIN, PUBLIC, sign(KEY, TEXT))


def test_a_checkpoint_is_a_signed_note():
    lines = NOTE.decode().split("\n")
    assert lines[:4] == [ORIGIN, "8", base64.b64encode(root_of_leaves(LEAVES)).decode(), ""]
    dash, name, signature = lines[4].split(" ")
    assert (dash, name, lines[5:]) == ("—", ORIGIN, [""])
    assert base64.b64decode(signature)[:4] == hashlib.sha256(PUBLIC).digest()[:4]
    assert verify_checkpoint(NOTE, ORIGIN, KEYS) == CHECKPOINT


def test_a_checkpoint_parses_without_being_believed():
    parsed = parse_checkpoint(NOTE)
    assert (parsed.unverified_checkpoint, parsed.text) == (CHECKPOINT, TEXT)
    assert [(name, key_id) for name, key_id, _ in parsed.signatures] == [(ORIGIN, note_key_id(PUBLIC))]


def test_unknown_signatures_beside_a_known_one_are_ignored():
    cosigned = NOTE + signature_line("witness.example", STRANGER_PUBLIC, sign(STRANGER, TEXT))
    assert verify_checkpoint(cosigned, ORIGIN, KEYS) == CHECKPOINT
    first = signed_note(TEXT, "witness.example", STRANGER_PUBLIC, b"\x00") + signature_line(
        ORIGIN, PUBLIC, sign(KEY, TEXT)
    )
    assert verify_checkpoint(first, ORIGIN, KEYS) == CHECKPOINT


def test_extension_lines_are_covered_and_not_interpreted():
    text = TEXT + b"extension\n"
    assert verify_checkpoint(signed_note(text, ORIGIN, PUBLIC, sign(KEY, text)), ORIGIN, KEYS) == CHECKPOINT
    with pytest.raises(CheckpointNotAuthentic, match="signature is wrong"):
        verify_checkpoint(signed_note(text, ORIGIN, PUBLIC, sign(KEY, TEXT)), ORIGIN, KEYS)


ED25519 = (
    ed25519.Ed25519PrivateKey.generate().public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
)
NOT_AUTHENTIC = {
    "another log": (NOTE, "other.example/log", {"other.example/log": [PUBLIC]}, "another log"),
    "no key": (NOTE, ORIGIN, {}, "no trusted key"),
    "a stranger's key": (
        signed_note(TEXT, ORIGIN, STRANGER_PUBLIC, sign(STRANGER, TEXT)),
        ORIGIN,
        KEYS,
        "no trusted key",
    ),
    "a stranger under the key's id": (
        signed_note(TEXT, ORIGIN, PUBLIC, sign(STRANGER, TEXT)),
        ORIGIN,
        KEYS,
        "signature is wrong",
    ),
    "a good and a wrong signature": (
        NOTE + signature_line(ORIGIN, PUBLIC, sign(KEY, b"else")),
        ORIGIN,
        KEYS,
        "signature is wrong",
    ),
    "another size": (NOTE.replace(b"\n8\n", b"\n9\n"), ORIGIN, KEYS, "signature is wrong"),
    "a key of another kind": (
        signed_note(TEXT, ORIGIN, ED25519, b"\x00" * 64),
        ORIGIN,
        {ORIGIN: [ED25519]},
        "not an ECDSA key",
    ),
}


@pytest.mark.parametrize("case", NOT_AUTHENTIC.values(), ids=NOT_AUTHENTIC.keys())
def test_what_is_not_authentic_is_refused(case):
    note, origin, keys, reason = case
    with pytest.raises(CheckpointNotAuthentic, match=reason):
        verify_checkpoint(note, origin, keys)


LINE = signature_line(ORIGIN, PUBLIC, sign(KEY, TEXT))
MALFORMED = {
    "empty": (b"", "no signatures"),
    "too long": (NOTE + b" " * 8192, "more than"),
    "not UTF-8": (b"\xff" + NOTE, "UTF-8"),
    "control character": (NOTE.replace(b"\n8\n", b"\n8\r\n"), "control"),
    "unsigned": (TEXT, "no signatures"),
    "no last line end": (NOTE[:-1], "no signatures"),
    "too many": (TEXT + b"\n" + LINE * 17, "more than 16"),
    "no dash": (TEXT + b"\n" + LINE.replace("— ".encode(), b""), "no signature"),
    "no key name": (TEXT + b"\n" + LINE.replace(ORIGIN.encode(), b""), "no signature"),
    "no signature behind the id": (TEXT + b"\n" + "— a AAAAAA==\n".encode(), "no signature"),
    "signature not base64": (TEXT + b"\n" + "— a !!!!\n".encode(), "not base64"),
    "no origin": (b"\n8\n" + TEXT.split(b"\n")[2] + b"\n\n" + LINE, "origin, size and root"),
    "leading zero": (NOTE.replace(b"\n8\n", b"\n08\n"), "origin, size and root"),
    "negative": (NOTE.replace(b"\n8\n", b"\n-8\n"), "origin, size and root"),
    "other digits": (NOTE.replace(b"\n8\n", "\n٨\n".encode()), "origin, size and root"),
    "short root": (f"{ORIGIN}\n8\nAAAA\n\n".encode() + LINE, "origin, size and root"),
    "root not canonical": (NOTE.replace(b"RgQyg=\n", b"RgQyh=\n"), "canonical"),
    "one line": (b"a\n\n" + LINE, "origin, size and root"),
}


@pytest.mark.parametrize("case", MALFORMED.values(), ids=MALFORMED.keys())
def test_what_is_no_checkpoint_is_refused(case):
    note, reason = case
    assert note != NOTE
    with pytest.raises(CheckpointMalformed, match=reason):
        parse_checkpoint(note)


@given(st.binary(max_size=300) | st.text(max_size=100).map(lambda text: NOTE + text.encode("utf-8", "replace")))
def test_no_bytes_but_the_note_are_a_checkpoint(data):
    if data == NOTE:
        return
    with pytest.raises((CheckpointMalformed, CheckpointNotAuthentic)):
        verify_checkpoint(data, ORIGIN, KEYS)


def test_no_bit_of_the_signed_text_may_be_another():
    for position in range(len(TEXT)):
        for bit in range(8):
            hostile = bytearray(NOTE)
            hostile[position] ^= 1 << bit
            with pytest.raises((CheckpointMalformed, CheckpointNotAuthentic)):
                verify_checkpoint(bytes(hostile), ORIGIN, KEYS)


@pytest.mark.parametrize(
    "checkpoint", [Checkpoint("a b", 1, bytes(32)), Checkpoint("a", -1, bytes(32)), Checkpoint("a", 1, bytes(31))]
)
def test_a_checkpoint_that_could_not_be_parsed_is_not_made(checkpoint):
    with pytest.raises(ValueError, match="not a checkpoint"):
        checkpoint_text(checkpoint)


def test_a_name_that_no_key_can_have_is_not_written():
    with pytest.raises(ValueError, match="not a key name"):
        signature_line("a+b", PUBLIC, b"")
