"""Evidence as it is kept: a log once, by its hash; the rest as it came."""

import hashlib
import json
from dataclasses import replace

import pytest

from provisioning.attesting import stored_form
from wire.codec import decode, encode
from wire.messages import Attestation, PlatformEvidence

LOG = b"a boot log, long enough for the padding to matter"
SHOWN = PlatformEvidence(Attestation(b"attest", b"signature"), {"sha256": {"0": bytes(32)}}, bytes(32), boot_log=LOG)
KEPT = replace(SHOWN, boot_log=None, boot_log_sha256=hashlib.sha256(LOG).digest())


def test_what_an_agent_writes_is_kept_as_it_would_be_written_without_the_log():
    assert stored_form(SHOWN, encode(SHOWN)) == encode(KEPT)


@pytest.mark.parametrize(
    "written",
    [json.dumps(json.loads(encode(SHOWN))).encode(), encode(SHOWN).replace(b'"boot_log"', b'"boot\\u005flog"')],
    ids=["with blanks", "escaped"],
)
def test_other_spellings_are_written_anew(written):
    assert decode(PlatformEvidence, written, limit=10_000) == SHOWN
    assert stored_form(SHOWN, written) == encode(KEPT)


def test_what_holds_no_log_is_kept_to_the_octet():
    spaced = json.dumps(json.loads(encode(KEPT))).encode()
    assert stored_form(KEPT, spaced) == spaced


def test_an_ima_log_is_named_by_its_hash_too():
    kept = replace(KEPT, ima_log_sha256=hashlib.sha256(b"ima").digest())
    both = replace(SHOWN, ima_log=b"ima")
    assert stored_form(both, encode(both)) == encode(kept)
