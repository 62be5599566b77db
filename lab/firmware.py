"""Firmware images for the lab, and a measured boot of one on a real (software) TPM."""

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from lab import LabFailure
from ota.firmware import FirmwareImage, Measurement, Stage, event_log, measure

if TYPE_CHECKING:
    from tpm2_pytss import ESAPI

STAGE_BYTES = 16 * 1024

# Name, PCR, and whether a new release changes it: policy fixes PCRs 0-3 and 7, so firmware stays as delivered.
_STAGES = (("firmware", 0, False), ("bootloader", 4, False), ("kernel", 8, True), ("rootfs", 9, True))


class NoSuchStage(LabFailure, ValueError):
    """The image has no stage of that name."""


def make_image(
    hardware: str = "gateway", version: str = "1", release_counter: int = 1, seed: str = "muster"
) -> FirmwareImage:
    """An image of four stages. The same arguments give the same bytes; another version changes kernel and rootfs."""
    stages = tuple(
        Stage(name, pcr, _content(seed, hardware, name, version if released else "")) for name, pcr, released in _STAGES
    )
    return FirmwareImage(hardware, version, release_counter, stages)


def flip_byte(image: FirmwareImage, stage_name: str) -> FirmwareImage:
    """The same image with one bit of one byte of that stage changed. Raises: NoSuchStage."""
    if stage_name not in {stage.name for stage in image.stages}:
        names = ", ".join(stage.name for stage in image.stages)
        raise NoSuchStage(f"no stage {stage_name!r}; this image has {names}")
    return replace(image, stages=tuple(_flipped(stage, stage_name) for stage in image.stages))


def boot_measured(tpm: "ESAPI", image: FirmwareImage, log_path: Path) -> Measurement:
    """Extend the PCRs of a freshly reset TPM as a boot of this image does, and write its event log."""
    from tpm2_pytss.constants import ESYS_TR, TPM2_ALG  # noqa: PLC0415  an image is made without a TPM
    from tpm2_pytss.types import TPML_DIGEST_VALUES, TPMT_HA, TPMU_HA  # noqa: PLC0415  the same

    boot = measure(image)
    for event in boot.events:
        digests = TPML_DIGEST_VALUES([TPMT_HA(hashAlg=TPM2_ALG.SHA256, digest=TPMU_HA(sha256=event.digest))])
        tpm.pcr_extend(ESYS_TR(event.pcr), digests)
    log_path.write_bytes(event_log(image))
    log_path.chmod(0o600)
    return boot


def _content(seed: str, hardware: str, name: str, version: str) -> bytes:
    label = f"{seed}/{hardware}/{name}/{version}".encode()
    return hashlib.shake_256(label).digest(STAGE_BYTES)


def _flipped(stage: Stage, stage_name: str) -> Stage:
    if stage.name != stage_name:
        return stage
    return replace(stage, content=bytes([stage.content[0] ^ 1]) + stage.content[1:])
