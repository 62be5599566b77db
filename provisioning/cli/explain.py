"""Why something was refused, for a person: the check, what it stops, expected and actual, what would make it pass."""

from typing import Annotated, Any

import typer

from provisioning.cli.client import operator, segment
from provisioning.cli.output import DataDir, Format, Output, clean, directory_of, example, print_json

CHECKS = {
    1: ("sizes, encodings, algorithms", "hand the parser what breaks it, or talk the service down to weak algorithms"),
    2: ("the EK certificate", "enroll a fake TPM, or one made of software"),
    3: ("the EK itself", "put another key in the place of the one that was certified"),
    4: ("no URL is fetched", "make the service call addresses of the attacker's choice"),
    5: ("the attestation key", "forge quotes with a key that signs anything, or one that was brought in"),
    6: ("the credential", "use an attestation key of another TPM"),
    7: ("the activation proof", "use an attestation key of another TPM"),
    8: ("one challenge, one answer", "change keys between the challenge and the answer"),
    9: ("what kind of statement it is", "present one kind of TPM statement as another"),
    10: ("the signature of the statement", "speak for a TPM that said nothing"),
    11: ("which challenge it answers", "replay or relay another device's proof, or swap the request"),
    12: ("which PCRs are quoted", "leave out of the quote what was tampered with"),
    13: ("what was booted", "enroll a device that booted tampered firmware, or forge its boot log"),
    14: ("the device key", "get a certificate for a key that can be copied"),
    15: ("the request", "get a certificate over somebody else's key, or with another's name"),
    16: ("the TPM's counters", "pass with a restored or cloned state"),
    17: ("the TPM's firmware", "use a TPM whose firmware has known holes"),
    18: ("one TPM, one identity", "enroll a TPM that nobody registered, or one device twice"),
    19: ("a key of its own", "use one key for two devices"),
    20: ("a policy is mandatory", "enroll whatever nobody has made a rule for"),
}
"""Number of the check (docs/protocol.md, section 1) to its name and what an attacker could do without it."""

FINDINGS_SHOWN = 20
EVENTS_SHOWN = 12

Name = Annotated[
    str,
    typer.Argument(
        metavar="REFUSAL_ID|ATTESTATION_ID|DEVICE", help="An id, or a device by id or serial: its last refusal."
    ),
]
Monitor = Annotated[
    bool, typer.Option("--monitor", help="What the policy's mode let pass last, in the place of a refusal.")
]
Unsafe = Annotated[
    bool,
    typer.Option(
        "--show-unsafe", help="Edits, too, of what is unsigned or was seen on few devices. Asking goes into the log."
    ),
]


def add_to(app: typer.Typer) -> None:
    """Put the command in."""
    app.command("explain", epilog=example("muster explain gateway-0017", "muster explain gateway-0017 --monitor"))(
        explain
    )


def explain(
    name: Name,
    monitor: Monitor = False,
    show_unsafe: Unsafe = False,
    data_dir: DataDir = None,
    output: Output = Format.TABLE,
) -> None:
    """Explain a refusal. Which check, expected and actual, what changed, which edit of the policy would accept it."""
    path = f"/api/v1/explain/{segment(name, 'refusal id, attestation id, device id or serial')}"
    asked = [f"{flag}=true" for flag, wanted in (("monitor", monitor), ("show_unsafe", show_unsafe)) if wanted]
    found = operator(directory_of(data_dir)).get(path + ("?" + "&".join(asked) if asked else ""))
    if output is Format.JSON:
        print_json({**found, **_stops(found)})
    else:
        print("\n".join(lines_of(found)))


def lines_of(found: dict[str, Any]) -> list[str]:
    """The explanation as a person reads it."""
    who = found.get("device") or "a stranger"
    serial = f" (serial {found['serial']})" if found.get("serial") else ""
    code = f" ({found['code']})" if found.get("code") else ""
    by = f", by {found['source']}" if found.get("source") else ""
    lines = [f"{found['title']}{code}", ""]
    lines.append(f"  who       {who}{serial}{by}, at {found['at']}, while it wanted to {found['flow']}")
    stops = _stops(found)
    if stops:
        lines.append(f"  check     {found['check']}: {stops['check_name']}")
        lines.append(f"  without   an attacker could {stops['without_it']}")
    lines += [f"  {label:<9} {found[label]}" for label in ("expected", "actual") if found.get(label)]
    findings = found.get("findings", [])
    for finding in findings[:FINDINGS_SHOWN]:
        lines += _finding(finding)
    if len(findings) > FINDINGS_SHOWN:
        lines += ["", f"  and {len(findings) - FINDINGS_SHOWN} more: muster explain … -o json"]
    lines += _changed(found)
    if found.get("evidence") not in (None, "kept"):
        lines += ["", f"  evidence  {found['evidence']}"]
    if found.get("cure"):
        lines += ["", f"  cure      {found['cure']}"]
    lines += _edit(found)
    if not found.get("proven_own", True) and found.get("device"):
        lines += ["", "  Not proven to come from the device itself: its health is untouched."]
    named = "refusal" if found.get("refusal") else "attested"
    lines.append(f"  {named:<9} {found.get('refusal') or found.get('attestation')}")
    return [clean(line) for line in lines]


def _finding(finding: dict[str, Any]) -> list[str]:
    lines = ["", f"  {finding.get('what')}", f"    expected  {finding.get('expected')}"]
    lines.append(f"    actual    {finding.get('actual')}")
    if finding.get("cure"):
        lines.append(f"    cure      {finding['cure']}")
    if finding.get("others") is not None:
        more = " or more" if finding.get("others_at_least") else ""
        lines.append(f"    seen on   {finding['others']}{more} other devices of the model")
    if finding.get("why"):
        lines.append(f"    signed    {'yes' if finding.get('signed') else 'no'}: {finding['why']}")
    if finding.get("withheld") and not finding.get("edit"):
        lines.append(f"    edit      withheld, {finding['withheld']}")
    return lines


def _changed(found: dict[str, Any]) -> list[str]:
    """What is different since the device last passed."""
    changed = found.get("changed")
    if not changed:
        return []
    since = changed.get("since") or {}
    lines = ["", f"  changed since it passed at {since.get('at')}"]
    lines += [f"    PCR {one['pcr']}: {one['before']} -> {one['now']}" for one in changed.get("pcrs", [])]
    for event in changed.get("events", [])[:EVENTS_SHOWN]:
        before, now = event.get("before") or {}, event.get("now") or {}
        texts = " -> ".join(text for text in (before.get("text"), now.get("text")) if text)
        number = (now or before).get("event")
        lines.append(f"    PCR {event['pcr']}, event {number} {event['change']}: {texts}")
    files = changed.get("files", [])
    lines += [f"    {one['path']}: {one['before'] or 'not measured'} -> {one['now']}" for one in files[:EVENTS_SHOWN]]
    hidden = max(0, len(changed.get("events", [])) - EVENTS_SHOWN) + max(0, len(files) - EVENTS_SHOWN)
    hidden += changed.get("more_events", 0) + changed.get("more_files", 0)
    if hidden:
        lines.append(f"    and {hidden} more: muster explain … -o json")
    if changed.get("firmware"):
        lines.append(f"    TPM firmware: {changed['firmware']['before']} -> {changed['firmware']['now']}")
    return lines if len(lines) > 2 else [*lines, "    nothing that was quoted or logged"]  # noqa: PLR2004  the head


def _edit(found: dict[str, Any]) -> list[str]:
    """The edit that would accept this evidence, or why it is not shown."""
    policy = found.get("policy")
    if not policy:
        return []
    if policy.get("accepts_it_now"):
        return ["", f"  policy    version {policy['version']}, now in force, accepts it"]
    edits = (
        [found["edit"]] if found.get("edit") else [one["edit"] for one in found.get("findings", []) if one.get("edit")]
    )
    if not edits and any(finding.get("withheld") and "others" in finding for finding in found.get("findings", [])):
        return ["", "  edit      withheld; --show-unsafe shows it all the same, and asking for it goes into the log"]
    if not edits:
        return ["", f"  edit      none: {found['withheld']}"] if found.get("withheld") else []
    lines = [
        "",
        f"  edit of version {policy['version']} of {policy['model']}'s policy, which is applied by nobody here:",
    ]
    for edit in edits:
        lines += [f"    {line}" for line in edit["diff"].splitlines()[2:]]
    return [*lines, f"  {found['second_person']}"] if found.get("second_person") else lines


def _stops(found: dict[str, Any]) -> dict[str, str]:
    name, gain = CHECKS.get(found.get("check") or 0, ("", ""))
    return {"check_name": name, "without_it": gain} if name else {}
