"""What operators decide about policies: set, proposed, promoted by another. JSON-ready values; no row leaves."""

import asyncio
import difflib
import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy import Connection

from provisioning import ek_roots, rejudging
from provisioning.access import Role
from provisioning.attestation.learning import learned
from provisioning.attestation.policy import Mode, Policy, parse_policy
from provisioning.db import devices, judge_again, leaves, policies, retention
from provisioning.db.devices import Record
from provisioning.journal import leaf
from provisioning.refusals import NobodyToLearnFrom, NotFound, RequestMalformed, SecondPersonRequired, StateConflict
from provisioning.service import Service
from wire.codec import rfc3339
from wire.topics import is_device_id

Json = dict[str, object]
DRAFTS_MOST = 50
"""Drafts of one model that may wait at once."""


@dataclass(frozen=True, slots=True)
class Named:
    """Which policy is meant: a version of a model, or that in force for a group of it (None: for the model)."""

    model: str
    group: str | None = None
    version: int | None = None


async def set_policy(service: Service, text: str, *, by: str) -> Json:
    """The next version of a model's policy, in force at once: one person's decision.

    Not this way goes what needs two: another mode, more devices to learn from, and a text that accepts what devices
    were refused for. The last but where it was in force before: to take a mistake back needs nobody else. Where there
    is no other admin who could promote it, it goes all the same, and the leaf says so.

    Raises: PolicyMalformed, SecondPersonRequired, StateConflict (another one was put into force meanwhile).
    """
    policy = await _checked(service, text)

    def read(tx: Connection) -> tuple[Record | None, bool]:
        before = policies.newest_policy(tx, policy.model, policy.group)
        return before, policies.was_in_force(tx, policy.model, policy.group, text)

    before, again = await service.store.read(read)
    said: Json = {"model": policy.model, "group": policy.group, "mode": policy.mode, "text": text}
    if before is not None and before.text != text:
        try:
            await _verify_one_person_may(service, before, policy, again=again)
        except SecondPersonRequired as refusal:
            if not await service.store.read(lambda tx: _is_only_admin(tx, by)):
                raise
            said["alone"] = f"{refusal.expected}; not {refusal.actual}"
    now = service.clock()
    entry = leaf(service, "policy", now, **said, by=by)

    def write(tx: Connection) -> Json:
        still = policies.newest_policy(tx, policy.model, policy.group)
        if (still and still.id) != (before and before.id):
            raise StateConflict(expected="the policy that was in force", actual="another one since; look, and repeat")
        version = policies.add_policy(
            tx, model=policy.model, group=policy.group, text=text, now=int(now.timestamp()), by=by
        )
        leaves.add(tx, entry)
        return {"model": policy.model, "group": policy.group, "version": version, "state": "active"}

    return await service.ledger.write(write)


async def propose_policy(service: Service, text: str, *, by: str) -> Json:
    """A draft: the next version of a model's policy, which counts for nothing until another person promotes it.

    Raises: PolicyMalformed, StateConflict (too many drafts wait).
    """
    policy = await _checked(service, text)
    now = service.clock()
    said = {"model": policy.model, "group": policy.group, "mode": policy.mode, "text": text}
    entry = leaf(service, "policy-draft", now, **said, by=by)

    def write(tx: Connection) -> Json:
        if policies.count_drafts(tx, policy.model) >= DRAFTS_MOST:
            raise StateConflict(expected=f"at most {DRAFTS_MOST} drafts of a model", actual="one more; promote one")
        version = policies.add_draft(
            tx, model=policy.model, group=policy.group, text=text, now=int(now.timestamp()), by=by
        )
        leaves.add(tx, entry)
        return {"model": policy.model, "group": policy.group, "version": version, "state": "draft"}

    return await service.ledger.write(write)


async def promote_policy(service: Service, model: str, version: int, *, by: str) -> Json:
    """A draft into force, by another person than the one who proposed it.

    Not proven: that two names are two people. An admin can make operators; the log says which, and when.

    Raises: NotFound, PolicyMalformed (a root that it names is gone), StateConflict, SecondPersonRequired.
    """
    wanted = Named(model, version=version)
    draft = await service.store.read(lambda tx: _found(tx, wanted))
    policy = await _checked(service, draft.text)
    now = service.clock()
    at = int(now.timestamp())

    def write(tx: Connection) -> Json:
        row = _found(tx, wanted)
        if row.state != "draft":
            raise StateConflict(expected="a draft", actual=f"version {version} is {row.state}")
        if row.created_by == by:
            raise SecondPersonRequired(expected=f"another operator than {by}, who proposed it", actual=by)
        before = policies.own(tx, model, row.group)
        policies.put_into_force(tx, row, now=at, by=by)
        leaves.add(tx, entry)
        known = None if before is None else before.version
        return {
            **_shown(row, policy.mode),
            "state": "active",
            "promoted": rfc3339(now),
            "promoted_by": by,
            "before": known,
        }

    said = {"model": model, "group": policy.group, "version": version, "mode": policy.mode}
    entry = leaf(service, "policy-promotion", now, **said, text=draft.text, proposed_by=draft.created_by, by=by)
    return await service.ledger.write(write)


async def list_policies(service: Service) -> list[Json]:
    """The policies in force of every model and group, and the drafts."""
    rows = await service.store.read(policies.current)
    return await asyncio.to_thread(lambda: [_shown(row, parse_policy(row.text).mode) for row in rows])


async def show_policy(service: Service, wanted: Named) -> Json:
    """One policy, whole. Raises: NotFound."""
    row = await service.store.read(lambda tx: _found(tx, wanted))
    return {**_shown(row, (await _parsed(row.text)).mode), "toml": row.text}


async def compare(service: Service, wanted: Named, to: int | None, text: str | None) -> Json:
    """What another text, or version, changes of a policy: the lines, as `diff -u` has them.

    `to`: a version; where neither is given, the newest draft. Raises: NotFound, PolicyMalformed.
    """
    if text is not None:
        await _parsed(text)

    def read(tx: Connection) -> tuple[Record, Record | None]:
        before = _found(tx, wanted)
        if text is not None:
            return before, None
        if to is not None:
            return before, _found(tx, Named(wanted.model, version=to))
        draft = policies.newest_draft(tx, wanted.model, before.group)
        if draft is None:
            raise NotFound(expected="a draft to compare with", actual=f"{wanted.model} has none")
        return before, draft

    before, after = await service.store.read(read)
    new = after.text if after is not None else text or ""
    old, named = f"version {before.version}", "the file" if after is None else f"version {after.version}"
    lines = await asyncio.to_thread(_difference, before.text, new, old, named)
    version = None if after is None else after.version
    return {"model": before.model, "from": before.version, "to": version, "changed": bool(lines), "lines": lines}


async def test_policy(
    service: Service, text: str | None, wanted: Named | None, behind: str, *, every: bool, by: str
) -> Json:
    """One page of: who would fail, were this policy in force and enforced? `behind` is the place that a page ended at.

    A text, or a version that is known; without its number the newest draft of the model and group, else the policy in
    force. Stored evidence is verified and judged again, each device's newest or `every` one. A run is one leaf.

    Raises: RequestMalformed, PolicyMalformed, NotFound.
    """
    if (text is None) == (wanted is None):
        raise RequestMalformed(expected="either a text or a model", actual="both, or neither")
    place = rejudging.place_from(behind)
    known: Json = {"version": None, "state": None}
    if wanted is not None:
        row = await service.store.read(lambda tx: _tested(tx, wanted))
        text, known = row.text, {"version": row.version, "state": row.state}
    policy = await _checked(service, text or "")
    said = {"model": policy.model, "group": policy.group, "mode": policy.mode, **known}
    if not behind:
        digest = hashlib.sha256((text or "").encode()).digest()
        entry = leaf(service, "policy-test", service.clock(), **said, text_sha256=digest, by=by)
        await service.ledger.write(lambda tx: leaves.add(tx, entry))
    if every and not behind:
        known["removed"] = await service.store.read(lambda tx: retention.removed_of_model(tx, policy.model))
    page = await rejudging.judge_page(service, policy, place, every=every)
    return {**said, **known, "judged": page.judged, "devices": page.rows, "behind": rejudging.place_text(page.behind)}


async def learn_policy(service: Service, wanted: Named, names: tuple[str, ...], *, by: str) -> Json:
    """A policy's text with the values that chosen devices showed: `names`, or else its own `learn_from`.

    Their newest evidence counts, verified again from its stored bytes. Nothing is put into force, nor proposed.

    Raises: NotFound, NobodyToLearnFrom, PolicyMalformed, StateConflict, and what stored evidence is refused with.
    """
    row = await service.store.read(lambda tx: _found(tx, wanted))
    policy = await _parsed(row.text)
    chosen = tuple(dict.fromkeys(names or policy.learn_from))
    if not 1 <= len(chosen) <= rejudging.LEARNED_MOST:
        none = f"none: version {row.version} of {policy.model} has no learn_from"
        raise NobodyToLearnFrom(expected=f"1 to {rejudging.LEARNED_MOST} devices", actual=len(chosen) or none)
    lessons, without = await rejudging.lessons_of(service, policy, chosen)
    now = service.clock()
    head = [f"{policy.model}: learned from version {row.version} and {len(lessons.serials)} devices, {rfc3339(now)}."]
    head += [f"No evidence yet: {', '.join(without)}."] if without else []
    text = await asyncio.to_thread(learned, row.text, lessons, head)
    said = {"model": policy.model, "group": policy.group, "version": row.version}
    told = {"learned_from": lessons.serials, "without_evidence": without}
    digest = hashlib.sha256(text.encode()).digest()
    entry = leaf(service, "policy-learning", now, **said, **told, text_sha256=digest, by=by)
    await service.ledger.write(lambda tx: leaves.add(tx, entry))
    return {**said, **told, "toml": text}


async def set_group(service: Service, name: str, group: str | None, *, by: str) -> Json:
    """The group of a device, whose policy counts for it from its next challenge on; None: only the model's.

    Raises: RequestMalformed, NotFound, StateConflict.
    """
    if group is not None and not is_device_id(group):
        raise RequestMalformed(expected="a group of 1 to 63 characters of a-z 0-9 . _ -", actual=group)
    entry = leaf(service, "device-group", service.clock(), device=name, group=group, by=by)

    def write(tx: Connection) -> Json:
        device = devices.by_name(tx, name)
        if device is None:
            raise NotFound(expected="a device's id or serial", actual=name)
        if device.state in ("revoked", "decommissioned"):
            raise StateConflict(expected="a device in service", actual=device.state)
        devices.change(tx, device.id, group=group)
        devices.look_again(tx, device.model, int(service.clock().timestamp()), only=device.id)
        judge_again.add_device(tx, device.id)
        leaves.add(tx, entry)
        policy = policies.newest_policy(tx, device.model, group)
        version = None if policy is None else policy.version
        return {"device": device.id, "group": group, "before": device.group, "policy_version": version}

    return await service.ledger.write(write)


async def _checked(service: Service, text: str) -> Policy:
    """A text that could be in force. Raises: PolicyMalformed."""
    policy = await _parsed(text)
    await service.ek_roots.refresh(service.store)  # another worker may have imported it a moment ago
    await asyncio.to_thread(ek_roots.verify_named, text, service.ek_roots.store)
    return policy


async def _parsed(text: str) -> Policy:
    """On a thread: a long text takes a fifth of a second. Raises: PolicyMalformed."""
    return await asyncio.to_thread(parse_policy, text)


def _difference(before: str, after: str, old: str, new: str) -> list[str]:
    return list(difflib.unified_diff(before.splitlines(), after.splitlines(), old, new, lineterm="", n=2))


async def _verify_one_person_may(service: Service, before: Record, after: Policy, *, again: bool) -> None:
    """`again`: the text was in force before. Raises: SecondPersonRequired."""
    old = await _parsed(before.text)
    if old.mode != after.mode:
        raise SecondPersonRequired(expected=f"the mode {old.mode}, which is in force", actual=f"the mode {after.mode}")
    if taught := sorted(set(after.learn_from) - set(old.learn_from)):
        raise SecondPersonRequired(expected="the devices that it learns from", actual=", ".join(taught))
    if again:
        return
    accepted = await rejudging.accepts_what_was_refused(service, old, after)
    if accepted:
        raise SecondPersonRequired(
            expected="a policy that refuses what was refused", actual="one that accepts it", findings=accepted
        )


def _is_only_admin(tx: Connection, name: str) -> bool:
    """Is there nobody else who could be the second person?"""
    return all(row.name == name for row in devices.operators(tx) if row.role == Role.ADMIN)


def _found(tx: Connection, wanted: Named) -> Record:
    """Raises: NotFound."""
    if wanted.version is not None:
        row = policies.by_version(tx, wanted.model, wanted.version)
    else:
        row = policies.newest_policy(tx, wanted.model, wanted.group)
    if row is None:
        known = ", ".join(str(one.version) for one in policies.versions(tx, wanted.model)) or "none"
        actual = wanted.model if wanted.version is None else f"{wanted.model}, version {wanted.version}"
        raise NotFound(expected=f"a model with a policy (versions: {known})", actual=actual)
    return row


def _tested(tx: Connection, wanted: Named) -> Record:
    """Raises: NotFound."""
    draft = None if wanted.version is not None else policies.newest_draft(tx, wanted.model, wanted.group)
    return _found(tx, wanted) if draft is None else draft


def _shown(row: Record, mode: Mode) -> Json:
    return {
        "model": row.model,
        "group": row.group or None,
        "version": row.version,
        "state": row.state,
        "mode": mode,
        "created": _time(row.created_at),
        "by": row.created_by,
        "promoted": _time(row.promoted_at),
        "promoted_by": row.promoted_by,
    }


def _time(at: int | None) -> str | None:
    return None if at is None else rfc3339(datetime.fromtimestamp(at, UTC))
