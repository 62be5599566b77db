"""The lifecycle of what devices trust, and the bundle that follows from it."""

import itertools
from dataclasses import replace
from types import SimpleNamespace

import pytest

from provisioning.authorities import Authorities, OwnKey, State
from provisioning.refusals import WrongStep
from provisioning.rollover.bundles import names, wanted_bundle
from provisioning.rollover.lifecycle import NEXT, Step, after, following_name
from provisioning.rollover.status import difference
from wire.messages import TrustBundle

BUNDLE = TrustBundle(3, "fleet.example", (b"root",), (b"command",), (b"log",), b"director", b"image", (b"issuing",))


def row(name, kind, state="active", *, public_key=None, certificate=None, chain="[]"):
    certificate = (name.encode() if kind in ("root", "issuing") else b"") if certificate is None else certificate
    public_key = name.encode() if public_key is None else public_key
    return SimpleNamespace(
        name=name, kind=kind, state=state, public_key=public_key, certificate=certificate, chain=chain
    )


ROWS = [row("root", "root"), row("issuing", "issuing"), row("command", "command"), row("log", "log")]


# --- the lifecycle ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("state", "step"), list(itertools.product(State, Step)))
def test_only_the_steps_of_the_table_are_taken(state, step):
    if (state, step) in NEXT:
        assert after("x", state, step) is NEXT[state, step]
    else:
        with pytest.raises(WrongStep) as refused:
            after("x", state, step)
        assert refused.value.actual == state


def test_retired_is_the_end_and_only_what_was_prepared_or_retires_gets_there():
    assert not any(state is State.RETIRED for state, _ in NEXT)
    ends = {state for (state, _), following in NEXT.items() if following is State.RETIRED}
    assert ends == {State.PREPARED, State.RETIRING}  # what signs now cannot be retired: somebody must sign


def test_what_signs_no_more_can_go_back_until_it_is_retired():
    assert after("issuing", "retiring", Step.ACTIVATE) is State.ACTIVE


@pytest.mark.parametrize(
    ("known", "following"),
    [
        ([], "issuing"),
        (["issuing", "root"], "issuing-2"),
        (["issuing", "issuing-2", "issuing-10"], "issuing-11"),
        (["issuing-2"], "issuing-3"),
        (["issuing", "issuing-x", "issuing-"], "issuing-2"),
    ],
)
def test_names_rise_and_are_never_used_again(known, following):
    assert following_name("issuing", known) == following


# --- the bundle -------------------------------------------------------------------------------------------------------


def test_a_table_that_says_what_the_bundle_says_wants_no_other():
    assert wanted_bundle(BUNDLE, ROWS) is not None
    assert wanted_bundle(BUNDLE, ROWS) == BUNDLE
    assert difference(BUNDLE, wanted_bundle(BUNDLE, ROWS)) is None


@pytest.mark.parametrize(
    ("new", "field"),
    [
        (row("root-2", "root", "prepared"), "ca_roots"),
        (row("issuing-2", "issuing", "prepared"), "issuing_keys"),
        (row("command-2", "command", "prepared"), "command_keys"),
        (row("log-2", "log", "prepared"), "log_keys"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.kind,
)
def test_old_and_new_stand_side_by_side_until_the_old_one_is_retired(new, field):
    both = wanted_bundle(BUNDLE, [*ROWS, new])
    assert both.version == BUNDLE.version + 1
    assert getattr(both, field) == (*getattr(BUNDLE, field), new.name.encode())
    assert replace(both, version=3, **{field: getattr(BUNDLE, field)}) == BUNDLE  # nothing else changed
    retired = [replace_state(one, "retired") if one.kind == new.kind else one for one in ROWS]
    after_that = wanted_bundle(both, [*retired, replace_state(new, "active")])
    assert getattr(after_that, field) == (new.name.encode(),)
    assert after_that.version == both.version + 1


def replace_state(one, state):
    return SimpleNamespace(**{**vars(one), "state": state})


def test_what_awaits_its_certificate_or_key_is_not_named():
    waiting = [row(f"{kind}-2", kind, "prepared", certificate=b"") for kind in ("root", "issuing")]
    waiting.append(row("command-2", "command", "prepared", public_key=b""))
    assert wanted_bundle(BUNDLE, [*ROWS, *waiting]) == BUNDLE


def test_a_table_that_forgot_takes_nothing_from_the_devices():
    """A database may be restored from before a root was made: what devices hold stays named."""
    later = replace(BUNDLE, ca_roots=(b"root", b"root-2"), issuing_keys=(b"issuing", b"issuing-2"))
    assert wanted_bundle(later, ROWS) == later


def test_a_bundle_names_what_a_device_that_holds_it_accepts():
    below = row("issuing", "issuing", chain='["cm9vdA"]')
    assert names(BUNDLE, ROWS[0])
    assert names(BUNDLE, below)
    assert names(replace(BUNDLE, issuing_keys=()), below)  # an older bundle names roots only
    assert not names(replace(BUNDLE, issuing_keys=(b"issuing-2",)), below)
    assert not names(replace(BUNDLE, ca_roots=(b"root-2",)), below)
    assert not names(BUNDLE, row("command-2", "command"))
    assert not names(BUNDLE, row("log-2", "log"))
    assert names(BUNDLE, row("trust-2", "trust"))  # TUF's own chain of roots leads there


def test_what_is_published_is_told_line_by_line():
    both = wanted_bundle(BUNDLE, [*ROWS, row("command-2", "command", "prepared")])
    said = difference(BUNDLE, both)
    assert said["version"] == 4
    assert [line.split()[0] for line in said["adds"]] == ["command_keys"]
    assert said["drops"] == []


# --- who signs commands -----------------------------------------------------------------------------------------------


def commands(*states):
    known = Authorities()
    pairs = zip(("command", "command-2"), states, strict=False)
    known._keys = {"command": tuple(OwnKey(name, State(state), name, name.encode()) for name, state in pairs)}
    known.bundles = {
        1: replace(BUNDLE, version=1, command_keys=(b"command",)),
        2: replace(BUNDLE, version=2, command_keys=(b"command", b"command-2")),
        3: replace(BUNDLE, version=3, command_keys=(b"command-2",)),
    }
    return known


@pytest.mark.parametrize(
    ("states", "holds", "key"),
    [
        ((), None, "command"),
        (("active", "prepared"), 2, "command"),
        (("retiring", "active"), 2, "command-2"),
        (("retiring", "active"), 1, "command"),  # it was away: spoken to by the key that it knows
        (("retiring", "active"), 0, "command-2"),  # it never said what it holds
        (("retiring", "active"), None, "command-2"),
        (("retired", "active"), 1, "command-2"),  # a retired key signs nothing, whoever is left behind
        (("retired", "active"), 3, "command-2"),
    ],
)
def test_a_device_is_spoken_to_by_the_newest_key_that_it_knows(states, holds, key):
    assert commands(*states).signing_key("command", holds) == key
