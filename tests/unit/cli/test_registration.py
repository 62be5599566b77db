"""The factory's CSV: every bad row is named with its line and cure, and one bad row is enough that none is sent."""

import base64
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from provisioning import factory
from provisioning.cli import registration
from provisioning.cli.failures import Failed
from provisioning.cli.registration import read_registrations
from tests.support.ek_certificates import ec_key, root

HEADER = "serial,model,ek_certificate\n"


@pytest.fixture(scope="module")
def eks():
    """Two EK certificates, DER."""
    return tuple(root().ek(ec_key(number=f"ek {number}")) for number in range(2))


def pem(der: bytes) -> str:
    body = base64.encodebytes(der).decode()
    return f"-----BEGIN CERTIFICATE-----\n{body}-----END CERTIFICATE-----\n"


def b64(der: bytes) -> str:
    return base64.b64encode(der).decode()


def write(folder, text: str):
    file = folder / "devices.csv"
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    return file


def refused(file) -> tuple[str, ...]:
    with pytest.raises(Failed) as caught:
        read_registrations(file)
    assert caught.value.status == 1
    return caught.value.lines


def test_a_row_names_a_pem_file_beside_it_or_holds_the_certificate_itself(tmp_path, eks):
    (tmp_path / "eks").mkdir()
    (tmp_path / "eks" / "one.pem").write_text(pem(eks[0]))
    rows = read_registrations(write(tmp_path, f"{HEADER}GW-1,gateway,eks/one.pem\n\n GW-2 ,gateway,{b64(eks[1])}\n"))
    assert [(row.line, row.device.serial, row.device.model) for row in rows] == [
        (2, "GW-1", "gateway"),
        (4, "GW-2", "gateway"),
    ]
    assert [row.device.ek_certificate for row in rows] == list(eks)


@pytest.mark.parametrize(("way", "what"), [("iak_certificate", "IAK"), ("idevid_certificate", "IDevID")])
def test_a_makers_certificate_may_stand_in_the_eks_place(tmp_path, eks, way, what):
    header = f"serial,model,{way}\n"
    (row,) = read_registrations(write(tmp_path, f"{header}GW-1,gateway,{b64(eks[0])}\n"))
    known_by = (row.device.ek_certificate, row.device.iak_certificate, row.device.idevid_certificate)
    assert (getattr(row.device, way), known_by.count(None)) == (eks[0], 2)
    lines = refused(write(tmp_path, f"{header}GW-1,gateway,{b64(eks[0])}\nGW-2,gateway,{b64(eks[0])}\n"))
    assert f"the same {what} stands on line 2" in lines[0]
    assert way in refused(write(tmp_path, f"{header}GW-1,gateway,{b64(eks[0][:-9])}\n"))[0]
    assert way in refused(write(tmp_path, f"{header}GW-1,gateway,\n"))[0]


def test_the_ways_of_a_file_are_those_of_the_service():
    assert registration.WAYS == factory.WAYS


def test_a_byte_order_mark_and_crlf_are_taken(tmp_path, eks):
    file = write(tmp_path, "")
    file.write_bytes(b"\xef\xbb\xbfserial,model,ek_certificate\r\n" + f"GW-1,gateway,{b64(eks[0])}\r\n".encode())
    assert [row.device.serial for row in read_registrations(file)] == ["GW-1"]


def test_a_fourth_column_names_the_group_of_a_device_or_none(tmp_path, eks):
    text = f"serial,model,ek_certificate,group\nGW-1,gateway,{b64(eks[0])},pilot_1\nGW-2,gateway,{b64(eks[1])},\n"
    assert [row.device.group for row in read_registrations(write(tmp_path, text))] == ["pilot_1", None]


def test_a_group_is_a_fourth_column_and_a_name(tmp_path, eks):
    header = "serial,model,ek_certificate,group\n"
    (line, *_) = refused(write(tmp_path, f"{header}GW-1,gateway,{b64(eks[0])},Pilot\n"))
    assert "line 2: group 'Pilot'" in line
    (line, *_) = refused(write(tmp_path, f"{header}GW-1,gateway,{b64(eks[0])}\n"))
    assert "3 fields instead of 4; write: serial,model,ek_certificate,group" in line
    (line, *_) = refused(write(tmp_path, "serial,model,ek_certificate,tag\n"))
    assert "group as a fourth" in line


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("", 1, "header is missing"),
        ("serial;model;ek_certificate\n", 1, "write: serial,model,ek_certificate"),
        ("model,serial,ek_certificate\n", 1, "write: serial,model,ek_certificate"),
        (HEADER, 2, "there is no row"),
        (HEADER + "GW-1,gateway\n", 2, "2 fields instead of 3"),
        (HEADER + "GW-1,gateway,x.pem,more\n", 2, "4 fields instead of 3"),
        (HEADER + "GW 1,gateway,x.pem\n", 2, "serial 'GW 1'"),
        (HEADER + ",gateway,x.pem\n", 2, "serial ''"),
        (HEADER + "GW-1,Gateway,x.pem\n", 2, "model 'Gateway'"),
        (HEADER + "GW-1,gateway,\n", 2, "ek_certificate is empty"),
        (HEADER + "GW-1,gateway,missing.pem\n", 2, "missing.pem: No such file"),
        (HEADER + "GW-1,gateway,.\n", 2, "Is a directory"),
        (HEADER + "GW-1,gateway,MIIB\n", 2, "no EK certificate that can be read"),
        (HEADER + "GW-1,gateway,MIé.pem\n", 2, "MIé.pem: No such file"),
        (HEADER + 'GW-1,gateway,"x.pem\n', 2, "close the quotes"),
        (HEADER + "\nGW-1,gateway,a\x00b\n", 3, "ek_certificate"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(tmp_path, text, line, said):
    lines = refused(write(tmp_path, text))
    assert f"devices.csv: line {line}: " in lines[0]
    assert said in lines[0]


def test_every_bad_row_is_named_and_that_nothing_was_sent(tmp_path, eks):
    text = f"{HEADER}GW 1,gateway,{b64(eks[0])}\nGW-2,gateway,{b64(eks[1])}\nGW-3,GATEWAY,{b64(eks[0])}\n"
    lines = refused(write(tmp_path, text))
    assert [line.partition(": ")[2][:6] for line in lines[:2]] == ["line 2", "line 4"]
    assert lines[-1].endswith("nothing was sent")


def test_a_serial_or_an_ek_that_stands_twice_is_named_with_both_lines(tmp_path, eks):
    text = f"{HEADER}GW-1,gateway,{b64(eks[0])}\nGW-1,gateway,{b64(eks[1])}\nGW-3,gateway,{b64(eks[0])}\n"
    lines = refused(write(tmp_path, text))
    assert "line 3: serial GW-1 stands on line 2 already" in lines[0]
    assert "line 4: the same EK stands on line 2 already" in lines[1]


def test_a_file_that_is_not_utf8_is_refused_at_its_line(tmp_path):
    file = write(tmp_path, "")
    file.write_bytes(HEADER.encode() + b"GW-1,gat\xe4way,x\n")
    assert "line 2: is not UTF-8" in refused(file)[0]


def test_a_pem_file_with_two_certificates_is_refused(tmp_path, eks):
    (tmp_path / "two.pem").write_text(pem(eks[0]) + pem(eks[1]))
    assert "holds 2 PEM certificates" in refused(write(tmp_path, HEADER + "GW-1,gateway,two.pem\n"))[0]


def test_more_than_a_thousand_devices_are_to_be_split(tmp_path, eks, monkeypatch):
    monkeypatch.setattr(registration, "ROWS_MOST", 1)
    text = f"{HEADER}GW-1,gateway,{b64(eks[0])}\nGW-2,gateway,{b64(eks[1])}\n"
    assert "line 3: more than 1 devices; split the file" in refused(write(tmp_path, text))[0]


def test_control_characters_of_a_row_do_not_reach_the_terminal(tmp_path):
    lines = refused(write(tmp_path, HEADER + "GW\x1b[2J,gateway,x\n"))
    assert "\x1b" not in "".join(lines)


def test_the_rules_are_those_of_the_service():
    assert registration.SERIAL.pattern == factory.SERIAL.pattern
    assert registration.MODEL.pattern == factory.MODEL.pattern


@given(st.binary(max_size=400) | st.text(alphabet=string.printable, max_size=400).map(str.encode))
def test_whatever_the_file_holds_it_is_refused_by_name(tmp_path_factory, content):
    file = tmp_path_factory.mktemp("csv") / "devices.csv"
    file.write_bytes(HEADER.encode() + content)
    lines = refused(file)
    assert all(str(file) in line for line in lines)
