"""May this device install this release? Both sides signed it, it is for this hardware, and not below the floor.

Pure. What goes in was verified by `ota.verify`.
"""

import re
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from ota import refusals
from ota.verify import VerifiedRepository, VerifiedTarget
from wire.codec import Cap, MalformedMessage, load

PCRS = 24
_VERSION = re.compile(r"[0-9A-Za-z][0-9A-Za-z.+_-]{0,63}")
_SHA256_HEX = re.compile(r"[0-9a-f]{64}")

T = TypeVar("T")

AssignmentName = Annotated[str, Cap(160)]
"""Tells one assignment from the next: the name of a target and the time, for example."""

ReferenceValues = Annotated[dict[str, Annotated[dict[str, Annotated[str, Cap(64)]], Cap(PCRS)]], Cap(1)]
"""`{"sha256": {"8": hex}}`: bank, PCR, the value that it shows after booting the release."""


@dataclass(frozen=True, slots=True)
class ReleaseClaims:
    """What the image repository says of a target, in its `custom`. Unknown fields are refused."""

    hardware_id: Annotated[str, Cap(64)]
    release_counter: int
    version: Annotated[str, Cap(64)]
    reference_values: ReferenceValues | None = None
    delta_from: Annotated[str, Cap(64)] | None = None
    sbom: Annotated[str, Cap(128)] | None = None
    slot_manifest_hash: Annotated[str, Cap(128)] | None = None


@dataclass(frozen=True, slots=True)
class DirectorClaims:
    """What the Director says of a target, in its `custom`. `assignment` tells one assignment from the next."""

    hardware_id: Annotated[str, Cap(64)]
    release_counter: int
    version: Annotated[str, Cap(64)]
    assignment: AssignmentName | None = None


@dataclass(frozen=True, slots=True)
class Release:
    """What this device may install: signed by both sides, for its hardware, not below its floor.

    The image's bytes are not seen yet. `reference_values` (PCR number to SHA-256 value) are the image repository's.
    """

    name: str
    length: int
    sha256: bytes
    version: str
    release_counter: int
    hardware_id: str
    assignment: str | None
    reference_values: dict[int, bytes]


def assignment_of(director: VerifiedRepository, device: str) -> VerifiedTarget | None:
    """The one target that the Director names for this device, if any.

    Raises: DirectorForAnotherDevice, DirectorAmbiguous.
    """
    if director.device != device:
        raise refusals.DirectorForAnotherDevice(expected=device, actual=director.device or "no device")
    if len(director.targets) > 1:
        raise refusals.DirectorAmbiguous(expected=1, actual=len(director.targets))
    return next(iter(director.targets.values()), None)


def image_of(images: VerifiedRepository, assigned: VerifiedTarget) -> VerifiedTarget:
    """The image repository's own word on the target that the Director assigned. Raises: UnknownTarget."""
    if assigned.name not in images.targets:
        raise refusals.UnknownTarget(assigned.name)
    return images.targets[assigned.name]


def verify_release(image: VerifiedTarget, director: VerifiedTarget, *, hardware: str, floor: int) -> Release:
    """What both sides signed, and this device may run. `floor` is the least release counter.

    Raises: ImageAndDirectorDisagree, TargetMalformed, HardwareMismatch, ReleaseRolledBack.
    """
    _agree("name", image.name, director.name)
    _agree("length", image.length, director.length)
    _agree("sha256", image.sha256, director.sha256)
    claims = release_claims(image)
    directed = assigned_claims(director)
    _agree("hardware_id", claims.hardware_id, directed.hardware_id)
    _agree("release_counter", claims.release_counter, directed.release_counter)
    _agree("version", claims.version, directed.version)
    if claims.hardware_id != hardware:
        raise refusals.HardwareMismatch(image.name, expected=hardware, actual=claims.hardware_id)
    if claims.release_counter < floor:
        raise refusals.ReleaseRolledBack(image.name, expected=f"{floor} or more", actual=claims.release_counter)
    return Release(
        name=image.name,
        length=image.length,
        sha256=image.sha256,
        version=claims.version,
        release_counter=claims.release_counter,
        hardware_id=claims.hardware_id,
        assignment=directed.assignment,
        reference_values=reference_values(claims),
    )


def assigned_claims(assigned: VerifiedTarget) -> DirectorClaims:
    """What the Director says of the target that it assigned. Raises: TargetMalformed."""
    return parse_assignment(assigned.name, assigned.custom)


def parse_assignment(name: str, custom: dict[str, Any] | None) -> DirectorClaims:
    """The `custom` of an assigned target, well-formed and in range. Raises: TargetMalformed."""
    claims = _claims(DirectorClaims, name, custom)
    _in_range(name, claims)
    return claims


def release_claims(image: VerifiedTarget) -> ReleaseClaims:
    """What the image repository says of this target. Raises: TargetMalformed."""
    return parse_claims(image.name, image.custom)


def parse_claims(name: str, custom: dict[str, Any] | None) -> ReleaseClaims:
    """The `custom` of an image's target, well-formed and in range. Raises: TargetMalformed."""
    claims = _claims(ReleaseClaims, name, custom)
    _in_range(name, claims)
    reference_values(claims)
    return claims


def reference_values(claims: ReleaseClaims) -> dict[int, bytes]:
    """PCR number to value, of the SHA-256 bank, the only one that releases speak of. Raises: TargetMalformed."""
    values: dict[int, bytes] = {}
    for bank, pcrs in (claims.reference_values or {}).items():
        for number, value in pcrs.items():
            known = bank == "sha256" and number.isascii() and number.isdigit() and str(int(number)) == number
            if not known or int(number) >= PCRS or _SHA256_HEX.fullmatch(value) is None:
                raise refusals.TargetMalformed(f"reference value {bank} {number}")
            values[int(number)] = bytes.fromhex(value)
    return values


def _in_range(name: str, claims: ReleaseClaims | DirectorClaims) -> None:
    if claims.release_counter < 1 or _VERSION.fullmatch(claims.version) is None:
        raise refusals.TargetMalformed(name, expected="release_counter of 1 or more, plain version")


def _claims(cls: type[T], name: str, custom: dict[str, Any] | None) -> T:
    try:
        return load(cls, custom, where="custom")
    except MalformedMessage as error:
        raise refusals.TargetMalformed(name, actual=error) from error


def _agree(what: str, image: object, director: object) -> None:
    if image != director:
        raise refusals.ImageAndDirectorDisagree(what, expected=image, actual=director)
