"""Why an update, or a set of metadata, was refused: one class each. `str()` of one is one line for a person.

The codes are stable: a code is never reused. These are a device's and a publisher's refusals; the service's own stand
in `provisioning.refusals`.
"""

from typing import ClassVar


class UpdateRefused(Exception):
    """Metadata, an image or a state was refused. `expected` and `actual` are for the operator."""

    code: ClassVar[str]
    title: ClassVar[str]

    def __init__(self, what: str = "", *, expected: object = "", actual: object = "") -> None:
        self.what = _text(what)
        self.expected = _text(expected)
        self.actual = _text(actual)
        super().__init__(self._line())

    def _line(self) -> str:
        parts = [f"{self.code} {self.title}"]
        if self.what:
            parts.append(self.what)
        if self.expected:
            parts.append(f"expected {self.expected}, actual {self.actual or 'nothing'}")
        elif self.actual:  # something else said what is wrong; nothing in particular was expected
            parts.append(self.actual)
        return ": ".join(parts)


def _text(value: object) -> str:
    """Hex for bytes; control characters escaped, so that a hostile field cannot forge a line of a log."""
    text = value.hex() if isinstance(value, bytes) else str(value)
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)[:200]


# --- metadata ---------------------------------------------------------------------------------------------------------


class MetadataMalformed(UpdateRefused):
    code, title = "MUSTER-OTA-101", "Metadata cannot be parsed"


class MetadataMissing(UpdateRefused):
    code, title = "MUSTER-OTA-102", "The repository does not have a file that it must have"


class MetadataTooLarge(UpdateRefused):
    code, title = "MUSTER-OTA-103", "Metadata is larger than its cap"


class ThresholdNotMet(UpdateRefused):
    code, title = "MUSTER-OTA-104", "Metadata is not signed by enough of the keys that this role needs"


class MetadataExpired(UpdateRefused):
    code, title = "MUSTER-OTA-105", "Metadata has expired"


class MetadataRolledBack(UpdateRefused):
    code, title = "MUSTER-OTA-106", "Metadata is older than what was already accepted"


class MetadataMixed(UpdateRefused):
    code, title = "MUSTER-OTA-107", "Metadata files do not belong together"


class RootOutOfOrder(UpdateRefused):
    code, title = "MUSTER-OTA-108", "A root does not follow the one before it"


class KeyTypeRefused(UpdateRefused):
    code, title = "MUSTER-OTA-109", "A root names a key of a type that is not on the allow-list"


class TargetNameRefused(UpdateRefused):
    code, title = "MUSTER-OTA-110", "A target's name is not a plain file name"


# --- targets and releases ---------------------------------------------------------------------------------------------


class UnknownTarget(UpdateRefused):
    code, title = "MUSTER-OTA-120", "No repository role signed a target of this name"


class LengthWrong(UpdateRefused):
    code, title = "MUSTER-OTA-121", "The target is not as long as its metadata says"


class TargetTampered(UpdateRefused):
    code, title = "MUSTER-OTA-122", "The target's hash is not the signed one"


class TargetMalformed(UpdateRefused):
    code, title = "MUSTER-OTA-123", "The target's signed description is incomplete or malformed"


class ImageAndDirectorDisagree(UpdateRefused):
    code, title = "MUSTER-OTA-124", "The image repository and the Director do not describe the same release"


class HardwareMismatch(UpdateRefused):
    code, title = "MUSTER-OTA-125", "The release is for other hardware"


class ReleaseRolledBack(UpdateRefused):
    code, title = "MUSTER-OTA-126", "The release's counter is below the device's floor"


class DirectorForAnotherDevice(UpdateRefused):
    code, title = "MUSTER-OTA-127", "The Director's metadata is for another device"


class DirectorAmbiguous(UpdateRefused):
    code, title = "MUSTER-OTA-128", "The Director names more than one target"


# --- trust ------------------------------------------------------------------------------------------------------------


class AnchorUnusable(UpdateRefused):
    code, title = "MUSTER-OTA-140", "The anchor is missing or malformed: the device trusts nothing"


class ServiceNotTheAnchors(UpdateRefused):
    code, title = "MUSTER-OTA-141", "The trust bundle names another service than the anchor"


class BundleMalformed(UpdateRefused):
    code, title = "MUSTER-OTA-142", "The trust bundle cannot be parsed"


class RepositoryNotTrusted(UpdateRefused):
    code, title = "MUSTER-OTA-143", "The trust bundle names no root for this repository"


# --- transfer, state, slots -------------------------------------------------------------------------------------------


class TooSlow(UpdateRefused):
    code, title = "MUSTER-OTA-150", "The download is slower than the least rate"


class DownloadBroken(UpdateRefused):
    code, title = "MUSTER-OTA-151", "The download breaks off again and again"


class NoSpace(UpdateRefused):
    code, title = "MUSTER-OTA-152", "There is not enough space for the release"


class FloorLost(UpdateRefused):
    code, title = "MUSTER-OTA-153", "The release floor does not fit the TPM's counter: lost, or an old one put back"


class SlotDamaged(UpdateRefused):
    code, title = "MUSTER-OTA-154", "What was read back from the slot is not what was written"


class SlotBusy(UpdateRefused):
    code, title = "MUSTER-OTA-155", "A release is on trial: the other slot is the way back and is not overwritten"


class SlotStateMalformed(UpdateRefused):
    code, title = "MUSTER-OTA-156", "The slots' state cannot be read"


# --- publishing -------------------------------------------------------------------------------------------------------


class TooFewSigners(UpdateRefused):
    code, title = "MUSTER-OTA-160", "Fewer keys than the role's threshold would sign"


class RepositoryExists(UpdateRefused):
    code, title = "MUSTER-OTA-161", "There is a repository already"


class RepositoryDamaged(UpdateRefused):
    code, title = "MUSTER-OTA-162", "The repository's own files are missing or do not fit together"


class TargetNameTaken(UpdateRefused):
    code, title = "MUSTER-OTA-163", "A published target of this name has other content: names are not used twice"
