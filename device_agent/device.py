"""What every flow of the agent is given: this device's configuration, TPM, trust, time and identity."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from device_agent import log
from device_agent.clock import SteadyClock, TimeRefused, fetch_signed_time
from device_agent.config import AgentConfig, read_authorisation
from device_agent.evidence import Attester
from device_agent.host import Host
from device_agent.http import HttpFailure, NotFound, ServiceClient
from device_agent.identity import IdentityStore, Pair
from device_agent.state import private_folder
from device_agent.tls import ServiceContext
from device_agent.tpm import TpmAccess
from device_agent.trust import NotFoundAtSource, Trust, TrustedTime, TrustStore, load_anchor
from ota.refusals import MetadataExpired, UpdateRefused
from ota.source import SourceUnavailable
from wire.codec import rfc3339
from wire.messages import Anchor

CLOCK_TOLERANCE = timedelta(seconds=5)
"""A clock that is no further behind is good: signed times have whole seconds, and take a moment to arrive."""


@dataclass(frozen=True, slots=True)
class Device:
    """Made once at start-up by `open_device`."""

    config: AgentConfig
    host: Host
    anchor: Anchor
    tpm: TpmAccess
    clock: SteadyClock
    time: TrustedTime
    trust: TrustStore
    identity: IdentityStore
    public: ServiceClient

    @property
    def attester(self) -> Attester:
        """What challenges are answered with."""
        config = self.config
        logs = (config.boot_log, config.ima_log)
        return Attester(self.anchor.service_name, config.ownership_epoch, *logs, config.iak_handle)

    def now(self) -> datetime:
        """Trusted time."""
        return self.time.now()

    def context(self, trust: Trust, identity: Pair | None = None) -> ServiceContext:
        """TLS to this service, as `identity` where one is given. Raises: ssl.SSLError."""
        bundle = trust.bundle
        keys = bundle.issuing_keys
        return ServiceContext.to(self.anchor.service_name, bundle.ca_roots, self.now, identity, issuing_keys=keys)

    def client(self, trust: Trust, identity: Pair | None = None) -> ServiceClient:
        """The device listener. Raises: ssl.SSLError."""
        return ServiceClient(self.config.service, self.context(trust, identity))


def open_device(config: AgentConfig, host: Host) -> Device:
    """Reads the anchor and the state. Raises: ConfigMistake, UpdateRefused (no usable anchor), OSError."""
    private_folder(config.state_dir)
    anchor = load_anchor(config.anchor)
    access = TpmAccess(config.tcti, read_authorisation(config.owner_auth), read_authorisation(config.endorsement_auth))
    clock = SteadyClock(host.system_clock, host.monotonic)
    time = TrustedTime(config.state_dir, config.build_time, clock)
    public = ServiceClient(config.public, None)
    return Device(
        config=config,
        host=host,
        anchor=anchor,
        tpm=access,
        clock=clock,
        time=time,
        trust=TrustStore(config.state_dir / "trust", anchor, _trust_source(public), time.now),
        identity=IdentityStore(config.state_dir / "identity"),
        public=public,
    )


def refresh_trust(device: Device) -> Trust:
    """What the trust repository says now, judged at the service's own time where it says one.

    With an unset clock the first look is judged at the time floor, and again once the signed time is known: signatures
    that are too old are then refused. A time past the expiry of what it came with is not learned: the time floor never
    falls, so a service whose clock jumped, or a stolen command key, could else make this device refuse everything for
    good. The offline keys bound it. Raises: UpdateRefused, SourceUnavailable, TimeRefused, HttpFailure.
    """
    trust = device.trust.refresh()
    unset = is_clock_unset(device)
    try:
        moment = fetch_signed_time(device.public, trust.bundle.command_keys, device.host.entropy)
    except (HttpFailure, TimeRefused) as failure:
        if unset:
            raise
        log.warning("time-not-fetched", reason=failure)
        return trust
    if moment >= trust.expires:
        raise MetadataExpired("trust", expected=f"good at the service's time, {rfc3339(moment)}", actual=trust.expires)
    behind = moment - device.now()
    device.clock.learn(moment)
    device.time.raise_to(moment)
    if behind < CLOCK_TOLERANCE:
        return trust
    log.event("time-raised", to=rfc3339(device.now()))
    return device.trust.refresh()


def is_clock_unset(device: Device) -> bool:
    """Does the system's clock stand before a time that this device knows to be past?"""
    return device.now() - device.host.system_clock() > CLOCK_TOLERANCE


def trust_at_hand(device: Device) -> Trust:
    """The newest trust that can be had: refreshed, or what is kept where the service is out of reach.

    A refusal is never passed over: a service of another anchor is refused although an older bundle is kept.
    Raises: UpdateRefused, SourceUnavailable, TimeRefused, HttpFailure.
    """
    try:
        return refresh_trust(device)
    except (SourceUnavailable, HttpFailure) as failure:
        kept = device.trust.current()
        if kept is None:
            raise
        log.warning("trust-not-refreshed", reason=failure)
        return kept


def _trust_source(public: ServiceClient) -> Callable[[str, int], bytes]:
    def fetch(path: str, most: int) -> bytes:
        try:
            return public.get(f"/trust/{path}", most)
        except NotFound as failure:
            raise NotFoundAtSource(path) from failure
        except HttpFailure as failure:
            raise SourceUnavailable(str(failure)) from failure

    return fetch


TRUST_FAILURES = (UpdateRefused, SourceUnavailable, TimeRefused)
