"""Make a SoftHSM2 token for development: `.venv/bin/python softhsm/make_token.py DIRECTORY LABEL`.

Asks for both PINs on the terminal (they are never arguments), or reads them as two lines from standard input: the
user's PIN, then the security officer's. Writes DIRECTORY/softhsm2.conf and DIRECTORY/tokens/.
"""

import argparse
import getpass
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from hsm.errors import HsmError
from hsm.softhsm import create_token, settings


def main() -> int:
    """Make the token; exit status 0, or 1 with one line on standard error."""
    parser = argparse.ArgumentParser(
        description="Make a SoftHSM2 token; PINs come from the terminal or standard input."
    )
    parser.add_argument("directory", type=Path)
    parser.add_argument("label")
    arguments = parser.parse_args()
    try:
        create_token(arguments.directory, arguments.label, _read("PIN: "), _read("Security officer's PIN: "))
        made = settings(arguments.directory)
    except HsmError as error:
        print(error, file=sys.stderr)
        return 1
    for name, value in made.environment.items():
        print(f"{name}={value}")
    print(f"module={made.path}")
    return 0


def _read(prompt: str) -> str:
    return getpass.getpass(prompt) if sys.stdin.isatty() else sys.stdin.readline().rstrip("\n")


if __name__ == "__main__":
    sys.exit(main())
