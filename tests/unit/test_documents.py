"""The documents say what the code does: what they name exists, and what the protocol needs is named."""

import dataclasses
import re
import shlex
from pathlib import Path

import pytest

from ota import refusals as update_refusals
from provisioning import config, refusals
from provisioning.http import device, public
from provisioning.http.problems import STATUS
from wire import binding, factory, messages
from wire.problems import PREFIX, REACTION

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
PROTOCOL = (ROOT / "docs" / "protocol.md").read_text(encoding="utf-8")
OPERATIONS = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
DECISION_LINES = 40

_FENCE = re.compile(r"^```[a-z]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\[[^\]]+\]\(([^)\s]+)\)")
_TEST = re.compile(r"(tests/[\w/]+\.py)::(test_\w+)")
_FILE = re.compile(r"`((?:wire|provisioning|device_agent|hsm|ota|lab|tests|deploy|docs|benchmarks)/[\w./-]*\w\.\w+)`")
_CODE = re.compile(r"MUSTER-[A-Z]{3}-\d{3}")
_COMMAND = re.compile(r"^(?:\$ )?(?:\.venv/bin/)?(muster|muster-agent) (.+)$", re.MULTILINE)
_INTERNAL_ERROR = "MUSTER-INT-001"


def rows(text: str) -> list[list[str]]:
    """All table rows, as their cells."""
    lines = (line for line in text.splitlines() if line.startswith("| ") and not line.startswith("| ---"))
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def row_of(text: str, first: str) -> list[str]:
    """The one row that starts with this cell."""
    (found,) = [cells for cells in rows(text) if cells[0] == first]
    return found


def without_code(text: str) -> str:
    return _FENCE.sub("", text)


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


# --- the protocol -----------------------------------------------------------------------------------------------------

WIRE = [
    kind
    for module in (messages, factory)
    for kind in vars(module).values()
    if isinstance(kind, type) and dataclasses.is_dataclass(kind) and kind.__module__ == module.__name__
]
PLAIN = [kind for kind in WIRE if not issubclass(kind, messages.Message) or kind is messages.Message]


@pytest.mark.parametrize("kind", PLAIN, ids=lambda kind: kind.__name__)
def test_every_message_stands_in_the_protocol_with_exactly_its_fields(kind):
    at = re.search(rf"`{kind.__name__}`[^\n]*\n\n(\| field .*?)\n\n", PROTOCOL, re.DOTALL)
    assert at is not None, f"no table for {kind.__name__}"
    told = [cells[0].removesuffix(" ?").strip("`") for cells in rows(at[1])[1:]]
    assert told == [field.name for field in dataclasses.fields(kind)]


@pytest.mark.parametrize("kind", messages.PAYLOAD_TYPE, ids=lambda kind: kind.__name__)
def test_every_payload_type_stands_in_the_protocol_with_its_own_fields(kind):
    cells = row_of(PROTOCOL, f"`{kind.__name__}`")
    own = {f.name for f in dataclasses.fields(kind)} - {f.name for f in dataclasses.fields(messages.Message)}
    assert cells[1] == f"`{messages.PAYLOAD_TYPE[kind]}`"
    told = {part.strip().split("`")[1] for part in re.split(r"; (?=`)", cells[2]) if "`" in part}
    assert told == own


def test_the_labels_of_the_binding_stand_in_the_protocol():
    labels = [*binding._LABELS.values(), binding._AK_LABEL]
    assert [label for label in labels if f'"{label.decode()}"' not in PROTOCOL] == []


@pytest.mark.parametrize("kind", refusals.Refusal.__subclasses__(), ids=lambda kind: kind.__name__)
def test_every_refusal_stands_in_the_protocol_as_the_code_has_it(kind):
    expected = [f"`{kind.code}`", f"`{kind.__name__}`", f"`{kind.problem.value}`", str(kind.check or ""), kind.title]
    assert row_of(PROTOCOL, expected[0]) == expected


@pytest.mark.parametrize("kind", update_refusals.UpdateRefused.__subclasses__(), ids=lambda kind: kind.__name__)
def test_every_refusal_of_an_update_stands_in_the_protocol_as_the_code_has_it(kind):
    assert row_of(PROTOCOL, f"`{kind.code}`") == [f"`{kind.code}`", f"`{kind.__name__}`", kind.title]


def test_every_check_names_the_classes_that_refuse_it():
    told = {int(cells[0]): cells[2] for cells in rows(PROTOCOL) if cells[0].isdigit() and len(cells) == 3}
    assert sorted(told) == list(range(1, 21))
    numbered = [kind for kind in refusals.Refusal.__subclasses__() if kind.check is not None]
    assert [kind.__name__ for kind in numbered if f"`{kind.__name__}`" not in told[kind.check]] == []


@pytest.mark.parametrize("problem", list(REACTION), ids=lambda problem: problem.value)
def test_every_problem_stands_in_the_protocol_with_status_and_reaction(problem):
    assert row_of(PROTOCOL, f"`{problem.value}`") == [
        f"`{problem.value}`",
        str(STATUS[problem]),
        REACTION[problem].value,
    ]
    assert f"`{PREFIX}`" in PROTOCOL


def test_every_route_for_devices_and_the_public_stands_in_the_protocol():
    paths = [route.path for route in [*device.routes(device.InFlight(1)), *public.routes(None)]]
    shown = [path.replace("{name...}", "…") for path in paths]
    assert [path for path in shown if path not in PROTOCOL] == []


def test_every_kind_of_leaf_stands_in_the_protocol():
    sources = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "provisioning").rglob("*.py"))
    named = dict(re.findall(r"^([A-Z_]+) = \"([a-z-]+)\"$", sources, re.MULTILINE))
    written = re.findall(r"(?<!def )\bleaf\(\s*service,\s*(?:\"([a-z-]+)\"|([A-Z_]+))", sources)
    kinds = {text or named[constant] for text, constant in written}
    assert len(kinds) > 5
    assert sorted(kind for kind in kinds if f"`{kind}`" not in PROTOCOL) == []


# --- operations -------------------------------------------------------------------------------------------------------


def test_every_setting_stands_in_operations_with_its_default():
    sections = {
        f.name: f.default_factory for f in dataclasses.fields(config.Config) if dataclasses.is_dataclass(f.type)
    }
    told = {cells[0]: cells[1] for cells in rows(OPERATIONS)}
    expected = {
        f"`{name}.{field.name}`": f"`{field.default}`" if field.default not in ("", dataclasses.MISSING) else "empty"
        for name, made in sections.items()
        for field in dataclasses.fields(made)
    }
    assert sections
    assert {key: told.get(key) for key in expected} == expected


# --- all documents ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_no_document_names_a_refusal_code_that_is_none(path):
    known = {kind.code for base in (refusals.Refusal, update_refusals.UpdateRefused) for kind in base.__subclasses__()}
    assert sorted(set(_CODE.findall(path.read_text(encoding="utf-8"))) - known - {_INTERNAL_ERROR}) == []


def slug(heading: str) -> str:
    """The anchor of a heading, as forges make it."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower().replace("`", "")).replace(" ", "-")


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_every_internal_link_leads_somewhere(path):
    broken = []
    for target in _LINK.findall(without_code(path.read_text(encoding="utf-8"))):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        led = path if not name else (path.parent / name).resolve()
        if not led.exists():
            broken.append(target)
        elif anchor and led.suffix == ".md":
            text = without_code(led.read_text(encoding="utf-8"))
            if anchor not in {slug(heading) for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE)}:
                broken.append(target)
    assert broken == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_every_test_that_a_document_names_exists(path):
    named = _TEST.findall(path.read_text(encoding="utf-8"))
    assert [f"{file}::{test}" for file, test in named if not _defines(ROOT / file, test)] == []


def _defines(file: Path, test: str) -> bool:
    return (
        file.is_file()
        and re.search(rf"^(?:async )?def {test}\(", file.read_text(encoding="utf-8"), re.MULTILINE) is not None
    )


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_every_source_file_that_a_document_names_exists(path):
    named = set(_FILE.findall(without_code(path.read_text(encoding="utf-8"))))
    assert sorted(name for name in named if not (ROOT / name).exists()) == []


def commands_in(text: str) -> list[list[str]]:
    """The `muster …` lines of the code blocks, split; comments and continuations are gone."""
    blocks = "\n".join(_FENCE.findall(text)).replace("\\\n", " ")
    return [[program, *shlex.split(rest, comments=True)] for program, rest in _COMMAND.findall(blocks)]


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_every_command_that_a_document_shows_exists_with_its_options(path):
    text = path.read_text(encoding="utf-8")
    assert [line for line in map(_mistake, commands_in(text)) if line] == []


def _mistake(command: list[str]) -> str | None:
    program, *words = command
    return (_agent_mistake if program == "muster-agent" else _service_mistake)(words)


def _service_mistake(words: list[str]) -> str | None:
    import typer.main

    from provisioning.cli.app import app

    node = typer.main.get_command(app)
    while hasattr(node, "commands"):
        if not words or words[0] not in node.commands:
            return None if words[:1] == ["--help"] else f"no command {' '.join(words)}"
        node, words = node.commands[words[0]], words[1:]
    known = {option for parameter in node.params for option in (*parameter.opts, *parameter.secondary_opts)} | {
        "--help"
    }
    unknown = [word for word in words if word.startswith("-") and word.split("=")[0] not in known]
    return f"{node.name} has no option {unknown}" if unknown else None


def _agent_mistake(words: list[str]) -> str | None:
    from device_agent.__main__ import _parser

    (choices,) = [action.choices for action in _parser()._actions if action.dest == "command"]
    if words[0] not in choices:
        return None if words[0].startswith("-") else f"no command muster-agent {words[0]}"
    known = set(choices[words[0]]._option_string_actions)
    unknown = [word for word in words[1:] if word.startswith("-") and word.split("=")[0] not in known]
    return f"muster-agent {words[0]} has no option {unknown}" if unknown else None


@pytest.mark.parametrize("path", sorted((ROOT / "docs" / "decisions").glob("[0-9]*.md")), ids=lambda path: path.name)
def test_a_decision_is_one_page(path):
    assert re.fullmatch(r"\d{4}-[a-z0-9-]+\.md", path.name)
    assert len(path.read_text(encoding="utf-8").splitlines()) <= DECISION_LINES


def test_decisions_are_numbered_without_gap_and_listed():
    names = sorted(path.name for path in (ROOT / "docs" / "decisions").glob("[0-9]*.md"))
    assert [int(name[:4]) for name in names] == list(range(1, len(names) + 1))
    listed = (ROOT / "docs" / "decisions" / "README.md").read_text(encoding="utf-8")
    assert [name for name in names if f"({name})" not in listed] == []
