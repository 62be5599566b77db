"""`muster attest log` and `muster attest quote` agree with tpm2-tools: on vectors, and on quotes of a software TPM."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from lab.firmware import boot_measured, make_image
from lab.swtpm import fresh_tpm
from ota.firmware import event_log, measure
from provisioning import cli

VECTORS = Path(__file__).resolve().parents[3] / "shared" / "vectors"
LOGS = sorted(set((VECTORS / "boot-logs").glob("*.bin")) - {VECTORS / "boot-logs" / "not-a-log.bin"})
TOLD = {
    *("EventType", "UnicodeName", "VariableName", "ImageLocationInMemory", "ImageLengthInMemory"),
    *("BlobBase", "BlobLength"),
}
FROM_LOCALITY_3 = {
    "gdc-host.bin": {"sha256": "dab77c454bd12c27ff6b6ce1f9adca90b7a330c1cef0b5cd01cb89fb3bd0dffa"},
    "glinux-alex.bin": {
        "sha1": "29d236609a5f9cc6912af44ba5f57b13a17c8a84",
        "sha256": "0e5ea849d7647a1ac1becc096fee4df98f00f8015f934afadaab0b8aa20b38a5",
    },
}
"""PCR 0 as these machines' own TPMs had it (go-tpm-tools' tests): tpm2_eventlog before 5.5 starts it from 0."""
PCRS = {"serialized": "sha256:0,1,2,3,4,5,7,8,9,14", "values": "sha256:0,1,2,4,7,8,9"}
"""tpm2_checkquote 5.4 takes at most eight bare values."""
QUALIFICATION = "db1db298db6d60e6385b7231743e9c3056a18003"

pytestmark = pytest.mark.skipif(shutil.which("tpm2_eventlog") is None, reason="no tpm2-tools")
needs_logs = pytest.mark.skipif(not LOGS, reason="no boot logs: ../shared/vectors is absent")
needs_quote = pytest.mark.skipif(not (VECTORS / "quote").is_dir(), reason="no quote: ../shared/vectors is absent")


def types(capsys, *arguments, status=0):
    """The command's output; it must end with this status."""
    assert cli.main([*map(str, arguments)]) == status
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return captured.out if status == 0 else captured.err


def asks(capsys, *arguments):
    return json.loads(types(capsys, *arguments, "-o", "json"))


# --- boot logs ----------------------------------------------------------------------------------------------------


def eventlog(path):
    """What tpm2_eventlog says of the file, None where it dies of it."""
    done = subprocess.run(["tpm2_eventlog", path], capture_output=True, check=False)
    return done.stdout.decode("utf-8", errors="replace") if done.returncode == 0 else None


def told_events(text):
    """Its events: PCR, type, digests; and what it decodes of variables, images and blobs."""
    events, algorithm = [], "sha1"
    for line in text.partition("\npcrs:")[0].splitlines():
        field, _, value = line.strip().removeprefix("- ").partition(": ")
        value = value.strip('"')
        if field == "PCRIndex":
            events.append({"pcr": int(value), "digests": {}})
            algorithm = "sha1"
        elif field == "AlgorithmId":
            algorithm = value
        elif field == "Digest":
            events[-1]["digests"][algorithm] = value
        elif field in TOLD:
            events[-1].setdefault(field, value)
    return events


def told_pcrs(text):
    """Its replayed values, by bank."""
    banks, bank = {}, ""
    for line in text.partition("\npcrs:")[2].splitlines():
        if found := re.fullmatch(r"\s+(\d+)\s*: 0x([0-9a-f]+)", line):
            banks[bank][found[1]] = found[2]
        elif found := re.fullmatch(r"  (\w+):", line):
            bank = found[1]
            banks[bank] = {}
    return banks


@needs_logs
@pytest.mark.parametrize("path", LOGS, ids=lambda path: path.name)
def test_every_log_is_told_as_tpm2_eventlog_tells_it(path, capsys):
    theirs = eventlog(path)
    ours = asks(capsys, "attest", "log", path)
    assert set(ours) == {"events", "pcrs"}
    if theirs is None:
        pytest.skip(f"tpm2_eventlog dies of {path.name}; ours tells {len(ours['events'])} events")
    expected = told_events(theirs)
    assert len(expected) == len(ours["events"])
    for event, told in zip(ours["events"], expected, strict=True):
        assert (event["pcr"], event["type"], event["digests"]) == (told["pcr"], told["EventType"], told["digests"])
        details = event["details"]
        for theirs_name, our_name in (("UnicodeName", "name"), ("VariableName", "guid")):
            if theirs_name in told:
                assert details[our_name] == told[theirs_name]
        if "ImageLengthInMemory" in told:
            assert details["length"] == int(told["ImageLengthInMemory"])
            assert details["location"] == told["ImageLocationInMemory"]
        if "BlobBase" in told and "base" in details:
            assert (int(details["base"], 16), details["length"]) == (
                int(told["BlobBase"], 16),
                int(told["BlobLength"], 16),
            )
    replayed = told_pcrs(theirs)
    for bank, value in FROM_LOCALITY_3.get(path.name, {}).items():
        replayed[bank]["0"] = value
    assert ours["pcrs"] == replayed


def test_the_virtual_firmwares_log_is_told_alike(tmp_path, capsys):
    path = tmp_path / "log"
    path.write_bytes(event_log(make_image()))
    ours = asks(capsys, "attest", "log", path)
    assert ours["pcrs"] == told_pcrs(eventlog(path))
    extended = {event.pcr for event in measure(make_image()).events}
    assert ours["pcrs"]["sha256"] == {str(pcr): measure(make_image()).pcrs[pcr].hex() for pcr in sorted(extended)}


@needs_logs
def test_a_log_is_a_table_for_people(capsys):
    text = types(capsys, "attest", "log", VECTORS / "boot-logs" / "rhel8-uefi.bin")
    assert "SecureBoot: on" in text
    assert "\\EFI\\" in text
    assert re.search(r"sha256 +7 +[0-9a-f]{64}", text)


@needs_logs
@pytest.mark.parametrize("kind", ["auto", "boot", "ima"])
def test_what_is_no_log_is_refused_by_name(kind, capsys):
    path = VECTORS / "boot-logs" / "not-a-log.bin"
    said = types(capsys, "attest", "log", path, "--kind", kind, status=1)
    assert ("MUSTER-ATT-058" if kind == "ima" else "MUSTER-ATT-047") in said


def test_a_log_that_is_no_file_is_a_line(tmp_path, capsys):
    assert "does not exist" in types(capsys, "attest", "log", tmp_path / "absent", status=2)
    (tmp_path / "big").write_bytes(bytes(9 * 1024 * 1024))
    assert "larger" in types(capsys, "attest", "log", tmp_path / "big", status=1)
    (tmp_path / "empty").write_bytes(b"")
    assert "MUSTER-ATT-047" in types(capsys, "attest", "log", tmp_path / "empty", status=1)


# --- IMA logs -----------------------------------------------------------------------------------------------------

IMA_TEXT = (
    "10 6309e2c83b7814367bb3912a55e5473454623535 ima-ng"
    " sha256:f4845392eca429a4c941a6a07fc32faf843a88c5c3dfa3b9329ab8f4171d9ce3 boot_aggregate\n"
    "10 80255d9c7dad91ef5f21b18560a47642d6f4d653 ima-ng"
    " sha256:96d7fae8adb7286a419a88f78c13d35fb782d63df654b7db56f154765698b754 /data\n"
)
"""Its template hashes are Linux's own: what is put together again must have these SHA-1 hashes."""


def ima_binary():
    """The same list, as the kernel writes it in binary."""
    out = b""
    for line in IMA_TEXT.splitlines():
        pcr, template_hash, template, digest, path = line.split(" ")
        algorithm, _, value = digest.partition(":")
        fields = [algorithm.encode() + b":\0" + bytes.fromhex(value), path.encode() + b"\0"]
        data = b"".join(len(field).to_bytes(4, "little") + field for field in fields)
        out += int(pcr).to_bytes(4, "little") + bytes.fromhex(template_hash)
        out += len(template).to_bytes(4, "little") + template.encode() + len(data).to_bytes(4, "little") + data
    return out


def test_an_ima_log_replays_to_pcr_10_of_a_tpm(tmp_path, capsys):
    """Extended into a software TPM as Linux does it: a hash of the template data in each bank, or padded SHA-1."""
    (tmp_path / "binary").write_bytes(ima_binary())
    (tmp_path / "ascii").write_text(IMA_TEXT)
    told = [asks(capsys, "attest", "log", tmp_path / name) for name in ("binary", "ascii")]
    assert told[0] == told[1]
    assert [event["type"] for event in told[0]["events"]] == ["ima-ng", "ima-ng"]
    assert all(event["measured"] and not event["doubted"] for event in told[0]["events"])
    padded = asks(capsys, "attest", "log", tmp_path / "binary", "--ima-extension", "padded-sha1")
    with fresh_tpm() as tpm:
        for number, event in enumerate(told[0]["events"]):
            (tmp_path / "data").write_bytes(_template_data(number))
            tool(tpm, tmp_path, "tpm2_pcrevent", "10", "data")
            tool(tpm, tmp_path, "tpm2_pcrextend", f"16:sha256={event['digests']['sha1']:0<64}")
        tool(tpm, tmp_path, "tpm2_pcrread", "sha256:10,16", "-o", "values")
    values = (tmp_path / "values").read_bytes()
    assert told[0]["pcrs"]["sha256"] == {"10": values[:32].hex()}
    assert padded["pcrs"]["sha256"] == {"10": values[32:].hex()}


def _template_data(number):
    from provisioning.attestation.ima import parse_ima_log

    return parse_ima_log(ima_binary()).entries[number].data


# --- quotes -------------------------------------------------------------------------------------------------------


def tool(tpm, folder, *arguments, status=0):
    environment = os.environ | {"TPM2TOOLS_TCTI": tpm.tcti if tpm else "none", "TSS2_LOG": "all+none"}
    done = subprocess.run(list(arguments), cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode == 0) == (status == 0), (arguments, done.stderr)
    return done.stdout


@pytest.fixture(scope="module")
def quotes(tmp_path_factory):
    """AKs of both kinds in every form, their quotes in every form, of a TPM that booted measured."""
    folder = tmp_path_factory.mktemp("quotes")
    with fresh_tpm() as tpm:
        with tpm.esapi() as esapi:
            boot_measured(esapi, make_image(), folder / "log")
        for kind, scheme in (("rsa", "rsassa"), ("ecc", "ecdsa"), ("rsa", "rsapss")):
            name = f"{kind}-{scheme}"
            tool(tpm, folder, "tpm2_createek", "-G", kind, "-c", "ek.ctx")
            made = ["-C", "ek.ctx", "-c", "ak.ctx", "-G", kind, "-g", "sha256", "-s", scheme]
            tool(tpm, folder, "tpm2_createak", *made, "-u", f"{name}.tss")
            tool(tpm, folder, "tpm2_readpublic", "-c", "ak.ctx", "-f", "pem", "-o", f"{name}.pem")
            for form in ("tss", "plain"):
                for values in ("serialized", "values"):
                    out = f"{name}.{form}.{values}"
                    quoted = ["-c", "ak.ctx", "-l", PCRS[values], "-q", "0a0b0c", "-g", "sha256", f"--scheme={scheme}"]
                    files = ["-m", f"{out}.msg", "-s", f"{out}.sig", "-f", form, "-o", f"{out}.pcrs", "-F", values]
                    tool(tpm, folder, "tpm2_quote", *quoted, *files)
            tool(tpm, folder, "tpm2_flushcontext", "-t")
    return folder


def check(folder, ak, out, *, nonce="0a0b0c", pcrs=None, values="serialized", scheme="sha256"):
    """Does tpm2_checkquote accept it?"""
    arguments = ["tpm2_checkquote", "-u", ak, "-m", f"{out}.msg", "-s", f"{out}.sig", "-g", scheme, "-q", nonce]
    arguments += ["-f", pcrs or f"{out}.pcrs"] + (["-l", PCRS[values]] if values == "values" else [])
    return subprocess.run(arguments, cwd=folder, capture_output=True, check=False).returncode == 0


def arguments_of(folder, ak, out, pcrs=None):
    files = ["--ak", folder / ak, "--message", folder / f"{out}.msg", "--signature", folder / f"{out}.sig"]
    return ["attest", "quote", *files, "--pcrs", folder / (pcrs or f"{out}.pcrs")]


@pytest.mark.parametrize("values", ["serialized", "values"])
@pytest.mark.parametrize("form", ["tss", "plain"])
@pytest.mark.parametrize("name", ["rsa-rsassa", "ecc-ecdsa", "rsa-rsapss"])
def test_real_quotes_are_judged_as_tpm2_checkquote_judges_them(quotes, name, form, values, capsys):
    out = f"{name}.{form}.{values}"
    theirs = name != "rsa-rsapss"  # tpm2_checkquote before 5.5 tries PKCS #1 v1.5 alone
    assert check(quotes, f"{name}.pem", out, values=values) == theirs
    for ak in (f"{name}.pem", f"{name}.tss"):
        command = arguments_of(quotes, ak, out)
        found = asks(capsys, *command, "--qualification", "0A0B0C")
        expected = {str(pcr): value.hex() for pcr, value in measure(make_image()).pcrs.items()}
        assert found["values"]["sha256"] == {str(pcr): expected[str(pcr)] for pcr in found["pcrs"]}
        assert "MUSTER-ATT-043" in types(capsys, *command, "--qualification", "0a0b0d", status=1)
    assert not check(quotes, f"{name}.pem", out, nonce="0a0b0d", values=values)


def test_the_log_and_the_quote_tell_the_same_boot(quotes, capsys):
    log = asks(capsys, "attest", "log", quotes / "log")
    out = "ecc-ecdsa.tss.serialized"
    found = asks(capsys, *arguments_of(quotes, "ecc-ecdsa.tss", out))
    quoted = found["values"]["sha256"]
    shared = set(quoted) & set(log["pcrs"]["sha256"])
    assert shared >= {"0", "4", "8", "9"}
    assert all(quoted[pcr] == log["pcrs"]["sha256"][pcr] for pcr in shared)


def test_changed_files_are_refused_by_both(quotes, capsys):
    out = "ecc-ecdsa.tss.serialized"
    for part, code in (("msg", "MUSTER-ATT-042"), ("sig", "MUSTER-ATT-042"), ("pcrs", "MUSTER-ATT-045")):
        for name in ("msg", "sig", "pcrs"):
            data = bytearray((quotes / f"{out}.{name}").read_bytes())
            if name == part:
                data[{"msg": 60, "sig": 20, "pcrs": 150}[part]] ^= 1
            (quotes / f"changed.{name}").write_bytes(bytes(data))
        assert code in types(capsys, *arguments_of(quotes, "ecc-ecdsa.pem", "changed"), status=1)
        assert not check(quotes, "ecc-ecdsa.pem", "changed")
    other = arguments_of(quotes, "rsa-rsassa.pem", out)
    assert "MUSTER-ATT-042" in types(capsys, *other, status=1)
    assert not check(quotes, "rsa-rsassa.pem", out)


@needs_quote
@pytest.mark.parametrize("ak", ["ak.pub", "akpub.pem"])
def test_the_vector_is_judged_as_tpm2_checkquote_judges_it(ak, capsys):
    folder = VECTORS / "quote"
    files = [
        "--message",
        folder / "quote.out",
        "--signature",
        folder / "quotesig.out",
        "--pcrs",
        folder / "quotepcr.out",
    ]
    command = ["attest", "quote", "--ak", folder / ak, *files]
    theirs = ["tpm2_checkquote", "-u", "akpub.pem", "-m", "quote.out", "-s", "quotesig.out", "-f", "quotepcr.out"]
    for qualification, status in ((QUALIFICATION, 0), (QUALIFICATION[:-2], 1)):
        types(capsys, *command, "--qualification", qualification, status=status)
        done = subprocess.run([*theirs, "-q", qualification], cwd=folder, capture_output=True, check=False)
        assert done.returncode == status
    said = types(capsys, *command)
    assert "NOT proven:" in said
    assert "fresh" in said


@needs_quote
def test_a_qualification_that_is_no_hex_is_a_mistake(capsys):
    folder = VECTORS / "quote"
    files = ["--message", folder / "quote.out", "--signature", folder / "quotesig.out"]
    command = ["attest", "quote", "--ak", folder / "ak.pub", *files, "--qualification"]
    for wrong in ("0", "xy", "0a 0b"):
        assert "hex" in types(capsys, *command, wrong, status=2)
    assert cli.main([*map(str, command), "0x" + QUALIFICATION]) == 0
