"""Step 10: nobody has to believe us. The records, and other people's tools over what the demo leaves behind."""

import shlex
import shutil

from lab.demo.scene import EXPORT, SERVICE, A, Scene
from lab.story import StoryFailed

FILES = (
    "root.pem",
    "issuing.pem",
    "first.pem",
    "rotated.pem",
    "issuing.crl",
    "ak.pem",
    "quote.msg",
    "quote.sig",
    "quote.pcrs",
    "qualification.hex",
)
CHECKQUOTE = "tpm2_checkquote -u ak.pem -m quote.msg -s quote.sig -f quote.pcrs -q $(cat qualification.hex)"
VERIFY = "openssl verify -crl_check -CAfile root.pem -untrusted issuing.pem -CRLfile issuing.crl"
BREAK = "printf X | dd of=quote.msg bs=1 seek=60 conv=notrunc"


def check(scene: Scene) -> None:
    """Step 10."""
    story = scene.story
    with story.step(
        "The records, and outsiders",
        "Without it: you would have to believe this program about itself.",
        "log, database and certificates agree; OpenSSL and tpm2-tools, which know nothing of Muster, say the same",
    ):
        audit = story.start("muster audit verify")
        fsck = story.start("muster fsck")
        story.run(f"muster devices evidence {A} --flow rotate --export rotation", shown=0)
        story.passed(audit)
        story.passed(fsck)
        shutil.copyfile(scene.root / "rotation" / "certificate.pem", scene.export / "rotated.pem")
        story.run(f"cp {SERVICE}/ca/root.pem {SERVICE}/ca/issuing.pem {SERVICE}/ca/issuing.crl {EXPORT}/")
        if missing := [name for name in FILES if not (scene.export / name).is_file()]:
            raise StoryFailed(f"{EXPORT}: {', '.join(missing)} is missing")
        story.say("OpenSSL about the certificate in use, then about the one that was rotated away:")
        story.run(f"cd {EXPORT} && {VERIFY} rotated.pem")
        story.refused(story.start(f"cd {EXPORT} && {VERIFY} first.pem"), "certificate revoked", status=2)
        story.say("tpm2-tools about what the TPM said in step 4, and about the same with one byte changed:")
        story.run(f"cd {EXPORT} && {CHECKQUOTE}")
        bent = f"cp -r {EXPORT} bent && cd bent && {BREAK} status=none && {CHECKQUOTE}"
        story.refused(story.start(bent), "Verify signature failed", shown=3)


def farewell(scene: Scene) -> None:
    """What to try next."""
    console = scene.story.console
    console.print("\n[bold]Break it yourself.[/] Change one byte of a certificate, CRL, quote or PCR, and repeat:")
    for line in (f"cd {shlex.quote(str(scene.export))}", f"{VERIFY} rotated.pem", CHECKQUOTE, BREAK):
        console.print(f"  {line}", markup=False)
    console.print(
        "Next: docs/first-device.md (a real gateway), `make up` (a fleet that stays up), docs/threat-model.md."
    )
