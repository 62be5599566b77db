"""Commands to make and run virtual devices: `python -m lab --help`.

Each imports what it needs when it runs: cryptography, the TSS and TUF take longer than most of them.
"""

import argparse
import json
import os
import signal
import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import FrameType

from lab import LabFailure
from ota.firmware import MalformedImage, build_image

ANCHOR_LIFETIME = timedelta(days=3650)


class _Stopped(Exception):
    """SIGTERM or SIGINT came."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Exit status: 0 done, 1 it failed (one line on stderr), 2 usage."""
    os.environ.setdefault("TSS2_LOG", "all+none")  # libtss2 would add lines of its own to ours
    chosen = _parser().parse_args(arguments)
    try:
        return _COMMANDS[chosen.command](chosen)
    except (LabFailure, MalformedImage, OSError) as failure:
        print(f"lab {chosen.command}: {failure}", file=sys.stderr)
        return 1


def _ek_ca(chosen: argparse.Namespace) -> int:
    from lab.ekca import create_ek_ca  # noqa: PLC0415  see above

    ca = create_ek_ca(chosen.directory)
    print(json.dumps({"directory": str(ca.directory), "root": str(ca.root_pem)}))
    return 0


def _image(chosen: argparse.Namespace) -> int:
    from lab.firmware import flip_byte, make_image  # noqa: PLC0415  see above

    image = make_image(chosen.hardware, chosen.version, chosen.counter, chosen.seed)
    if chosen.flip is not None:
        image = flip_byte(image, chosen.flip)
    chosen.out.write_bytes(build_image(image))
    print(json.dumps({"image": str(chosen.out), "hardware": image.hardware, "version": image.version}))
    return 0


def _anchor(chosen: argparse.Namespace) -> int:
    from cryptography.hazmat.primitives.asymmetric import ec  # noqa: PLC0415  see above

    from ota.signing import Role, Roles, online_role, root_metadata, sign_metadata  # noqa: PLC0415  see above
    from wire.codec import encode  # noqa: PLC0415  see above
    from wire.messages import Anchor  # noqa: PLC0415  see above

    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(3)]
    offline = Role(tuple(key.public_key() for key in keys), 2, ANCHOR_LIFETIME)
    online = online_role(keys[0].public_key(), ANCHOR_LIFETIME)
    root = root_metadata(Roles(offline, offline, online, online), 1, datetime.now(UTC))
    chosen.out.write_bytes(encode(Anchor(chosen.service_name, sign_metadata(root, root.signed, "root", keys))))
    print(json.dumps({"anchor": str(chosen.out), "service_name": chosen.service_name}))
    return 0


def _create(chosen: argparse.Namespace) -> int:
    from lab.ekca import create_ek_ca, open_ek_ca  # noqa: PLC0415  see above
    from lab.virtual import DeviceSettings, create_device  # noqa: PLC0415  see above

    directory: Path = chosen.directory
    place: Path = chosen.ek_ca or directory.with_name("ek-ca")
    ca = open_ek_ca(place) if (place / "setup.conf").exists() else create_ek_ca(place)
    settings = DeviceSettings(
        name=chosen.name,
        service=chosen.service,
        public=chosen.public,
        anchor=chosen.anchor,
        openssl_conf=chosen.openssl_conf,
    )
    try:
        pems = create_device(directory, chosen.image.read_bytes(), ca, settings)
    except MalformedImage as error:
        raise LabFailure(f"{chosen.image}: {error}; make one: python -m lab image FILE") from error
    answer = {"name": chosen.name, "directory": str(directory), "ek_ca": str(ca.root_pem)}
    print(json.dumps({**answer, "ek_certificates": {kind: str(pem) for kind, pem in pems.items()}}))
    return 0


def _boot(chosen: argparse.Namespace) -> int:
    from lab.virtual import VirtualDevice  # noqa: PLC0415  see above

    device = VirtualDevice(chosen.directory, clock=chosen.clock, agent=_enroll(chosen) if chosen.enroll else None)
    signal.signal(signal.SIGTERM, _stop)
    signal.signal(signal.SIGINT, _stop)
    try:
        status = device.run()
    except _Stopped:
        return 0
    finally:
        # From here to the end of an orderly shutdown a second signal must not interrupt.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        device.power_off()
    if status != 0:
        print(f"lab boot: the agent ended with exit status {status}", file=sys.stderr)
    return 0 if status == 0 else 1


def _enroll(chosen: argparse.Namespace) -> tuple[str | Path, ...]:
    agent = Path(sys.executable).with_name("muster-agent")
    return (agent, "enroll", "--data-dir", chosen.directory.resolve() / "agent")


def _stop(_number: int, _frame: FrameType | None) -> None:
    raise _Stopped


_COMMANDS = {"anchor": _anchor, "ek-ca": _ek_ca, "image": _image, "create": _create, "boot": _boot}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m lab", description="Virtual devices with software TPMs.")
    commands = parser.add_subparsers(dest="command", required=True)

    ek_ca = commands.add_parser("ek-ca", help="make a TPM manufacturer: an EK certificate authority")
    ek_ca.add_argument("directory", type=Path)

    anchor = commands.add_parser("anchor", help="make the anchor of a fleet whose keys nobody has")
    anchor.add_argument("out", type=Path)
    anchor.add_argument("--service-name", default="muster.internal")

    image = commands.add_parser("image", help="make a firmware image")
    image.add_argument("out", type=Path)
    image.add_argument("--version", default="1")
    image.add_argument("--counter", type=int, default=1, help="release counter")
    image.add_argument("--hardware", default="gateway")
    image.add_argument("--seed", default="muster", help="another seed gives another image")
    image.add_argument("--flip", metavar="STAGE", help="change one byte of this stage")

    create = commands.add_parser("create", help="make a virtual device")
    create.add_argument("directory", type=Path)
    create.add_argument("--image", type=Path, required=True)
    create.add_argument("--name", required=True, help="serial number of the device")
    create.add_argument("--ek-ca", type=Path, help="the TPM's manufacturer (default: ek-ca beside the device)")
    create.add_argument("--service", required=True, metavar="URL", help="the device listener")
    create.add_argument("--public", required=True, metavar="URL", help="the public listener")
    create.add_argument("--anchor", type=Path, metavar="FILE", help="what the device trusts first")
    create.add_argument("--openssl-conf", type=Path, metavar="FILE", help="configuration with the tpm2 provider")

    boot = commands.add_parser("boot", help="power a device on and keep it running until SIGTERM")
    boot.add_argument("directory", type=Path)
    boot.add_argument(
        "--enroll", action="store_true", help="run `muster-agent enroll` in place of `run`, then power off"
    )
    boot.add_argument("--clock", type=_time, metavar="TIME", help="where its clock starts, as 1970-01-01T00:00:00Z")
    return parser


def _time(text: str) -> datetime:
    try:
        time = datetime.fromisoformat(text)
    except ValueError as malformed:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time like 1970-01-01T00:00:00Z") from malformed
    if time.tzinfo is None:
        raise argparse.ArgumentTypeError(f"{text!r} does not name its zone (Z is UTC)")
    return time


if __name__ == "__main__":
    sys.exit(main())
