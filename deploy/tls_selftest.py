"""Can this Python speak mutual TLS with a private key that stays in a TPM? Run by setup.py with the project's Python.

A software TPM makes a key and its own certificate; Python's `ssl` then completes a handshake in memory in which the
client signs inside that TPM. Proves the chain Python - libssl - provider - TSS - TPM; says nothing about a real TPM.

Usage: tls_selftest.py OPENSSL_CONF
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

STEP_SECONDS = 20
START_SECONDS = 10


@contextlib.contextmanager
def software_tpm(folder: Path) -> Iterator[str]:
    """A fresh swtpm; gives the TCTI by which it is reached.

    Raises:
        RuntimeError: it did not open its socket.
    """
    state = folder / "state"
    state.mkdir()
    socket = folder / "tpm"
    program = shutil.which("swtpm", path=os.defpath + ":/usr/local/bin:" + os.environ.get("PATH", "")) or "swtpm"
    command = [program, "socket", "--tpm2", "--tpmstate", f"dir={state}", "--flags", "not-need-init,startup-clear"]
    command += ["--server", f"type=unixio,path={socket}", "--ctrl", f"type=unixio,path={socket}.ctrl"]
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + START_SECONDS
        while not socket.exists():
            if child.poll() is not None or time.monotonic() > deadline:
                message = "swtpm did not start"
                raise RuntimeError(message)
            time.sleep(0.02)
        yield f"swtpm:path={socket}"
    finally:
        child.send_signal(signal.SIGTERM)
        child.wait(STEP_SECONDS)


def openssl(*arguments: str) -> None:
    """Runs openssl with the provider's configuration, which is in the environment by now.

    Raises:
        RuntimeError: openssl refused; carries its last line.
    """
    done = subprocess.run(
        ["openssl", *arguments], check=False, capture_output=True, text=True, timeout=STEP_SECONDS, cwd="/"
    )
    if done.returncode != 0:
        message = f"openssl {arguments[0]}: {(done.stderr.strip().splitlines() or ['no message'])[-1]}"
        raise RuntimeError(message)


def handshake(certificate: Path, key: Path) -> str:
    """A mutual TLS handshake in memory, both ends holding the same TPM key; gives the protocol version."""
    import ssl  # noqa: PLC0415 - libssl reads OPENSSL_CONF when it is loaded

    client_context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_context.verify_mode = ssl.CERT_REQUIRED
    for context in (client_context, server_context):
        context.load_cert_chain(certificate, key)
        context.load_verify_locations(certificate)
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = client_context.wrap_bio(to_client, to_server, server_hostname="selftest.invalid")
    server = server_context.wrap_bio(to_server, to_client, server_side=True)
    waiting = [client, server]
    for _ in range(10):
        for end in list(waiting):
            with contextlib.suppress(ssl.SSLWantReadError):
                end.do_handshake()
                waiting.remove(end)
        if not waiting:
            break
    if waiting or server.getpeercert() is None:
        message = "the handshake did not end"
        raise RuntimeError(message)
    return str(client.version())


def main() -> int:
    """Prints one line; exit status 0 if the handshake was completed."""
    os.environ["OPENSSL_CONF"] = str(Path(sys.argv[1]).resolve())
    os.environ["TSS2_LOG"] = "all+none"
    with tempfile.TemporaryDirectory(prefix="muster-selftest-") as name:
        folder = Path(name)
        key, certificate = folder / "key.pem", folder / "certificate.pem"
        try:
            with software_tpm(folder) as tcti:
                os.environ["TPM2OPENSSL_TCTI"] = tcti
                curve = ["-algorithm", "EC", "-pkeyopt", "group:P-256"]
                openssl("genpkey", "-provider", "tpm2", "-propquery", "?provider=tpm2", *curve, "-out", str(key))
                if "TSS2" not in key.read_text():
                    message = "openssl made the key outside the TPM"
                    raise RuntimeError(message)
                name_options = ["-subj", "/CN=selftest", "-addext", "subjectAltName=DNS:selftest.invalid"]
                openssl("req", "-x509", "-new", "-key", str(key), "-days", "1", *name_options, "-out", str(certificate))
                version = handshake(certificate, key)
        except (OSError, RuntimeError, subprocess.TimeoutExpired) as error:
            print(f"{type(error).__name__}: {error}")
            return 1
    print(f"{version} with a key in a software TPM")
    return 0


if __name__ == "__main__":
    sys.exit(main())
