"""The command line itself: every command has help, an example, the common options; usage ends with 2."""

import subprocess
import sys
from importlib.metadata import version

import pytest
import typer
from typer.models import TyperPath

from provisioning import cli
from provisioning.cli.app import app
from provisioning.cli.arguments import WRITTEN

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


READ = [
    (path, parameter.name)
    for path, command in COMMANDS.items()
    for parameter in command.params
    if isinstance(parameter.type, TyperPath) and WRITTEN.isdisjoint(parameter.opts)
]
"""Each path that a command reads."""


def value_of(parameter, there):
    """A value that this parameter takes."""
    if isinstance(parameter.type, TyperPath):
        return str(there)
    choices = getattr(parameter.type, "choices", None)
    if choices is not None:
        return str(getattr(choices[0], "value", choices[0]))
    return "1"


def line_of(path, named, missing, there):
    """A command line on which nothing is wrong but that one file is not there."""
    words = list(path)
    for parameter in COMMANDS[path].params:
        value = str(missing) if parameter.name == named else value_of(parameter, there)
        if parameter.name == named or parameter.required:
            words += [value] if parameter.param_type_name == "argument" else [parameter.opts[0], value]
    return words


@pytest.mark.parametrize(("path", "named"), READ, ids=[" ".join((*path, named)) for path, named in READ])
def test_a_file_that_is_not_there_is_a_mistake_of_the_command_line(path, named, tmp_path, capsys):
    (tmp_path / "there").write_text("x")
    missing = tmp_path / "missing.toml"
    place = [] if path in WITHOUT_INSTALLATION else ["--data-dir", str(tmp_path / "data")]
    assert cli.main([*line_of(path, named, missing, tmp_path / "there"), *place]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "does not exist" in captured.err
    assert "missing.toml" in captured.err
    assert not (tmp_path / "data").exists()


def test_the_files_of_the_command_table_are_all_looked_at():
    """A path that a new command reads is among them without a word; what it writes has to be named."""
    named = {(*path, name) for path, name in READ}
    assert named >= {("policy", "set", "file"), ("factory", "register", "file"), ("ota", "add", "image")}
    assert len(READ) >= 20
    written = {option for _, command in COMMANDS.items() for one in command.params for option in one.opts} & WRITTEN
    assert written == WRITTEN


@pytest.mark.parametrize(
    "words",
    [
        ["policy", "test", "missing.toml"],
        ["policy", "test", "a/missing.toml"],
        ["policy", "diff", "gateway", "--to", "missing.toml"],
        ["result", "verify", "-", "--aud", "rp", "--jwks", "missing.toml"],
    ],
)
def test_a_word_that_may_name_a_file_and_names_none_is_one_too(words, monkeypatch, capsys):
    monkeypatch.setattr("provisioning.cli.policy.operator", lambda _: None)
    assert cli.main(words) == 2
    assert capsys.readouterr().err.endswith("missing.toml: does not exist; check the name\n")


def test_a_directory_in_a_files_place_is_one_too(tmp_path, capsys):
    assert cli.main(["profile", "check", str(tmp_path)]) == 2
    assert "is a directory" in capsys.readouterr().err


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
