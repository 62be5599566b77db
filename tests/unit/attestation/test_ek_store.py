"""The store of manufacturers' certificates: what of them may vouch, for whom, and how an EK finds its way up."""

import hashlib
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from unittest.mock import Mock

import pytest
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID, ObjectIdentifier
from hypothesis import given
from hypothesis import strategies as st

from provisioning.attestation import chains, manufacturers
from provisioning.attestation import der as shape
from provisioning.attestation.bundles import certificates_in
from provisioning.attestation.certificates import is_of_tpm_1_2, parse_certificate
from provisioning.attestation.ek_store import EMPTY, EkStore, Role, fingerprint_of, judge, roles, stored, way_up
from provisioning.attestation.endorsement import RegisteredEk, ek_id_of, verify_endorsement
from provisioning.attestation.keys import verify_authority_key
from provisioning.attestation.names import name_key
from provisioning.attestation.policy import parse_policy
from provisioning.attestation.policy_roots import anchors, missing
from provisioning.attestation.signatures import WITH_SHA1, why_not_signed
from provisioning.refusals import (
    AlgorithmRefused,
    CertificateMalformed,
    EkChainRefused,
    EkManufacturerRefused,
    EkRootRefused,
    EkTrustTooLow,
    PolicyMalformed,
    Refusal,
    Tpm12Refused,
    WeakKey,
)
from tests.support.ek_certificates import NOW, YEAR, Authority, ec_key, element, key_usage, resigned, root, rsa_key
from wire.messages import EnrollmentRequest

VECTORS = Path(__file__).resolve().parents[4] / "shared" / "vectors" / "ek-roots"
INTEL = '["id:494E5443"]'
ROOT = root("Store Root")
SHA1_RSA = bytes.fromhex("2a864886f70d010105")


def store_of(*authorities, manufacturer="Intel", role=None):
    """A store with these certificates, each in the role that it has by itself."""
    found = []
    for one in authorities:
        der = one if isinstance(one, bytes) else one.der
        judged = judge(der, NOW)
        mine = role or (Role.SELF_SIGNED if judged.self_signed else Role.INTERMEDIATE)
        found.append(stored(judged, manufacturer, mine))
    return EkStore(found)


def policy(*tables, **fields):
    lines = ['model = "gateway"', *(f"{name} = {value}" for name, value in fields.items())]
    for table in tables or ('store = "Intel"',):
        lines += ["[[ek_roots]]", table]
    return parse_policy("\n".join([*lines, "[pcrs.sha256]", f'"0" = ["{"00" * 32}"]']))


def endorse(certificate, store, by=None, *sent, registered=None):
    request = EnrollmentRequest(
        ak_public=b"",
        pcr_banks=("sha256",),
        ek_certificate=certificate,
        ek_intermediates=tuple(one if isinstance(one, bytes) else one.der for one in sent),
    )
    return verify_endorsement(request, by or policy(), NOW, registered, store)


# --- what may be kept -------------------------------------------------------------------------------------------------


def unfit(der):
    with pytest.raises(EkRootRefused) as refused:
        judge(der, NOW)
    return [finding.what for finding in refused.value.findings]


def test_an_authority_is_taken_with_what_is_to_be_known_of_it():
    judged = judge(ROOT.der, NOW)
    assert (judged.fingerprint, judged.self_signed, judged.notes) == (hashlib.sha256(ROOT.der).hexdigest(), True, ())
    (note,) = judge(root("Old", end=NOW - timedelta(days=1)).der, NOW).notes
    assert note.startswith("expired on 2026-11-20")
    (note,) = judge(root("New", begin=NOW + timedelta(days=1)).der, NOW).notes
    assert note.startswith("begins on 2026-11-22")


def test_what_is_no_authority_is_refused_with_every_reason():
    assert unfit(ROOT.ek()) == ["basic constraints", "key usage"]
    assert unfit(ROOT.intermediate("Signer", usage=key_usage(crl_sign=True)).der) == ["key usage"]
    constrained = x509.NameConstraints([x509.DNSName("example.org")], None)
    assert unfit(ROOT.intermediate("Narrow", more=[(constrained, True)]).der) == ["critical extensions"]
    assert unfit(ROOT.intermediate("Nobody", ca=False, usage=key_usage()).der) == ["basic constraints", "key usage"]


def test_a_root_that_was_damaged_is_refused():
    damaged = ROOT.der[:-1] + bytes([ROOT.der[-1] ^ 1])
    assert unfit(damaged) == ["self-signature"]


def test_an_algorithm_that_cannot_count_is_refused():
    der = root("RSA", rsa_key(3072)).der
    md5 = der.replace(bytes.fromhex("2a864886f70d01010b"), bytes.fromhex("2a864886f70d010104"))
    assert unfit(md5) == ["signature algorithm"]


@pytest.mark.parametrize(
    ("der", "refusal"),
    [
        (b"\x30\x03\x02\x01\x01", CertificateMalformed),
        (b"\x30\x82\x40\x00" + bytes(0x4000), CertificateMalformed),
        (Authority(ed25519.Ed25519PrivateKey.generate(), b"", "E").key, AlgorithmRefused),
        (rsa_key(1024), AlgorithmRefused),
        (ec_key(ec.SECP256K1), AlgorithmRefused),
    ],
    ids=["no certificate", "too large", "Ed25519", "RSA-1024", "secp256k1"],
)
def test_keys_and_octets_that_do_not_count_are_refused_by_their_own_names(der, refusal):
    if not isinstance(der, bytes):
        der = ROOT.issue("Key", der, [(x509.BasicConstraints(ca=True, path_length=0), True)])
    with pytest.raises(refusal):
        judge(der, NOW)


def test_a_weak_modulus_is_refused(monkeypatch):
    from provisioning.attestation import keys

    def weak(_):
        raise WeakKey(expected="a sound modulus", actual="ROCA")

    monkeypatch.setattr(keys, "verify_modulus", weak)
    parse_certificate.cache_clear()
    with pytest.raises(WeakKey):
        judge(root("Weak", rsa_key(2048)).der, NOW)


@pytest.mark.parametrize(
    "key",
    [2048, 3072, 4096, ec.SECP256R1, ec.SECP384R1, ec.SECP521R1],
    ids=["RSA-2048", "RSA-3072", "RSA-4096", "P-256", "P-384", "P-521"],
)
@pytest.mark.parametrize("algorithm", [hashes.SHA256(), hashes.SHA384(), hashes.SHA512()], ids=lambda one: one.name)
def test_an_ek_chains_over_every_kind_of_authority(key, algorithm):
    top = root("Top", rsa_key(key) if isinstance(key, int) else ec_key(key), algorithm=algorithm)
    middle = top.intermediate("Middle", algorithm=algorithm)
    assert endorse(middle.ek(), store_of(top, middle)).trust == "certificate"


def pss_signed(authority, *, mgf=None, salt=32, algorithm=None):
    builder = x509.CertificateBuilder().subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "PSS")]))
    builder = builder.issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, authority.title)]))
    builder = builder.public_key(ec_key(number="pss").public_key()).serial_number(7)
    builder = builder.not_valid_before(NOW - YEAR).not_valid_after(NOW + YEAR)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    algorithm = algorithm or hashes.SHA256()
    scheme = padding.PSS(padding.MGF1(mgf or algorithm), salt)
    der = builder.sign(authority.key, algorithm, rsa_padding=scheme).public_bytes(Encoding.DER)
    return Authority(ec_key(number="pss"), der, "PSS")


@pytest.mark.parametrize("algorithm", [hashes.SHA256(), hashes.SHA384(), hashes.SHA512()], ids=lambda one: one.name)
def test_rsassa_pss_counts(algorithm):
    top = root("PSS Root", rsa_key(3072))
    middle = pss_signed(top, salt=algorithm.digest_size, algorithm=algorithm)
    assert endorse(middle.ek(), store_of(top, middle)).trust == "certificate"
    tampered = middle.der[:-1] + bytes([middle.der[-1] ^ 1])
    with pytest.raises(EkChainRefused, match="chain"):
        endorse(middle.ek(), store_of(top), None, tampered)


def test_rsassa_pss_with_parameters_off_the_list_does_not_count():
    top = root("PSS Root", rsa_key(3072))
    certificate = parse_certificate(pss_signed(top).der)
    assert why_not_signed(certificate, top.key.public_key()) is None
    for broken in (b"", b"\x30\x00", b"\x05\x00", b"\x30\x03\x02\x01\x01", certificate.signature_parameters[:-1]):
        changed = replace(certificate, signature_parameters=broken)
        assert "parameters do not count" in str(why_not_signed(changed, top.key.public_key()))
    longer = certificate.signature_parameters.replace(bytes.fromhex("a203020120"), bytes.fromhex("a203020141"))
    assert longer != certificate.signature_parameters
    assert why_not_signed(replace(certificate, signature_parameters=longer), top.key.public_key()) is not None


# --- SHA-1 ------------------------------------------------------------------------------------------------------------


def sha1_signed(authority, der):
    """The certificate as an old CA would have signed it: sha1WithRSAEncryption, truly."""
    tbs = x509.load_der_x509_certificate(der).tbs_certificate_bytes
    tbs = tbs.replace(bytes.fromhex("2a864886f70d01010b"), SHA1_RSA)
    signature = authority.key.sign(tbs, padding.PKCS1v15(), hashes.SHA1())  # noqa: S303  what old CAs did
    return element(0x30, tbs + element(0x30, element(0x06, SHA1_RSA) + b"\x05\x00") + element(0x03, b"\0" + signature))


def old_authorities():
    top = root("Old Root", rsa_key(2048))
    middle = top.intermediate("Old Intermediate", key=rsa_key(3072))
    return top, Authority(middle.key, sha1_signed(top, middle.der), middle.title)


def test_sha1_counts_between_two_certificates_of_the_store_where_the_policy_says_so():
    top, middle = old_authorities()
    (note,) = judge(middle.der, NOW).notes
    assert "SHA-1" in note
    store = store_of(top, middle)
    with pytest.raises(EkChainRefused) as refused:
        endorse(middle.ek(), store)
    assert "does not count" in refused.value.actual
    trusted = endorse(middle.ek(), store, policy('store = "Intel"', sha1_authorities='"accept"'))
    assert [finding.expected for finding in trusted.findings] == ["signed with SHA-256 or better"]


def test_sha1_never_counts_for_a_leaf():
    top, _ = old_authorities()
    leaf = sha1_signed(top, top.ek(rsa_key(3072)))
    assert why_not_signed(parse_certificate(leaf), top.key.public_key(), WITH_SHA1) is None
    with pytest.raises(EkChainRefused):
        endorse(leaf, store_of(top), policy('store = "Intel"', sha1_authorities='"accept"'))


def test_sha1_never_counts_for_what_a_device_sends():
    top, middle = old_authorities()
    with pytest.raises(EkChainRefused) as refused:
        endorse(middle.ek(), store_of(top), policy('store = "Intel"', sha1_authorities='"accept"'), middle)
    assert "does not count" in refused.value.actual


def test_a_self_signature_with_sha1_is_judged_against_damage_only():
    top = root("SHA-1 Root", rsa_key(2048))
    der = sha1_signed(top, top.der)
    assert judge(der, NOW).notes == ()
    assert unfit(der[:-1] + bytes([der[-1] ^ 1])) == ["self-signature"]


# --- scope ------------------------------------------------------------------------------------------------------------


def test_a_policy_names_a_manufacturer_of_the_store_and_no_other_counts():
    ek = ROOT.ek()
    assert endorse(ek, store_of(ROOT)).trust == "certificate"
    with pytest.raises(EkChainRefused) as refused:
        endorse(ek, EMPTY)
    assert "no certificate of its issuer" in refused.value.actual
    with pytest.raises(EkChainRefused) as refused:
        endorse(ek, store_of(ROOT, manufacturer="Infineon"))
    assert refused.value.actual == "Common Name: Store Root is a root that the policy does not name"
    by = policy('store = "Infineon"', f'store = "intel corporation"\nmanufacturers = {INTEL}')
    with pytest.raises(EkChainRefused):
        endorse(ek, store_of(ROOT), by)


def test_a_root_of_the_store_speaks_for_its_manufacturer_only():
    """Infineon's root cannot vouch for what says that it is Intel's, wherever it is kept."""
    with pytest.raises(EkManufacturerRefused):
        endorse(ROOT.ek(), store_of(ROOT, manufacturer="Infineon"), policy('store = "Infineon"'))
    named = policy(f'store = "Infineon"\nmanufacturers = {INTEL}')
    assert endorse(ROOT.ek(), store_of(ROOT, manufacturer="Infineon"), named)


def test_a_fingerprint_names_one_certificate_a_root_or_not():
    middle = ROOT.intermediate("Named")
    store = store_of(ROOT, middle)
    colons = ":".join(f"{octet:02X}" for octet in hashlib.sha256(middle.der).digest())
    by = policy(f'fingerprint = "{colons}"\nmanufacturers = {INTEL}')
    assert endorse(middle.ek(), store, by)
    with pytest.raises(EkChainRefused):
        endorse(ROOT.ek(), store, by)


def test_an_intermediate_is_no_root_of_its_manufacturer():
    middle = ROOT.intermediate("Middle")
    with pytest.raises(EkChainRefused):
        endorse(middle.ek(), store_of(middle))


def test_the_intermediates_of_the_store_lead_up_for_a_device_that_sends_none():
    upper = ROOT.intermediate("Upper", path_length=1)
    lower = upper.intermediate("Lower")
    assert endorse(lower.ek(), store_of(ROOT, upper, lower))
    assert endorse(lower.ek(), store_of(ROOT, upper), None, lower)
    with pytest.raises(EkChainRefused):
        endorse(lower.ek(), store_of(ROOT, lower))


def test_another_spelling_of_a_name_is_the_same_name():
    """STMicroelectronics wrote its root's name as UTF8String, and as PrintableString in what the root issued."""
    other = ROOT.ek(issuer="STORE  root")
    assert name_key(parse_certificate(other).issuer) == name_key(parse_certificate(ROOT.der).subject)
    assert endorse(other, store_of(ROOT))
    middle = ROOT.intermediate("Middle", issuer="store root")
    assert endorse(middle.ek(issuer="middle"), store_of(ROOT, middle))
    stranger = root("STORE root", ec_key(number="stranger"))
    with pytest.raises(EkChainRefused):
        endorse(stranger.ek(), store_of(ROOT))


@pytest.mark.parametrize(
    ("table", "why"),
    [
        ('store = "Nobody Knows"', "line 3: ek_roots[0].store is in no registry"),
        ('store = ""', "line 3: ek_roots[0].store is in no registry"),
        ('fingerprint = "00"\nmanufacturers = ["id:494E5443"]', "line 3: ek_roots[0].fingerprint is no SHA-256"),
        (f'fingerprint = "{"0" * 64}"', "line 2: ek_roots[0].manufacturers is empty"),
        (f'store = "Intel"\nfingerprint = "{"0" * 64}"', "line 2: ek_roots[0] names store and fingerprint"),
        ("manufacturers = []", "line 2: ek_roots[0] names nothing"),
        ('store = "Intel"\nmanufacturers = ["Intel"]', "line 4: ek_roots[0].manufacturers[0] is not like"),
        ('shop = "Intel"', "line 3: ek_roots[0].shop is not a field"),
        ("store = 5", "line 3: ek_roots[0].store"),
    ],
)
def test_a_slip_in_the_scope_is_named_with_its_line(table, why):
    with pytest.raises(PolicyMalformed) as refused:
        policy(table)
    assert refused.value.actual.startswith(why)


def test_a_policy_without_any_root_is_for_registered_keys_only():
    with pytest.raises(PolicyMalformed):
        parse_policy(f'model = "m"\n[pcrs.sha256]\n"0" = ["{"00" * 32}"]')
    assert parse_policy(f'model = "m"\nek_trust = "key"\n[pcrs.sha256]\n"0" = ["{"00" * 32}"]').ek_roots == ()


# --- bounded work -----------------------------------------------------------------------------------------------------


def test_hostile_intermediates_are_bounded_work(monkeypatch):
    """A maze of cross-signed authorities, each signed by each: without bounds, a factorial of signatures."""
    names = [f"Maze {number}" for number in range(8)]
    keys = {name: ec_key(number=name) for name in names}
    maze = [
        Authority(keys[above], b"", above).intermediate(below, key=keys[below], path_length=None)
        for above in names
        for below in names
        if above != below
    ]
    judged = []
    true_judge = chains.why_not_signed
    monkeypatch.setattr(chains, "why_not_signed", lambda *given: judged.append(1) or true_judge(*given))
    leaf = Authority(keys["Maze 0"], b"", "Maze 0").ek()
    with pytest.raises(EkChainRefused):
        endorse(leaf, store_of(ROOT, *maze), None, *maze[:4])
    assert len(judged) <= chains.TRIES_MOST


def test_a_chain_that_is_too_long_is_refused():
    above, store = ROOT, [ROOT]
    long = root("Long", path_length=None)
    above, store = long, [long]
    for number in range(chains.DEPTH_MOST + 1):
        above = above.intermediate(f"Step {number}", path_length=None)
        store.append(above)
    with pytest.raises(EkChainRefused) as refused:
        endorse(above.ek(), store_of(*store))
    assert "one above the other" in refused.value.actual
    assert endorse(store[-2].ek(), store_of(*store))


# --- roles ------------------------------------------------------------------------------------------------------------


def kept(authority, manufacturer="Intel", role=Role.INTERMEDIATE):
    judged = judge(authority.der, NOW)
    return stored(judged, manufacturer, Role.SELF_SIGNED if judged.self_signed else role)


def test_the_topmost_of_a_manufacturer_is_its_root_until_what_stands_above_it_is_there():
    middle, low = ROOT.intermediate("Middle", path_length=1), None
    low = middle.intermediate("Low")
    first = roles([kept(middle), kept(low)], ())
    assert first == {kept(middle).fingerprint: Role.TOPMOST, kept(low).fingerprint: Role.INTERMEDIATE}
    there = [replace(kept(one), role=first[kept(one).fingerprint]) for one in (middle, low)]
    assert endorse(low.ek(), EkStore(there))
    assert roles([kept(ROOT)], there) == {
        kept(ROOT).fingerprint: Role.SELF_SIGNED,
        kept(middle).fingerprint: Role.INTERMEDIATE,
    }


def test_a_root_of_another_house_above_it_leaves_it_the_topmost():
    """GlobalSign signed STMicroelectronics' roots: they stay the roots of STMicroelectronics."""
    given = roles([kept(ROOT, "GlobalSign"), kept(ROOT.intermediate("ST"), "STMicroelectronics")], ())
    assert sorted(given.values()) == [Role.SELF_SIGNED, Role.TOPMOST]


def test_a_root_of_the_right_name_that_did_not_sign_makes_nobody_step_back():
    middle = replace(kept(ROOT.intermediate("Middle")), role=Role.TOPMOST)
    forged = kept(root("Store Root", ec_key(number="forger")))
    assert roles([forged], [middle]) == {forged.fingerprint: Role.SELF_SIGNED}


def test_what_lay_among_the_roots_stays_one():
    one = kept(ROOT.intermediate("Cross-signed"), role=Role.ROOT_FOLDER)
    assert roles([one, kept(ROOT)], ())[one.fingerprint] is Role.ROOT_FOLDER


def test_the_way_up_is_told_in_words():
    middle = ROOT.intermediate("Middle")
    assert way_up(parse_certificate(middle.der), store_of(ROOT, middle)) == ("Common Name: Store Root",)
    assert way_up(parse_certificate(middle.der), EMPTY) == ("Common Name: Store Root (not in the store)",)
    assert way_up(parse_certificate(ROOT.der), store_of(ROOT)) == ()


# --- trust by the key -------------------------------------------------------------------------------------------------


def test_a_certificate_does_not_raise_what_rests_on_the_key_alone():
    """Registered by its key, under a policy that asks for a certificate: the certificate is judged as any other."""
    ek = root("Unknown Maker").ek()
    registered = RegisteredEk(ek_id_of(ek), "key")
    with pytest.raises(EkChainRefused):
        endorse(ek, store_of(ROOT), registered=registered)
    assert endorse(ek, store_of(ROOT), policy(ek_trust='"key"'), registered=registered).trust == "registered-key"
    assert (
        endorse(ROOT.ek(), store_of(ROOT), registered=RegisteredEk(ek_id_of(ROOT.ek()), "key")).trust == "certificate"
    )


def test_a_policy_for_keys_does_not_lower_what_was_registered_by_certificate():
    ek = root("Unknown Maker").ek()
    with pytest.raises(EkChainRefused):
        endorse(ek, EMPTY, policy(ek_trust='"key"'), registered=RegisteredEk(ek_id_of(ek), "certificate", ek))


def test_the_certificate_of_the_factory_stands_in_for_one_that_the_tpm_lacks():
    from tests.unit.attestation.test_endorsement import ek_public

    ek = ROOT.ek(ec_key())
    request = EnrollmentRequest(ak_public=b"", pcr_banks=("sha256",), ek_public=ek_public())
    registered = RegisteredEk(ek_id_of(ek), "certificate", ek)
    assert verify_endorsement(request, policy(), NOW, registered, store_of(ROOT)).trust == "certificate"
    with pytest.raises(EkChainRefused):
        verify_endorsement(request, policy(), NOW, registered, EMPTY)
    with pytest.raises(EkTrustTooLow):
        verify_endorsement(request, policy(), NOW, RegisteredEk(ek_id_of(ek), "key"), store_of(ROOT))


# --- TPM 1.2 ----------------------------------------------------------------------------------------------------------


def specification(family):
    """Subject directory attributes: TPM specification { family, level 0, revision 116 }."""
    value = element(0x30, element(0x0C, family.encode()) + b"\x02\x01\x00\x02\x01\x74")
    attribute = element(0x30, bytes.fromhex("06056781050210") + element(0x31, value))
    return x509.UnrecognizedExtension(ObjectIdentifier("2.5.29.9"), element(0x30, attribute))


def test_the_certificate_of_a_tpm_1_2_is_refused_by_name():
    assert endorse(ROOT.ek(more=[(specification("2.0"), False)]), store_of(ROOT))
    old = ROOT.ek(more=[(specification("1.2"), False)])
    assert is_of_tpm_1_2(parse_certificate(old))
    with pytest.raises(Tpm12Refused):
        endorse(old, store_of(ROOT))


def test_broken_directory_attributes_are_malformed():
    broken = x509.UnrecognizedExtension(ObjectIdentifier("2.5.29.9"), b"\x30\x05\x30\x82")
    with pytest.raises(CertificateMalformed):
        endorse(ROOT.ek(more=[(broken, False)]), store_of(ROOT))


# --- manufacturers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("TrustedTpm.cab/STMicro/RootCA/x.crt", "STMicroelectronics"),
        ("TrustedTpm.cab/QC/IntermediateCA/x.crt", "Qualcomm"),
        ("roots/Acme TPMs/RootCA/x.crt", "Acme TPMs"),
        ("roots/nationz/x.crt", "Nationz"),
        ("ek-roots/x.pem", ""),
        ("intel.pem", ""),
        ("RootCA/x.pem", ""),
    ],
)
def test_a_folder_names_the_manufacturer_only_where_it_is_one(source, name):
    assert manufacturers.of_folder(source) == name


def test_names_are_printable_and_short():
    assert manufacturers.named("  Acme\x00\x1b[31m\n TPMs ") == "Acme [31m TPMs"
    assert len(manufacturers.named("x" * 500)) == manufacturers.NAME_MOST
    assert manufacturers.named("stmicro") == manufacturers.named("STMicroelectronics") == "STMicroelectronics"


@given(st.binary(max_size=300))
def test_any_name_has_a_key_and_a_manufacturer(data):
    assert len(name_key(data)) == 64
    assert manufacturers.of_subject(data)


@given(st.binary(max_size=300))
def test_any_octets_are_judged_or_refused(data):
    for octets in (data, ROOT.der[:60] + data, ROOT.der + b"." + data):
        with pytest.raises(Refusal):
            judge(octets, NOW)


# --- real roots -------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not VECTORS.is_dir(), reason="no roots: ../shared/vectors is absent")
@pytest.mark.parametrize("file", sorted(VECTORS.iterdir()) if VECTORS.is_dir() else [], ids=lambda file: file.name)
def test_every_real_root_can_vouch_and_every_signature_in_reach_verifies(file):
    everything = [one.der for path in VECTORS.iterdir() for one in certificates_in(path.read_bytes())]
    (one,) = certificates_in(file.read_bytes())
    judged = judge(one.der, NOW)
    assert judged.fingerprint == fingerprint_of(one.der)
    issuers = [
        parse_certificate(der) for der in everything if parse_certificate(der).subject == judged.certificate.issuer
    ]
    if issuers:
        told = [why_not_signed(judged.certificate, issuer.public_key, WITH_SHA1) for issuer in issuers]
        assert None in told, told
    name = manufacturers.of_subject(judged.certificate.subject)
    assert name in {*manufacturers.VENDOR_IDS, "Alibaba", "GlobalSign"}


# --- the corners ------------------------------------------------------------------------------------------------------


def test_an_authority_of_an_odd_size_counts_and_a_short_or_weak_one_does_not():
    assert verify_authority_key(rsa_key(2560).public_key())
    for key in (rsa_key(1024).public_key(), ed25519.Ed25519PrivateKey.generate().public_key()):
        with pytest.raises(AlgorithmRefused):
            verify_authority_key(key)
    with pytest.raises(AlgorithmRefused, match="allow-list"):
        verify_authority_key(rsa.RSAPublicNumbers(3, rsa_key(2560).public_key().public_numbers().n).public_key())


def test_der_of_another_tag_or_with_more_behind_it_is_malformed():
    assert [one.raw for one in shape.children(b"\x30\x03\x02\x01\x05", shape.SEQUENCE)] == [b"\x02\x01\x05"]
    for octets in (b"\x31\x00", b"\x30\x00\x00", b"\x1f\x81\x01\x00", b"\x30\x85\x00\x00\x00\x00\x00"):
        with pytest.raises(CertificateMalformed):
            shape.children(octets, shape.SEQUENCE)


def test_an_algorithm_that_the_library_cannot_judge_is_no_signature():
    key = Mock(spec=rsa.RSAPublicKey)
    for error in (UnsupportedAlgorithm("SHA-1 is switched off"), ValueError("does not fit")):
        key.verify.side_effect = error
        assert "cannot be judged" in str(why_not_signed(parse_certificate(root("R", rsa_key()).der), key))


def test_a_certificate_without_extensions_has_none():
    builder = x509.CertificateBuilder().subject_name(x509.Name([])).issuer_name(x509.Name([])).serial_number(1)
    builder = builder.not_valid_before(NOW - YEAR).not_valid_after(NOW + YEAR).public_key(ec_key().public_key())
    der = builder.sign(ec_key(), hashes.SHA256()).public_bytes(Encoding.DER)
    assert not is_of_tpm_1_2(parse_certificate(der))
    assert unfit(der) == ["basic constraints"]


def test_a_specification_among_other_attributes_is_found():
    other = element(0x30, bytes.fromhex("0603550403") + element(0x31, element(0x0C, b"x")))
    mine = specification("1.2").value[2:]
    both = x509.UnrecognizedExtension(ObjectIdentifier("2.5.29.9"), element(0x30, other + mine))
    assert is_of_tpm_1_2(parse_certificate(ROOT.ek(more=[(both, False)])))
    empty = element(0x30, element(0x30, bytes.fromhex("06056781050210") + element(0x31, element(0x30, b""))))
    for hollow in (empty, b"\x30\x00", b"\x30\x02\x30\x00", b"\x30\x04\x30\x02\x06\x00"):
        nothing = x509.UnrecognizedExtension(ObjectIdentifier("2.5.29.9"), hollow)
        assert not is_of_tpm_1_2(parse_certificate(ROOT.ek(more=[(nothing, False)])))


@given(st.binary(max_size=60))
def test_any_directory_attributes_are_read_or_malformed(data):
    for value in (data, element(0x30, data), element(0x30, element(0x30, data))):
        attributes = x509.UnrecognizedExtension(ObjectIdentifier("2.5.29.9"), value)
        certificate = replace(PLAIN, tbs=with_extension(attributes))
        try:
            assert is_of_tpm_1_2(certificate) in (True, False)
        except CertificateMalformed as refusal:
            assert refusal.actual  # noqa: PT017  each has its reason


PLAIN = parse_certificate(ROOT.ek())


def with_extension(extension):
    """To-be-signed bytes of this one extension, as far as it is looked for."""
    one = element(0x30, element(0x06, bytes.fromhex("551d09")) + element(0x04, extension.value))
    return element(0x30, element(0xA3, element(0x30, one)))


def test_a_certificate_of_version_1_is_no_authority():
    builder = x509.CertificateBuilder().subject_name(x509.Name([])).issuer_name(x509.Name([])).serial_number(1)
    builder = builder.not_valid_before(NOW - YEAR).not_valid_after(NOW + YEAR).public_key(ec_key().public_key())
    der = builder.sign(ec_key(), hashes.SHA256()).public_bytes(Encoding.DER)
    tbs = x509.load_der_x509_certificate(der).tbs_certificate_bytes
    content = shape.first(tbs).content.removeprefix(bytes.fromhex("a003020102"))
    assert unfit(resigned(der, element(0x30, content), ec_key())) == ["basic constraints"]


def test_what_a_policy_selects_is_shown_and_what_is_not_there_is_known():
    by = policy('store = "Intel"', f'fingerprint = "{"ab" * 32}"\nmanufacturers = {INTEL}')
    assert [str(one) for one in by.ek_roots] == ["store:Intel", f"fingerprint:{'ab' * 8}…"]
    store = store_of(ROOT)
    assert [one.where for one in missing(by.ek_roots, store)] == ["ek_roots[1].fingerprint"]
    assert [one.certificate.der for one in anchors(by.ek_roots, store)] == [ROOT.der]
    assert len(store) == 1
    assert store.stored_of(fingerprint_of(ROOT.der)) is store.all[0]


def test_folders_of_roots_are_known_by_their_name():
    assert manufacturers.in_root_folder("x.cab/Intel/RootCA/one.cer")
    assert manufacturers.in_root_folder("root-ca/one.cer")
    assert not manufacturers.in_root_folder("Intel/IntermediateCA/RootCA.cer")


def test_the_way_up_ends_somewhere():
    long = root("Long", path_length=None)
    steps = [long]
    for number in range(10):
        steps.append(steps[-1].intermediate(f"Step {number}", path_length=None))
    assert len(way_up(parse_certificate(steps[-1].der), store_of(*steps))) == 8
