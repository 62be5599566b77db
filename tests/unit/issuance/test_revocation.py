"""CRLs: equal to cryptography's builder, clean to a linter, complete, and checked by other code before signing."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given, settings
from hypothesis import strategies as st

from provisioning.issuance.revocation import REASONS, Reason, Revoked, build_crl, check_crl
from provisioning.issuance.tbs import assemble, serial_of
from provisioning.refusals import ToBeSignedRefused
from tests.support.crl_lint import lint_crl

NOW = datetime(2026, 11, 21, 12, 0, 0, tzinfo=UTC)
LIFE = {"number": 7, "this_update": NOW, "next_update": NOW + timedelta(hours=1)}
ENTRIES = [
    Revoked(serial_of(bytes((number,)) * 16), NOW - timedelta(days=number), reason)
    for number, reason in enumerate(Reason, start=1)
]


def by_builder(entries, hierarchy, *, number, this_update, next_update):
    """The same CRL by cryptography's builder."""
    authority = x509.AuthorityKeyIdentifier(hierarchy.issuer.key_id, None, None)
    builder = (
        x509.CertificateRevocationListBuilder(hierarchy.issuing.subject, this_update, next_update)
        .add_extension(authority, critical=False)
        .add_extension(x509.CRLNumber(number), critical=False)
    )
    for entry in sorted(entries, key=lambda e: e.serial):
        revoked = x509.RevokedCertificateBuilder(entry.serial, entry.at)
        if entry.reason is not Reason.UNSPECIFIED:
            flag = x509.ReasonFlags[entry.reason.name.lower()]
            revoked = revoked.add_extension(x509.CRLReason(flag), critical=False)
        builder = builder.add_revoked_certificate(revoked.build())
    return builder.sign(hierarchy.issuing_key, hashes.SHA256()).tbs_certlist_bytes


revoked = st.builds(
    Revoked,
    serial=st.binary(min_size=16, max_size=16).map(serial_of),
    at=st.datetimes(datetime(1970, 1, 1), datetime(2060, 1, 1), timezones=st.just(UTC)).map(  # noqa: DTZ001
        lambda moment: moment.replace(microsecond=0)
    ),
    reason=st.sampled_from(Reason),
)


@settings(max_examples=50)
@given(entries=st.lists(revoked, max_size=8, unique_by=lambda e: e.serial), number=st.integers(0, 2**159 - 1))
def test_the_writer_equals_the_builder(hierarchy, entries, number):
    life = LIFE | {"number": number}
    tbs = build_crl(entries, hierarchy.issuer, **life)
    assert tbs.der == by_builder(entries, hierarchy, **life)
    check_crl(tbs, entries, hierarchy.issuer)


@pytest.mark.parametrize("entries", [[], ENTRIES], ids=["empty", "every reason"])
def test_crls_lint_clean_and_verify(hierarchy, entries):
    tbs = build_crl(entries, hierarchy.issuer, **LIFE)
    der = assemble(tbs.der, hierarchy.issuing_key.sign(tbs.der, ec.ECDSA(hashes.SHA256())))
    assert lint_crl(der) == []
    crl = x509.load_der_x509_crl(der)
    assert crl.is_signature_valid(hierarchy.issuing.public_key())
    assert [entry.serial_number for entry in crl] == sorted(entry.serial for entry in entries)


def test_a_serial_twice_is_refused(hierarchy):
    with pytest.raises(ToBeSignedRefused) as caught:
        build_crl([ENTRIES[0], replace(ENTRIES[1], serial=ENTRIES[0].serial)], hierarchy.issuer, **LIFE)
    assert caught.value.actual == "a serial twice"


@pytest.mark.parametrize(
    "life", [{"next_update": NOW}, {"number": -1}, {"number": 2**159}], ids=["ends at once", "negative", "too long"]
)
def test_a_crl_out_of_range_is_refused(hierarchy, life):
    with pytest.raises(ToBeSignedRefused):
        build_crl(ENTRIES, hierarchy.issuer, **(LIFE | life))


CASES = {
    "an entry missing": (ENTRIES[1:], {}, {}, {"entries"}),
    "an entry more": ([*ENTRIES, Revoked(serial_of(bytes(16)), NOW, Reason.SUPERSEDED)], {}, {}, {"entries"}),
    "another reason": ([replace(ENTRIES[0], reason=Reason.SUPERSEDED), *ENTRIES[1:]], {}, {}, {"entries"}),
    "another time": ([replace(ENTRIES[0], at=NOW), *ENTRIES[1:]], {}, {}, {"entries"}),
    "another number noted": (ENTRIES, {"number": 8}, {}, {"extensions"}),
    "another begin noted": (ENTRIES, {"this_update": NOW - timedelta(1)}, {}, {"this update"}),
    "another end noted": (ENTRIES, {"next_update": NOW + timedelta(1)}, {}, {"next update"}),
    "another issuer": (ENTRIES, {}, {"name": b"0\x00"}, {"issuer"}),
    "another key": (ENTRIES, {}, {"key_id": bytes(20)}, {"extensions"}),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_a_crl_that_says_something_else_is_refused_and_the_field_named(hierarchy, case):
    entries, noted, issuer, fields = case
    tbs = build_crl(ENTRIES, hierarchy.issuer, **LIFE)
    with pytest.raises(ToBeSignedRefused) as caught:
        check_crl(replace(tbs, **noted), entries, replace(hierarchy.issuer, **issuer))
    assert {finding.what for finding in caught.value.findings} == fields


def test_no_single_bit_may_be_another(hierarchy):
    tbs = build_crl(ENTRIES, hierarchy.issuer, **LIFE)
    for position in range(len(tbs.der)):
        for bit in range(8):
            hostile = bytearray(tbs.der)
            hostile[position] ^= 1 << bit
            with pytest.raises(ToBeSignedRefused):
                check_crl(replace(tbs, der=bytes(hostile)), ENTRIES, hierarchy.issuer)


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_refused_by_name(hierarchy, data):
    tbs = build_crl(ENTRIES, hierarchy.issuer, **LIFE)
    with pytest.raises(ToBeSignedRefused):
        check_crl(replace(tbs, der=data), ENTRIES, hierarchy.issuer)


def test_reasons_have_the_names_that_a_person_types():
    assert REASONS["key-compromise"] is Reason.KEY_COMPROMISE
    assert set(REASONS) >= {"unspecified", "superseded", "cessation-of-operation", "certificate-hold"}
