"""The agent's TPM layer on a real software TPM."""

import hashlib

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

pytest.importorskip("tpm2_pytss")

from tpm2_pytss.types import TPM2B_PUBLIC, TPMS_ATTEST, TPMT_PUBLIC
from tpm2_pytss.utils import make_credential

from device_agent.tpm import (
    CounterMissing,
    DeviceKeyUnusable,
    TpmAccess,
    TpmRefused,
    TpmUnreachable,
)
from device_agent.tpm.counter import NvCounter
from lab.virtual import fresh_tpm
from provisioning.attestation import usual
from wire.binding import ak_unique
from wire.messages import PcrSelection

UNIQUE = ak_unique("fleet.example", 0)


@pytest.fixture(scope="module")
def tpm():
    with fresh_tpm() as running:
        yield running


@pytest.fixture
def access(tpm):
    return TpmAccess(tpm.tcti)


def ecdsa_der(signature):
    from tpm2_pytss.types import TPMT_SIGNATURE

    parsed, _ = TPMT_SIGNATURE.unmarshal(signature)
    return bytes(parsed)


def public_key_of(tpmt_public):
    return serialization.load_der_public_key(TPM2B_PUBLIC(publicArea=TPMT_PUBLIC.unmarshal(tpmt_public)[0]).to_der())


def test_endorsements_offer_rsa_first_with_whole_certificates(access, tpm):
    with access.open() as opened:
        found = opened.endorsements()
    assert [one.kind for one in found] == ["EK-RSA2048", "EK-HIGH-ECC384"]
    assert {one.certificate for one in found} == set(tpm.ek_certificates().values())
    assert isinstance(x509.load_der_x509_certificate(found[1].certificate).public_key().curve, ec.SECP384R1)


def test_the_attestation_key_is_the_same_each_time_and_another_for_another_audience(access):
    names = []
    for audience in ("fleet.example", "fleet.example", "other.example"):
        with access.open() as opened, opened.attestation_key(ak_unique(audience, 0)) as key:
            names.append(key.name)
    assert names[0] == names[1] != names[2]


@pytest.mark.parametrize("which", [0, 1], ids=("rsa-low-range", "ecc-high-range"))
def test_a_credential_for_this_ek_and_ak_opens(access, which):
    with access.open() as opened:
        ek = opened.endorsements()[which]
        with opened.attestation_key(UNIQUE) as ak:
            blob, secret = make_credential(_ek_public(opened, ek.kind), b"s" * 32, ak.name)
            assert ak.activate(ek.kind, blob.marshal(), secret.marshal()) == b"s" * 32


def test_a_credential_for_another_ak_does_not_open(access):
    with access.open() as opened:
        ek = opened.endorsements()[0]
        with opened.attestation_key(UNIQUE) as ak:
            blob, secret = make_credential(_ek_public(opened, ek.kind), b"s" * 32, b"\x00\x0b" + b"x" * 32)
            with pytest.raises(TpmRefused, match="opening the credential"):
                ak.activate(ek.kind, blob.marshal(), secret.marshal())


def _ek_public(opened, kind):
    from tpm2_pytss.constants import ESYS_TR
    from tpm2_pytss.utils import NVReadEK, create_ek_template

    _, template = create_ek_template(kind, NVReadEK(opened.esapi))
    handle, public, _, _, _ = opened.esapi.create_primary(None, template, ESYS_TR.ENDORSEMENT)
    with handle:
        return public


def test_a_quote_covers_the_values_that_come_with_it(access):
    selection = PcrSelection("sha256", (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 23))
    with access.open() as opened, opened.attestation_key(UNIQUE) as ak:
        quote, pcrs = ak.quote(b"q" * 32, selection)
    attest, _ = TPMS_ATTEST.unmarshal(quote.attest)
    assert bytes(attest.extraData) == b"q" * 32
    values = b"".join(pcrs[str(pcr)] for pcr in selection.pcrs)
    assert bytes(attest.attested.quote.pcrDigest) == hashlib.sha256(values).digest()
    public_key_of(ak.public).verify(ecdsa_der(quote.signature), quote.attest, ec.ECDSA(hashes.SHA256()))


def test_what_an_agent_sends_has_the_usual_shape(access):
    """Else every device would be read in twice the time."""
    with access.open() as opened:
        key = opened.create_device_key()
        with opened.attestation_key(UNIQUE) as ak, opened.loaded(key.pem) as handle:
            quote, _ = ak.quote(b"q" * 32, PcrSelection("sha256", (0, 7)))
            certify = ak.certify(handle, b"c" * 32)
            ak_public = ak.public
    assert usual.KEY.read(key.public)
    assert usual.SIGNING_KEY.read(ak_public)
    assert usual.QUOTE.read(quote.attest)
    assert usual.CERTIFY.read(certify.attest)
    assert any(usual.SIGNATURE.read(one.signature) for one in (quote, certify))  # a TPM may leave a leading zero out


def test_a_bank_that_is_not_allocated_is_refused_by_name(access):
    with access.open() as opened:
        assert opened.pcr_banks() == ("sha256",)
        with opened.attestation_key(UNIQUE) as ak, pytest.raises(TpmRefused, match="sha384"):
            ak.quote(b"", PcrSelection("sha384", (0,)))


def test_a_device_key_signs_requests_and_messages_and_is_certified(access):
    with access.open() as opened:
        key = opened.create_device_key()
        assert opened.storage_parent() == 0x81000001
        csr = x509.load_der_x509_csr(opened.certificate_request(key.pem))
        signature = opened.sign(key.pem, b"message")
        with opened.attestation_key(UNIQUE) as ak, opened.loaded(key.pem) as handle:
            certify = ak.certify(handle, b"c" * 32)
    assert csr.is_signature_valid
    spki = csr.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    assert spki == key.spki
    csr.public_key().verify(signature, b"message", ec.ECDSA(hashes.SHA256()))
    attest, _ = TPMS_ATTEST.unmarshal(certify.attest)
    assert bytes(attest.attested.certify.name) == b"\x00\x0b" + hashlib.sha256(key.public).digest()


def test_a_key_of_another_tpm_is_unusable_and_said_so(access):
    with fresh_tpm() as other, TpmAccess(other.tcti).open() as opened:
        foreign = opened.create_device_key().pem
    with access.open() as opened, pytest.raises(DeviceKeyUnusable, match="not of this TPM"):
        opened.sign(foreign, b"message")
    with access.open() as opened, pytest.raises(DeviceKeyUnusable, match="damaged"):
        opened.sign(foreign[:60], b"message")


def test_without_a_persistent_srk_the_key_hangs_under_the_owner_primary(tpm):
    with fresh_tpm() as bare:
        from tpm2_pytss.constants import ESYS_TR

        with bare.esapi() as esapi:
            esapi.evict_control(ESYS_TR.OWNER, esapi.tr_from_tpmpublic(0x81000001), 0x81000001)
        with TpmAccess(bare.tcti).open() as opened:
            assert opened.storage_parent() == 0x40000001
            key = opened.create_device_key()
            assert opened.sign(key.pem, b"message")


def test_fifty_jobs_in_one_connection_leave_nothing_behind(access):
    with access.open() as opened:
        key = opened.create_device_key()
        for _ in range(50):
            opened.sign(key.pem, b"message")
            with opened.attestation_key(UNIQUE) as ak:
                ak.quote(b"", PcrSelection("sha256", (0,)))
        from tpm2_pytss.constants import TPM2_CAP

        _, found = opened.esapi.get_capability(TPM2_CAP.HANDLES, 0x80000000, 16)
        assert list(found.data.handles) == []


def test_the_counter_is_made_once_and_only_rises(access):
    counter = NvCounter(access)
    with pytest.raises(CounterMissing):
        counter.read()
    first = counter.define()
    assert counter.define() == first
    counter.increment()
    assert counter.read() == first + 1


def test_no_tpm_is_named_with_its_address():
    with pytest.raises(TpmUnreachable, match="swtpm:path=/nonexistent"), TpmAccess("swtpm:path=/nonexistent").open():
        pass


def test_hierarchy_authorisations_come_from_the_configuration():
    with fresh_tpm() as locked:
        from tpm2_pytss.constants import ESYS_TR

        with locked.esapi() as esapi:
            esapi.hierarchy_change_auth(ESYS_TR.ENDORSEMENT, b"e-secret")
            esapi.hierarchy_change_auth(ESYS_TR.OWNER, b"o-secret")
        with (
            TpmAccess(locked.tcti).open() as opened,
            pytest.raises(TpmRefused, match="endorsement_auth"),
            opened.attestation_key(UNIQUE),
        ):
            pass
        right = TpmAccess(locked.tcti, owner_auth=b"o-secret", endorsement_auth=b"e-secret")
        with right.open() as opened:
            ek = opened.endorsements()[0]
            with opened.attestation_key(UNIQUE) as ak:
                blob, secret = make_credential(_ek_public(opened, ek.kind), b"s" * 32, ak.name)
                assert ak.activate(ek.kind, blob.marshal(), secret.marshal()) == b"s" * 32
        assert NvCounter(right).define() > 0
        assert "secret" not in repr(right)
