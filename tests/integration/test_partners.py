"""A worker's partners as they are: processes that sign and verify, end, hang, and are replaced."""

import asyncio
import os
import signal
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from types import MappingProxyType

import pytest
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from hsm.errors import KeyNotFound, TokenUnavailable, WrongPin
from hsm.key import verify_message
from lab.light import LightBoot, LightDevice
from provisioning.app import partner as partners
from provisioning.app import signatures
from provisioning.app.signing import PartnerKeys
from provisioning.app.verifying import PartnerVerifier
from provisioning.attestation.algorithms import SHA256 as BANK
from provisioning.attestation.credential import make_credential
from provisioning.attestation.endorsement import TrustedEk
from provisioning.attestation.evidence import OpenChallenge, verify_activation
from provisioning.attestation.keys import spki as spki_of
from provisioning.attestation.policy import Policy
from provisioning.config import load_config
from provisioning.refusals import (
    CsrRefused,
    PcrsNotAccepted,
    Refusal,
    SignatureWrong,
    SigningUnavailable,
    ToBeSignedRefused,
    TpmWentBack,
    VerifierUnavailable,
)
from provisioning.verifier import Here, Shown
from tests.support.processes import gone
from tests.support.service import csr, make_installation, running_service
from wire.binding import key_id
from wire.messages import Challenge, PcrSelection

PCRS = (0, 7)
KEY = ec.generate_private_key(ec.SECP256R1())
SPKI = KEY.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


async def eventually(ask):
    """What it gives as soon as it does not refuse for the moment."""
    async with asyncio.timeout(60):
        while True:
            try:
                return await ask()
            except (VerifierUnavailable, SigningUnavailable, partners.PartnerLost):
                await asyncio.sleep(0.05)


def kill(partner, number=signal.SIGKILL):
    os.kill(partner._partner._process.pid, number)
    return partner._partner._process.pid


# --- the one that verifies --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def alone():
    made = PartnerVerifier(None)
    made.ready()
    yield made
    made.close()


@pytest.fixture(params=["here", "partner"])
def verifier(request):
    return Here() if request.param == "here" else request.getfixturevalue("alone")


@pytest.fixture(scope="module")
def shown():
    """A device's good evidence, with everything that it is judged by."""
    ek = rsa.generate_private_key(65537, 2048)
    public = ek.public_key()
    trusted = TrustedEk(key_id(spki_of(public)), public, BANK, 128, "certificate", "id:00001014", "light", "1", ())
    device = LightDevice("light-1", ek, b"", LightBoot(dict.fromkeys(PCRS, bytes(32)), b""))
    selection, secret, nonce = PcrSelection("sha256", PCRS), bytes(range(32)), bytes(32)
    blob, encrypted = make_credential(trusted, device.ak.name, secret)
    sent = Challenge("e-1", "test", blob, encrypted, nonce, selection, "none", datetime(2026, 1, 1, tzinfo=UTC))
    stored = OpenChallenge("enroll", "e-1", "test", nonce, secret, device.ak.public, selection, "none", trusted.ek_id)
    evidence = device.answer(sent)
    activated = verify_activation(evidence.activation_proof, evidence.csr, stored)
    policy = Policy(
        model="light",
        software_tpm=True,
        expired_ek="refuse",
        banks=("sha256",),
        boot_log="none",
        release_pcrs=frozenset({7}),
        min_tpm_firmware=0,
        enrollments_per_day=20,
        ek_roots=(),
        pcrs=MappingProxyType({"sha256": MappingProxyType({pcr: frozenset({bytes(32)}) for pcr in PCRS})}),
        events=(),
    )
    return Shown(evidence, None, None, activated, 1, policy, None, MappingProxyType({}), ("d-1", "light-1"))


def other_boot(shown, mode="enforce"):
    """The same evidence under a policy, of another id, that wants another PCR 7."""
    wanted = {0: frozenset({bytes(32)}), 7: frozenset({b"\1" * 32})}
    policy = replace(shown.policy, mode=mode, pcrs=MappingProxyType({"sha256": wanted}))
    return replace(shown, policy_id=2, policy=policy)


def turned(data):
    """Its last bit turned."""
    return data[:-1] + bytes([data[-1] ^ 1])


async def test_possession_is_proven_and_what_is_wrong_is_named(verifier):
    assert await verifier.possession(csr(KEY)) == SPKI
    for hostile, expected in (
        (turned(csr(KEY)), "a signature by the key of the request"),
        (b"0" * 70_000, "at most"),
        (b"", "a PKCS#10 request in DER"),
    ):
        with pytest.raises(CsrRefused) as refused:
            await verifier.possession(hostile)
        assert refused.value.expected.startswith(expected)


async def test_a_signature_over_other_bytes_is_refused(verifier):
    signature = KEY.sign(b"reserved", ec.ECDSA(SHA256()))
    await verifier.signature(SPKI, b"reserved", signature)
    for key, message in ((SPKI, b"other"), (SPKI[:-1], b"reserved")):
        with pytest.raises(ToBeSignedRefused):
            await verifier.signature(key, message, signature)


async def test_good_evidence_proves_its_key_and_its_pcrs(verifier, shown):
    proven = await verifier.evidence(shown)
    assert x509.load_der_x509_csr(shown.evidence.csr).public_key().public_bytes(
        Encoding.DER, PublicFormat.SubjectPublicKeyInfo
    ) == (proven.spki)
    assert dict(proven.pcrs.values) == dict.fromkeys(PCRS, bytes(32))
    assert proven.findings == ()


async def test_bad_evidence_is_refused_for_the_same_reason(verifier, shown):
    quote = shown.evidence.quote
    forged = replace(shown.evidence, quote=replace(quote, signature=turned(quote.signature)))
    state = (await Here().evidence(shown)).pcrs.tpm
    later = replace(state, reset_count=state.reset_count + 100, clock=state.clock + 10**9)
    for wrong, reason in (
        (replace(shown, evidence=forged), SignatureWrong),
        (other_boot(shown), PcrsNotAccepted),
        (replace(shown, previous=later), TpmWentBack),
    ):
        with pytest.raises(Refusal) as refused:
            await verifier.evidence(wrong)
        assert type(refused.value) is reason


async def test_a_mode_is_its_own_and_findings_come_along(verifier, shown):
    proven = await verifier.evidence(other_boot(shown, "monitor"))
    assert [(one.what, one.refused) for one in proven.findings] == [("PCR 7", True)]
    with pytest.raises(PcrsNotAccepted) as refused:
        await verifier.evidence(other_boot(shown))
    assert [one.what for one in refused.value.findings] == ["PCR 7"]


async def test_release_values_count_where_the_policy_lets_them(verifier, shown):
    booted = replace(other_boot(shown), release_values=MappingProxyType({7: frozenset({bytes(32)})}))
    assert (await verifier.evidence(booted)).findings == ()


async def test_many_at_once_each_get_their_own(alone, shown):
    requests = [csr(ec.generate_private_key(ec.SECP256R1())) for _ in range(40)]
    asked = [alone.possession(turned(one) if at % 3 == 0 else one) for at, one in enumerate(requests)]
    answers = await asyncio.gather(*asked, alone.evidence(shown), return_exceptions=True)
    for at, (request, answer) in enumerate(zip(requests, answers[:-1], strict=True)):
        if at % 3 == 0:
            assert isinstance(answer, CsrRefused)
        else:
            assert answer == await Here().possession(request)
    assert answers[-1] == await Here().evidence(shown)


async def test_one_that_is_killed_is_replaced_and_knows_the_policies_again(shown):
    verifier = PartnerVerifier(None)
    verifier.ready()
    try:
        before = await verifier.evidence(shown)
        kill(verifier, signal.SIGSTOP)
        asked = [asyncio.ensure_future(verifier.possession(csr())) for _ in range(3)]
        await asyncio.sleep(0)
        old = kill(verifier)
        for one in await asyncio.gather(*asked, return_exceptions=True):
            assert isinstance(one, VerifierUnavailable)
        assert await eventually(lambda: verifier.evidence(shown)) == before
        assert gone(old)
    finally:
        verifier.close()


async def test_one_that_owes_an_answer_for_too_long_is_replaced():
    verifier = PartnerVerifier(None)
    verifier._partner._work = replace(verifier._partner._work, deadline_seconds=0.3)
    verifier.ready()
    try:
        old = kill(verifier, signal.SIGSTOP)
        with pytest.raises(VerifierUnavailable, match="not available") as refused:
            await verifier.possession(csr(KEY))
        assert "no answer in 0.3 s" in refused.value.actual
        assert gone(old)
        verifier._partner._work = replace(verifier._partner._work, deadline_seconds=15)
        assert await eventually(lambda: verifier.possession(csr(KEY))) == SPKI
    finally:
        verifier.close()


async def test_more_than_may_wait_are_refused_at_once(monkeypatch):
    monkeypatch.setattr(partners, "WAITING_MOST", 2)
    verifier = PartnerVerifier(None)
    verifier.ready()
    try:
        kill(verifier, signal.SIGSTOP)
        waiting = [asyncio.ensure_future(verifier.possession(csr(KEY))) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(VerifierUnavailable) as refused:
            await verifier.possession(csr(KEY))
        assert "too many wait" in refused.value.actual
        kill(verifier, signal.SIGCONT)
        assert await asyncio.gather(*waiting) == [SPKI, SPKI]
    finally:
        verifier.close()


async def test_what_does_not_go_at_once_goes_piece_by_piece():
    """More than a socket holds, sent in one turn."""
    verifier = PartnerVerifier(None)
    verifier.ready()
    try:
        kill(verifier, signal.SIGSTOP)
        large = [asyncio.ensure_future(verifier.signature(SPKI, bytes(200_000), b"no")) for _ in range(20)]
        await asyncio.sleep(0.05)
        assert verifier._partner._unsent
        kill(verifier, signal.SIGCONT)
        for one in await asyncio.gather(*large, return_exceptions=True):
            assert isinstance(one, ToBeSignedRefused)
    finally:
        verifier.close()


# --- the one that signs -----------------------------------------------------------------------------------------------

NEEDED = ("issuing", "command")


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return make_installation(tmp_path_factory.mktemp("partners") / "data", "\n[hsm]\ndeadline_milliseconds = 2000\n")


@contextmanager
def signer(directory, needed=NEEDED):
    keys = PartnerKeys(directory, load_config(directory), needed, None)
    try:
        yield keys
    finally:
        keys.close()


@pytest.fixture(scope="module")
def signing(directory):
    with signer(directory) as keys:
        yield keys


@pytest.fixture
def keys(signing):
    signing.take_signatures()
    return signing


async def test_it_signs_by_the_key_that_was_asked_for(keys):
    messages = [number.to_bytes(2, "big") * 100 for number in range(30)]
    made = await asyncio.gather(*(keys.sign(NEEDED[at % 2], message) for at, message in enumerate(messages)))
    for at, (message, signature) in enumerate(zip(messages, made, strict=True)):
        verify_message(keys.public(NEEDED[at % 2]), message, signature)
        with pytest.raises(InvalidSignature):
            verify_message(keys.public(NEEDED[1 - at % 2]), message, signature)


async def test_a_key_that_was_not_needed_is_found_when_it_is(keys):
    with pytest.raises(KeyError):
        keys.public("log")
    verify_message(await keys.adopt("log"), b"later", await keys.sign("log", b"later"))
    assert keys.public("log") == await keys.adopt("log")
    with pytest.raises(SigningUnavailable) as refused:
        await keys.sign("nobody", b"")
    assert "nobody" in refused.value.actual
    with pytest.raises(SigningUnavailable):
        await keys.adopt("nobody")


async def test_a_library_signs_with_the_key_on_a_thread(keys):
    key = keys.key("command")
    signature = await asyncio.to_thread(key.sign, b"by a library", ec.ECDSA(hashes.SHA256()))
    key.public_key().verify(signature, b"by a library", ec.ECDSA(hashes.SHA256()))
    assert key.public_key() == keys.public("command")


async def test_signatures_are_counted_once_and_given_back_where_they_could_not_be_stored(keys):
    await keys.sign("command", b"one")
    taken = await keys.taken()
    assert [(one.name, one.count, len(one.digests)) for one in taken] == [("command", 1, 1)]
    assert await keys.taken() == []
    keys.give_back(taken)
    await keys.sign("command", b"two")
    (both,) = await keys.taken()
    assert (both.count, both.digests[0]) == (2, taken[0].digests[0])


async def test_what_it_counted_last_is_stored_when_all_ends(directory):
    with signer(directory) as keys:
        await keys.sign("command", b"the last one")
    with running_service(directory) as service:
        before = _count(service, keys)
        await asyncio.to_thread(signatures.flush_now, keys, service.ledger, 1)
        assert _count(service, keys) == before + 1


def _count(service, keys):
    spki = keys.public("command").public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    rows = service.store.read_now(signatures.signatures.counts)
    return next((row.count for row in rows if row.key_id == key_id(spki)), 0)


async def test_one_that_is_killed_signs_again_without_a_restart(directory):
    with signer(directory) as keys:
        kill(keys, signal.SIGSTOP)
        asked = [asyncio.ensure_future(keys.sign("command", b"x")) for _ in range(3)]
        library = asyncio.ensure_future(asyncio.to_thread(keys.key("command").sign, b"x", ec.ECDSA(SHA256())))
        await asyncio.sleep(0.1)
        kill(keys)
        for one in await asyncio.gather(*asked, return_exceptions=True):
            assert isinstance(one, SigningUnavailable)
        with pytest.raises(TokenUnavailable):
            await library
        assert await keys.taken() == []
        verify_message(keys.public("command"), b"y", await eventually(lambda: keys.sign("command", b"y")))


@pytest.mark.parametrize(("needed", "error"), [(("absent",), KeyNotFound), (("pkcs11:token=absent",), Exception)])
def test_one_that_does_not_find_a_needed_key_says_why(directory, needed, error):
    with pytest.raises(error, match="absent"), signer(directory, needed):
        pass


def test_a_wrong_pin_is_named(directory):
    (pin,) = directory.secrets.glob("muster*.pin")
    right = pin.read_text()
    pin.write_text("wrong-pin")
    try:
        with pytest.raises(WrongPin), signer(directory):
            pass
    finally:
        pin.write_text(right)


def test_it_ends_with_whoever_asked(directory):
    with signer(directory) as keys:
        number = keys._partner._process.pid
        assert not gone(number)
    assert gone(number)
