"""`muster factory idevid`: a device without a TPM leaves the factory with an IDevID for the key that it made itself."""

import re
from pathlib import Path
from typing import Annotated

import typer

from provisioning.cli.client import segment, station
from provisioning.cli.failures import Failed, naming
from provisioning.cli.output import DataDir, Format, Output, directory_of, note, show
from wire.codec import unb64url
from wire.messages import CSR_MOST

_PEM = re.compile(rb"-----BEGIN (?:NEW )?CERTIFICATE REQUEST-----")
_FILE_MOST = 2 * CSR_MOST

File = Annotated[
    Path, typer.Argument(metavar="FILE.csr", help="PKCS#10 in PEM or DER, signed by the device's own key.")
]
Serial = Annotated[str, typer.Option("--serial", metavar="S", help="The device's serial.")]
Model = Annotated[str, typer.Option("--model", metavar="M", help="The device's model.")]
Station = Annotated[str, typer.Option("--station", metavar="NAME", help="Which station vouches.")]
Out = Annotated[Path | None, typer.Option("--out", metavar="FILE.pem", help="Where the certificate and its CA go.")]


def idevid(
    file: File,
    serial: Serial,
    model: Model,
    station_name: Station,
    data_dir: DataDir = None,
    output: Output = Format.TABLE,
    out: Out = None,
) -> None:
    """Register a device without a TPM, and write its IDevID and the CA above it beside the request."""
    from ota.files import replace_file
    from wire.factory import IdevidRequest

    directory = directory_of(data_dir)
    target = out or file.with_suffix(".pem")
    if target == file:
        raise Failed(f"{file}: is the request itself; name another file: --out FILE.pem")
    request = IdevidRequest(serial, model, _der(file))
    folder = directory.root / "stations" / segment(station_name, "station name")
    client = station(directory, folder / "cert.pem", folder / "key.pem")
    answer = client.send("POST", "/v1/factory/idevids", request)
    pems = [_pem(unb64url(text)) for text in (answer["certificate"], *answer["chain"][:1])]
    with naming(target):
        replace_file(target, b"".join(pems))
    show(output, {"device": answer["device_id"], "serial": serial, "certificate": str(target)})
    note(f"the station may register {answer['budget_left']} more")


def _der(file: Path) -> bytes:
    """The request in DER. Whether it is a good one is the service's to say."""
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding

    with file.open("rb") as opened:
        data = opened.read(_FILE_MOST + 1)
    if len(data) > _FILE_MOST:
        raise Failed(f"{file}: is larger than {_FILE_MOST // 1024} KiB; give one PKCS#10 request")
    try:
        if _PEM.search(data) is None:
            return data
        return x509.load_pem_x509_csr(data).public_bytes(Encoding.DER)
    except ValueError as error:
        raise Failed(f"{file}: is no PKCS#10 request; make one: openssl req -new -key KEY -out FILE.csr") from error


def _pem(der: bytes) -> bytes:
    from ssl import DER_cert_to_PEM_cert

    return DER_cert_to_PEM_cert(der).encode()
