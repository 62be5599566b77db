"""Private keys that live in a token and *are* cryptography private keys: EC, RSA and Ed25519.

Certificate, CSR and CRL builders and securesystemslib's `CryptoSigner` take them as they take a key in memory.
"""

import hashlib
from typing import Any, NoReturn, Protocol

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import NoDigestInfo, Prehashed
from cryptography.utils import Buffer
from pkcs11 import MGF, Mechanism

from hsm.errors import KeyUnsupported, TokenRefused
from hsm.kinds import ECDSA, EDDSA, RSA_PKCS1, EcKeyReference, KeyReference, PublicKey, Signing, raw_to_der

_HASHES = {"sha256": hashlib.sha256, "sha384": hashlib.sha384, "sha512": hashlib.sha512}
_NAME_OF_LENGTH = {32: "sha256", 48: "sha384", 64: "sha512"}
_OTHER_HASH = "the hash is none of SHA-256, SHA-384, SHA-512"
# The DER of a DigestInfo up to the digest itself (RFC 8017, section 9.2, note 1).
_DIGEST_INFO = {
    "sha256": bytes.fromhex("3031300d060960864801650304020105000420"),
    "sha384": bytes.fromhex("3041300d060960864801650304020205000430"),
    "sha512": bytes.fromhex("3051300d060960864801650304020305000440"),
}
_PSS = {
    "sha256": (Mechanism.SHA256, MGF.SHA256),
    "sha384": (Mechanism.SHA384, MGF.SHA384),
    "sha512": (Mechanism.SHA512, MGF.SHA512),
}
_OWN_HASH: dict[str, ec.ECDSA] = {
    "secp256r1": ec.ECDSA(hashes.SHA256()),
    "secp384r1": ec.ECDSA(hashes.SHA384()),
    "secp521r1": ec.ECDSA(hashes.SHA512()),
}
_PKCS1, _SHA256 = padding.PKCS1v15(), hashes.SHA256()
_ED25519_SIGNATURE_BYTES = 64


class Signs(Protocol):
    """What a key needs of its token."""

    label: str

    def sign(self, key: KeyReference, data: bytes, how: Signing) -> bytes:
        """The raw signature, as PKCS#11 gives it."""
        ...


class _InToken:
    """What all keys in a token have in common: they do not leave it."""

    def __init__(self, token: Signs, reference: KeyReference) -> None:
        self._token = token
        self._reference = reference

    @property
    def label(self) -> str:
        """The key's CKA_LABEL."""
        return self._reference.label

    @property
    def reference(self) -> KeyReference:
        """What the key is found by."""
        return self._reference

    def sign_raw(self, data: bytes, how: Signing) -> bytes:
        """The raw signature over what this mechanism takes: for a caller that stands between a key and its token."""
        return self._token.sign(self._reference, data, how)

    def private_numbers(self) -> NoReturn:
        """Refused: the private key does not leave the token."""
        raise KeyUnsupported(f"{self!r} does not leave its token")

    def private_bytes(self, *_arguments: object, **_named: object) -> NoReturn:
        """Refused: the private key does not leave the token."""
        raise KeyUnsupported(f"{self!r} does not leave its token")

    def __reduce__(self) -> NoReturn:
        raise KeyUnsupported(f"{self!r} does not leave its process")

    def __copy__(self) -> Any:  # noqa: ANN401 (each class is its own copy)
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:  # noqa: ANN401 (the same)
        return self

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._reference.label!r} in token {self._token.label!r}>"


class HsmEcKey(_InToken, ec.EllipticCurvePrivateKey):
    """Signs inside the token. Safe to use from several threads; blocks while the token works or recovers."""

    _reference: EcKeyReference

    @property
    def curve(self) -> ec.EllipticCurve:
        """The curve of the public key."""
        return self._reference.public_key.curve

    @property
    def key_size(self) -> int:
        """Bits of the curve's order."""
        return self._reference.public_key.key_size

    def public_key(self) -> ec.EllipticCurvePublicKey:
        """The public half, proven to be this key's by a signature when the key was found."""
        return self._reference.public_key

    def sign(self, data: Buffer, signature_algorithm: ec.EllipticCurveSignatureAlgorithm) -> bytes:
        """The DER ECDSA-Sig-Value over `data`, which is hashed here, or is the digest itself with `Prehashed`.

        Raises:
            KeyUnsupported: not ECDSA with SHA-256, SHA-384 or SHA-512, or the deterministic variant.
            ValueError: a digest of the wrong length.
            TokenUnavailable: now; worth a retry later. WrongPin, KeyNotFound, TokenRefused: not.
        """
        if not isinstance(signature_algorithm, ec.ECDSA) or signature_algorithm.deterministic_signing:
            raise KeyUnsupported("tokens sign with randomised ECDSA only")
        _, digest = _digest(data, signature_algorithm.algorithm)
        # FIPS 186-5, section 6.4.1: the leftmost bits of the digest, as many as the order has. Every order here is of
        # whole bytes or longer than every digest. Not every token cuts by itself.
        size = self._reference.coordinate_bytes
        return raw_to_der(self._token.sign(self._reference, digest[:size], ECDSA), size)

    def exchange(self, *_arguments: object, **_named: object) -> NoReturn:
        """Refused: this key signs and does nothing else."""
        raise KeyUnsupported(f"{self!r} only signs")


class HsmRsaKey(_InToken, rsa.RSAPrivateKey):
    """The same of an RSA key: PKCS #1 v1.5 and PSS. Each signature is a block of the modulus's length."""

    _reference: KeyReference

    @property
    def key_size(self) -> int:
        """Bits of the modulus."""
        return self.public_key().key_size

    def public_key(self) -> rsa.RSAPublicKey:
        """The public half, proven to be this key's by a signature when the key was found."""
        public = self._reference.public_key
        assert isinstance(public, rsa.RSAPublicKey)  # noqa: S101  for mypy: `key_in` decides by it
        return public

    def sign(
        self,
        data: Buffer,
        padding: padding.AsymmetricPadding,
        algorithm: Prehashed | hashes.HashAlgorithm | NoDigestInfo,
    ) -> bytes:
        """The signature over `data`, which is hashed here, or is the digest itself with `Prehashed`.

        Raises:
            KeyUnsupported: neither PKCS #1 v1.5 nor PSS with MGF1 over the same hash, or another hash.
            ValueError: a digest or a salt of the wrong length.
            TokenUnavailable: now; worth a retry later. WrongPin, KeyNotFound, TokenRefused: not.
        """
        name, digest = _digest(data, algorithm)
        block, how = self._prepared(padding, name, digest)
        signature = self._token.sign(self._reference, block, how)
        if len(signature) != (self.key_size + 7) // 8:
            raise TokenRefused(f"the token gave a signature of {len(signature)} bytes with an RSA-{self.key_size} key")
        return signature

    def _prepared(self, scheme: padding.AsymmetricPadding, name: str, digest: bytes) -> tuple[bytes, Signing]:
        if isinstance(scheme, padding.PKCS1v15):
            return _DIGEST_INFO[name] + digest, RSA_PKCS1
        if not isinstance(scheme, padding.PSS) or not isinstance(scheme.mgf, padding.MGF1):
            raise KeyUnsupported("RSA signs with PKCS #1 v1.5 or PSS only")
        if scheme.mgf._algorithm.name != name:  # noqa: SLF001  # cryptography has no public name for it
            raise KeyUnsupported("PSS with two different hashes is not used")
        salt = scheme._salt_length  # noqa: SLF001  # the same
        most = (self.key_size + 6) // 8 - len(digest) - 2  # RFC 8017, section 9.1.1
        if salt is padding.PSS.MAX_LENGTH:
            salt = most
        elif salt is padding.PSS.DIGEST_LENGTH:
            salt = len(digest)
        if not isinstance(salt, int) or not 0 <= salt <= most:
            raise ValueError(f"the salt of PSS has 0 to {most} bytes")
        mechanism, mask = _PSS[name]
        return digest, Signing(Mechanism.RSA_PKCS_PSS, (mechanism, mask, salt), RSA_PKCS1.buffer_bytes)

    def decrypt(self, *_arguments: object, **_named: object) -> NoReturn:
        """Refused: this key signs and does nothing else."""
        raise KeyUnsupported(f"{self!r} only signs")


class HsmEdKey(_InToken, ed25519.Ed25519PrivateKey):
    """The same of an Ed25519 key."""

    def public_key(self) -> ed25519.Ed25519PublicKey:
        """The public half, proven to be this key's by a signature when the key was found."""
        public = self._reference.public_key
        assert isinstance(public, ed25519.Ed25519PublicKey)  # noqa: S101  for mypy: `key_in` decides by it
        return public

    def sign(self, data: Buffer) -> bytes:
        """The signature (64 bytes) over `data`, which goes into the token as a whole.

        Raises:
            TokenUnavailable: now; worth a retry later. WrongPin, KeyNotFound, TokenRefused: not.
        """
        signature = self._token.sign(self._reference, bytes(data), EDDSA)
        if len(signature) != _ED25519_SIGNATURE_BYTES:
            raise TokenRefused(f"the token gave a signature of {len(signature)} bytes with an Ed25519 key")
        return signature

    def private_bytes_raw(self) -> NoReturn:
        """Refused: the private key does not leave the token."""
        raise KeyUnsupported(f"{self!r} does not leave its token")


HsmKey = HsmEcKey | HsmRsaKey | HsmEdKey


def key_in(token: Signs, reference: KeyReference) -> HsmKey:
    """The private key of this reference, of the class that fits its kind."""
    if isinstance(reference, EcKeyReference):
        return HsmEcKey(token, reference)
    kind = HsmRsaKey if isinstance(reference.public_key, rsa.RSAPublicKey) else HsmEdKey
    return kind(token, reference)


def sign_message(key: HsmKey, message: Buffer) -> bytes:
    """A signature by the key's own algorithm.

    ECDSA (DER) with SHA-256 on P-256, SHA-384 on P-384, SHA-512 on P-521; RSA PKCS #1 v1.5 with SHA-256; Ed25519.
    """
    if isinstance(key, HsmEcKey):
        return key.sign(message, _OWN_HASH[key.curve.name])
    if isinstance(key, HsmRsaKey):
        return key.sign(message, _PKCS1, _SHA256)
    return key.sign(message)


def verify_message(key: PublicKey, message: bytes, signature: bytes) -> None:
    """Is this the key's signature over the message, by its own algorithm? Raises: InvalidSignature."""
    if isinstance(key, ec.EllipticCurvePublicKey):
        key.verify(signature, message, _OWN_HASH[key.curve.name])
    elif isinstance(key, rsa.RSAPublicKey):
        key.verify(signature, message, _PKCS1, _SHA256)
    else:
        key.verify(signature, message)


def _digest(data: Buffer, algorithm: Prehashed | hashes.HashAlgorithm | NoDigestInfo) -> tuple[str, bytes]:
    """Name and digest: `data` hashed, or, with `Prehashed`, as it is."""
    if isinstance(algorithm, Prehashed):
        name = _NAME_OF_LENGTH.get(algorithm.digest_size)
        if name is None:
            raise KeyUnsupported(_OTHER_HASH)
        digest = bytes(data)
        if len(digest) != algorithm.digest_size:
            raise ValueError(f"the digest has {len(digest)} bytes instead of {algorithm.digest_size}")
        return name, digest
    if isinstance(algorithm, NoDigestInfo) or algorithm.name not in _HASHES:
        raise KeyUnsupported(_OTHER_HASH)
    return algorithm.name, _HASHES[algorithm.name](data).digest()
