"""Attestation results: asked for as an operator (`muster devices result`), verified as a relying party."""

import sys
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from urllib.parse import quote, urlsplit

import typer

from provisioning.cli.arguments import existing
from provisioning.cli.client import operator, segment
from provisioning.cli.failures import Failed, Mistaken, Unreachable, naming
from provisioning.cli.output import (
    DataDir,
    Format,
    Output,
    clean,
    directory_of,
    example,
    note,
    print_fields,
    print_json,
)

if TYPE_CHECKING:
    from provisioning.attestation.relying import KeySet

FETCH_SECONDS = 10.0
_OK = 200
LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})


class Verdict(StrEnum):
    """The worst verdict that passes."""

    AFFIRMING = "affirming"
    WARNING = "warning"
    CONTRAINDICATED = "contraindicated"


Name = Annotated[str, typer.Argument(metavar="NAME", help="The device's id or serial.")]
Audience = Annotated[str, typer.Option("--aud", metavar="A", help="Whom the result is for: the relying party's name.")]
Nonce = Annotated[
    str | None, typer.Option("--nonce", metavar="N", help="The relying party's challenge: 8 to 88 characters.")
]
Token = Annotated[str, typer.Argument(metavar="JWT", help="The result, or - to read it from standard input.")]
Keys = Annotated[str, typer.Option("--jwks", metavar="FILE|URL", help="The service's key set: /.well-known/jwks.json.")]
Issuer = Annotated[
    str | None, typer.Option("--issuer", metavar="NAME", help="The service's name.  [default: whose keys these are]")
]
KeyId = Annotated[
    str | None,
    typer.Option("--key", metavar="KID", help="Only this key, by its thumbprint; then the set may come by plain http."),
]
Ca = Annotated[
    Path | None, typer.Option("--ca", metavar="FILE", help="Who vouches for an https URL.  [default: the system's]")
]
Accept = Annotated[Verdict, typer.Option("--accept", help="The worst verdict that passes.")]


def add_to(app: typer.Typer) -> None:
    """Put the commands in."""
    group = typer.Typer(help="Attestation results of others' services.", no_args_is_help=True, rich_markup_mode=None)
    group.command(
        "verify",
        epilog=example("muster result verify - --jwks jwks.json --aud rp.example --nonce 6eXvQ0zQ0bM <result.jwt"),
    )(verify)
    app.add_typer(group, name="result")


def result(
    name: Name, aud: Audience, data_dir: DataDir = None, output: Output = Format.TABLE, nonce: Nonce = None
) -> None:
    """Sign what is known of a device's attestation, for a relying party: a JWT."""
    asked = f"aud={quote(aud, safe='')}" + ("" if nonce is None else f"&nonce={quote(nonce, safe='')}")
    path = f"/api/v1/devices/{segment(name, 'device id or serial')}/attestation-result?{asked}"
    found = operator(directory_of(data_dir)).get(path)
    if output is Format.JSON:
        print_json(found)
        return
    print(clean(found["result"]))
    note(f"good until {found['expires']}")


def verify(
    token: Token,
    jwks: Keys,
    aud: Audience,
    *,
    output: Output = Format.TABLE,
    nonce: Nonce = None,
    issuer: Issuer = None,
    key: KeyId = None,
    ca: Ca = None,
    accept: Accept = Verdict.AFFIRMING,
) -> None:
    """Verify an attestation result: by whom, for whom, fresh, and good enough. Status 1 where it is not."""
    from provisioning.attestation.relying import Asked, appraise_result, verify_result
    from provisioning.attestation.results import Tier

    keys = _key_set(jwks, ca, key)
    found = verify_result(_token(token), keys, Asked(issuer, aud, nonce), datetime.now(UTC))
    if output is Format.JSON:
        print_json(dict(found.claims))
    else:
        print_fields(
            {
                "device": found.device,
                "status": found.status.value,
                "key": found.jkt,
                "issued": found.issued_at.isoformat(),
                "expires": found.expires_at.isoformat(),
                "signed by": found.key_id,
            }
        )
    appraise_result(found, Tier(accept.value))


def _token(given: str) -> str:
    from provisioning.attestation.relying import RESULT_MOST

    return given if given != "-" else sys.stdin.read(RESULT_MOST + 2).strip()


def _key_set(source: str, ca: Path | None, key: str | None) -> "KeySet":
    """Raises: ResultKeysMalformed, Failed."""
    from provisioning.attestation.relying import KEY_SET_MOST, parse_key_set

    if source.startswith(("http://", "https://")):
        if source.startswith("http://") and key is None and urlsplit(source).hostname not in LOOPBACK:
            raise Mistaken("--jwks: by plain http anybody may have written it; take https, or name the key: --key")
        data = _fetched(source, ca, KEY_SET_MOST)
    else:
        with naming(Path(source)), existing(Path(source)).open("rb") as file:
            data = file.read(KEY_SET_MOST + 1)
    known = parse_key_set(data)
    return known if key is None else {name: one for name, one in known.items() if name == key}


def _fetched(url: str, ca: Path | None, most: int) -> bytes:
    import urllib3
    from urllib3.exceptions import HTTPError

    pool = urllib3.PoolManager(ca_certs=None if ca is None else str(ca), retries=False, timeout=FETCH_SECONDS)
    try:
        answer = pool.request("GET", url, redirect=False, preload_content=False)
        data = answer.read(most + 1)
    except (HTTPError, ValueError) as error:
        raise Unreachable(f"{clean(url)}: does not give a key set ({type(error).__name__})") from error
    finally:
        pool.clear()
    if answer.status != _OK:
        raise Failed(f"{clean(url)}: answered with status {answer.status}; is it a Muster service's key set?")
    return bytes(data)
