"""The `muster` command. Owner commands open the data directory; all others are clients of the operator listener."""

import sys
from collections.abc import Sequence
from importlib.util import find_spec

USAGE = 2
_NEEDED = ("typer", "aiohttp", "sqlmodel", "alembic", "asn1crypto", "pkcs11", "structlog", "prometheus_client")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. The exit status: 0 done, 1 refused or a check failed, 2 usage, 3 unreachable."""
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        print(
            f"muster: needs the server extra (no {missing[0]}); install it: pip install 'muster[server]'",
            file=sys.stderr,
        )
        return USAGE
    from provisioning.cli.app import run

    return run(arguments)
