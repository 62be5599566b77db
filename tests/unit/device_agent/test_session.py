"""A hostile broker can delay and drop. Everything else that it can do with messages is refused by name."""

import itertools
from datetime import timedelta

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from hypothesis import given
from hypothesis import strategies as st

from device_agent import session
from device_agent.session import Session, Signer, next_session_number
from device_agent.signing import verifier
from tests.unit.device_agent.builders import DEVICE, NOW, new_key, spki
from wire.binding import key_id
from wire.codec import encode
from wire.envelope import MAX_ENVELOPE, open_envelope, seal
from wire.messages import PAYLOAD_TYPE, Hello, RefreshTrust, Renew, Welcome

COMMAND = new_key()
VERIFY = verifier([spki(COMMAND)])


def entropy(counter=itertools.count()):  # noqa: B008  one counter for all tests is the point
    number = next(counter)
    return lambda size: number.to_bytes(size, "big")


@pytest.fixture
def talk():
    return Session(DEVICE, 7, entropy())


def command(talk, key=COMMAND, kind=RefreshTrust, keyid=None, payload_type=None, **fields):
    values = {"message_id": "m", "device": DEVICE, "session": talk.id, "sequence": 1, "not_after": NOW}
    message = kind(**{**values, **fields})
    name = payload_type or PAYLOAD_TYPE[kind]
    return seal(name, encode(message), keyid or key_id(spki(key)), lambda data: key.sign(data, ec.ECDSA(SHA256())))


def test_a_signed_command_of_this_session_is_obeyed_once(talk):
    envelope = command(talk)
    assert talk.open_down(envelope, VERIFY, NOW) == RefreshTrust(
        message_id="m", device=DEVICE, session=talk.id, sequence=1, not_after=NOW
    )
    with pytest.raises(session.OutOfOrder):
        talk.open_down(envelope, VERIFY, NOW)


@pytest.mark.parametrize(
    ("fields", "refusal"),
    [
        ({"key": new_key()}, session.NotByTheService),
        ({"key": new_key(), "keyid": key_id(spki(COMMAND))}, session.NotByTheService),
        ({"device": "d-other"}, session.ForAnotherDevice),
        ({"session": "another"}, session.OfAnotherSession),
        ({"sequence": 0}, session.OutOfOrder),
        ({"sequence": -1}, session.OutOfOrder),
        ({"not_after": NOW - timedelta(seconds=1)}, session.TooLate),
        ({"payload_type": "application/vnd.muster.made-up.v1+json"}, session.NotACommand),
        ({"payload_type": PAYLOAD_TYPE[Renew]}, session.NotACommand),
        ({"payload_type": PAYLOAD_TYPE[Welcome]}, session.NotACommand),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else ",".join(value),
)
def test_everything_else_is_dropped_by_name(talk, fields, refusal):
    with pytest.raises(refusal):
        talk.open_down(command(talk, **fields), VERIFY, NOW)
    assert talk.last_sequence == 0


def test_what_the_device_itself_said_is_no_command(talk):
    key = new_key()
    _, envelope = talk.seal_up(
        Renew, Signer(spki(key), lambda m: key.sign(m, ec.ECDSA(SHA256()))), NOW, certificate_serial="1"
    )
    with pytest.raises(session.NotACommand):
        talk.open_down(envelope, verifier([spki(key)]), NOW)


def test_commands_may_be_lost_but_not_reordered(talk):
    late, early = command(talk, sequence=9), command(talk, sequence=3)
    assert talk.open_down(late, VERIFY, NOW).sequence == 9
    with pytest.raises(session.OutOfOrder, match="3, not above 9"):
        talk.open_down(early, VERIFY, NOW)


def test_a_forged_command_does_not_use_up_a_sequence(talk):
    with pytest.raises(session.NotByTheService):
        talk.open_down(command(talk, key=new_key(), sequence=10**12), VERIFY, NOW)
    assert talk.open_down(command(talk, sequence=1), VERIFY, NOW).sequence == 1


def test_unknown_fields_of_a_newer_service_are_ignored(talk):
    message = encode(RefreshTrust(message_id="m", device=DEVICE, session=talk.id, sequence=1, not_after=NOW))
    newer = message.replace(b"{", b'{"colour":"red",', 1)
    sign = lambda data: COMMAND.sign(data, ec.ECDSA(SHA256()))  # noqa: E731
    envelope = seal(PAYLOAD_TYPE[RefreshTrust], newer, key_id(spki(COMMAND)), sign)
    assert talk.open_down(envelope, VERIFY, NOW).sequence == 1


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_dropped_and_nothing_else(octets):
    talk = Session(DEVICE, 1, entropy())
    with pytest.raises(session.NotACommand):
        talk.open_down(octets, VERIFY, NOW)


@given(st.data())
def test_a_changed_byte_never_passes(data):
    talk = Session(DEVICE, 1, entropy())
    envelope = bytearray(command(talk))
    place = data.draw(st.integers(0, 9999)) % len(envelope)  # a signature's length varies from run to run
    envelope[place] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(session.Dropped):
        talk.open_down(bytes(envelope), VERIFY, NOW)


def test_an_oversized_message_is_not_parsed(talk):
    with pytest.raises(session.NotACommand, match="more than"):
        talk.open_down(b"[" * (MAX_ENVELOPE + 1), VERIFY, NOW)


def test_a_key_that_is_not_p256_verifies_nothing():
    other = ec.generate_private_key(ec.SECP384R1())
    verify = verifier([spki(other)])
    assert not verify(key_id(spki(other)), other.sign(b"m", ec.ECDSA(SHA256())), b"m")


def test_what_goes_up_is_numbered_and_signed_by_the_key_in_use(talk):
    key = new_key()
    signer = Signer(spki(key), lambda message: key.sign(message, ec.ECDSA(SHA256())))
    fields = {
        "last_sequence": 0,
        "session_number": 7,
        "trust_version": 1,
        "certificate_serial": "1",
        "release_counter": 0,
    }
    first, second = (talk.seal_up(Hello, signer, NOW, **fields) for _ in range(2))
    payloads = [open_envelope(one, PAYLOAD_TYPE[Hello], verifier([spki(key)])) for _, one in (first, second)]
    assert b'"sequence":1,' in payloads[0]
    assert b'"sequence":2,' in payloads[1]
    assert first[0].encode() in payloads[0]


def test_session_numbers_rise_with_each_start_and_survive_a_lost_file(tmp_path):
    first = next_session_number(tmp_path, NOW)
    assert next_session_number(tmp_path, NOW) == first + 1
    assert next_session_number(tmp_path, NOW - timedelta(days=9000)) == first + 2
    (tmp_path / "session.json").unlink()
    assert next_session_number(tmp_path, NOW + timedelta(minutes=1)) > first + 2
    (tmp_path / "session.json").write_bytes(b"\x00")
    assert next_session_number(tmp_path, NOW + timedelta(minutes=2)) > first + 2
