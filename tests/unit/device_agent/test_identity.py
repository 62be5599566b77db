"""One pair is in use at every moment; a swap is one rename."""

from dataclasses import replace
from datetime import timedelta

import pytest

from device_agent import state
from device_agent.identity import IdentityDetails, IdentityStore
from device_agent.state import StateDamaged
from tests.unit.device_agent.builders import DEVICE, NOW, Authority, der, new_key, spki
from wire.messages import MqttAddress

CA = Authority()


def details(key, **changes):
    values = {
        "device_id": DEVICE,
        "certificate": der(CA.ldevid(key)),
        "chain": CA.chain,
        "mqtt": MqttAddress("127.0.0.1", 8883),
        "renew_after": NOW + timedelta(days=20),
        "ek_kind": "EK-RSA2048",
    }
    return IdentityDetails(**{**values, **changes})


@pytest.fixture
def store(tmp_path):
    return IdentityStore(tmp_path / "identity")


def folders(store):
    return sorted(path.name for path in store._pairs.iterdir())


def test_there_is_nothing_before_enrollment(store):
    assert store.current() is None
    assert store.next() is None
    store.sweep()


def test_a_swap_makes_next_current_and_the_old_pair_goes(store):
    first, second = new_key(), new_key()
    store.store_next(b"first", details(first))
    assert store.current() is None
    assert store.swap().spki == spki(first)
    store.store_next(b"second", details(second, reply_to="m"))
    assert (store.current().key_pem, store.next().key_pem) == (b"first", b"second")
    pair = store.swap()
    assert (pair.key_pem, pair.details.reply_to) == (b"second", "m")
    assert store.current() == pair
    assert store.next() is None
    assert folders(store) == ["2"]


def test_the_chain_file_holds_what_tls_sends_and_not_the_root(store):
    pair = store.store_next(b"key", details(new_key()))
    assert pair.chain_file.read_bytes().count(b"BEGIN CERTIFICATE") == 2
    assert pair.serial == format(pair.certificate.serial_number, "x")


def test_a_next_pair_can_be_given_up(store):
    store.store_next(b"first", details(new_key()))
    store.swap()
    store.store_next(b"second", details(new_key()))
    store.discard_next()
    assert store.next() is None
    assert store.current().key_pem == b"first"
    assert folders(store) == ["1"]


def test_a_newer_next_replaces_the_older(store):
    store.store_next(b"first", details(new_key()))
    store.store_next(b"second", details(new_key()))
    assert store.next().key_pem == b"second"
    assert folders(store) == ["2"]


def test_what_nothing_names_is_swept(store):
    store.store_next(b"first", details(new_key()))
    store.swap()
    (store._pairs / "7").mkdir()
    (store._pairs / "7" / "key.pem").write_bytes(b"half a pair")
    store.sweep()
    assert folders(store) == ["1"]


def test_a_swap_without_a_next_pair_is_refused(store):
    with pytest.raises(StateDamaged, match="names no next pair"):
        store.swap()


@pytest.mark.parametrize("file", ["key.pem", "chain.pem", "details.json"])
def test_an_incomplete_pair_is_said_with_its_cure(store, file):
    store.store_next(b"first", details(new_key()))
    pair = store.swap()
    (pair.key_file.parent / file).unlink()
    with pytest.raises(StateDamaged, match="to enroll again"):
        store.current()


def test_a_pair_whose_certificate_is_none_is_said_with_its_cure(store):
    store.store_next(b"key", details(new_key()))
    pair = store.swap()
    state.write_value(pair.key_file.with_name("details.json"), replace(pair.details, certificate=b"0\x03rot"))
    with pytest.raises(StateDamaged, match=r"holds no certificate: remove .*identity to enroll again"):
        store.current()
