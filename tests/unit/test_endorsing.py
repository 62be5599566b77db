"""By what a request names its TPM: in one way, and whatever the bytes are, a refusal by name or a key id."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from provisioning.endorsing import Named, named_by
from provisioning.refusals import Refusal, RequestMalformed
from tests.support.ek_certificates import ec_key, root
from wire.binding import key_id
from wire.messages import EnrollmentRequest

EK, IDEVID = (root().ek(ec_key(number=number)) for number in ("ek", "idevid"))
WAYS = ("ek_certificate", "ek_public", "iak_certificate", "idevid_certificate")


def request_of(**shown):
    return EnrollmentRequest(ak_public=b"", pcr_banks=(), **shown)


def test_a_tpm_is_named_by_its_ek_or_by_its_makers_word():
    named = {way: named_by(request_of(**{way: EK})) for way in ("ek_certificate", "iak_certificate")}
    assert [one.kind for one in named.values()] == ["ek", "iak"]
    assert len({one.key_id for one in named.values()}) == 1
    both = named_by(request_of(iak_certificate=EK, idevid_certificate=IDEVID))
    assert (both.kind, both.key_id == named["iak_certificate"].key_id) == ("idevid", False)
    assert str(Named("idevid", key_id(b""))) == f"the IDevID {key_id(b'')}"


@pytest.mark.parametrize(
    "ways",
    [(), ("idevid_certificate",), ("ek_certificate", "ek_public"), ("ek_certificate", "iak_certificate"), WAYS],
    ids=lambda ways: " and ".join(ways) or "nothing",
)
def test_a_tpm_is_named_in_one_way(ways):
    with pytest.raises(RequestMalformed):
        named_by(request_of(**dict.fromkeys(ways, EK)))


@given(st.sets(st.sampled_from(WAYS)), st.data())
def test_hostile_bytes_are_refused_by_name_or_have_a_key_id(ways, data):
    def bytes_of(_):
        changed = bytearray(EK)
        for at in data.draw(st.lists(st.integers(0, len(EK) - 1), max_size=3)):
            changed[at] ^= data.draw(st.integers(1, 255))
        return data.draw(st.one_of(st.just(bytes(changed)), st.binary(max_size=64)))

    try:
        named = named_by(request_of(**{way: bytes_of(way) for way in ways}))
    except Refusal:
        return
    assert len(named.key_id) == 64
