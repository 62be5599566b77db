"""A counter in the TPM's NV memory that only rises: the epoch of the update floor (docs/protocol.md, section 4)."""

from tpm2_pytss.constants import ESYS_TR, TPM2_ALG, TPM2_CAP, TPM2_NT, TPMA_NV
from tpm2_pytss.types import TPM2B_NV_PUBLIC, TPMS_NV_PUBLIC

from device_agent.tpm.access import TpmAccess
from device_agent.tpm.errors import CounterMissing
from device_agent.tpm.keys import Tpm, named

COUNTER_INDEX = 0x01804D55
"""In the range that the TCG's registry leaves to owners (0x01800000 to 0x01BFFFFF)."""

_COUNTER_BYTES = 8


class NvCounter:
    """Rises by one, never falls, survives power loss.

    Deleting it takes the owner's authorisation, and a new one starts above the old value (TPM 2.0 Part 3,
    TPM2_NV_Increment).
    """

    def __init__(self, access: TpmAccess, index: int = COUNTER_INDEX) -> None:
        self._access = access
        self._index = index

    def define(self) -> int:
        """Makes the counter where there is none; its value. Raises: TpmFailure."""
        with self._access.open() as tpm:
            if not self._exists(tpm):
                public = TPM2B_NV_PUBLIC(
                    nvPublic=TPMS_NV_PUBLIC(
                        nvIndex=self._index,
                        nameAlg=TPM2_ALG.SHA256,
                        attributes=TPMA_NV.AUTHREAD
                        | TPMA_NV.AUTHWRITE
                        | TPMA_NV.OWNERREAD
                        | TPMA_NV.OWNERWRITE
                        | TPMA_NV.NO_DA
                        | (TPM2_NT.COUNTER << TPMA_NV.TPM2_NT_SHIFT),
                        dataSize=_COUNTER_BYTES,
                    )
                )
                with named("defining the update counter", "set owner_auth in agent.toml if that hierarchy has one"):
                    self._increment(tpm, tpm.esapi.nv_define_space(None, public, ESYS_TR.OWNER))
            return self._value(tpm)

    def read(self) -> int:
        """The counter's value. Raises: CounterMissing, TpmFailure."""
        with self._access.open() as tpm:
            return self._value(tpm)

    def increment(self) -> None:
        """One more, durably. Raises: CounterMissing, TpmFailure."""
        with self._access.open() as tpm:
            self._increment(tpm, self._handle(tpm))

    def _exists(self, tpm: Tpm) -> bool:
        with named("looking for the update counter"):
            _, capability = tpm.esapi.get_capability(TPM2_CAP.HANDLES, self._index, 1)
            return [int(handle) for handle in capability.data.handles] == [self._index]

    def _handle(self, tpm: Tpm) -> ESYS_TR:
        if not self._exists(tpm):
            raise CounterMissing(f"the TPM has no counter at {self._index:#x}: it was cleared or never set up")
        with named("opening the update counter"):
            return tpm.esapi.tr_from_tpmpublic(self._index)

    def _value(self, tpm: Tpm) -> int:
        handle = self._handle(tpm)
        with named("reading the update counter"):
            return int.from_bytes(bytes(tpm.esapi.nv_read(handle, _COUNTER_BYTES)), "big")

    def _increment(self, tpm: Tpm, handle: ESYS_TR) -> None:
        with named("raising the update counter"):
            tpm.esapi.nv_increment(handle)
