"""The Merkle log: leaves, roots, proofs (RFC 6962 section 2, RFC 9162 section 2.1), checkpoints (C2SP tlog-checkpoint).

A leaf commits to a record and tells strangers nothing about it: record and salt stay in the database, are disclosed
with a proof, and can be erased. A proof shows that a leaf is in the tree of a checkpoint; it does not show that the
log shows the same tree to everybody (witnesses do), nor that what the record says is true.
"""

import base64
import binascii
import hashlib
import hmac
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_der_public_key

from wire.codec import Cap, encode

HASH_OCTETS = 32
SALT_OCTETS = 32
CHECKPOINT_MOST = 8 * 1024
"""Bytes of a checkpoint with its signatures, at most."""
SIGNATURES_MOST = 16


class ProofWrong(ValueError):
    """The proof does not lead to the root."""


class CheckpointMalformed(ValueError):
    """The bytes are no checkpoint."""


class CheckpointNotAuthentic(ValueError):
    """The checkpoint is of another log, or no trusted key signed it, or a trusted key's signature is wrong."""


# --- leaves -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Leaf:
    """What the public log holds of one record. `time` is to the second."""

    kind: Annotated[str, Cap(64)]
    time: datetime
    commitment: Annotated[bytes, Cap(HASH_OCTETS)]


def leaf_of(kind: str, time: datetime, salt: bytes, record: bytes) -> Leaf:
    """The leaf that commits to `record` (canonical bytes) under a salt of 32 random bytes. Raises: ValueError."""
    return Leaf(kind, time, commitment(salt, record))


def commitment(salt: bytes, record: bytes) -> bytes:
    """SHA-256(salt ‖ record). The salt's length is fixed: no record can pass as another with a part of its salt."""
    if len(salt) != SALT_OCTETS:
        raise ValueError(f"a salt has {SALT_OCTETS} bytes, got {len(salt)}")
    return hashlib.sha256(salt + record).digest()


def leaf_bytes(leaf: Leaf) -> bytes:
    """The log entry: canonical JSON, so that a stranger reads it without a tool of ours."""
    return encode(leaf)


def leaf_hash(entry: bytes) -> bytes:
    """RFC 6962 section 2.1: the 0x00 keeps a leaf from passing as a node."""
    return hashlib.sha256(b"\x00" + entry).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """The same clause: the 0x01 keeps a node from passing as a leaf."""
    return hashlib.sha256(b"\x01" + left + right).digest()


# --- the tree -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Tree:
    """A tree as far as it takes to go on: its size, and the roots of its complete subtrees, the largest first.

    There are as many `peaks` as `size` has bits set.
    """

    size: int = 0
    peaks: tuple[bytes, ...] = ()


def append(tree: Tree, leaf_hashes: Iterable[bytes]) -> Tree:
    """The tree with these leaves behind the ones it has."""
    size, peaks = tree.size, list(tree.peaks)
    for leaf in leaf_hashes:
        node = leaf
        level = size
        while level & 1:  # each bit set on the right is a subtree of equal height: join
            node = node_hash(peaks.pop(), node)
            level >>= 1
        peaks.append(node)
        size += 1
    return Tree(size, tuple(peaks))


def root_of(tree: Tree) -> bytes:
    """The Merkle tree hash; of the empty tree, the hash of nothing."""
    if not tree.peaks:
        return hashlib.sha256(b"").digest()
    *rest, root = tree.peaks
    for peak in reversed(rest):
        root = node_hash(peak, root)
    return root


def root_of_leaves(leaf_hashes: Sequence[bytes]) -> bytes:
    """The Merkle tree hash over all leaves, from nothing."""
    return root_of(append(Tree(), leaf_hashes))


def inclusion_proof(leaf_hashes: Sequence[bytes], index: int) -> tuple[bytes, ...]:
    """The audit path of one leaf in the tree of all of them (RFC 6962 section 2.1.1). Raises: IndexError."""
    if not 0 <= index < len(leaf_hashes):
        raise IndexError(f"leaf {index} of {len(leaf_hashes)}")
    path: list[bytes] = []
    first, last = 0, len(leaf_hashes)
    while last - first > 1:
        middle = first + _split(last - first)
        if index < middle:
            path.append(root_of_leaves(leaf_hashes[middle:last]))
            last = middle
        else:
            path.append(root_of_leaves(leaf_hashes[first:middle]))
            first = middle
    return tuple(reversed(path))


def consistency_proof(leaf_hashes: Sequence[bytes], old_size: int) -> tuple[bytes, ...]:
    """Proof that the tree of the first `old_size` leaves is the beginning of this one (RFC 6962 section 2.1.2).

    Empty for an old size of 0 and of all. Raises: IndexError.
    """
    if not 0 <= old_size <= len(leaf_hashes):
        raise IndexError(f"a tree of {old_size} in one of {len(leaf_hashes)}")
    if old_size in (0, len(leaf_hashes)):
        return ()
    path: list[bytes] = []
    first, last = 0, len(leaf_hashes)
    while last != old_size:
        middle = first + _split(last - first)
        if old_size <= middle:
            path.append(root_of_leaves(leaf_hashes[middle:last]))
            last = middle
        else:
            path.append(root_of_leaves(leaf_hashes[first:middle]))
            first = middle
    if first:  # where the old tree is a left edge of the new one, its root is known to who asks
        path.append(root_of_leaves(leaf_hashes[first:last]))
    return tuple(reversed(path))


def _split(size: int) -> int:
    """The largest power of two below `size`."""
    return 1 << (size - 1).bit_length() - 1


def verify_inclusion(leaf: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes) -> None:
    """Is this leaf hash at this index of the tree of that size and root? RFC 9162 section 2.1.3.2.

    Raises: ProofWrong.
    """
    if not 0 <= index < size:
        raise ProofWrong(f"leaf {index} of {size}")
    position, last, node = index, size - 1, leaf
    for sibling in proof:
        if last == 0:
            raise ProofWrong("the proof is too long")
        if position & 1 or position == last:
            node = node_hash(sibling, node)
            while not position & 1 and position:
                position, last = position >> 1, last >> 1
        else:
            node = node_hash(node, sibling)
        position, last = position >> 1, last >> 1
    if last:
        raise ProofWrong("the proof is too short")
    if not hmac.compare_digest(node, root):
        raise ProofWrong("the proof leads to another root")


def verify_consistency(old_size: int, old_root: bytes, new_size: int, new_root: bytes, proof: Sequence[bytes]) -> None:
    """Is the old tree the beginning of the new one? RFC 9162 section 2.1.4.2. Raises: ProofWrong."""
    if not 0 <= old_size <= new_size:
        raise ProofWrong(f"a tree of {old_size} in one of {new_size}")
    if old_size in (0, new_size):
        known = root_of(Tree()) if old_size == 0 else new_root
        if proof or not hmac.compare_digest(old_root, known):
            raise ProofWrong("another root for the same tree, or a proof where there is nothing to prove")
        return
    position, last = old_size - 1, new_size - 1
    while position & 1:
        position, last = position >> 1, last >> 1
    # Where the old size is a power of two, the old root is the first node: RFC 9162 puts it in front.
    nodes = [old_root, *proof] if old_size & (old_size - 1) == 0 else list(proof)
    if not nodes:
        raise ProofWrong("the proof is empty")
    old = new = nodes[0]
    for sibling in nodes[1:]:
        if last == 0:
            raise ProofWrong("the proof is too long")
        if position & 1 or position == last:
            old, new = node_hash(sibling, old), node_hash(sibling, new)
            while not position & 1 and position:
                position, last = position >> 1, last >> 1
        else:
            new = node_hash(new, sibling)
        position, last = position >> 1, last >> 1
    if last:
        raise ProofWrong("the proof is too short")
    if not (hmac.compare_digest(old, old_root) and hmac.compare_digest(new, new_root)):
        raise ProofWrong("the proof leads to other roots")


# --- checkpoints --------------------------------------------------------------------------------------------------

_KEY_NAME = re.compile(r"[^\s+\x00-\x1f\x7f]+")
_SIZE = re.compile(r"0|[1-9][0-9]{0,18}")
_SIGNATURE_LINE = "— "


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The tree that a log claims to have. `origin` names the log."""

    origin: str
    size: int
    root: bytes


@dataclass(frozen=True, slots=True)
class UnverifiedCheckpoint:
    """A parsed note: `text` is what signatures cover, `signatures` are `(key name, key id, signature)`."""

    unverified_checkpoint: Checkpoint
    text: bytes
    signatures: tuple[tuple[str, bytes, bytes], ...]


def checkpoint_text(checkpoint: Checkpoint) -> bytes:
    """The bytes to sign: origin, size, root, each on a line. Raises: ValueError, for an origin that is no key name."""
    if not _KEY_NAME.fullmatch(checkpoint.origin) or len(checkpoint.root) != HASH_OCTETS or checkpoint.size < 0:
        raise ValueError(f"not a checkpoint: {checkpoint!r}")
    root = base64.b64encode(checkpoint.root).decode()
    return f"{checkpoint.origin}\n{checkpoint.size}\n{root}\n".encode()


def note_key_id(public_key: bytes) -> bytes:
    """Signed note's id of an ECDSA key: SHA-256 of its SubjectPublicKeyInfo, first four octets (type 0x02)."""
    return hashlib.sha256(public_key).digest()[:4]


def signed_note(text: bytes, name: str, public_key: bytes, signature: bytes) -> bytes:
    """The checkpoint as it is served: text, empty line, one signature (DER of ECDSA over SHA-256 of `text`)."""
    return text + b"\n" + signature_line(name, public_key, signature)


def signature_line(name: str, public_key: bytes, signature: bytes) -> bytes:
    """One line more for a signed note. Raises: ValueError, for a name that no key can have."""
    if not _KEY_NAME.fullmatch(name):
        raise ValueError(f"not a key name: {name!r}")
    return f"{_SIGNATURE_LINE}{name} {base64.b64encode(note_key_id(public_key) + signature).decode()}\n".encode()


def parse_checkpoint(note: bytes) -> UnverifiedCheckpoint:
    """The parts of a signed note with a checkpoint in it; none is verified. Raises: CheckpointMalformed.

    Lines behind the root are extensions: covered by the signatures, not interpreted (C2SP tlog-checkpoint).
    """
    if len(note) > CHECKPOINT_MOST:
        raise CheckpointMalformed(f"is {len(note)} bytes, more than {CHECKPOINT_MOST}")
    try:
        whole = note.decode()
    except UnicodeDecodeError as error:
        raise CheckpointMalformed("is not UTF-8") from error
    if any(character < " " and character != "\n" for character in whole):
        raise CheckpointMalformed("holds control characters")
    body, separator, tail = whole.rpartition("\n\n")
    if not separator or not tail.endswith("\n"):
        raise CheckpointMalformed("has no signatures")
    lines = tail[:-1].split("\n")
    if len(lines) > SIGNATURES_MOST:
        raise CheckpointMalformed(f"has more than {SIGNATURES_MOST} signatures")
    signatures = tuple(_parse_signature(line) for line in lines)
    origin, size, root, *_ = [*body.split("\n"), "", "", ""]
    root_bytes = _unbase64(root)
    if not origin or not _SIZE.fullmatch(size) or len(root_bytes) != HASH_OCTETS:
        raise CheckpointMalformed("is not origin, size and root")
    return UnverifiedCheckpoint(Checkpoint(origin, int(size), root_bytes), (body + "\n").encode(), signatures)


def verify_checkpoint(note: bytes, origin: str, keys: Mapping[str, Sequence[bytes]]) -> Checkpoint:
    """The checkpoint of the log `origin`, signed by at least one trusted key and wrongly by none of them.

    `keys` gives the SubjectPublicKeyInfos (P-256) that may sign under a key name. Does not prove that the tree is
    consistent with an earlier one, or recent. Raises: CheckpointMalformed, CheckpointNotAuthentic.
    """
    parsed = parse_checkpoint(note)
    if parsed.unverified_checkpoint.origin != origin:
        raise CheckpointNotAuthentic("it is of another log")
    verified = 0
    for name, key_id, signature in parsed.signatures:
        for public_key in keys.get(name, ()):
            if note_key_id(public_key) == key_id:  # signed-note: a known key's wrong signature refuses the whole note
                _verify_signature(public_key, signature, parsed.text)
                verified += 1
    if not verified:
        raise CheckpointNotAuthentic("no trusted key signed it")
    return parsed.unverified_checkpoint


def _verify_signature(public_key: bytes, signature: bytes, text: bytes) -> None:
    key = load_der_public_key(public_key)
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise CheckpointNotAuthentic("the trusted key is not an ECDSA key")
    try:
        key.verify(signature, text, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature as error:
        raise CheckpointNotAuthentic("a trusted key's signature is wrong") from error


def _parse_signature(line: str) -> tuple[str, bytes, bytes]:
    name, _, signature = line.removeprefix(_SIGNATURE_LINE).partition(" ")
    octets = _unbase64(signature)
    if not line.startswith(_SIGNATURE_LINE) or not _KEY_NAME.fullmatch(name) or len(octets) <= 4:  # noqa: PLR2004 id
        raise CheckpointMalformed("a line behind the empty one is no signature")
    return name, octets[:4], octets[4:]


def _unbase64(text: str) -> bytes:
    """The bytes of canonical base64. Raises: CheckpointMalformed."""
    try:
        octets = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise CheckpointMalformed("holds what is not base64") from error
    if base64.b64encode(octets).decode() != text:
        raise CheckpointMalformed("holds base64 that is not canonical")
    return octets
