"""The rules between packages hold, and the contracts that say so bite.

Each contract is also run against a small tree that breaks it: one that passes everything would fail here.
"""

import importlib.util
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PACKAGES = ["wire", "provisioning", "device_agent", "hsm", "ota", "lab"]
LINT = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"
FILE_LIMIT = 400
CATALOGUES = {"provisioning/refusals.py"}  # one class a check, looked up and not read through

_spec = importlib.util.spec_from_file_location("lock_guard", ROOT / "deploy" / "lock_guard.py")
assert _spec is not None
assert _spec.loader is not None
lock_guard = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(lock_guard)


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    """Runs import-linter in `folder`, which shadows the installed packages."""
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(folder)!r}); {LINT}"]
    return subprocess.run(command, check=False, cwd=folder, capture_output=True, text=True, timeout=100)


def test_the_rules_between_packages_hold():
    done = lint(ROOT)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]


@pytest.fixture
def bare(tmp_path):
    """All packages, empty, under the project's own contracts."""
    for name in PACKAGES:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").touch()
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


BREACHES = {
    "a service module imports the lab": ("provisioning/app.py", "import lab", "1."),
    "the agent imports the service": ("device_agent/agent.py", "import provisioning", "1."),
    "the service imports the agent": ("provisioning/factory.py", "import device_agent", "1."),
    "ota imports hsm": ("ota/repository.py", "import hsm", "1."),
    "wire imports hsm": ("wire/codec.py", "import hsm", "1."),
    "a flow imports a handler": (
        "provisioning/enrollment.py",
        "import provisioning.http",
        "2.",
        "provisioning/http.py",
    ),
    "a flow imports another flow": (
        "provisioning/rotation.py",
        "import provisioning.enrollment",
        "2.",
        "provisioning/enrollment.py",
    ),
    "a module stands in no layer": ("provisioning/utils.py", "", "2."),
    "the verifier reads the clock": ("provisioning/attestation/quote.py", "import time", "3."),
    "the verifier opens the database": ("provisioning/attestation.py", "import sqlmodel", "3."),
    "the issuance rules draw randomness": ("provisioning/issuance.py", "from secrets import token_bytes", "3."),
    "the update verifier reads files": ("ota/verify.py", "import os", "3."),
    "wire waits": ("wire/codec.py", "import asyncio", "3."),
    "wire needs a package": ("wire/envelope.py", "import cryptography", "3b."),
    "the agent is asynchronous": ("device_agent/agent.py", "import asyncio", "4."),
    "the agent carries the publisher's half": (
        "device_agent/update.py",
        "import ota.repository",
        "4.",
        "ota/repository.py",
    ),
    "the service calls the token itself": ("provisioning/issuing.py", "import pkcs11", "5."),
    "the agent opens the TPM elsewhere": ("device_agent/rotate.py", "import tpm2_pytss", "5b."),
    "the service opens a TPM": ("provisioning/attestation.py", "import tpm2_pytss", "5b."),
}


@pytest.mark.parametrize("breach", BREACHES.values(), ids=BREACHES.keys())
def test_a_breach_is_found_and_named(bare, breach):
    path, line, contract, *others = breach
    for name in (*others, path):
        file = bare / name
        file.parent.mkdir(exist_ok=True)
        (file.parent / "__init__.py").touch()
        file.write_text(f"{line}\n" if name == path else "")
    done = lint(bare)
    broken = re.findall(r"^(\S+) .* BROKEN$", done.stdout, re.MULTILINE)
    assert done.returncode == 1, done.stdout
    assert contract in broken, done.stdout


def test_the_demo_and_only_the_demo_may_import_the_lab(bare):
    (bare / "provisioning" / "cli").mkdir()
    (bare / "provisioning" / "cli" / "__init__.py").touch()
    (bare / "provisioning" / "cli" / "demo.py").write_text("import lab\n")
    assert lint(bare).returncode == 0
    (bare / "provisioning" / "cli" / "devices.py").write_text("import lab\n")
    assert lint(bare).returncode == 1


def test_every_gate_covers_every_package():
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py") if path.parent.name != "benchmarks"}
    tool = PYPROJECT["tool"]
    assert packages == set(PACKAGES)
    assert set(tool["importlinter"]["root_packages"]) == packages
    assert set(tool["hatch"]["build"]["targets"]["wheel"]["packages"]) == packages
    assert set(tool["coverage"]["run"]["source"]) == packages
    assert packages < set(tool["mypy"]["files"])


def test_no_file_is_too_long_to_read():
    folders = [*PACKAGES, "deploy", "benchmarks"]
    files = [path for name in folders for path in (ROOT / name).rglob("*.py") if "migrations" not in path.parts]
    lengths = {str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in files}
    too_long = {name: length for name, length in lengths.items() if length > FILE_LIMIT and name not in CATALOGUES}
    assert too_long == {}


def test_every_exception_from_a_gate_gives_its_reason():
    pattern = re.compile(r"# (?:noqa|type: ignore)\b(.*)")
    reasoned = re.compile(r"(?:: [A-Z0-9, ]+|\[[a-z-]+(?:, ?[a-z-]+)*\])\W+\w+")
    silent = [
        f"{path.relative_to(ROOT)}:{number}"
        for name in PACKAGES
        for path in (ROOT / name).rglob("*.py")
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if (found := pattern.search(line)) and not reasoned.match(found.group(1))
    ]
    assert silent == []


def test_lock_files_name_only_the_public_hosts():
    assert lock_guard.check_hosts(ROOT) == []
    names = {path.name for path in lock_guard.lock_files(ROOT)}
    assert {"uv.lock", "requirements.txt", "requirements-agent.txt", "uv-requirements.txt"} <= names


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('source = { registry = "https://pypi.org/simple" }', []),
        ('url = "https://files.pythonhosted.org/packages/a.whl"', []),
        ('source = { registry = "https://mirror.example/simple" }', ["mirror.example"]),
        ('url = "https://user:word@mirror.example:8443/a.whl"', ["mirror.example"]),
        ('url = "https://pypi.org@mirror.example/a.whl"', ["mirror.example"]),
        ('url = "https://pypi.org.mirror.example/a.whl"', ["pypi.org.mirror.example"]),
        ("thing @ git+https://host.example/thing", ["host.example"]),
        ("--extra-index-url ./wheels", ["--extra-index-url"]),
        ("-i //host", ["-i"]),
    ],
)
def test_the_lock_guard_sees_where_a_lock_points(text, found):
    assert lock_guard.foreign_locations(text) == found


@pytest.mark.parametrize(
    "name", ["uv.lock", "requirements.txt", "deploy/uv-requirements.txt", "console/package-lock.json"]
)
def test_the_lock_guard_reads_every_kind_of_lock_file(tmp_path, name):
    (tmp_path / "pyproject.toml").write_text("")
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("https://mirror.example/simple")
    findings = lock_guard.check_hosts(tmp_path)
    assert len(findings) == 1
    assert findings[0].startswith(f"{name} names mirror.example")


def test_the_lock_guard_refuses_an_index_setting(tmp_path):
    (tmp_path / "pyproject.toml").write_text('[[tool.uv.index]]\nurl = "https://mirror.example/simple"\n')
    assert lock_guard.check_hosts(tmp_path) == ["pyproject.toml: [tool.uv] sets index: remove it"]
