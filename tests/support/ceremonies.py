"""Installations by other ceremonies than the one with default answers."""

import shutil
from datetime import UTC, datetime

from hsm.softhsm import create_token
from provisioning.app.ceremony import Begun
from provisioning.app.ceremony_answers import parse_answers
from provisioning.app.ceremony_plan import plan
from provisioning.app.installation import install
from provisioning.config import DataDirectory
from tests.support.service import free_ports

SO_PIN = "security-officer"


def answers_text(body="", service_name="muster.test"):
    """Answers in TOML, with ports that are free."""
    return f'service_name = "{service_name}"\nports = {list(free_ports())}\n{body}'


def planned(body=""):
    """The plan of these answers."""
    return plan(parse_answers(answers_text(body), "answers.toml"))


def begun():
    return Begun(datetime.now(UTC), ("muster hsm ceremony",))


def installed(root, body="", settings=""):
    """An installation by these answers; `settings` are more lines of its configuration."""
    directory = DataDirectory(root)
    done = install(directory, planned(body), begun(), settings=settings)
    return directory, done


def unplug(directory, done, away):
    """Take the offline tokens away, with their PINs: out of the data directory."""
    away.mkdir()
    for token in done.transcript.tokens:
        if token.offline:
            shutil.move(directory.root / token.place, away / token.label)
            shutil.move(directory.pin(token.label), away / f"{token.label}.pin")


def plug_in(directory, done, away):
    """Bring them back."""
    for token in done.transcript.tokens:
        if token.offline:
            shutil.move(away / token.label, directory.root / token.place)
            shutil.move(away / f"{token.label}.pin", directory.pin(token.label))


class Cabinet:
    """SoftHSM2 tokens that were there before the ceremony, each with its PIN in a file; as answers in TOML."""

    ROLES = ("service", "root", "trust-1", "trust-2", "trust-3")

    def __init__(self, directory, roles=ROLES):
        self.directory, self.roles = directory, roles
        for role in roles:
            self.pin(role).parent.mkdir(parents=True, exist_ok=True)
            create_token(directory, f"their-{role}", f"pin-of-{role}", SO_PIN)
            self.write_pin(role, f"pin-of-{role}")

    def pin(self, role):
        return self.directory / f"{role}.pin"

    def write_pin(self, role, pin):
        self.pin(role).write_text(pin)
        self.pin(role).chmod(0o600)

    @property
    def answers(self):
        from hsm.softhsm import settings

        module = settings(self.directory)
        lines = ["[modules.box]", f'path = "{module.path}"', "[modules.box.environment]"]
        lines += [f'{name} = "{value}"' for name, value in module.environment.items()]
        for role in self.roles:
            lines += [f"[tokens.{role}]", f'uri = "pkcs11:token=their-{role}?module-name=box"']
            lines += [f'pin = "file:{self.pin(role)}"']
        return "\n".join(lines) + "\n"
