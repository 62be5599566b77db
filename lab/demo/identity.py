"""Steps 1 to 5: an installation, a factory, one device that is let in, and four that are not."""

import re

from lab.demo.scene import EXPORT, GATEWAYS, MANUFACTURER, MODEL, REGISTERED_TWIN, SERVICE, STRANGER, A, B, Scene
from lab.story import Running, StoryFailed

RELEASE_1 = "gateway-1.img"
_REGISTERED = re.compile(r"^(gw-\d+)\s+(d-[0-9a-f]+)", re.MULTILINE)


def initialize(scene: Scene) -> None:
    """Step 1. Firmware and TPM maker are made beside it."""
    story = scene.story
    with story.step(
        "Keys in an HSM",
        "Without it: whoever copies the CA's disk makes a certificate for any device, and nobody notices.",
        "CA, command, log and update keys are born in PKCS#11 tokens and cannot be taken out",
    ):
        made = story.start("muster init --ports free")
        beside = [story.start("python -m lab ek-ca ek-ca"), story.start(f"python -m lab image {RELEASE_1} --version 1")]
        told = story.passed(made).out
        for listener in ("device", "public"):
            scene.facts[f"{listener}_port"] = _told(told, rf"{listener} port +(\d+)")
        scene.facts["host"] = _told(told, r"advertised host +(\S+)")
        # A replaced certificate is revoked at once; an installation gives it an hour.
        story.run(f"printf '\\n[commands]\\ngrace_seconds = 0\\n' >> {SERVICE}/muster.toml")
        story.run(f"openssl verify -CAfile {SERVICE}/ca/root.pem {SERVICE}/ca/issuing.pem")
        for running in beside:
            story.passed(running, shown=0)
        story.say("(ek-ca is a maker of software TPMs, gateway-1.img a firmware: both are needed in a moment)")


def serve(scene: Scene) -> None:
    """Step 2. The TPMs are made while the service starts."""
    story = scene.story
    with story.step(
        "The service",
        "Without it: whoever reaches the network asks for an identity, and gets one.",
        "broker, device, operator and public listeners run; all but signed objects needs authentication",
    ):
        story.background("serve", "muster serve")
        story.say("Meanwhile the TPM maker delivers four TPMs, each with an EK (the TPM's own built-in key) and a")
        story.say("certificate for it; each goes into a gateway with firmware, two slots, an anchor and the agent.")
        device, public = (f"{scene.facts['host']}:{scene.facts[f'{name}_port']}" for name in ("device", "public"))
        common = f"--image {RELEASE_1} --ek-ca ek-ca --service https://{device} --public http://{public}"
        making = [
            story.start(f"python -m lab create {name} --name {name} {common} --anchor {SERVICE}/anchor.json")
            for name in GATEWAYS
        ]
        for running in making:
            story.passed(running, shown=0)
        story.wait("the listeners answer", lambda: bool(scene.endpoints()))
        for name, url in scene.endpoints().items():
            story.show(f"{name:<9} {url}")


def register(scene: Scene) -> None:
    """Step 3."""
    story = scene.story
    with story.step(
        "A factory with a budget, a model with a policy",
        "Without it: a stolen factory station registers as many fake devices as it likes, with any firmware.",
        "three TPMs registered, the fourth refused; the boot of release 1 is the only one accepted",
    ):
        measure = f"muster ota measure {RELEASE_1} --policy-toml --model {MODEL} --ek-root ek-ca/root.pem"
        measured = story.start(f"{measure} --manufacturer {MANUFACTURER} --software-tpm > {MODEL}.toml")
        story.run("muster factory station add line-1 --budget 3")
        _write_csv(scene, "devices.csv", GATEWAYS[:3])
        _write_csv(scene, "fourth.csv", (STRANGER,))
        story.passed(measured)
        registered = story.start("muster factory register devices.csv --station line-1")
        story.run(f"muster policy set {MODEL}.toml", shown=0)
        for serial, device in _REGISTERED.findall(story.passed(registered).out):
            scene.facts[serial] = device
        story.say("The policy names PCRs (a hash of what booted), predicted from the firmware image:")
        story.run(f"sed -n '/^.pcrs/,/^$/p' {MODEL}.toml")
        story.refused(story.start("muster factory register fourth.csv --station line-1"), "MUSTER-FAC-001", shown=2)


def enroll(scene: Scene) -> None:
    """Step 4."""
    story = scene.story
    with story.step(
        "Device A proves itself and gets its identity",
        "Without it: a copied key file is as good as the device, and nobody sees what the device booted.",
        "device A's key lives in its TPM, and its certificate was earned by a quote over its boot",
    ):
        story.say("The agent verifies the trust bundle from its anchor, makes an AK (a TPM key for attesting), shows")
        story.say(
            "that EK and AK share one TPM, quotes its PCRs, and asks for an LDevID (certificate that your CA issued)."
        )
        scene.device = story.background(A, f"python -m lab boot {A}")
        line = scene.wait_for_device(f"{A} enrolls", "enrolled", "device=")
        scene.facts["first_serial"] = _field(line, "serial")
        story.show(line)
        scene.wait_for_device(f"{A} connects", " connected ")
        story.run(f"muster-agent status --data-dir {A}/agent", shown=6)
        pair = f"{A}/agent/state/identity/pairs/1"
        story.run(f"head -1 {pair}/key.pem")
        story.say("(TSS2: wrapped by the TPM that made it; on any other machine it is noise)")
        story.run(f"muster devices evidence {A} --export {EXPORT}", shown=0)
        story.run(f"mv {EXPORT}/certificate.pem {EXPORT}/first.pem && cp -r {pair} stolen", shown=0)


def refuse(scene: Scene) -> None:
    """Step 5."""
    story = scene.story
    with story.step(
        "Who is not let in",
        "Without it: tampered firmware, a strange TPM, a swapped board or a false service pass for real.",
        "changed firmware, unknown TPM, wrong TPM and false service are refused, each with its reason",
    ):
        story.say(f"B: one byte of {B}'s kernel is changed on its disk. Nobody registered {STRANGER}.")
        story.say(f"{REGISTERED_TWIN} was built for another fleet: this service is a false one to it.")
        story.run(
            f"python -m lab image changed.img --version 1 --flip kernel && cp changed.img {B}/slots/a/image.bin",
            shown=0,
        )
        anchor = story.start(f"python -m lab anchor {REGISTERED_TWIN}/agent/anchor.json")
        story.passed(anchor, shown=0)
        changed = story.start(f"python -m lab boot {B} --enroll")
        stranger = story.start(f"python -m lab boot {STRANGER} --enroll")
        false = story.start(f"python -m lab boot {REGISTERED_TWIN} --enroll")
        _refused_device(scene, changed, "MUSTER-ATT-049")
        _refused_device(scene, stranger, "MUSTER-ATT-001")
        story.refused(false, "MUSTER-OTA-104", shown=3)
        story.say(f"The stranger takes the name of {REGISTERED_TWIN}, which has another TPM:")
        story.run(f"sed -i 's/^serial = .*/serial = \"{REGISTERED_TWIN}\"/' {STRANGER}/agent/agent.toml", shown=0)
        twin = story.start(f"python -m lab boot {STRANGER} --enroll")
        story.say("What the operator sees, who alone learns the details:")
        explained = story.start(f"muster explain {B}")
        _refused_device(scene, twin, "MUSTER-ATT-002")
        story.passed(explained, shown=40)


def _refused_device(scene: Scene, running: Running, code: str) -> None:
    """A device that must not get in; it learns the class of the refusal, and the id under which more is known."""
    done = scene.story.refused(running, code, shown=3)
    if "muster explain " not in done.err:
        raise StoryFailed(f"`{done.command}`: expected the id of a refusal that the operator can look up")


def _write_csv(scene: Scene, name: str, devices: tuple[str, ...]) -> None:
    """What the tester at the end of the line writes down."""
    rows = [f"{device},{MODEL},{device}/ek-rsa2048.pem" for device in devices]
    (scene.root / name).write_text("\n".join(["serial,model,ek_certificate", *rows, ""]), encoding="utf-8")
    scene.story.run(f"cat {name}")


def _field(line: str, name: str) -> str:
    return _told(line, rf"\b{name}=(\S+)")


def _told(text: str, pattern: str) -> str:
    found = re.search(pattern, text)
    if found is None:
        raise StoryFailed(f"expected {pattern!r} in: {text[:200]}")
    return found[1]
