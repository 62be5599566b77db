"""`muster hsm ceremony` with real tokens: the plan, what comes of it, and everything that ends it with nothing left."""

import json
import os
import signal
import subprocess
import sys
import traceback
from contextlib import contextmanager
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from hsm.ceremony import remove_keys
from hsm.errors import WrongPin
from hsm.softhsm import settings
from hsm.token import Token
from provisioning.app import ceremony_tokens, installation, pins
from provisioning.config import DataDirectory
from tests.support.ceremonies import Cabinet, answers_text, installed, plug_in, unplug
from tests.support.cli import MUSTER, Person
from tests.support.service import running_service
from tests.support.tokens import Nss, P11Kit

ROOT = Path(__file__).resolve().parents[2]
KEYS_OF = {
    "service": ["command", "director-online", "issuing", "log", "ocsp", "results", "trust-online"],
    "root": ["root"],
    "trust-1": ["trust"],
    "trust-2": ["trust"],
    "trust-3": ["trust"],
}


@pytest.fixture
def cabinet(tmp_path):
    return Cabinet(tmp_path / "cabinet")


@pytest.fixture
def room(tmp_path, capsys):
    """Somebody at a keyboard, and a file of answers."""
    person = Person(tmp_path / "D", capsys)

    def write(body=""):
        file = tmp_path / "answers.toml"
        file.write_text(answers_text(body))
        return file

    person.answers = write
    return person


@contextmanager
def opened(cabinet, role):
    with Token(settings(cabinet.directory), f"their-{role}", lambda: f"pin-of-{role}", sessions=1) as token:
        yield token


def labels(cabinet, role):
    with opened(cabinet, role) as token:
        there = token.keys()
    return [key.label for key in there]


def assert_empty(cabinet, but=()):
    assert {role: labels(cabinet, role) for role in cabinet.roles if role not in but} == {
        role: [] for role in cabinet.roles if role not in but
    }


def beside(room):
    """What lies next to the data directory and belongs to it."""
    return sorted(path.name for path in room.directory.parent.iterdir() if "D" in path.name)


# --- the plan, and what comes of it -----------------------------------------------------------------------------------


def test_a_dry_run_shows_the_plan_and_writes_nothing(room, cabinet):
    file = room.answers(cabinet.answers)
    said = room.types("hsm", "ceremony", "--answers", file, "--dry-run")
    assert "pkcs11:token=their-root?module-name=box" in said
    assert "no key root is there yet" in said
    assert beside(room) == []
    assert_empty(cabinet)


def test_what_was_looked_at_is_what_is_carried_out(room, cabinet):
    file = room.answers(cabinet.answers)
    plan = room.asks("hsm", "ceremony", "--answers", file, "--dry-run")["plan_sha256"]
    room.types("hsm", "ceremony", "--answers", file, "--plan", "0" * 64, "--yes", status=1)
    assert "is another plan than this one" in room.err
    assert beside(room) == []
    done = room.asks("hsm", "ceremony", "--answers", file, "--plan", plan, "--yes")
    assert json.loads(Path(done["transcript"]).read_bytes())["plan_sha256"] == plan


def test_nobody_being_there_to_confirm_nothing_is_made(room):
    room.types("hsm", "ceremony", "--answers", room.answers(), status=1)
    assert "say --yes" in room.err
    assert beside(room) == []


def test_tokens_that_were_there_serve_and_their_pins_stay_where_they_are(room, cabinet):
    room.types("hsm", "ceremony", "--answers", room.answers(cabinet.answers), "--yes")
    assert {role: labels(cabinet, role) for role in cabinet.roles} == KEYS_OF
    assert [path.name for path in (room.directory / "secrets").iterdir()] == ["operator.token"]
    room.types("fsck")
    cabinet.pin("trust-1").unlink()  # two of three are enough
    room.types("trust", "publish")
    cabinet.pin("trust-2").unlink()
    room.types("trust", "publish", status=1)
    assert "trust-1" in room.err
    for role in ("root", "trust-3"):
        cabinet.pin(role).unlink()
    with running_service(DataDirectory(room.directory)) as service:
        assert service.authorities.active.name == "issuing"


def test_offline_tokens_may_be_taken_away_and_brought_back(tmp_path, capsys):
    directory, done = installed(tmp_path / "D")
    unplug(directory, done, tmp_path / "safe")
    with running_service(directory) as service:
        assert service.authorities.active.name == "issuing"
    person = Person(directory.root, capsys)
    person.types("fsck")
    plug_in(directory, done, tmp_path / "safe")
    person.types("trust", "publish")


def test_the_service_token_may_be_in_the_network(room, tmp_path):
    remote = P11Kit(tmp_path / "remote")
    try:
        body = remote.toml("net").replace("[hsm.", "[") + '[issuing]\nkey = "P-384"\n[tokens.service]\n'
        body += f'uri = "pkcs11:token={remote.label}?module-name=net"\npin = "file:{remote.pin_file}"\n'
        room.types("hsm", "ceremony", "--answers", room.answers(body), "--yes")
        room.types("fsck")
        with running_service(DataDirectory(room.directory)) as service:
            assert service.authorities.active.issuer.algorithm.name == "ecdsa-with-SHA384"
    finally:
        remote.close()


def test_a_token_that_does_not_say_that_it_made_its_keys_is_refused(room, tmp_path):
    nss = Nss(tmp_path / "nss")
    body = nss.toml("nss").replace("[hsm.", "[") + "[tokens.service]\n"
    body += f'uri = "pkcs11:token={nss.label.replace(" ", "%20")}?module-name=nss"\npin = "file:{nss.pin_file}"\n'
    room.types("hsm", "ceremony", "--answers", room.answers(body), "--yes", status=1)
    assert "was made elsewhere and brought in" in room.err
    assert beside(room) == []
    with nss.token() as token:
        there = token.keys()
    assert there == []


def test_the_roots_crl_is_good_for_as_long_as_was_planned(tmp_path):
    directory, done = installed(tmp_path / "D", "[root]\ncrl_days = 400\n")
    crl = x509.load_der_x509_crl((directory.ca / "root.crl").read_bytes())
    root = x509.load_pem_x509_certificate((directory.ca / "root.pem").read_bytes())
    assert crl.is_signature_valid(root.public_key())
    assert (crl.next_update_utc - crl.last_update_utc).days == 400
    assert list(crl) == []
    assert done.transcript.crls[0].next_update == crl.next_update_utc
    issuing = x509.load_pem_x509_certificate((directory.ca / "issuing.pem").read_bytes())
    (point,) = issuing.extensions.get_extension_for_class(x509.CRLDistributionPoints).value
    assert point.full_name[0].value.endswith("/crl/root.crl")


# --- what ends it -----------------------------------------------------------------------------------------------------


def test_labels_that_are_taken_are_all_named_and_nothing_is_made(room, cabinet):
    for role, label in (("root", "root"), ("service", "issuing"), ("service", "log")):
        with opened(cabinet, role) as token:
            token.generate_key(label)
    room.types("hsm", "ceremony", "--answers", room.answers(cabinet.answers), "--yes", status=1)
    assert "token root (their-root): it has a key 'root' already" in room.err
    assert "it has a key 'issuing', 'log' already" in room.err
    assert "nothing was made" in room.err
    assert labels(cabinet, "service") == ["issuing", "log"]
    assert_empty(cabinet, but=("root", "service"))


def test_a_key_that_could_leave_its_token_ends_the_ceremony(room, cabinet):
    with opened(cabinet, "trust-2") as token:
        _extractable(token, "by-hand")
    room.types("hsm", "ceremony", "--answers", room.answers(cabinet.answers), "--yes", status=1)
    assert "'by-hand' can be wrapped and taken out" in room.err
    assert labels(cabinet, "trust-2") == ["by-hand"]
    assert_empty(cabinet, but=("trust-2",))


def test_a_token_that_makes_keys_that_could_leave_it_is_refused_and_they_are_destroyed(room, cabinet, monkeypatch):
    genuine = Token.generate_key

    def generate(self, label, kind):
        if label in ("root", "log"):
            _extractable(self, label)
            return self.key(label)
        return genuine(self, label, kind)

    monkeypatch.setattr(Token, "generate_key", generate)
    room.types("hsm", "ceremony", "--answers", room.answers(cabinet.answers), "--yes", status=1)
    assert "token 'their-root': key 'root' can be wrapped" in room.err
    assert "token 'their-service': key 'log' can be wrapped" in room.err
    assert_empty(cabinet)
    assert beside(room) == []


def _extractable(token, label):
    """What a careless template makes."""
    from pkcs11 import Attribute, MechanismFlag

    from hsm.kinds import KeyKind, generation

    how = generation(KeyKind.P256)
    session = token._sessions._login.token.open(rw=True)
    session.create_domain_parameters(how.key_type, how.template, local=True).generate_keypair(
        id=bytes(16),
        label=label,
        store=True,
        capabilities=MechanismFlag.SIGN | MechanismFlag.VERIFY,
        mechanism=how.mechanism,
        private_template={Attribute.PRIVATE: True, Attribute.SENSITIVE: True, Attribute.EXTRACTABLE: True},
    )
    session.close()


def test_a_wrong_pin_is_tried_once(room, cabinet, monkeypatch):
    cabinet.write_pin("root", "a-wrong-canary")
    reads = []
    genuine = ceremony_tokens.pin_reader
    from provisioning.app import places

    monkeypatch.setattr(
        places, "pin_reader", lambda source, label: lambda: reads.append(label) or genuine(source, label)()
    )
    room.types("hsm", "ceremony", "--answers", room.answers(cabinet.answers), "--yes", status=1)
    assert "refused the PIN" in room.err
    assert "a-wrong-canary" not in room.err
    assert reads.count("their-root") == 1
    assert_empty(cabinet)


def test_a_pin_that_cannot_be_read_and_a_token_that_is_not_there_are_named_together(room, cabinet):
    cabinet.pin("trust-1").unlink()
    body = cabinet.answers.replace("their-trust-3", "lost")
    room.types("hsm", "ceremony", "--answers", room.answers(body), "--dry-run", status=1)
    assert "token trust-1 (their-trust-1)" in room.err
    assert "no token" in room.err
    assert "'lost'" in room.err


@pytest.mark.parametrize("broken", ["migrate", "renew_service_certificate", "replace_file"])
def test_what_fails_after_the_keys_destroys_them(room, cabinet, monkeypatch, broken):
    def no_room(*_):
        raise OSError(28, "No space left on device")

    file = room.answers(cabinet.answers)
    with monkeypatch.context() as full:
        full.setattr(installation, broken, no_room)
        room.types("hsm", "ceremony", "--answers", file, "--yes", status=1)
    assert beside(room) == []
    assert_empty(cabinet)
    room.types("hsm", "ceremony", "--answers", file, "--yes")


def test_keys_that_cannot_be_destroyed_are_named(room, cabinet, monkeypatch):
    from hsm import ceremony as keys
    from hsm.errors import TokenRefused
    from provisioning.app import ceremony as carried_out

    def never(*_):
        raise TokenRefused("the token says no")

    monkeypatch.setattr(keys, "remove_keys", never)
    monkeypatch.setattr(carried_out, "_own_ca", never)
    room.types("hsm", "ceremony", "--answers", room.answers(cabinet.answers), "--yes", status=1)
    assert "made by this ceremony and still there, remove:" in room.err
    for role, made in KEYS_OF.items():
        for label in made:
            assert f"key {label!r} of token 'their-{role}'" in room.err
    with opened(cabinet, "root") as token:
        assert remove_keys(token, "root") == 2


# --- killed -----------------------------------------------------------------------------------------------------------

_KILLED = """
import os, signal, sys
from provisioning.app import ceremony
from provisioning import cli
ceremony._finish = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
cli.main(sys.argv[1:])
"""


def killed(room, file):
    child = subprocess.run(
        [sys.executable, "-c", _KILLED, "hsm", "ceremony", "--answers", file, "--yes", "--data-dir", room.directory],
        capture_output=True,
        check=False,
        cwd=ROOT,
    )
    assert child.returncode == -signal.SIGKILL, child.stderr


def test_a_ceremony_that_was_killed_over_tokens_of_its_own_is_just_begun_again(room):
    file = room.answers()
    killed(room, file)
    assert beside(room) == [".D.ceremony"]
    room.types("hsm", "ceremony", "--answers", file, "--yes")
    assert beside(room) == ["D"]


def test_a_ceremony_that_was_killed_names_the_keys_and_destroys_them_when_it_is_given_up(room, cabinet):
    file = room.answers(cabinet.answers)
    killed(room, file)
    assert labels(cabinet, "root") == ["root"]
    room.types("hsm", "ceremony", "--answers", file, "--dry-run", status=1)
    assert "their-root/root" in room.err
    assert "--discard" in room.err
    room.types("hsm", "ceremony", "--discard", "--yes")
    assert_empty(cabinet)
    assert beside(room) == []
    room.types("hsm", "ceremony", "--answers", file, "--yes")


def test_there_is_nothing_to_discard_in_an_installation(tmp_path, capsys):
    directory, _ = installed(tmp_path / "D")
    person = Person(directory.root, capsys)
    person.types("hsm", "ceremony", "--discard", "--yes", status=1)
    assert "no ceremony waits here" in person.err
    person.types("fsck")


def test_two_ceremonies_do_not_make_one_directory(room, tmp_path):
    import fcntl

    aside = tmp_path / ".D.ceremony"
    aside.mkdir()
    held = os.open(aside, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    try:
        room.types("hsm", "ceremony", "--answers", room.answers(), "--yes", status=1)
        assert "another ceremony is at work" in room.err
    finally:
        os.close(held)
    assert aside.is_dir()


# --- PINs -------------------------------------------------------------------------------------------------------------


def test_pins_are_in_no_output_and_no_file(room, cabinet):
    canaries = [f"pin-of-{role}" for role in cabinet.roles]
    body = cabinet.answers.replace(f"file:{cabinet.pin('root')}", "env:ROOT_PIN")
    done = subprocess.run(
        [MUSTER, "hsm", "ceremony", "--answers", room.answers(body), "--yes", "--data-dir", room.directory],
        capture_output=True,
        text=True,
        env={**os.environ, "ROOT_PIN": "pin-of-root"},
        check=True,
    )
    told = [done.stdout, done.stderr]
    told += [path.read_bytes().decode("latin-1") for path in room.directory.rglob("*") if path.is_file()]
    assert len(told) > 15
    assert [canary for canary in canaries for text in told if canary in text] == []


def test_pins_are_in_no_traceback(cabinet, tmp_path):
    cabinet.write_pin("trust-3", "a-wrong-canary")
    with pytest.raises(WrongPin) as refused:
        installed(tmp_path / "D", cabinet.answers)
    shown = "".join(traceback.TracebackException.from_exception(refused.value, capture_locals=True).format())
    assert "installed" in shown
    assert [pin for pin in ("a-wrong-canary", *(f"pin-of-{role}" for role in cabinet.roles)) if pin in shown] == []


class Typist:
    """A person at a terminal: waits for a question, types the answer."""

    def __init__(self, *command):
        text = " ".join(map(str, command))
        self.child = subprocess.Popen(
            ["script", "-qefc", text, "/dev/null"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
        )
        self.seen = b""

    def types(self, question, answer):
        while question.encode() not in self.seen:
            read = os.read(self.child.stdout.fileno(), 4096)
            assert read, self.seen.decode()
            self.seen += read
        self.seen = self.seen.partition(question.encode())[2]
        self.child.stdin.write(f"{answer}\n".encode())

    def ends(self):
        said, _ = self.child.communicate(timeout=60)
        assert self.child.returncode == 0, (self.seen + said).decode()
        return (self.seen + said).decode()


def test_a_person_answers_the_questions_and_types_the_pins(tmp_path):
    ports = answers_text().splitlines()[1].partition("=")[2].strip(" []").replace(" ", "")
    person = Typist(MUSTER, "hsm", "ceremony", "--data-dir", tmp_path / "D")
    for question, answer in (
        *(("DNS name", "muster.test"), ("listen on", ""), ("devices are told", ""), ("Ports", ports)),
        *(("Who takes part", "Ada"), ("as what", "witness"), ("Who takes part", "")),
        *(("Root CA: key", "P-384"), ("Root CA: days", ""), ("next CRL", "")),
        *(("Issuing CA: key", ""), ("Issuing CA: days", ""), ("devices only", "y"), ("OCSP responder", "")),
    ):
        person.types(question, answer)
    for role in ("service", "root", "trust-1", "trust-2", "trust-3"):
        person.types(f"Token {role}: PKCS#11 URI", "")
        person.types(f"Token {role}: where", "prompt" if role == "service" else "")
    person.types("PIN of token 'muster': ", "typed-canary")  # can it be read?
    person.types("Carry out this plan?", "y")
    for _ in range(2):  # for the new token, and for the file that the service reads
        person.types("PIN of token 'muster': ", "typed-canary")
    assert "typed-canary" not in person.ends()
    transcript = json.loads((tmp_path / "D" / "ceremony" / "transcript.json").read_bytes())
    assert transcript["people"] == [{"name": "Ada", "role": "witness"}]
    assert {key["label"]: key["kind"] for key in transcript["keys"]}["root"] == "P-384"
    assert (tmp_path / "D" / "secrets" / "muster.pin").read_text() == "typed-canary"


def test_a_service_token_whose_pin_was_typed_serves_without_a_person(room, cabinet, monkeypatch):
    asked = []
    monkeypatch.setattr(pins, "_of_a_person", lambda label: asked.append(label) or "pin-of-service")
    body = cabinet.answers.replace(f"file:{cabinet.pin('service')}", "prompt")
    room.types("hsm", "ceremony", "--answers", room.answers(body), "--yes")
    assert set(asked) == {"their-service"}
    asked.clear()
    with running_service(DataDirectory(room.directory)) as service:
        assert service.authorities.active.name == "issuing"
    assert asked == []


# --- the transcript ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return installed(tmp_path_factory.mktemp("made") / "D", '[[people]]\nname = "Ada"\nrole = "witness"\n')


def test_a_transcript_is_verified_against_log_and_ca(made, capsys):
    directory, _ = made
    person = Person(directory.root, capsys)
    said = person.asks("hsm", "ceremony", "--verify", directory.ceremony / "transcript.json")
    assert (said["people"], said["certificates"], said["keys"]) == (["Ada"], ["root", "issuing"], 11)


def test_the_paper_says_who_which_tokens_which_keys_and_the_hash(made):
    directory, done = made
    text = (directory.ceremony / "transcript.txt").read_text()
    json_sha256, _ = installation.digests(done.transcript)
    certificates = [
        x509.load_pem_x509_certificate((directory.ca / f"{n}.pem").read_bytes()) for n in ("root", "issuing")
    ]
    from cryptography.hazmat.primitives.hashes import SHA256

    said = ["Ada (witness)", json_sha256, *(each.fingerprint(SHA256()).hex() for each in certificates)]
    said += [text for token in done.transcript.tokens for text in (token.serial, token.firmware, token.place)]
    said += [key.sha256 for key in done.transcript.keys]
    said += ["SENSITIVE, not EXTRACTABLE, ALWAYS_SENSITIVE, NEVER_EXTRACTABLE, LOCAL"]
    assert [each for each in said if each not in text] == []


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda text: text.replace("Ada", "Eve"), "its hash is a leaf of the log"),
        (lambda text: text + " ", "its bytes are the canonical ones"),
        (lambda text: text.replace('"root"', '"r00t"', 1), "its hash is a leaf of the log"),
        (lambda _: "{}", "a transcript (JSON)"),
        (lambda _: "", "a transcript (JSON)"),
    ],
)
def test_a_changed_transcript_is_refused(made, tmp_path, capsys, change, says):
    directory, _ = made
    file = tmp_path / "transcript.json"
    file.write_text(change((directory.ceremony / "transcript.json").read_text()))
    person = Person(directory.root, capsys)
    person.types("hsm", "ceremony", "--verify", file, status=1)
    assert "MUSTER-CER-002" in person.err
    assert says in person.err


def test_a_transcript_of_another_installation_is_refused(made, tmp_path, capsys):
    other, _ = installed(tmp_path / "D")
    directory, _ = made
    person = Person(directory.root, capsys)
    person.types("hsm", "ceremony", "--verify", other.ceremony / "transcript.json", status=1)
    assert "certificate root" in person.err
    assert "key command in the trust bundle" in person.err


# --- an outside CA ----------------------------------------------------------------------------------------------------


class OutsideCa:
    """A root and a policy CA made and used by the `openssl` command."""

    EXTENSIONS = (
        "basicConstraints=critical,CA:TRUE{}\nkeyUsage=critical,keyCertSign,cRLSign\nsubjectKeyIdentifier=hash\n"
    )

    def __init__(self, folder):
        self.folder = folder
        folder.mkdir()
        self._run("req", "-x509", "-newkey", "rsa:3072", "-nodes", "-keyout", "root.key",
                  "-out", "root.pem", "-subj", "/CN=Their root", "-days", "7000",
                  "-addext", "keyUsage=critical,keyCertSign,cRLSign")  # fmt: skip
        self._run("req", "-newkey", "rsa:3072", "-nodes", "-keyout", "policy.key", "-out", "policy.csr", "-subj",
                  "/CN=Their policy CA")  # fmt: skip
        self.sign("policy.csr", "policy.pem", "root", path_length=1, days=6000)

    def sign(self, request, out, issuer, *, path_length=0, days=3000):
        extensions = self.folder / "ext"
        extensions.write_text(self.EXTENSIONS.format("" if path_length is None else f",pathlen:{path_length}"))
        self._run("x509", "-req", "-in", request, "-CA", f"{issuer}.pem", "-CAkey", f"{issuer}.key", "-CAcreateserial",
                  "-out", out, "-days", days, "-extfile", extensions)  # fmt: skip
        return self.folder / out

    def _run(self, *arguments):
        subprocess.run(["openssl", *map(str, arguments)], cwd=self.folder, check=True, capture_output=True)


def test_an_outside_ca_signs_the_issuing_ca_and_the_rest_goes_on(room, cabinet, tmp_path):
    file = room.answers(_without_root(cabinet))
    asked = room.asks("hsm", "ceremony", "--answers", file, "--outside-ca", "--yes")
    request = Path(asked["request"])
    assert labels(cabinet, "service") == KEYS_OF["service"]
    assert labels(cabinet, "root") == []
    # It waits, and says so.
    room.types("serve", status=1)
    assert "ceremony" in room.err
    room.types("hsm", "ceremony", "--answers", file, "--outside-ca", "--yes", status=1)
    assert "a ceremony waits here" in room.err

    theirs = OutsideCa(tmp_path / "theirs")
    chain = (theirs.folder / "policy.pem", theirs.folder / "root.pem")
    deeper = theirs.sign(request, "deeper.pem", "policy", path_length=None)
    room.types("hsm", "ceremony", *chain, "--import", deeper, "--yes", status=1)
    assert "path length 0" in room.err
    certificate = theirs.sign(request, "issuing.pem", "policy")
    room.types("hsm", "ceremony", chain[1], "--import", certificate, "--yes", status=1)
    assert "MUSTER-CER-001" in room.err
    room.types("hsm", "ceremony", *chain, "--import", certificate, "--dry-run")
    done = room.asks("hsm", "ceremony", *chain, "--import", certificate, "--yes")

    room.types("fsck")
    room.types("hsm", "ceremony", "--verify", done["transcript"])
    directory = DataDirectory(room.directory)
    presented = x509.load_pem_x509_certificates((directory.tls / "service.pem").read_bytes())
    assert [each.issuer.rfc4514_string() for each in presented][1:] == ["CN=Their policy CA", "CN=Their root"]
    with running_service(directory) as service:
        assert len(service.authorities.active.chain) == 3
        root = x509.load_pem_x509_certificate(chain[1].read_bytes()).public_bytes(Encoding.DER)
        assert service.authorities.active.chain[-1] == root
    assert beside(room) == ["D"]


def _without_root(cabinet):
    before, _, after = cabinet.answers.partition("[tokens.root]\n")
    return before + after[after.index("[tokens.trust-1]") :]


def test_a_waiting_ceremony_goes_on_as_before_where_a_step_of_the_rest_fails(room, tmp_path, monkeypatch):
    asked = room.asks("hsm", "ceremony", "--answers", room.answers(), "--outside-ca", "--yes")
    theirs = OutsideCa(tmp_path / "theirs")
    certificate = theirs.sign(asked["request"], "issuing.pem", "root")
    with monkeypatch.context() as full:
        full.setattr(installation, "migrate", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        room.types("hsm", "ceremony", theirs.folder / "root.pem", "--import", certificate, "--yes", status=1)
    assert beside(room) == ["D"]
    room.types("hsm", "ceremony", theirs.folder / "root.pem", "--import", certificate, "--yes")
    room.types("fsck")


def test_what_was_killed_between_its_last_two_steps_waits_as_before(room, tmp_path):
    room.types("hsm", "ceremony", "--answers", room.answers(), "--outside-ca", "--yes")
    room.directory.rename(tmp_path / ".D.waiting")
    room.types("hsm", "ceremony", "--answers", room.answers(), "--dry-run", status=1)
    assert "a ceremony waits here" in room.err
    assert beside(room) == ["D"]


def test_a_request_that_is_not_ours_is_refused(room, tmp_path):
    asked = room.asks("hsm", "ceremony", "--answers", room.answers(), "--outside-ca", "--yes")
    theirs = OutsideCa(tmp_path / "theirs")
    certificate = theirs.sign(theirs.folder / "policy.csr", "issuing.pem", "root")
    root = theirs.folder / "root.pem"
    room.types("hsm", "ceremony", root, "--import", certificate, "--yes", status=1)
    assert "its key is the one that was made here" in room.err
    Path(asked["request"]).write_bytes((theirs.folder / "policy.csr").read_bytes())
    room.types("hsm", "ceremony", root, "--import", certificate, "--yes", status=1)
    assert "is not over the key that the ceremony made" in room.err


def test_a_waiting_ceremony_can_be_given_up(room, cabinet):
    room.types("hsm", "ceremony", "--answers", room.answers(_without_root(cabinet)), "--outside-ca", "--yes")
    room.types("hsm", "ceremony", "--discard", "--yes")
    assert_empty(cabinet)
    assert beside(room) == []


def test_ways_that_do_not_go_together_are_usage_mistakes(room, tmp_path):
    for mixture in (
        ("--discard", "--verify", "x"),
        ("--discard", "--answers", "x"),
        ("--verify", "x", "--outside-ca"),
        ("--import", "x"),
        ("x",),
        ("--discard", "--dry-run"),
    ):
        room.types("hsm", "ceremony", *mixture, status=2)
    assert list(tmp_path.iterdir()) == []
