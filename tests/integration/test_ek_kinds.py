"""Every kind of EK that counts, in a real TPM: known by its key, its credential opened by TPM2_ActivateCredential."""

from datetime import UTC, datetime

import pytest

pytest.importorskip("tpm2_pytss")

from tpm2_pytss.constants import ESYS_TR, TPM2_ALG, TPM2_SE
from tpm2_pytss.types import TPM2B_ENCRYPTED_SECRET, TPM2B_ID_OBJECT
from tpm2_pytss.utils import create_ek_template

from lab.swtpm import fresh_tpm
from provisioning.attestation.credential import make_credential
from provisioning.attestation.endorsement import RegisteredEk, ek_id_of_public, verify_endorsement
from provisioning.attestation.policy import parse_policy
from provisioning.attestation.structures import name_of
from provisioning.refusals import AlgorithmRefused, EkPublicNotRegistered
from tests.support.attestation import Device
from wire.messages import EnrollmentRequest

NOW = datetime.now(UTC)
KEYS = parse_policy(f'model = "gateway"\nek_trust = "key"\n[pcrs.sha256]\n"0" = ["{"00" * 32}"]')
SECRET = b"a secret of 32 octets, no more!!"


@pytest.fixture(scope="module")
def esapi():
    with fresh_tpm() as tpm, tpm.esapi() as opened:
        yield opened


def no_template_in_nv(index):
    """As if NV had a certificate of that kind and no template of its own: the standard one counts."""
    from tpm2_pytss.utils import NoSuchIndex

    if index in (0x01C00014, 0x01C0001C, 0x01C00016, 0x01C00012):
        return b"a certificate"
    raise NoSuchIndex(index)


def endorsed(public, registered=None):
    request = EnrollmentRequest(ak_public=b"", pcr_banks=("sha256",), ek_public=public)
    known = RegisteredEk(registered or ek_id_of_public(public), "key")
    return verify_endorsement(request, KEYS, NOW, known)


def activated(esapi, ak, ek, blob, secret, *, low):
    credential, encrypted = TPM2B_ID_OBJECT.unmarshal(blob)[0], TPM2B_ENCRYPTED_SECRET.unmarshal(secret)[0]
    if not low:
        return bytes(esapi.activate_credential(ak.handle, ek, credential, encrypted))
    session = esapi.start_auth_session(ESYS_TR.NONE, ESYS_TR.NONE, TPM2_SE.POLICY, None, TPM2_ALG.SHA256)
    try:
        esapi.policy_secret(ESYS_TR.ENDORSEMENT, session, expiration=0)
        return bytes(esapi.activate_credential(ak.handle, ek, credential, encrypted, session2=session))
    finally:
        esapi.flush_context(session)


@pytest.mark.parametrize(
    "kind", ["EK-RSA2048", "EK-ECC256", "EK-HIGH-RSA2048", "EK-HIGH-RSA3072", "EK-HIGH-ECC256", "EK-HIGH-ECC384"]
)
def test_a_registered_ek_of_every_kind_opens_its_credential(esapi, kind):
    _, template = create_ek_template(kind, no_template_in_nv)
    ek, public, *_ = esapi.create_primary(None, template, ESYS_TR.ENDORSEMENT)
    try:
        with Device(esapi, b"") as device:
            ak = device.ak()
            trusted = endorsed(public.publicArea.marshal())
            assert trusted.trust == "registered-key"
            made = make_credential(trusted, name_of(ak.public), SECRET)
            assert activated(esapi, ak, ek, *made, low="HIGH" not in kind) == SECRET
    finally:
        esapi.flush_context(ek)


def test_another_key_of_the_tpm_is_no_ek(esapi):
    with Device(esapi, b"") as device:
        ak = device.ak()
        with pytest.raises(AlgorithmRefused):
            endorsed(ak.public)
        with pytest.raises(EkPublicNotRegistered):
            endorsed(ak.public, "0" * 64)
