"""Do the lock files name only the two public hosts, and say what pyproject.toml asks for?

1. No lock file, and no setting of uv, names another host than pypi.org and files.pythonhosted.org: a lock that was
   made behind a mirror would send everybody else there.
2. `uv lock --check` against the public index changes nothing.
3. Each hashed requirements file is what uv exports from the lock.

A check that cannot run fails. `--write` renews what 3 compares.
"""

import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
UV = ROOT / ".tools" / "uv" / "bin" / "uv"
INDEX = "https://pypi.org/simple"
HOSTS = frozenset({"pypi.org", "files.pythonhosted.org"})
LOCK_FILES = ("*.lock", "*lock.json", "*lock.yaml", "pylock*.toml", "*requirements*.txt")
NOT_OURS = frozenset({".git", ".venv", ".tools", ".muster", "node_modules"})
INDEX_SETTINGS = ("index", "index-url", "extra-index-url", "default-index", "find-links", "sources", "no-index")
# A location, with or without credentials before the host.
LOCATION = re.compile(r"[a-z][a-z0-9+.-]*://(?:[^/\s@\"']*@)?([^/:\s\"'#?\\]+)", re.IGNORECASE)
INDEX_OPTION = re.compile(r"^\s*(?:-i|-f|--(?:extra-)?index-url|--find-links|--trusted-host)\b", re.MULTILINE)

HEADER = "# Exported from uv.lock; renew with: .venv/bin/python deploy/lock_guard.py --write\n"
EXPORTS = {
    "requirements.txt": ["--extra", "server"],  # the service: pip install --require-hashes -r requirements.txt
    "requirements-agent.txt": [],  # a device
}


def lock_files(root: Path) -> Iterator[Path]:
    """Every file below `root` that pins where packages come from."""
    for folder, names, files in os.walk(root):
        names[:] = sorted(set(names) - NOT_OURS)
        yield from sorted(Path(folder, name) for name in files if any(Path(name).match(p) for p in LOCK_FILES))


def foreign_locations(text: str) -> list[str]:
    """What in a lock file points elsewhere than to the two public hosts: hosts and index options, once each."""
    hosts = {match.group(1).lower() for match in LOCATION.finditer(text)} - HOSTS
    return sorted(hosts) + sorted({match.group(0).strip() for match in INDEX_OPTION.finditer(text)})


def index_settings(pyproject: dict[str, Any]) -> list[str]:
    """The settings of uv that would take packages from elsewhere, for whoever clones this."""
    settings = pyproject.get("tool", {}).get("uv", {})
    named = [*settings, *settings.get("pip", {})]
    return sorted(name for name in named if name in INDEX_SETTINGS)


def check_hosts(root: Path) -> list[str]:
    """Findings of check 1."""
    findings = [
        f"{path.relative_to(root)} names {location}: lock again with --default-index {INDEX}"
        for path in lock_files(root)
        for location in foreign_locations(path.read_text(encoding="utf-8"))
    ]
    pyproject = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    return findings + [f"pyproject.toml: [tool.uv] sets {name}: remove it" for name in index_settings(pyproject)]


def uv(*arguments: str) -> tuple[bool, str]:
    """Runs uv without the settings of this user and machine that would choose an index; (success, output or error)."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("UV_")}
    environment["UV_SYSTEM_CERTS"] = "1"
    command = [str(UV), *arguments, "--no-config", "--no-progress"]
    done = subprocess.run(command, check=False, cwd=ROOT, env=environment, capture_output=True, text=True)
    return done.returncode == 0, done.stdout if done.returncode == 0 else done.stderr.strip()


def check_lock() -> list[str]:
    """Findings of check 2."""
    ok, output = uv("lock", "--check", "--default-index", INDEX)
    if ok:
        return []
    if "needs to be updated" in output:
        return [f"uv.lock is not what pyproject.toml asks for: uv lock --default-index {INDEX}"]
    return [f"uv.lock could not be checked (offline?): {' '.join(output.split())[:300]}"]


def check_exports(*, write: bool) -> list[str]:
    """Findings of check 3; with `write`, renews the files instead."""
    findings = []
    for name, options in EXPORTS.items():
        ok, output = uv("export", "--frozen", "--no-emit-project", "--no-header", "--no-annotate", *options)
        path = ROOT / name
        if not ok:
            findings.append(f"{name} could not be exported: {output}")
        elif write:
            path.write_text(HEADER + output, encoding="utf-8")
        elif not path.exists() or path.read_text(encoding="utf-8") != HEADER + output:
            findings.append(f"{name} is not the export of uv.lock: .venv/bin/python deploy/lock_guard.py --write")
    return findings


def main() -> int:
    """Prints every finding, one a line; exit status 1 if there is one."""
    findings = check_exports(write="--write" in sys.argv[1:]) + check_hosts(ROOT) + check_lock()
    for finding in findings:
        print(f"lock guard: {finding}", file=sys.stderr)
    if not findings:
        print(f"Lock files agree and name only {' and '.join(sorted(HOSTS))}.")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
