"""Commands in bad surroundings: no service, a false one, a foreign folder, a full disk: one line, nothing half-done."""

import errno
import json
import os
import resource
import signal
import socket
import sqlite3
import ssl
import subprocess
import threading
from contextlib import closing

import pytest

from provisioning import cli
from provisioning.app import installation
from provisioning.config import DataDirectory, load_config
from tests.support.cli import MUSTER, START_SECONDS, Person, initialized, serving


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("cli")


@pytest.fixture(scope="module")
def served(root):
    with serving(initialized(root / "D"), root / "serve.log") as directory:
        yield directory


@pytest.fixture
def person(served, capsys):
    return Person(served.root, capsys)


@pytest.fixture
def loner(served, tmp_path, capsys):
    """Somebody whose service does not run."""
    copy = tmp_path / "D"
    copy.mkdir()
    for name in ("muster.toml", "ca/root.pem", "secrets/operator.token"):
        (copy / name).parent.mkdir(exist_ok=True)
        (copy / name).write_bytes((served.root / name).read_bytes())
        (copy / name).chmod(0o600)
    return Person(copy, capsys)


@pytest.mark.parametrize(
    ("uri", "status", "said"),
    [
        ("pkcs11:token=publisher", 2, "name token and object"),
        ("pkcs11:token=publisher;object=x?pin-value=1234", 2, "pin-value is refused"),
        ("http://x", 2, "does not start with pkcs11:"),
        ("pkcs11:token=nobody;object=image-targets", 1, "no PIN of token 'nobody'"),
        ("pkcs11:token=publisher;object=nobody", 1, "nobody"),
        ("pkcs11:token=publisher;object=x?module-name=nss", 2, "nothing else but"),
        ("pkcs11:token=publisher;object=image-targets?pin-source=env:NO_SUCH_PIN", 1, "NO_SUCH_PIN"),
        ("pkcs11:token=publisher;object=image-targets?pin-source=prompt", 1, "no terminal"),
    ],
)
def test_a_key_that_cannot_be_used_is_named(loner, tmp_path, uri, status, said):
    place = ["--repository", tmp_path / "publisher"]
    if not (tmp_path / "publisher").exists():
        loner.types("ota", "init", *place)
    loner.types("ota", "publish", *place, "--offline", "--key", uri, status=status)
    assert said in loner.err
    assert "1234" not in loner.err


def test_a_second_service_and_a_held_port_are_one_line(served, tmp_path):
    second = subprocess.run([MUSTER, "serve", "--data-dir", served.root], capture_output=True, text=True, check=False)
    assert second.returncode == 1
    assert (
        second.stderr == f"muster: {served.root}: a muster serve runs on this data directory already; stop it first\n"
    )
    port = load_config(served).listen.device_port
    other = tmp_path / "other"
    assert cli.main(["init", "--data-dir", str(other), "--ports", f"{port},0,0,0"]) == 0
    held = subprocess.run([MUSTER, "serve", "--data-dir", other], capture_output=True, text=True, check=False)
    assert held.returncode == 1
    assert f"port {port} on 127.0.0.1 is held" in held.stderr.splitlines()[-1]
    assert str(other / "muster.toml") in held.stderr.splitlines()[-1]
    assert not (other / "run" / "endpoints.json").exists()


def test_a_database_of_a_newer_program_is_not_served(tmp_path):
    copy = DataDirectory(tmp_path / "copy")
    assert cli.main(["init", "--data-dir", str(copy.root), "--ports", "0,0,0,0"]) == 0
    with closing(sqlite3.connect(copy.root / "muster.db")) as database, database:
        database.execute("update alembic_version set version_num = '9999'")
    ended = subprocess.run([MUSTER, "serve", "--data-dir", copy.root], capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1].startswith(f"muster: {copy.root}/muster.db: has schema 9999")
    assert cli.main(["init", "--migrate", "--data-dir", str(copy.root)]) == 1


def test_the_migration_waits_for_the_service_to_stop(person):
    person.types("init", "--migrate", status=1)
    assert "a muster serve runs on it; stop it first" in person.err


def test_without_a_service_the_status_is_3(loner):
    loner.types("devices", "list", status=3)
    assert "start it: muster serve" in loner.err
    run = loner.directory / "run"
    run.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    urls = dict.fromkeys(("device", "operator"), f"https://127.0.0.1:{port}")
    (run / "endpoints.json").write_text(json.dumps({**urls, "public": "http://x", "mqtt": "mqtts://x"}))
    loner.types("devices", "list", status=3)
    assert f"https://127.0.0.1:{port}: does not answer" in loner.err


def test_a_listener_that_does_not_prove_to_be_the_service_gets_no_token(loner, served, tmp_path):
    """The same address, another installation: its certificate chains to another root, or names another service."""
    (loner.directory / "run").mkdir()
    (loner.directory / "run" / "endpoints.json").write_bytes(served.endpoints.read_bytes())
    text = (loner.directory / "muster.toml").read_text()
    (loner.directory / "muster.toml").write_text(text.replace("muster.test", "muster.other"))
    loner.types("devices", "list", status=1)
    assert "does not prove to be muster.other" in loner.err
    (loner.directory / "muster.toml").write_text(text)
    assert cli.main(["init", "--data-dir", str(tmp_path / "other"), "--ports", "free"]) == 0
    (loner.directory / "ca" / "root.pem").write_bytes((tmp_path / "other" / "ca" / "root.pem").read_bytes())
    loner.types("devices", "list", status=1)
    assert "does not prove to be muster.test" in loner.err


def test_a_listener_that_speaks_nonsense_is_named(loner):
    """Plain TCP in place of TLS, then an honest TLS server that is no Muster."""
    (loner.directory / "run").mkdir()
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        urls = dict.fromkeys(("device", "operator"), f"https://127.0.0.1:{port}")
        endpoints = loner.directory / "run" / "endpoints.json"
        endpoints.write_text(json.dumps({**urls, "public": "http://x", "mqtt": "mqtts://x"}))

        def answer():
            connection, _ = server.accept()
            with connection:
                connection.recv(100)
                connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        loner.types("devices", "list", status=1)
        thread.join()
    assert "does not prove to be muster.test" in loner.err


def test_an_honest_server_that_is_no_muster_is_named(loner, served):
    """The service's own certificate before a program that answers HTML."""
    (loner.directory / "run").mkdir()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(served.tls / "service.pem", served.tls / "service.key")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        urls = dict.fromkeys(("device", "operator"), f"https://127.0.0.1:{port}")
        endpoints = loner.directory / "run" / "endpoints.json"
        endpoints.write_text(json.dumps({**urls, "public": "http://x", "mqtt": "mqtts://x"}))

        def answer():
            for reply in (
                b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n<html>",
                b"HTTP/1.1 502 No\r\nContent-Length: 0\r\n\r\n",
            ):
                connection, _ = server.accept()
                with context.wrap_socket(connection, server_side=True) as secured:
                    secured.recv(10_000)
                    secured.sendall(reply)

        thread = threading.Thread(target=answer)
        thread.start()
        loner.types("devices", "list", status=1)
        assert "is it a Muster service?" in loner.err
        loner.types("devices", "list", status=1)
        thread.join()
    assert "status 502" in loner.err


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["devices", "list"], "is no Muster data directory"),
        (["serve"], "is no Muster data directory"),
        (["fsck"], "is no Muster data directory"),
        (["trust", "show"], "is no Muster data directory"),
        (["init"], "holds something else"),
    ],
)
def test_a_foreign_directory_is_left_alone(tmp_path, capsys, command, said):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"cat")
    assert cli.main([*command, "--data-dir", str(tmp_path / "photos")]) == 1
    assert said in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "photos").iterdir()] == ["cat.jpg"]


@pytest.mark.parametrize("marker", [".muster-demo", ".muster-up"])
def test_init_stands_around_what_the_demo_left(tmp_path, capsys, marker):
    played = tmp_path / "D" / "demo"
    played.mkdir(parents=True)
    (played / marker).touch()
    (played / "summary.json").write_text("{}")
    assert cli.main(["init", "--ports", "free", "--data-dir", str(tmp_path / "D")]) == 0, capsys.readouterr().err
    assert load_config(DataDirectory(tmp_path / "D")).service_name == "muster.internal"
    assert sorted(path.name for path in played.iterdir()) == [marker, "summary.json"]
    capsys.readouterr()
    assert cli.main(["init", "--migrate", "-o", "json", "--data-dir", str(tmp_path / "D")]) == 0
    assert json.loads(capsys.readouterr().out)["migrated"] is True
    assert [path.name for path in tmp_path.iterdir()] == ["D"]


@pytest.mark.parametrize("host", ["192.0.2.1", "nowhere.invalid"])
def test_an_address_of_another_machine_is_named(tmp_path, capsys, host):
    assert cli.main(["init", "--host", host, "--data-dir", str(tmp_path / "D")]) == 1
    assert f"muster: {host}: is no IPv4 address or name of this machine; correct --host" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_host_name_in_capitals_is_one(tmp_path, capsys):
    arguments = ["--ports", "free", "--advertised-host", "Gateway.Example", "--data-dir", str(tmp_path / "D")]
    assert cli.main(["init", *arguments]) == 0, capsys.readouterr().err
    assert load_config(DataDirectory(tmp_path / "D")).listen.advertised_host == "gateway.example"


def test_what_nobody_marked_keeps_init_away_and_a_failed_init_moves_nothing(tmp_path, capsys, monkeypatch):
    played = tmp_path / "D" / "demo"
    played.mkdir(parents=True)
    (played / ".muster-demo").touch()

    def no_room(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    for broken in ("_put_to_use", "replace_file"):
        with monkeypatch.context() as full:
            full.setattr(installation, broken, no_room)
            assert cli.main(["init", "--ports", "free", "--data-dir", str(tmp_path / "D")]) == 1
        assert [path.name for path in tmp_path.iterdir()] == ["D"]
        assert [path.name for path in played.iterdir()] == [".muster-demo"]
    (tmp_path / "D" / "mine").mkdir()
    assert cli.main(["init", "--ports", "free", "--data-dir", str(tmp_path / "D")]) == 1
    assert "holds something else" in capsys.readouterr().err


def test_a_configuration_that_is_wrong_is_named_with_its_line(loner):
    text = (loner.directory / "muster.toml").read_text()
    (loner.directory / "muster.toml").write_text(text + "[limits]\nconections = 5\n")
    loner.types("devices", "list", status=1)
    line = len(text.splitlines()) + 2
    assert f"muster.toml: line {line}: limits.conections" in loner.err
    (loner.directory / "muster.toml").write_text(text + "x = \n")
    loner.types("devices", "list", status=1)
    assert "is not TOML" in loner.err


def test_a_full_disk_leaves_nothing_half_made(tmp_path):
    """A limit on the size of files is what a test can do to a disk: the database does not fit under it."""

    def limited():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (64 * 1024, 64 * 1024))

    ended = subprocess.run(
        [MUSTER, "init", "--data-dir", tmp_path / "D", "--ports", "free"],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=limited,
    )
    assert ended.returncode == 1
    assert len(ended.stderr.splitlines()) == 1, ended.stderr
    assert ended.stderr.startswith("muster: ")
    assert "defect" not in ended.stderr
    assert list(tmp_path.iterdir()) == []


def test_init_twice_and_ports_that_are_held(tmp_path, capsys):
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
        assert cli.main(["init", "--data-dir", str(tmp_path / "D"), "--ports", f"{port},0,0,0", "-o", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["ports"]["device"] == port
    before = {path: path.read_bytes() for path in (tmp_path / "D").rglob("*") if path.is_file()}
    assert cli.main(["init", "--data-dir", str(tmp_path / "D")]) == 1
    assert "is a Muster data directory already" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in (tmp_path / "D").rglob("*") if path.is_file()} == before


def test_a_reader_that_has_enough_ends_the_command_quietly(served):
    with subprocess.Popen(
        [MUSTER, "devices", "list", "-o", "json", "--data-dir", served.root],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        child.stdout.close()
        said = child.stderr.read()
        child.wait(START_SECONDS)
    assert b"Traceback" not in said
    assert b"BrokenPipe" not in said


def test_the_environment_names_the_data_directory(served, tmp_path):
    ended = subprocess.run(
        [MUSTER, "policy", "list", "-o", "json"],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        env={**os.environ, "MUSTER_DATA_DIR": str(served.root)},
    )
    assert "policies" in json.loads(ended.stdout)
    assert list(tmp_path.iterdir()) == []


def test_no_command_prints_a_secret(person, served, capsys):
    secrets = [path.read_text().strip() for path in served.secrets.iterdir()]
    said = [person.types(*command) + person.err for command in (["doctor"], ["trust", "show"], ["devices", "list"])]
    assert not [secret for secret in secrets if any(secret in text for text in said)]
