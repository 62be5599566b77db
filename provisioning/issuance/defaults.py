"""The profiles that come with the program, one a kind, as an operator would write them."""

from collections.abc import Mapping
from types import MappingProxyType

DEFAULTS: Mapping[str, str] = MappingProxyType(
    {
        "root-ca": """\
# The root: signs itself, issuing CAs and their CRL. A lifetime is the most that one may be given.
name = "root-ca"
kind = "root-ca"
keys = ["P-256", "P-384", "Ed25519", "RSA"]
rsa_bits_least = 3072
lifetime_days = 10958
""",
        "issuing-ca": """\
# Signs end entities, CRLs and OCSP responders; path length 0.
name = "issuing-ca"
kind = "issuing-ca"
keys = ["P-256", "P-384", "Ed25519", "RSA"]
rsa_bits_least = 3072
lifetime_days = 7305
""",
        "idevid": """\
# What a device leaves the factory with (IEEE 802.1AR): it opens enrollment, and nothing else.
name = "idevid"
kind = "idevid"
keys = ["P-256", "P-384", "RSA"]
rsa_bits_least = 2048
no_end = true
""",
        "ldevid": """\
# A device in service. It renews at two thirds of the lifetime.
name = "ldevid"
kind = "ldevid"
keys = ["P-256", "P-384"]
lifetime_days = 30
approval = false
""",
        "gateway": """\
# An IoT gateway: a device that serves TLS as well. dns_domain = "gateways.example.org" gives it a DNS name.
name = "gateway"
kind = "gateway"
keys = ["P-256", "P-384"]
lifetime_days = 30
approval = false
""",
        "quarantine": """\
# The way back for a device whose health is in doubt.
name = "quarantine"
kind = "quarantine"
keys = ["P-256", "P-384"]
lifetime_days = 7
approval = false
""",
        "station": """\
# A factory station, which registers devices.
name = "station"
kind = "station"
keys = ["P-256", "P-384", "Ed25519", "RSA"]
rsa_bits_least = 3072
lifetime_days = 365
""",
        "operator": """\
# A person who operates the fleet.
name = "operator"
kind = "operator"
keys = ["P-256", "P-384", "Ed25519", "RSA"]
rsa_bits_least = 3072
lifetime_days = 90
""",
        "service-tls": """\
# The service's own listeners and broker.
name = "service-tls"
kind = "service-tls"
keys = ["P-256", "P-384"]
lifetime_days = 365
""",
        "ocsp-responder": """\
# Signs OCSP answers. Nobody asks whether it is revoked (id-pkix-ocsp-nocheck): it lives shortly.
name = "ocsp-responder"
kind = "ocsp-responder"
keys = ["P-256", "P-384", "Ed25519", "RSA"]
rsa_bits_least = 3072
lifetime_days = 14
""",
    }
)
"""By name, which is that of the kind."""
