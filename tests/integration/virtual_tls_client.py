"""Run by test_virtual_tpmrm: mutual TLS by Python's `ssl`, the key in the TPM, while ESAPI holds three keys there.

Arguments: TCTI, folder. OPENSSL_CONF and TPM2OPENSSL_TCTI are in the environment.
"""

import socket
import ssl
import sys
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from test_virtual_tpmrm import SIGNING, _sign
from tpm2_pytss import ESAPI
from tpm2_pytss.cryptography import tpm_ecc_private_key
from tpm2_pytss.tsskey import TSSPrivKey
from tpm2_pytss.types import TPM2B_PUBLIC, TPM2B_SENSITIVE_CREATE, TPMT_PUBLIC

from lab.swtpm import SRK_HANDLE


def _certificate(name, public_key, signer):
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(signer, hashes.SHA256())
        .public_bytes(serialization.Encoding.PEM)
    )


def _serve(listener, context):
    while True:
        connection, _ = listener.accept()
        with context.wrap_socket(connection, server_side=True) as secured:
            secured.sendall(secured.getpeercert()["subject"][0][0][1].encode())


def main(tcti, folder):
    with ESAPI(tcti) as esapi:
        parent = esapi.tr_from_tpmpublic(SRK_HANDLE)
        template = TPM2B_PUBLIC(TPMT_PUBLIC.parse("ecc256:null", objectAttributes=SIGNING))
        private, public, *_ = esapi.create(parent, TPM2B_SENSITIVE_CREATE(), template)
        handles = [esapi.load(parent, private, public) for _ in range(3)]
        key = TSSPrivKey(private, public, empty_auth=True, parent=SRK_HANDLE)
        (folder / "device.tss2.pem").write_bytes(key.to_pem())
        device_public = serialization.load_der_public_key(public.to_der())
        device = _certificate("device", device_public, tpm_ecc_private_key(esapi, handles[0]))
        (folder / "device.pem").write_bytes(device)

        server_key = ec.generate_private_key(ec.SECP256R1())
        pkcs8 = server_key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        (folder / "server.pem").write_bytes(_certificate("localhost", server_key.public_key(), server_key) + pkcs8)

        server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        server.load_cert_chain(folder / "server.pem")
        server.load_verify_locations(folder / "device.pem")
        server.verify_mode = ssl.CERT_REQUIRED
        listener = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=_serve, args=(listener, server), daemon=True).start()

        client = ssl.create_default_context(cafile=folder / "server.pem")
        client.load_cert_chain(folder / "device.pem", folder / "device.tss2.pem")
        for _ in range(3):
            connection = socket.create_connection(listener.getsockname(), timeout=20)
            with client.wrap_socket(connection, server_hostname="localhost") as secured:
                seen = secured.recv(100).decode()
                print(secured.version(), seen)
        for handle in handles:
            _sign(esapi, handle)
        print("still loaded")


main(sys.argv[1], Path(sys.argv[2]))
