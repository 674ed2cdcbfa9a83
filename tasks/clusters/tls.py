"""Mutual TLS between the driver, the scheduler and the workers of a Dask cluster."""

from __future__ import annotations

import ipaddress
import socket
import ssl
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, ClassVar
from urllib.parse import urlsplit

from maskloom.segcore.errors import RecipeError
from maskloom.segcore.storage.addresses import RelativeToRecipe
from maskloom.tasks.fanout.client import import_distributed

_PROBE_SECONDS = 3.0
_DASK_FILES = (
    "distributed.comm.tls.ca-file",
    "distributed.comm.tls.client.cert",
    "distributed.comm.tls.client.key",
)
_START = (
    "Start scheduler and workers with --protocol tls --tls-ca-file CA --tls-cert CERT --tls-key KEY"
)
_SPEAKS_TLS = (
    "This port speaks TLS: write tls:// in cluster.address, and name the certificates by "
    "cluster.tls."
)


@dataclass(frozen=True, slots=True)
class Tls:
    """Files in PEM form: the certificate by which the others are known, and this machine's own.

    Anyone who has a certificate signed by `ca` may run code on the cluster, so make one for each
    cluster. A recipe holds paths, never keys.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    ca: Annotated[str, RelativeToRecipe()]
    """Certificate of the authority that signed those of the cluster. Relative to the recipe file.
    """
    cert: Annotated[str, RelativeToRecipe()]
    """Certificate of the driver, signed by that authority. Relative to the recipe file."""
    key: Annotated[str, RelativeToRecipe()]
    """Key of that certificate. Relative to the recipe file."""

    def security(self) -> Any:
        """The settings of a `distributed.Client`. Raises `RecipeError` if a file is missing or is
        not what it should be.
        """
        for field in fields(self):
            path = Path(getattr(self, field.name))
            try:
                path.read_bytes()
            except OSError as error:
                raise RecipeError(
                    f"cluster.tls.{field.name}: {path} cannot be read on this machine "
                    f"({error.strerror})."
                ) from error
        try:
            self.context()
        except (ssl.SSLError, ValueError) as error:
            raise RecipeError(
                f"cluster.tls: these files do not belong together ({error}). `cert` and `key` must "
                "be a pair in PEM form without a password, and `ca` the certificate of their "
                "authority."
            ) from error
        return import_distributed().Security(
            tls_ca_file=self.ca,
            tls_client_cert=self.cert,
            tls_client_key=self.key,
            require_encryption=True,
        )

    def context(self) -> ssl.SSLContext:
        """How the driver speaks TLS: like Dask it checks who signed a certificate, not its name."""
        context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cafile=self.ca)
        context.check_hostname = False
        context.load_cert_chain(self.cert, self.key, password=_no_password)
        return context


def security_for(address: str, tls: Tls | None) -> Any:
    """The settings of a client of the scheduler at `address`: those of the recipe, or of Dask.

    Raises `RecipeError` if there are none for an encrypted address, or if the address is not
    encrypted although there are.
    """
    encrypted = address.startswith("tls://")
    if tls is None:
        if encrypted and not _dask_has_files():
            raise RecipeError(
                f"cluster: {address} is encrypted (TLS), and the recipe names no certificates. Add "
                "tls: {ca: ca.pem, cert: driver.pem, key: driver-key.pem} to `cluster`."
            )
        return None
    if not encrypted:
        raise RecipeError(
            f"cluster: the recipe names certificates (tls), but {address} is not encrypted. Write "
            f"tls:// instead, or remove `tls`. {_START}."
        )
    return tls.security()


def _dask_has_files() -> bool:
    import dask

    return all(dask.config.get(name, None) for name in _DASK_FILES)


def is_loopback(address: str) -> bool:
    """Whether only processes of this machine can be at an address.

    >>> [is_loopback(f"tcp://{host}:8786") for host in ("localhost", "127.0.0.1", "[::1]", "node7")]
    [True, True, True, False]
    """
    host = urlsplit(address).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def trouble(address: str, tls: Tls | None) -> str:
    """Why no client could be made of the scheduler at `address`, as sentences; empty where there is
    no reason to name. Tries for a few seconds.
    """
    try:
        speaks_tls = _speaks_tls(address)
        if not address.startswith("tls://"):
            return _SPEAKS_TLS if speaks_tls else ""
        if not speaks_tls:
            return f"This port does not speak TLS. {_START}, or write tcp:// in cluster.address."
        return "" if tls is None else _refusal(address, tls)
    except OSError:
        # Nobody listens there.
        return ""


def _speaks_tls(address: str) -> bool:
    """Whether a port answers to TLS, whatever its certificate. Raises `OSError` if nobody listens
    there.
    """
    anyone = ssl.create_default_context()
    anyone.check_hostname, anyone.verify_mode = False, ssl.CERT_NONE
    try:
        _shake_hands(address, anyone)
    except ssl.SSLError as error:
        # An alert is TLS too: the other side asks for a certificate.
        return "ALERT" in str(error).upper()
    return True


def _refusal(address: str, tls: Tls) -> str:
    """Which side refuses the certificate of the other, as sentences; empty if neither does."""
    try:
        _shake_hands(address, tls.context())
    except ssl.SSLCertVerificationError as error:
        return (
            f"The scheduler's certificate was not signed by cluster.tls.ca, {tls.ca} "
            f"({error.verify_message}). Name the authority of this cluster."
        )
    except ssl.SSLError as error:
        return (
            f"The scheduler does not accept the certificate cluster.tls.cert, {tls.cert} "
            f"({error.reason}). Use one that was signed by the authority of the cluster."
        )
    return ""


def _shake_hands(address: str, context: ssl.SSLContext) -> None:
    """Speak TLS to the port at an address. Raises `ssl.SSLError` if that fails."""
    found = urlsplit(address)
    where = (found.hostname or "", found.port or 8786)
    with (
        socket.create_connection(where, _PROBE_SECONDS) as plain,
        context.wrap_socket(plain) as connection,
    ):
        try:
            # With TLS 1.3 a certificate is refused after the handshake.
            connection.recv(1)
        except TimeoutError:
            return


def _no_password() -> str:
    """Instead of the terminal, which a scheduled run does not have."""
    return ""
