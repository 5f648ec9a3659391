"""A JVM broker with a second door, SASL over TLS, and a certificate authority of the test's own."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from kafka.admin import ScramMechanism, UserScramCredentialUpsertion

from pipelines.dev import broker
from pipelines.dev.broker.base import free_ports
from pipelines.dev.broker.jvm import JvmBroker, start_jvm
from pipelines.kafka.topics import admin_client

USER = "ana"
PASSWORD = "Marked-Secret-9f31"
"""Looked for wherever it must not be."""
MECHANISMS = ("SCRAM-SHA-256", "SCRAM-SHA-512")


@dataclass(frozen=True)
class SecureBroker:
    """``bootstrap`` wants a login over TLS; ``plain`` is the broker's own door, without either."""

    bootstrap: str
    plain: JvmBroker
    cafile: Path


def certificates(folder: Path) -> tuple[Path, Path]:
    """A new authority, and a key with a certificate of it for 127.0.0.1: (ca.pem, server.pem)."""
    program = shutil.which("openssl")
    if program is None:
        raise broker.BrokerError("the openssl program is needed to make certificates")

    def openssl(*args: str) -> None:
        subprocess.run([program, *args], cwd=folder, check=True, capture_output=True, timeout=60)

    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2")
    openssl("req", "-x509", *curve, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=test-ca")
    openssl(
        *("req", "-x509", *curve, "-keyout", "server.key", "-out", "server.crt"),
        *("-subj", "/CN=127.0.0.1", "-CA", "ca.pem", "-CAkey", "ca.key"),
        *("-addext", "subjectAltName=IP:127.0.0.1", "-addext", "basicConstraints=CA:FALSE"),
    )
    keystore = folder / "server.pem"
    keystore.write_text((folder / "server.key").read_text() + (folder / "server.crt").read_text())
    return folder / "ca.pem", keystore


def properties(plain: int, secure: int, controller: int, keystore: Path) -> dict[str, str]:
    """Server properties that add the secure door to those of a one-node broker."""
    doors = f"PLAINTEXT://127.0.0.1:{plain},SASL_SSL://127.0.0.1:{secure}"
    modules = "org.apache.kafka.common.security"
    login = f"{modules}.scram.ScramLoginModule required;"
    door = "listener.name.sasl_ssl"
    return {
        "controller.quorum.bootstrap.servers": f"127.0.0.1:{controller}",
        "listeners": f"{doors},CONTROLLER://127.0.0.1:{controller}",
        "advertised.listeners": doors,
        "inter.broker.listener.name": "PLAINTEXT",
        "listener.security.protocol.map": (
            "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,SASL_SSL:SASL_SSL"
        ),
        "sasl.enabled.mechanisms": ",".join((*MECHANISMS, "PLAIN")),
        f"{door}.plain.sasl.jaas.config": (
            f'{modules}.plain.PlainLoginModule required user_{USER}="{PASSWORD}";'
        ),
        "ssl.keystore.type": "PEM",
        "ssl.keystore.location": str(keystore),
    } | {f"{door}.{m.lower()}.sasl.jaas.config": login for m in MECHANISMS}


@contextmanager
def secure_broker(folder: Path) -> Iterator[SecureBroker]:
    """Start it, with the user ``ana`` known by both mechanisms. Raises BrokerError."""
    cafile, keystore = certificates(folder)
    plain, secure, controller = free_ports(3)
    with start_jvm(
        broker.default_cache(),
        print,
        port=plain,
        properties=properties(plain, secure, controller, keystore),
    ) as started:
        with admin_client(started.bootstrap) as admin:
            for name in MECHANISMS:
                mechanism = ScramMechanism[name.replace("-", "_")]
                user = UserScramCredentialUpsertion(USER, mechanism, PASSWORD)
                problem = admin.alter_user_scram_credentials([user])[USER]
                assert problem is None, problem
        yield SecureBroker(f"127.0.0.1:{secure}", started, cafile)
