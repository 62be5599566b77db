"""Who makes TPMs: the names under which their certificates are kept, and what they call themselves in certificates.

TCG TPM Vendor ID Registry (version 1.07); the `id:` form is that of the EK Credential Profile, 3.1.2.
"""

import re
import unicodedata

from provisioning.attestation.names import attribute_of, name_text

NAME_MOST = 64
UNKNOWN = "unknown"

VENDOR_IDS: dict[str, frozenset[str]] = {
    "AMD": frozenset({"id:414D4400"}),
    "Ant Group": frozenset({"id:414E5400"}),
    "Atmel": frozenset({"id:41544D4C"}),
    "Broadcom": frozenset({"id:4252434D"}),
    "Cisco": frozenset({"id:4353434F"}),
    "Google": frozenset({"id:474F4F47"}),
    "HPE": frozenset({"id:48504500", "id:48504900"}),
    "Huawei": frozenset({"id:48495349"}),
    "IBM": frozenset({"id:49424D00"}),
    "Infineon": frozenset({"id:49465800"}),
    "Intel": frozenset({"id:494E5443"}),
    "Lenovo": frozenset({"id:4C454E00"}),
    "Microsoft": frozenset({"id:4D534654"}),
    "Nationz": frozenset({"id:4E545A00"}),
    "NSING": frozenset({"id:4E534700"}),
    "Nuvoton": frozenset({"id:4E544300"}),
    "Qualcomm": frozenset({"id:51434F4D"}),
    "Samsung": frozenset({"id:534D534E"}),
    "Sinosun": frozenset({"id:534E5300"}),
    "STMicroelectronics": frozenset({"id:53544D20"}),
    "Texas Instruments": frozenset({"id:54584E00"}),
    "Winbond": frozenset({"id:57454300"}),
}
"""For whom the roots that are kept under a name may speak, where a policy does not say it."""

# How folders and organisations spell them, folded: no blanks, no marks.
_ALIASES = {
    **{re.sub(r"[^a-z0-9]", "", name.lower()): name for name in VENDOR_IDS},
    "advancedmicrodevices": "AMD",
    "gcp": "Google",
    "hewlettpackardenterprise": "HPE",
    "hisilicon": "Huawei",
    "ifx": "Infineon",
    "ntc": "Nuvoton",
    "qc": "Qualcomm",
    "stm": "STMicroelectronics",
    "stmicro": "STMicroelectronics",
    "sgsthomson": "STMicroelectronics",
}
# By the words that an organisation or a common name begins with, or has; the longest first.
_WORDS = (
    ("advanced micro devices", "AMD"),
    ("hewlett packard enterprise", "HPE"),
    ("stmicroelectronics", "STMicroelectronics"),
    ("stsafe", "STMicroelectronics"),
    ("alibaba", "Alibaba"),
    ("aliyun", "Alibaba"),
    ("infineon", "Infineon"),
    ("microsoft", "Microsoft"),
    ("nationz", "Nationz"),
    ("nuvoton", "Nuvoton"),
    ("qualcomm", "Qualcomm"),
    ("winbond", "Winbond"),
    ("samsung", "Samsung"),
    ("google", "Google"),
    ("huawei", "Huawei"),
    ("lenovo", "Lenovo"),
    ("nsing", "NSING"),
    ("intel", "Intel"),
    ("atmel", "Atmel"),
    ("cisco", "Cisco"),
    ("amdtpm", "AMD"),
    ("amd", "AMD"),
    ("ifx", "Infineon"),
    ("ntc", "Nuvoton"),
    ("stm", "STMicroelectronics"),
)
_CA_FOLDERS = frozenset({"rootca", "intermediateca"})


def named(text: str) -> str:
    """The registry's spelling of a manufacturer's name; an unknown one as it is, made printable. Empty: there is none.

    The name selects certificates in the store; what stands in a certificate or a folder proves nothing.
    """
    text = " ".join("".join(c if c.isprintable() else " " for c in unicodedata.normalize("NFC", text)).split())
    known = _ALIASES.get(re.sub(r"[^a-z0-9]", "", text.lower()))
    return known or text[:NAME_MOST].strip()


def of_folder(source: str) -> str:
    """The manufacturer that a path's folders name: a known one, or the one above RootCA and IntermediateCA; or none."""
    folders = source.replace("\\", "/").split("/")[:-1]
    for above, folder in zip(["", *folders], folders, strict=False):
        if above and re.sub(r"[^a-z]", "", folder.lower()) in _CA_FOLDERS:
            return named(above)
    known = (_ALIASES.get(re.sub(r"[^a-z0-9]", "", folder.lower())) for folder in folders)
    return next((name for name in known if name), "")


def in_root_folder(source: str) -> bool:
    """Did it lie in a folder RootCA?"""
    return any(re.sub(r"[^a-z]", "", folder.lower()) == "rootca" for folder in source.split("/")[:-1])


def of_subject(subject: bytes) -> str:
    """The manufacturer as a certificate's subject (DER) has it: known words, else organisation, else common name."""
    organisation, common = attribute_of(subject, "organization_name"), attribute_of(subject, "common_name")
    for text in (organisation, common, name_text(subject)):
        words = re.sub(r"[^a-z0-9]+", " ", text.lower())
        for word, name in _WORDS:
            if re.search(rf"\b{word}\b", words):
                return name
    return named(organisation or common) or UNKNOWN
