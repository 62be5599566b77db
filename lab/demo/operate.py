"""Steps 6 to 9: a fleet in service. Messages, rotation, updates, and what is refused of each."""

from lab.demo.identity import RELEASE_1
from lab.demo.scene import SERVICE, A, B, Scene
from lab.story import StoryFailed

PUBLISHER = "--repository publisher"
RELEASE_2, RELEASE_3 = "gateway-2.img", "gateway-3.img"
CRL = f"{SERVICE}/ca/issuing.crl"


def connect(scene: Scene) -> None:
    """Step 6."""
    story = scene.story
    mine, other = (f"muster/v1/{scene.facts[name]}/up" for name in (A, B))
    with story.step(
        "Messages under the device's own name only",
        "Without it: one hacked device speaks for every other device of the fleet.",
        "mutual TLS with the key in the TPM; the broker refuses another device's topic",
    ):
        story.say(f"{A} has been connected by MQTT since step 4, its private key still in its TPM:")
        story.show(scene.wait_for_device(f"{A} is connected", " connected "))
        story.say("Whoever controls the device tries to speak as another one:")
        before = len(scene.device_log())
        done = story.refused(story.start(f"python -m lab.publish {A} {mine} {other}"), "Not authorized")
        if f"{mine}: taken" not in done.out or f"{other}: refused" not in done.out:
            raise StoryFailed(f"the broker should have taken a message on {mine}, and none on {other}")
        # The broker lets one connection a name: the agent lost its own, and comes back.
        scene.wait_for_device(f"{A} is back", " connected ", after=before)


def rotate(scene: Scene) -> None:
    """Step 7."""
    story = scene.story
    topic = f"muster/v1/{scene.facts[A]}/up"
    with story.step(
        "A new key and certificate, by command",
        "Without it: a certificate that leaked is good until it expires.",
        "signed command, fresh quote, new key in use; the old certificate is in the CRL and connects no more",
    ):
        before = len(scene.device_log())
        story.run(f"muster devices rotate {A}", shown=2)
        line = scene.wait_for_device(f"{A} has a new key", " rotated ", after=before)
        story.show(line)
        scene.facts["second_serial"] = line.rpartition("serial=")[2].strip()
        scene.wait_for_device(f"{A} connects with it", " connected ", scene.facts["second_serial"], after=before)
        first = bytes.fromhex(scene.facts["first_serial"])
        crl = scene.root / CRL
        story.wait("the CRL lists the old certificate", lambda: first in crl.read_bytes())
        story.run(f"openssl crl -in {CRL} -noout -text | grep -A 1 -i {scene.facts['first_serial']}")
        story.say("Somebody kept the old certificate (and, to be fair to them, has the TPM as well):")
        story.refused(story.start(f"python -m lab.publish {A} {topic} --pair stolen"), "certificate revoked")
        story.run(f"muster devices show {A} | sed -n '/^certificates/,/^$/p'")


def update(scene: Scene) -> None:
    """Step 8."""
    story = scene.story
    with story.step(
        "A release that two sides signed",
        "Without it: whoever owns the update server owns the fleet.",
        "publisher and Director signed release 2; A installed it, attested to it, and only then kept it",
    ):
        image = story.start(f"python -m lab image {RELEASE_2} --version 2 --counter 2")
        made = story.start(f"muster ota init {PUBLISHER}")
        story.passed(image, shown=0)
        story.say("What it will show after booting is predicted, and will be signed with it:")
        story.run(f"muster ota measure {RELEASE_2} --pcrs 8,9")
        story.passed(made, shown=0)
        trusted = story.start("muster trust publish --image-root publisher/image/metadata/1.root.json")
        story.run(f"muster ota add {RELEASE_2} {PUBLISHER}", shown=0)
        story.passed(trusted, shown=0)
        story.run(f"muster ota publish {PUBLISHER}", shown=4)
        before = len(scene.device_log())
        story.run(f"muster ota assign {A} {RELEASE_2}", shown=0)
        scene.wait_for_device(f"{A} committed release 2", "state=committed", after=before, seconds=40)
        story.show("\n".join(line for line in scene.device_log()[before:].splitlines() if "update state" in line), 20)
        story.run(f"muster devices show {A} | grep -E '^(health|release|update)'")


def refuse_updates(scene: Scene) -> None:
    """Step 9."""
    story = scene.story
    with story.step(
        "Releases that are not installed",
        "Without it: one stolen key, a bent download or an old, holed release is enough to take the fleet.",
        "tampered image, root by one stolen key, and rollback are refused by the device itself",
    ):
        image = story.start(f"python -m lab image {RELEASE_3} --version 3 --counter 3")
        old = story.start(f"muster ota add {RELEASE_1} {PUBLISHER}")
        story.passed(image, shown=0)
        story.run(f"muster ota add {RELEASE_3} {PUBLISHER}", shown=0)
        story.passed(old, shown=0)
        evil = story.start("python -m lab image evil.img --version 3 --counter 3 --seed evil")
        story.run(f"muster ota publish {PUBLISHER}", shown=0)
        story.passed(evil, shown=0)
        story.run(f"cp -r {SERVICE}/image mirror.good", shown=0)
        story.say("The update server is taken over. First, one byte of release 3 is changed:")
        story.run(
            f"printf X | dd of=$(ls {SERVICE}/image/targets/*.{RELEASE_3}) bs=1 seek=5000 conv=notrunc status=none"
        )
        _device_refuses(scene, RELEASE_3, "MUSTER-OTA-122")
        story.say("Then its own release, under a new root that one stolen root key signed (two are needed):")
        story.run(f"python -m lab.attack {SERVICE}/image --publisher publisher --stolen image-1 --image evil.img")
        _device_refuses(scene, RELEASE_3, "MUSTER-OTA-104")
        story.say(
            "The server is restored. An operator is talked into release 1, which is well signed, and has known holes:"
        )
        story.run(f"rm -r {SERVICE}/image && mv mirror.good {SERVICE}/image", shown=0)
        _device_refuses(scene, RELEASE_1, "MUSTER-OTA-126")
        story.run(f"muster devices show {A} | grep -E '^(release|update)'")


def _device_refuses(scene: Scene, target: str, code: str) -> None:
    """Assign a target; the device must report that it refused it, by this code."""
    before = len(scene.device_log())
    scene.story.run(f"muster ota assign {A} {target}", shown=0)
    outcome: list[str] = []

    def ended() -> bool:
        lines = scene.device_log()[before:].splitlines()
        outcome.extend(
            line for line in lines if any(f"update state={end}" in line for end in ("refused", "rebooting", "failed"))
        )
        return bool(outcome)

    scene.story.wait(f"{A} judges {target}", ended)
    scene.story.show(outcome[0])
    if "state=refused" not in outcome[0] or code not in outcome[0]:
        raise StoryFailed(f"{A} should have refused {target} with {code}")
    scene.story.as_it_must(code)
