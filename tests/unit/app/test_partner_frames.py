"""What goes between a worker and its partners: whole frames out of any pieces; refusals and verdicts as they were."""

import pytest
from hypothesis import given
from hypothesis import strategies as some

from provisioning import refusals
from provisioning.app.keys import Signed
from provisioning.app.partner import CONTENT_MOST, HEADER, frame, frames
from provisioning.app.signing import named, parted, read, written
from provisioning.app.verifying import accepted, proven, refusal_of, told
from provisioning.attestation.quote import TpmState, VerifiedPcrs
from provisioning.refusals import Finding, Refusal
from provisioning.verifier import Accepted

KINDS = [
    kind for kind in vars(refusals).values() if isinstance(kind, type) and issubclass(kind, Refusal) and kind != Refusal
]
NUMBERS = some.integers(0, 2**32 - 1)
TEXTS = some.text(some.characters(codec="utf-8"), max_size=20)


@given(some.lists(some.tuples(NUMBERS, some.integers(0, 255), some.binary(max_size=40))), some.integers(1, 60))
def test_frames_come_out_whole_in_whatever_pieces_they_come(sent, size):
    data = b"".join(frame(*one) for one in sent)
    got, found = bytearray(), []
    for at in range(0, len(data), size):
        got += data[at : at + size]
        found += frames(got)
    assert found == sent
    assert not got


def test_a_frame_that_is_too_long_is_refused_before_it_is_waited_for():
    with pytest.raises(ValueError, match=f"a frame of {CONTENT_MOST + 1} octets"):
        list(frames(bytearray(HEADER.pack(CONTENT_MOST + 1, 1, 1))))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_refusal_comes_back_as_what_it_was(kind):
    findings = (Finding("PCR 4", "aa", "bb", "policy edit", refused=True), Finding("clock", "1", "0"))
    sent = kind(expected=b"\x01", actual="line\nbreak", findings=findings)
    back = refusal_of(told(sent).decode())
    assert type(back) is kind
    assert (back.expected, back.actual, back.findings) == (sent.expected, sent.actual, findings)


@given(
    some.dictionaries(some.integers(0, 23), some.binary(min_size=32, max_size=32)),
    some.tuples(NUMBERS, NUMBERS, some.integers(0, 2**64 - 1), some.booleans(), some.integers(0, 2**64 - 1)),
    some.lists(some.builds(Finding, TEXTS, TEXTS, TEXTS, TEXTS, some.booleans()), max_size=3),
    some.binary(max_size=200),
)
def test_what_evidence_proved_comes_back_as_it_was(values, tpm, findings, spki):
    state = TpmState(*tpm)
    sent = Accepted(VerifiedPcrs("sha256", values, state), tuple(findings), spki)
    back = accepted(proven(sent))
    assert (back.pcrs.bank, dict(back.pcrs.values), back.pcrs.tpm) == ("sha256", values, state)
    assert (back.findings, back.spki) == (sent.findings, spki)


@given(TEXTS, some.binary(max_size=50))
def test_a_key_is_named_by_any_text_and_what_is_signed_is_what_was_sent(key, message):
    assert parted(named(key, message)) == (key, message)


@given(some.lists(some.builds(Signed, TEXTS, TEXTS, NUMBERS, some.tuples(some.binary(min_size=32, max_size=32)))))
def test_counted_signatures_are_told_as_they_were_counted(taken):
    assert read(written(taken)) == taken
