"""What was found about an EK is handed out again without looking: for the same bytes, rules and dates alone."""

from dataclasses import replace
from datetime import timedelta

import pytest

from provisioning.attestation import verdicts
from provisioning.attestation.ek_store import EMPTY
from provisioning.attestation.endorsement import FOREVER, RegisteredEk, ek_id_of, verify_endorsement
from provisioning.attestation.verdicts import EkVerdicts
from provisioning.refusals import EkCertificateExpired, EkCertificateRevoked, EkChainRefused, EkPublicNotRegistered
from tests.support.ek_certificates import NOW, YEAR, root
from tests.unit.attestation import test_ek_store as store_tests
from tests.unit.attestation.test_endorsement import ROOT, crl_of, policy_for, policy_with
from wire.messages import EnrollmentRequest

SECOND = timedelta(seconds=1)
EK = ROOT.ek(end=NOW + YEAR)
POLICY = policy_for(ROOT)


def request_for(certificate, *intermediates):
    return EnrollmentRequest(
        ak_public=b"", pcr_banks=("sha256",), ek_certificate=certificate, ek_intermediates=intermediates
    )


REQUEST = request_for(EK)
REGISTERED = RegisteredEk(ek_id_of(EK), "certificate", EK)


@pytest.fixture
def looked(monkeypatch):
    """Each time that something was really verified."""
    seen = []

    def counted(*arguments):
        seen.append(arguments)
        return verify_endorsement(*arguments)

    monkeypatch.setattr(verdicts, "verify_endorsement", counted)
    return seen


def test_the_same_again_is_the_same_verdict(looked):
    known = EkVerdicts()
    first = known.verify_endorsement(REQUEST, POLICY, NOW, REGISTERED)
    assert first == verify_endorsement(REQUEST, POLICY, NOW, REGISTERED)
    later = known.verify_endorsement(request_for(bytes(EK)), POLICY, NOW + YEAR, replace(REGISTERED))
    assert later is first
    assert len(looked) == 1


def test_whatever_it_rests_on_is_verified_again_when_it_is_another(looked):
    known = EkVerdicts()
    known.verify_endorsement(REQUEST, POLICY, NOW, REGISTERED, EMPTY)
    others = (
        (request_for(EK, ROOT.der), POLICY, NOW, REGISTERED, EMPTY),
        (replace(REQUEST, ek_certificate=ROOT.ek()), POLICY, NOW, REGISTERED, EMPTY),
        (REQUEST, POLICY, NOW, replace(REGISTERED, certificate=None), EMPTY),
        (REQUEST, POLICY, NOW, replace(REGISTERED, ek_id="another"), EMPTY),
        (REQUEST, policy_for(ROOT, expired_ek='"accept"'), NOW, REGISTERED, EMPTY),
        (REQUEST, POLICY, NOW, REGISTERED, store_tests.store_of(root("Other"))),
        (REQUEST, POLICY, NOW - SECOND, REGISTERED, EMPTY),
    )
    for number, other in enumerate(others, start=2):
        known.verify_endorsement(*other)
        assert len(looked) == number


def test_a_policy_that_trusts_it_no_more_is_obeyed_at_once():
    known = EkVerdicts()
    assert known.verify_endorsement(REQUEST, POLICY, NOW, REGISTERED)
    with pytest.raises(EkChainRefused):
        known.verify_endorsement(REQUEST, policy_for(root("Another")), NOW, REGISTERED)
    revoking = policy_with(crl_of(ROOT, EK))
    assert known.verify_endorsement(REQUEST, POLICY, NOW, REGISTERED)
    with pytest.raises(EkCertificateRevoked):
        known.verify_endorsement(REQUEST, revoking, NOW, REGISTERED)


def test_each_date_that_passes_is_judged():
    known = EkVerdicts()
    assert known.verify_endorsement(REQUEST, POLICY, NOW, REGISTERED).settled_until == NOW + YEAR
    with pytest.raises(EkCertificateExpired):
        known.verify_endorsement(REQUEST, POLICY, NOW + YEAR + SECOND, REGISTERED)
    old = root("Old", end=NOW)
    ek = old.ek(begin=NOW - YEAR / 2, end=NOW + YEAR)
    given = (request_for(ek), policy_for(old))
    registered = RegisteredEk(ek_id_of(ek), "certificate", ek)
    assert known.verify_endorsement(*given, NOW, registered).findings == ()
    expired = known.verify_endorsement(*given, NOW + SECOND, registered)
    assert [finding.what for finding in expired.findings] == ["manufacturer CA"]
    assert expired.settled_until == NOW + YEAR


def test_an_expired_certificate_that_a_policy_accepts_is_settled_by_what_ends_next():
    accepting = policy_for(ROOT, expired_ek='"accept"')
    ended = ROOT.ek(end=NOW)
    trusted = verify_endorsement(request_for(ended), accepting, NOW + SECOND)
    assert trusted.findings
    assert NOW + SECOND < trusted.settled_until < FOREVER


def test_a_refusal_is_not_remembered(looked):
    known = EkVerdicts()
    bare = EnrollmentRequest(ak_public=b"", pcr_banks=("sha256",), ek_certificate=EK)
    by_key = policy_for(ROOT, ek_trust='"key"')
    for _ in range(2):
        with pytest.raises(EkPublicNotRegistered):
            known.verify_endorsement(bare, by_key, NOW, RegisteredEk("another", "key"))
    assert len(looked) == 2
    assert len(known) == 0


def test_a_registered_key_has_no_dates(looked):
    known = EkVerdicts()
    by_key = policy_for(ROOT, ek_trust='"key"')
    given = (REQUEST, by_key)
    registered = RegisteredEk(ek_id_of(EK), "key")
    assert known.verify_endorsement(*given, NOW, registered).settled_until == FOREVER
    assert known.verify_endorsement(*given, NOW + 50 * YEAR, registered).trust == "registered-key"
    assert len(looked) == 1


def test_of_too_many_the_oldest_goes(looked):
    known = EkVerdicts(most=2)
    eks = [ROOT.ek() for _ in range(3)]
    registered = [RegisteredEk(ek_id_of(ek), "certificate", ek) for ek in eks]
    for ek, one in zip(eks, registered, strict=True):
        known.verify_endorsement(request_for(ek), POLICY, NOW, one)
    assert len(known) == 2
    known.verify_endorsement(request_for(eks[2]), POLICY, NOW, registered[2])
    assert len(looked) == 3
    known.verify_endorsement(request_for(eks[0]), POLICY, NOW, registered[0])
    assert len(looked) == 4
    assert len(known) == 2
