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

Name = Annotated[
    str, typer.Argument(metavar="REFUSAL_ID|DEVICE", help="A refusal's id, or a device (its last refusal).")
]


def add_to(app: typer.Typer) -> None:
    """Put the command in."""
    app.command("explain", epilog=example("muster explain gateway-0017"))(explain)


def explain(name: Name, data_dir: DataDir = None, output: Output = Format.TABLE) -> None:
    """Explain a refusal. Which check, expected and actual, what would make it pass."""
    path = f"/api/v1/explain/{segment(name, 'refusal id, device id or serial')}"
    found = operator(directory_of(data_dir)).get(path)
    if output is Format.JSON:
        print_json({**found, **_stops(found)})
    else:
        print("\n".join(lines_of(found)))


def lines_of(found: dict[str, Any]) -> list[str]:
    """The refusal as a person reads it."""
    who = found.get("device") or "a stranger"
    serial = f" (serial {found['serial']})" if found.get("serial") else ""
    lines = [f"{found['title']} ({found['code']})", ""]
    lines.append(
        f"  who       {who}{serial}, by {found['source']}, at {found['at']}, while it wanted to {found['flow']}"
    )
    stops = _stops(found)
    if stops:
        lines.append(f"  check     {found['check']}: {stops['check_name']}")
        lines.append(f"  without   an attacker could {stops['without_it']}")
    lines += [f"  {label:<9} {found[label]}" for label in ("expected", "actual") if found.get(label)]
    for finding in found.get("findings", []):
        lines += ["", f"  {finding.get('what')}", f"    expected  {finding.get('expected')}"]
        lines.append(f"    actual    {finding.get('actual')}")
        if finding.get("cure"):
            lines.append(f"    cure      {finding['cure']}")
    if found.get("cure"):
        lines += ["", f"  cure      {found['cure']}"]
    if not found.get("proven_own", True) and found.get("device"):
        lines += ["", "  Not proven to come from the device itself: its health is untouched."]
    lines.append(f"  refusal   {found['refusal']}")
    return [clean(line) for line in lines]


def _stops(found: dict[str, Any]) -> dict[str, str]:
    name, gain = CHECKS.get(found.get("check") or 0, ("", ""))
    return {"check_name": name, "without_it": gain} if name else {}
