"""Edits of a policy's text: the values change as asked, and nothing else of the text does."""

import json
import tomllib
from difflib import unified_diff

import pytest
from hypothesis import given
from hypothesis import strategies as st

from provisioning.attestation.explanation_edit import Add, Drop, EditImpossible, Line, Put, difference, edited
from provisioning.attestation.explanation_toml import NotFound, places

POLICY = '''# gateways of the first series
model = "gateway"  # "model" = 'x' [in] a comment
min_tpm_firmware = 0x20200

[pcrs.sha256]
"0" = ["00", "01"]  # both firmwares
4 = [
    "aa",  # kernel 6.1
    "bb"   # kernel 6.6
]
'7' = [
  "cc",
]
10 = []

[rules]
secure_boot = "on"
signers.subjects = ["CN=a, ]"]

[[ek_roots]]
certificate = """-----BEGIN CERTIFICATE-----
MII"Q==
-----END CERTIFICATE-----"""
manufacturers = ["id:00001014"]

[[ek_roots]]
store = "Infineon"
'''


def removed_and_added(before: str, after: str) -> tuple[list[str], list[str]]:
    lines = list(unified_diff(before.splitlines(), after.splitlines(), lineterm="", n=0))[2:]
    return [one[1:] for one in lines if one.startswith("-")], [one[1:] for one in lines if one.startswith("+")]


@pytest.mark.parametrize(
    ("path", "removed", "added"),
    [
        (
            ("pcrs", "sha256", "0"),
            ['"0" = ["00", "01"]  # both firmwares'],
            ['"0" = ["00", "01", "ff"]  # both firmwares'],
        ),
        (("pcrs", "sha256", "4"), ['    "bb"   # kernel 6.6'], ['    "bb",   # kernel 6.6', '    "ff",']),
        (("pcrs", "sha256", "7"), [], ['  "ff",']),
        (("pcrs", "sha256", "10"), ["10 = []"], ['10 = ["ff"]']),
        (
            ("ek_roots", 0, "manufacturers"),
            ['manufacturers = ["id:00001014"]'],
            ['manufacturers = ["id:00001014", "ff"]'],
        ),
        (
            ("rules", "signers", "subjects"),
            ['signers.subjects = ["CN=a, ]"]'],
            ['signers.subjects = ["CN=a, ]", "ff"]'],
        ),
    ],
)
def test_a_value_is_added_where_the_array_stands_and_comments_stay(path, removed, added):
    new = edited(POLICY, [Add(path, "ff")])
    assert removed_and_added(POLICY, new) == (removed, added)
    values = tomllib.loads(new)
    for key in path:
        values = values[key]
    assert values[-1] == "ff"


def test_several_values_of_one_array_and_of_others_go_together():
    changes = [
        Add(("pcrs", "sha256", "4"), "ff"),
        Add(("pcrs", "sha256", "4"), "ee"),
        Add(("pcrs", "sha256", "10"), "dd"),
    ]
    found = tomllib.loads(edited(POLICY, changes))["pcrs"]["sha256"]
    assert (found["4"], found["10"], found["7"]) == (["aa", "bb", "ff", "ee"], ["dd"], ["cc"])


def test_a_table_is_added_behind_all():
    new = edited(POLICY, [Add(("ek_roots",), {"fingerprint": "ab", "manufacturers": ("id:0",)})])
    assert removed_and_added(POLICY, new) == ([], ["[[ek_roots]]", 'fingerprint = "ab"', 'manufacturers = ["id:0"]'])
    assert edited(POLICY.rstrip("\n"), [Add(("ek_roots",), {"fingerprint": "ab"})]).count("\n[[ek_roots]]\n") == 3


def test_a_table_is_added_to_an_array_that_is_written_inline():
    text = 'model = "a"\nek_roots = [{ store = "x", manufacturers = ["y"] }]\n'
    new = edited(text, [Add(("ek_roots",), {"fingerprint": "ab"}), Add(("ek_roots", 0, "manufacturers"), "z")])
    assert tomllib.loads(new)["ek_roots"] == [{"store": "x", "manufacturers": ["y", "z"]}, {"fingerprint": "ab"}]


def test_a_setting_is_replaced_or_stands_behind_the_model():
    assert removed_and_added(POLICY, edited(POLICY, [Put(("min_tpm_firmware",), 7)])) == (
        ["min_tpm_firmware = 0x20200"],
        ["min_tpm_firmware = 7"],
    )
    new = edited(POLICY, [Put(("ek_trust",), "key"), Put(("software_tpm",), value=True)])
    assert removed_and_added(POLICY, new) == ([], ['ek_trust = "key"', "software_tpm = true"])
    assert tomllib.loads(edited('model = "a"', [Put(("ek_trust",), "key")])) == {"model": "a", "ek_trust": "key"}


def test_a_rule_is_dropped_with_its_line_and_a_table_with_its_lines():
    new = edited(POLICY, [Drop(("rules", "secure_boot"))])
    assert removed_and_added(POLICY, new) == (['secure_boot = "on"'], [])
    text = '[rules]\nsecure_boot = "on"\n[rules.signers]\nsubjects = ["a"]\n[ima]\nviolations = "refuse"\n'
    new = edited(text, [Drop(("rules", "secure_boot")), Drop(("rules", "signers"))])
    assert tomllib.loads(new) == {"rules": {}, "ima": {"violations": "refuse"}}


def test_the_first_value_of_a_table_stands_behind_its_header():
    text = '[rules.signers]\nsubjects = ["a"]\n\n[ima]'
    new = edited(text, [Add(("rules", "signers", "sha256"), "ff"), Put(("ima", "violations"), "accept")])
    assert tomllib.loads(new) == {
        "rules": {"signers": {"subjects": ["a"], "sha256": ["ff"]}},
        "ima": {"violations": "accept"},
    }


@pytest.mark.parametrize(
    "written",
    [
        '"""\n00  /a\n"""',
        '"""00  /a"""',
        "'''\n00  /a\n'''",
        '"00  /a"',
        '"00  /a\\n"',
        "'00  /a'",
        '"""\n  00  /a\n  """',
    ],
)
def test_a_line_is_added_to_a_text_of_any_kind(written):
    text = f"[ima]\nfiles = {written}  # known\nviolations = 'refuse'\n"
    new = edited(text, [Line(("ima", "files"), '11  /with "quotes"\\'), Line(("ima", "files"), "22  /c")])
    lines = [line.strip() for line in tomllib.loads(new)["ima"]["files"].splitlines() if line.strip()]
    assert lines == ["00  /a", '11  /with "quotes"\\', "22  /c"]
    assert "# known" in new


def test_quotes_at_the_end_of_a_text_are_its_own():
    text = 'a = """x"""""\nb = \'\'\'y\'\'\'\'\nc = 1\n'
    assert tomllib.loads(text) == {"a": 'x""', "b": "y'", "c": 1}
    assert tomllib.loads(edited(text, [Put(("c",), 2)]))["c"] == 2
    text = 'a = """x"""""\nc = 1\n'
    assert tomllib.loads(edited(text, [Put(("c",), 2)])) == {"a": 'x""', "c": 2}


def test_a_text_that_is_not_there_gets_its_first_line():
    new = edited("[ima]\nkeys = []\n", [Line(("ima", "files"), "11  /b")])
    assert tomllib.loads(new)["ima"] == {"keys": [], "files": "11  /b\n"}


@pytest.mark.parametrize(
    ("text", "change"),
    [
        (POLICY, Add(("pcrs", "sha384", "0"), "ff")),
        (POLICY, Add(("model",), "ff")),
        (POLICY, Drop(("rules", "command_line"))),
        (POLICY, Put(("nowhere", "key"), "ff")),
        (POLICY, Line(("ima", "files"), "ff")),
        ("'''", Put(("model",), "ff")),
        ("a = [", Put(("model",), "ff")),
        ("files = '''a'''", Line(("files",), "b'''")),
        ('files = """a\\\n"""', Line(("files",), "b")),
        ("[x]\na = 1\n", Add(("x",), {"b": "c"})),
        ("x = ]", Put(("x",), "ff")),
    ],
)
def test_what_cannot_be_written_is_no_edit(text, change):
    with pytest.raises(EditImpossible):
        edited(text, [change])


def test_a_hostile_value_stays_one_value():
    hostile = 'a"]\nmodel = "b"\x00\u202e\U0001f600\\'
    new = edited(POLICY, [Add(("pcrs", "sha256", "0"), hostile), Put(("ek_trust",), hostile)])
    assert tomllib.loads(new)["pcrs"]["sha256"]["0"][-1] == tomllib.loads(new)["ek_trust"] == hostile
    assert all(line.isprintable() for line in new.split("\n"))


def test_the_difference_is_what_a_person_reads():
    assert difference("a\nb\n", "a\nc\n").splitlines()[3:] == [" a", "-b", "+c"]


KEYS = st.text("abc-_0", min_size=1, max_size=3)
TEXTS = st.text("ab ]}[{=\"'\\#,\n\t.é", max_size=8)
VALUES = st.recursive(
    st.one_of(TEXTS, st.integers(-9, 99), st.booleans()),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(KEYS, inner, max_size=3)),
    max_leaves=8,
)
DOCUMENTS = st.dictionaries(KEYS, VALUES, max_size=4)


def toml_of(values, prefix=(), *, inline: bool) -> str:
    """TOML for these values, in one of two ways of writing tables."""
    lines, tables = [], []
    for key, value in values.items():
        name = json.dumps(key)
        if isinstance(value, dict) and not inline:
            tables.append((f"[{'.'.join([*prefix, name])}]", value, (*prefix, name)))
        elif isinstance(value, list) and value and all(isinstance(one, dict) for one in value) and not inline:
            tables += [(f"[[{'.'.join([*prefix, name])}]]  # [one]", one, (*prefix, name)) for one in value]
        else:
            lines.append(f"{name} = {inline_of(value)} # = [")
    return "\n".join([*lines, *(f"{head}\n{toml_of(table, path, inline=inline)}" for head, table, path in tables)])


def inline_of(value) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{json.dumps(key)} = {inline_of(one)}" for key, one in value.items()) + " }"
    if isinstance(value, list):
        return "[\n" + ",\n".join(f"  {inline_of(one)}" for one in value) + (",\n]" if value else "]")
    return json.dumps(value)


@given(DOCUMENTS, st.booleans())
def test_every_value_is_found_where_it_stands(values, inline):
    text = toml_of(values, inline=inline)
    assert tomllib.loads(text) == values
    for path, span in places(text).values.items():
        found = values
        for key in path:
            found = found[key]
        assert tomllib.loads(f"x = {text[span.start : span.end]}")["x"] == found


@given(DOCUMENTS, st.booleans(), TEXTS, st.data())
def test_an_edit_changes_one_value_or_is_refused(values, inline, new, data):
    text = toml_of(values, inline=inline)
    paths = list(places(text).values)
    path = data.draw(st.sampled_from(paths)) if paths else ("model",)
    change = data.draw(st.sampled_from([Add(path, new), Put(path, new)]))
    try:
        changed = tomllib.loads(edited(text, [change]))
    except EditImpossible:
        assert isinstance(change, Add)
        return
    expected = tomllib.loads(text)
    parent = expected
    for key in path[:-1]:
        parent = parent[key]
    if isinstance(change, Put):
        parent[path[-1]] = new
    else:
        parent[path[-1]].append(new)
    assert changed == expected


@given(st.text("[]{}=\"'\\#,\n. ab1", max_size=40))
def test_no_text_makes_the_search_fail_otherwise_than_by_name(text):
    try:
        places(text)
    except NotFound:
        return
