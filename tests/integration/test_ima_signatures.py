"""Signatures of files as evmctl, the kernel developers' own tool, makes them."""

import hashlib
import shutil
import subprocess

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from provisioning.attestation.ima_fields import signature_of
from provisioning.attestation.ima_policy import FileDigest
from provisioning.attestation.ima_policy_signatures import why_not_signed
from provisioning.attestation.ima_policy_text import ImaText, ima_of
from tests.support.ek_certificates import rsa_key

pytestmark = pytest.mark.skipif(shutil.which("evmctl") is None, reason="package ima-evm-utils is not installed")


@pytest.mark.parametrize("key", [rsa_key(), ec.generate_private_key(ec.SECP256R1())], ids=["rsa", "p256"])
@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
def test_a_file_that_evmctl_signed_counts_and_its_key_has_the_id_that_evmctl_wrote(tmp_path, key, algorithm):
    private, file = tmp_path / "key.pem", tmp_path / "file"
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption()))
    file.write_bytes(b"a program")
    command = ["evmctl", "ima_sign", "--hashalgo", algorithm, "--key", str(private), "--sigfile", str(file)]
    subprocess.run(command, check=True, capture_output=True, timeout=30)
    signature = (tmp_path / "file.sig").read_bytes()
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
    (known,) = ima_of(ImaText(keys=(public,))).keys
    assert signature_of(signature).key_id in known.ids
    digest = hashlib.new(algorithm, b"a program").digest()
    assert why_not_signed((known,), FileDigest("ima", algorithm, digest), signature) is None
    other = hashlib.new(algorithm, b"another").digest()
    assert why_not_signed((known,), FileDigest("ima", algorithm, other), signature) is not None
