"""docs/policies.md shows a whole policy, and names every field that one can have."""

import dataclasses
import re
from pathlib import Path

from provisioning.attestation import ima_policy_text, policy, rules_text
from provisioning.attestation.policy import parse_policy

TEXT = (Path(__file__).resolve().parents[3] / "docs" / "policies.md").read_text(encoding="utf-8")
_TOML = re.search(r"^```toml\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)


def test_the_policy_in_the_document_can_be_used():
    assert _TOML is not None
    parsed = parse_policy(_TOML[1])
    assert [rule.name for rule in parsed.rules] == ["secure_boot", "signers", "boot_loaders", "command_line"]
    assert parsed.ima is not None
    assert len(parsed.ima.files) == 2


def test_every_field_stands_in_the_document():
    texts = (
        *(policy._PolicyText, rules_text.RulesText, rules_text.SignersText, rules_text.BootLoadersText),
        *(rules_text.CommandLineText, ima_policy_text.ImaText),
    )
    fields = {field.name for text in texts for field in dataclasses.fields(text)}
    assert sorted(name for name in fields if not re.search(rf"\b{name}\b", TEXT)) == []
