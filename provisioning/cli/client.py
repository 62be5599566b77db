"""The service as its clients see it: HTTPS with the installation's own root, one bearer token or certificate.

It imports no database, no application and no HSM: an operator's machine needs `muster.toml`, `ca/root.pem`,
`run/endpoints.json` and `secrets/operator.token`, nothing else.
"""

import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, BinaryIO
from urllib.parse import urlsplit

from provisioning.cli.failures import Failed, Mistaken, Unreachable
from provisioning.cli.output import clean
from provisioning.config import DataDirectory, load_config
from wire.codec import Cap, MalformedMessage, decode, encode, parse_json
from wire.problems import MEDIA_TYPE, ProblemDocument

Json = dict[str, Any]
CONNECT_SECONDS = 5.0
READ_SECONDS = 60.0
ANSWER_MOST = 64 * 1024 * 1024
ENDPOINTS_MOST = 16 * 1024
_TOKEN = re.compile(r"[A-Za-z0-9_-]{16,256}")
_SEGMENT = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._~-]{0,127}")
"""What the service takes as one part of a path."""
_ERROR = 400


@dataclass(frozen=True, slots=True)
class Endpoints:
    """`run/endpoints.json`, which is there while the service is."""

    device: Annotated[str, Cap(300)]
    operator: Annotated[str, Cap(300)]
    public: Annotated[str, Cap(300)]
    mqtt: Annotated[str, Cap(300)]


class RefusedByService(Failed):
    """The service said no. `document` is what it said."""

    def __init__(self, document: ProblemDocument) -> None:
        super().__init__(problem_line(document))
        self.document = document


class Client:
    """One listener of the service."""

    def __init__(self, url: str, tls: ssl.SSLContext, service_name: str, headers: Mapping[str, str]) -> None:
        import urllib3

        address = urlsplit(url)
        if address.scheme != "https" or not address.hostname:
            raise Failed(f"{clean(url)}: is no https address; look at run/endpoints.json in the data directory")
        self._url = url
        self._service_name = service_name
        self._headers = headers
        self._pool = urllib3.HTTPSConnectionPool(
            address.hostname,
            address.port or 443,
            ssl_context=tls,
            # The certificate must be the service's, whatever address it was reached by.
            server_hostname=service_name,
            retries=False,
            timeout=urllib3.Timeout(connect=CONNECT_SECONDS, read=READ_SECONDS),
            maxsize=1,
        )

    def get(self, path: str) -> Json:
        """What is there. Raises: Failed."""
        return self._json("GET", path, None)

    def send(self, method: str, path: str, message: object = None) -> Json:
        """The answer to a message. Raises: Failed."""
        return self._json(method, path, None if message is None else encode(message))

    def upload(self, path: str, file: Path) -> Json:
        """The answer to a file's bytes. Raises: Failed, OSError."""
        with file.open("rb") as content:
            headers = {"Content-Type": "application/octet-stream", "Content-Length": str(file.stat().st_size)}
            return self._answer("PUT", path, content, headers)

    def _json(self, method: str, path: str, body: bytes | None) -> Json:
        return self._answer(method, path, body, {} if body is None else {"Content-Type": "application/json"})

    def _answer(self, method: str, path: str, body: bytes | BinaryIO | None, headers: Mapping[str, str]) -> Json:
        from urllib3.exceptions import HTTPError, SSLError

        try:
            answer = self._pool.request(method, path, body=body, headers={**self._headers, **headers}, redirect=False)
        except SSLError as error:
            why = (
                f"{self._url}: does not prove to be {self._service_name}, or refuses our certificate ({_reason(error)})"
            )
            raise Failed(f"{why}; is this the right data directory?") from error
        except HTTPError as error:
            why = f"{self._url}: does not answer ({_reason(error)})"
            raise Unreachable(f"{why}; is it running? start it: muster serve") from error
        if answer.status >= _ERROR:
            raise RefusedByService(_problem(answer.data, answer.headers.get("Content-Type", ""), answer.status))
        try:
            found = parse_json(answer.data, limit=ANSWER_MOST) if answer.data else {}
        except MalformedMessage as error:
            raise Failed(f"{self._url}{path}: answered what is no JSON; is it a Muster service?") from error
        if not isinstance(found, dict):
            raise Failed(f"{self._url}{path}: answered no JSON object; is it a Muster service?")
        return found


def operator(directory: DataDirectory) -> Client:
    """The operator listener, as the operator whose token lies in the data directory. Raises: Failed."""
    config, endpoints, tls = load_config(directory), endpoints_of(directory), _tls(directory)
    headers = {"Authorization": f"Bearer {_token(directory.operator_token)}", "Accept": "application/json"}
    return Client(endpoints.operator, tls, config.service_name, headers)


def station(directory: DataDirectory, certificate: Path, key: Path) -> Client:
    """The device listener, as a factory station. Raises: Failed."""
    config, endpoints, tls = load_config(directory), endpoints_of(directory), _tls(directory)
    try:
        tls.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as error:
        reason = getattr(error, "strerror", None) or "is not usable"
        raise Failed(
            f"{certificate}: {reason}; make the station: muster factory station add NAME --budget N"
        ) from error
    return Client(endpoints.device, tls, config.service_name, {"Accept": "application/json"})


def endpoints_of(directory: DataDirectory) -> Endpoints:
    """Where the service listens now. Raises: Unreachable, Failed."""
    try:
        data = directory.endpoints.read_bytes()
    except FileNotFoundError as error:
        raise Unreachable(f"{directory.root}: no service runs on it; start it: muster serve") from error
    try:
        return decode(Endpoints, data, limit=ENDPOINTS_MOST)
    except MalformedMessage as error:
        raise Failed(f"{directory.endpoints}: {error}; start the service again: muster serve") from error


def segment(name: str, what: str) -> str:
    """The name as a part of a path. Raises: Mistaken."""
    if _SEGMENT.fullmatch(name) is None:
        raise Mistaken(f"{clean(name)!r} is no {what}; it has letters, digits and . _ - (at most 128)")
    return name


def problem_line(document: ProblemDocument) -> str:
    """Title, code, what was expected and what came, cure, refusal id: one line."""
    detail = f": {document.detail}" if document.detail else ""
    recorded = f"; refusal {document.instance}" if document.instance else ""
    return clean(f"{document.title} ({document.code}){detail}{recorded}")


def _problem(data: bytes, content_type: str, status: int) -> ProblemDocument:
    try:
        if content_type.partition(";")[0].strip() == MEDIA_TYPE:
            return decode(ProblemDocument, data, limit=ENDPOINTS_MOST, ignore_unknown=True)
    except MalformedMessage:
        pass  # said below, by its status
    return ProblemDocument("about:blank", f"The listener answered with status {status}", status, f"HTTP-{status}")


def _tls(directory: DataDirectory) -> ssl.SSLContext:
    rolled = directory.ca / "roots.pem"
    root = rolled if rolled.is_file() else directory.ca / "root.pem"
    try:
        context = ssl.create_default_context(cafile=str(root))
    except (OSError, ssl.SSLError) as error:
        raise Failed(f"{root}: cannot be read as a certificate; restore it from ca/ of the service") from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def _token(path: Path) -> str:
    if path.stat().st_mode & 0o077:
        raise Failed(f"{path}: others may read this token; mend it: chmod 600 {path}")
    text = path.read_text(encoding="utf-8", errors="replace").strip()
    if _TOKEN.fullmatch(text) is None:
        raise Failed(f"{path}: holds no operator token; restore it")
    return text


def _reason(error: BaseException) -> str:
    """The innermost reason, in a few words."""
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    return clean(getattr(error, "verify_message", "") or getattr(error, "strerror", "") or type(error).__name__)
