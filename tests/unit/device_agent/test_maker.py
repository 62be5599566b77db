"""The device maker's certificates: from NV or from files, the key's own first."""

import base64
from types import SimpleNamespace

import pytest

from device_agent.config import ConfigMistake
from device_agent.maker import FILE_MOST, makers_endorsement
from device_agent.tpm import IAK

DER, CA, ROOT, IDEVID = (b"\x30\x03\x02\x01" + bytes([number]) for number in range(4))


def pem(*ders):
    bodies = (base64.encodebytes(der).decode() for der in ders)
    return "".join(f"-----BEGIN CERTIFICATE-----\n{body}-----END CERTIFICATE-----\n" for body in bodies)


def found(iak, idevid=None, nv=()):
    config = SimpleNamespace(iak_certificate=iak, idevid_certificate=idevid)
    return makers_endorsement(config, SimpleNamespace(certificates_at=dict(nv).__getitem__))


def test_without_a_configured_certificate_there_is_none():
    assert found(None) is None


def test_certificates_come_from_nv_and_from_files(tmp_path):
    chain, single = tmp_path / "idevid.pem", tmp_path / "iak.der"
    chain.write_text(pem(IDEVID, CA, ROOT))
    single.write_bytes(DER)
    made = found(0x1C90000, chain, nv={0x1C90000: (DER, CA)})
    assert (made.kind, made.certificate, made.idevid, made.intermediates) == (IAK, DER, IDEVID, (CA, ROOT))
    made = found(single)
    assert (made.certificate, made.idevid, made.intermediates) == (DER, None, ())


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "holds no certificate"),
        (b"text", "holds no certificate"),
        (b"-----BEGIN CERTIFICATE-----\nAAA\n-----END CERTIFICATE-----", "broken base64"),
        (b"\x30" * (FILE_MOST + 1), "larger than"),
    ],
    ids=["empty", "text", "base64", "large"],
)
def test_a_file_that_holds_none_is_said(tmp_path, content, says):
    (tmp_path / "iak").write_bytes(content)
    with pytest.raises(ConfigMistake, match=says):
        found(tmp_path / "iak")


def test_what_is_not_there_is_said(tmp_path):
    with pytest.raises(ConfigMistake, match="iak_certificate"):
        found(tmp_path / "none")
    with pytest.raises(ConfigMistake, match="NV 0x1c90000"):
        found(0x1C90000, nv={0x1C90000: ()})
