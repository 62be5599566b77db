"""The command line itself: every command has help, an example, the common options; usage ends with 2."""

import subprocess
import sys
from importlib.metadata import version

import pytest
import typer

from provisioning import cli
from provisioning.cli.app import app

GROUPS = typer.main.get_command(app)


def leaves(command, path=()):
    children = getattr(command, "commands", None)
    if children is None:
        yield path, command
    else:
        for name, child in children.items():
            yield from leaves(child, (*path, name))


COMMANDS = dict(leaves(GROUPS))
WITHOUT_INSTALLATION = {
    ("profile", "check"): "looks at a file alone, before there is an installation that it is for",
    ("result", "verify"): "is the relying party's, who has no installation",
}
"""Commands that take no data directory, and why."""


def test_the_commands_are_there():
    named = {" ".join(path) for path in COMMANDS}
    assert named >= {
        *("init", "serve", "doctor", "fsck", "audit verify", "explain", "simulate", "demo"),
        *("factory station add", "factory station list", "factory register"),
        *("devices list", "devices show", "devices revoke", "devices rotate", "devices attest", "devices approve"),
        *("policy set", "policy show", "policy list", "trust publish", "trust show"),
        *("ota init", "ota measure", "ota add", "ota publish", "ota assign"),
    }


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_every_command_takes_the_common_options_and_shows_an_example(path, capsys):
    options = {option for parameter in COMMANDS[path].params for option in parameter.opts}
    assert ("--data-dir" in options) is (path not in WITHOUT_INSTALLATION)
    if path != ("serve",):
        assert {"--output", "-o"} <= options
    assert cli.main([*path, "--help"]) == 0
    out = capsys.readouterr().out
    assert f"muster {' '.join(path)}" in out.partition("Example")[2]


@pytest.mark.parametrize(
    "arguments",
    [
        ["no-such-command"],
        ["devices", "list", "--limit", "0"],
        ["devices", "list", "--limit", "many"],
        ["devices", "show"],
        ["devices", "show", "a/b"],
        ["devices", "revoke", "d-1", "--reason", "whim"],
        ["devices", "list", "-o", "yaml"],
        ["factory", "station", "add", "Line 1", "--budget", "3"],
        ["factory", "station", "add", "line-1"],
        ["init", "--ports", "1,2,3"],
        ["init", "--ports", "1,1,2,3"],
        ["init", "--ports", "70000,1,2,3"],
        ["init", "--service-name", 'x"\nworkers = 9'],
        ["init", "--host", "127.0.0.1\nx"],
        ["init", "--advertised-host", "a..b"],
        ["init", "--service-name", "a..b"],
        ["init", "--host", "my_host"],
        ["ota", "measure", "x.img", "--bank", "sha1"],
    ],
)
def test_a_wrong_command_line_ends_with_2_and_makes_nothing(arguments, tmp_path, capsys):
    place = ["--data-dir", str(tmp_path / "data")] if len(arguments) > 1 else []
    assert cli.main([*arguments, *place]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Traceback" not in captured.err
    assert not (tmp_path / "data").exists()


def test_without_the_server_extra_one_line_says_so(monkeypatch, capsys):
    monkeypatch.setattr(cli, "find_spec", lambda name: None if name == "sqlmodel" else object())
    assert cli.main(["devices", "list"]) == 2
    captured = capsys.readouterr()
    assert captured.err == "muster: needs the server extra (no sqlmodel); install it: pip install 'muster[server]'\n"


def test_help_imports_neither_database_nor_hsm_nor_web_server():
    heavy = ("sqlmodel", "sqlalchemy", "pkcs11", "aiohttp", "tpm2_pytss", "alembic", "tuf", "rich", "urllib3")
    code = (
        "import sys; from provisioning.cli import main; status = main(['--help']);"
        f"print([name for name in {heavy!r} if name in sys.modules], file=sys.stderr); sys.exit(status)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "[]\n"


def test_clients_import_neither_database_nor_hsm():
    heavy = ("provisioning.db", "provisioning.app", "hsm", "sqlalchemy", "pkcs11")
    code = (
        "import sys; import provisioning.cli.app as app; import provisioning.cli.registration;"
        f"print([name for name in {heavy!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_the_version_is_the_packages(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"muster {version('muster')}\n"


def test_a_defect_is_one_line_and_never_a_traceback(monkeypatch, capsys, tmp_path):
    def broken(*_):
        raise RuntimeError("\x1b[31mbroken")

    monkeypatch.setattr("provisioning.cli.devices.operator", broken)
    assert cli.main(["devices", "list", "--data-dir", str(tmp_path)]) == 1
    err = capsys.readouterr().err
    assert err.startswith("muster: defect: RuntimeError: \\x1b[31mbroken (")
    assert len(err.splitlines()) == 1
