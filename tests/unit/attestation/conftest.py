"""What holds for every refusal of the attestation package, whichever test meets it."""

import pytest

from provisioning.refusals import Refusal

NO_HINT = {"ActivationProofWrong", "SignatureWrong"}
"""Refusals of a proof: there is nothing to say but that it is wrong."""


@pytest.fixture(autouse=True)
def refusals_say_what_was_expected_and_found(monkeypatch):
    """An operator mends a device by these: a refusal that leaves one out, or has a hole in it, is a defect."""
    silent = []
    begin = Refusal.__init__

    def watched(self, **given):
        begin(self, **given)
        silent.extend(f"{type(self).__name__}: {hole}" for hole in holes(type(self).__name__, given))

    monkeypatch.setattr(Refusal, "__init__", watched)
    yield
    assert not silent


def holes(name, given):
    if name not in NO_HINT:
        yield from (f"no {field}" for field in ("expected", "actual") if field not in given)
    for field in ("expected", "actual"):
        if given.get(field, "") is None and not (name.startswith("Result") and field == "actual"):  # what it held: null
            yield f"{field} is None"
    for finding in given.get("findings", ()):
        said = (finding.what, finding.expected, finding.actual, finding.cure)
        if not all(isinstance(one, str) for one in said) or not all(said[:3]):
            yield f"{finding}"
