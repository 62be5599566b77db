"""A bare aiohttp server that answers everything with the same bytes: `python -m benchmarks.bare_http LENGTH`.

The limit for whatever aiohttp serves. It prints its port.
"""

import asyncio
import sys

from aiohttp import web


async def main() -> None:
    body = bytes(int(sys.argv[1]))

    async def handler(_: web.BaseRequest) -> web.Response:
        return web.Response(body=body, content_type="application/ocsp-response")

    server = await asyncio.get_running_loop().create_server(web.Server(handler), "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
