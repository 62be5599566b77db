"""Factory stations: made by an operator, used to register devices under a counted budget."""

import re
import shutil
from pathlib import Path
from typing import Annotated, Any

import typer

from provisioning.cli.client import Client, RefusedByService, operator, segment, station
from provisioning.cli.failures import Failed, Mistaken, naming
from provisioning.cli.idevid import idevid
from provisioning.cli.output import (
    DataDir,
    Format,
    Output,
    directory_of,
    example,
    note,
    print_json,
    print_records,
    show,
)
from provisioning.config import DataDirectory
from wire.codec import unb64url

BUDGET_MOST = 10_000_000
_STATION = re.compile(r"[a-z0-9][a-z0-9.-]{0,40}")
_ROW = re.compile(r"devices\[(\d{1,4})\]")

Name = Annotated[str, typer.Argument(metavar="NAME", help="The station's name.")]
Budget = Annotated[int, typer.Option(min=0, max=BUDGET_MOST, metavar="N", help="How many devices it may register.")]
File = Annotated[
    Path,
    typer.Argument(
        metavar="FILE.csv",
        help="UTF-8; header: serial,model and one of ek_certificate, ek_public, ek_sha256, iak_certificate, "
        "idevid_certificate",
    ),
]
Station = Annotated[str, typer.Option("--station", metavar="NAME", help="Which station vouches.")]


def add_to(app: typer.Typer) -> None:
    """Put the commands in."""
    group = typer.Typer(help="Register devices.", no_args_is_help=True, rich_markup_mode=None)
    stations = typer.Typer(help="Factory stations and their budgets.", no_args_is_help=True, rich_markup_mode=None)
    stations.command("add", epilog=example("muster factory station add line-1 --budget 500"))(add_station)
    stations.command("list", epilog=example("muster factory station list -o json"))(list_stations)
    group.add_typer(stations, name="station")
    group.command("register", epilog=example("muster factory register devices.csv --station line-1"))(register)
    made = "muster factory idevid sensor.csr --serial sensor-0042 --model sensor --station line-1"
    group.command("idevid", epilog=example(made))(idevid)
    app.add_typer(group, name="factory")


def add_station(name: Name, budget: Budget, data_dir: DataDir = None, output: Output = Format.TABLE) -> None:
    """Make a station, or give a known one a new certificate and budget. Its key is made here and stays here."""
    directory = directory_of(data_dir)
    if _STATION.fullmatch(name) is None:
        raise Mistaken(f"{name!r} is no station name; it has 1 to 41 characters of a-z 0-9 . -")
    client = operator(directory)
    folder = _folder(directory, name)
    with naming(folder):
        certificate = _certified(client, folder, name, budget)
    left = {"name": name, "budget": budget, "certificate": str(certificate), "key": str(folder / "key.pem")}
    show(output, left)


def list_stations(data_dir: DataDir = None, output: Output = Format.TABLE) -> None:
    """Show all stations and what is left of their budgets."""
    found = operator(directory_of(data_dir)).get("/api/v1/stations")
    if output is Format.JSON:
        print_json(found)
    else:
        print_records(found["stations"], ("name", "budget", "used", "left"))


def register(file: File, station_name: Station, data_dir: DataDir = None, output: Output = Format.TABLE) -> None:
    """Register the devices of a CSV file: all of them, or none."""
    from provisioning.cli.registration import read_registrations
    from wire.factory import RegistrationRequest

    directory = directory_of(data_dir)
    rows = read_registrations(file)
    folder = _folder(directory, segment(station_name, "station name"))
    client = station(directory, folder / "cert.pem", folder / "key.pem")
    try:
        answer = client.send("POST", "/v1/factory/devices", RegistrationRequest(tuple(row.device for row in rows)))
    except RefusedByService as refused:
        lines = {number: row.line for number, row in enumerate(rows)}
        raise Failed(f"{file}: {with_lines(refused.lines[0], lines)}; nothing was registered") from refused
    _show_registered(output, [row.device.serial for row in rows], answer)


def with_lines(text: str, lines: dict[int, int]) -> str:
    """The service's `devices[3]` as the line of the file that the row stands on."""

    def line(match: re.Match[str]) -> str:
        number = lines.get(int(match[1]))
        return match[0] if number is None else f"line {number}"

    return _ROW.sub(line, text)


def _show_registered(output: Format, serials: list[str], answer: dict[str, Any]) -> None:
    ids = answer.get("device_ids", [])
    if len(ids) != len(serials):
        raise Failed(f"the service answered with {len(ids)} devices for {len(serials)} rows; look: muster fsck")
    devices = [{"serial": serial, "id": device} for serial, device in zip(serials, ids, strict=True)]
    if output is Format.JSON:
        print_json({"devices": devices, "budget_left": answer.get("budget_left")})
    else:
        print_records(devices, ("serial", "id"))
    note(f"registered {len(devices)}; the station may register {answer.get('budget_left')} more")


def _folder(directory: DataDirectory, name: str) -> Path:
    return directory.root / "stations" / name


def _certified(client: Client, folder: Path, name: str, budget: int) -> Path:
    """The certificate's file. A key that was made for a request that was refused does not stay."""
    made = not (folder / "key.pem").is_file()
    try:
        answer = client.send("POST", "/api/v1/stations", {"name": name, "budget": budget, "csr": _csr(folder, name)})
        pems = [_pem(unb64url(text)) for text in (answer["certificate"], *answer["chain"][:1])]
        return _written(folder / "cert.pem", b"".join(pems))
    except BaseException:
        if made:
            shutil.rmtree(folder, ignore_errors=True)
        raise


def _csr(folder: Path, name: str) -> bytes:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        NoEncryption,
        PrivateFormat,
        load_pem_private_key,
    )
    from cryptography.x509.oid import NameOID

    path = folder / "key.pem"
    if path.is_file():
        try:
            key = load_pem_private_key(path.read_bytes(), None)
        except (ValueError, TypeError) as error:
            raise Failed(f"{path}: is no private key; remove {folder} and repeat") from error
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise Failed(f"{path}: is no EC key; remove {folder} and repeat")
    else:
        folder.parent.mkdir(mode=0o700, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        key = ec.generate_private_key(ec.SECP256R1())
        _written(path, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"station:{name}")])
    request = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    return request.public_bytes(Encoding.DER)


def _pem(der: bytes) -> bytes:
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding

    return x509.load_der_x509_certificate(der).public_bytes(Encoding.PEM)


def _written(path: Path, content: bytes) -> Path:
    """The file, whole or not at all, for its owner only."""
    from ota.files import replace_file

    replace_file(path, content, mode=0o600)
    return path
