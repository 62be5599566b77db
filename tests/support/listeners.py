"""The three listeners of a real installation in this process, with one operator for each role; and who calls them."""

import asyncio
import json
from contextlib import asynccontextmanager, contextmanager

import aiohttp

from provisioning.access import Role
from provisioning.app.credentials import hash_token
from provisioning.app.endpoints import Ports
from provisioning.app.worker import start_listeners
from provisioning.db import devices
from tests.support import fleet
from tests.support.http import no_loose_ends
from tests.support.service import free_ports, running_service
from wire.problems import MEDIA_TYPE

ROLES = [role.value for role in Role]


@contextmanager
def service_with_operators(directory):
    """A composed service; `token-ROLE` is the token of the operator of that role. `stranger` has none that is known."""
    with running_service(directory) as made:

        def operators(tx):
            for role in [*ROLES, "stranger"]:
                devices.add_operator(tx, name=role, role=role, token_sha256=hash_token(f"token-{role}"), now=0)

        made.ledger.write_now(operators)
        yield made


class Client:
    """Requests to the three listeners, as somebody."""

    def __init__(self, service, ports, session):
        self.ports, self.session = ports, session
        self.root = service.directory.ca / "root.pem"
        self.directory = service.directory

    def url(self, listener, path):
        scheme = "http" if listener == "public" else "https"
        return f"{scheme}://127.0.0.1:{getattr(self.ports, listener)}{path}"

    async def call(self, listener, method, path, *, member=None, role=None, **options):
        """`(status, headers, body)`; a refusal's document is checked."""
        context = (
            None
            if listener == "public"
            else fleet.anonymous(self.root)
            if member is None
            else member.context(self.root)
        )
        headers = dict(options.pop("headers", {}))
        if role is not None:
            headers["Authorization"] = f"Bearer token-{role}"
        async with self.session.request(
            method, self.url(listener, path), ssl=context or True, headers=headers, allow_redirects=False, **options
        ) as answer:
            body = await answer.read()
            if answer.status >= 400:
                assert answer.headers["Content-Type"] == MEDIA_TYPE
                body = json.loads(body)
                assert body["status"] == answer.status
            return answer.status, answer.headers, body

    async def code(self, *arguments, **options):
        """Status and code of a refusal."""
        status, _, body = await self.call(*arguments, **options)
        return status, body["code"]


@asynccontextmanager
async def serving(service):
    ports = Ports(*free_ports())
    with no_loose_ends():
        listeners, certificates = start_listeners(service, ports)
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True)) as session:
            made = Client(service, ports, session)
            made.certificates = certificates
            yield made
        await asyncio.gather(*(listener.stop(1.0) for listener in listeners))
        await asyncio.sleep(0)
    assert [listener.connections for listener in listeners] == [0, 0, 0]


def example(path):
    """A path that the pattern takes and that names nothing."""
    return path.replace("{name...}", "metadata/x.json").replace("{name}", "nobody")
