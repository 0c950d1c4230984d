"""A certificate authority of a test's own, in a folder, by openssl.

Its certificates hold what Python 3.13 wants of them by default (RFC 5280, to the letter).
"""

from __future__ import annotations

import shutil
import ssl
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

from tests.needs import need

_CONFIG = """\
[ca]
default_ca = own
[own]
database = {folder}/index.txt
rand_serial = yes
new_certs_dir = {folder}
default_md = sha256
policy = any
unique_subject = no
[any]
commonName = supplied
"""
_EC = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


class CertificateAuthority:
    """Makes certificates that whoever trusts ``file`` believes."""

    def __init__(self, folder: Path) -> None:
        need(shutil.which("openssl"), "openssl")
        folder.mkdir(parents=True)
        self._folder = folder
        self.file = folder / "authority.pem"
        self._key = folder / "authority.key"
        (folder / "index.txt").touch()
        (folder / "ca.cnf").write_text(_CONFIG.format(folder=folder))
        _openssl(
            "req",
            "-x509",
            *_EC,
            "-subj",
            "/CN=A test's own authority",
            "-addext",
            "keyUsage=critical,keyCertSign,cRLSign",
            "-days",
            "30",
            "-keyout",
            self._key,
            "-out",
            self.file,
        )

    def server(
        self,
        host: str = "IP:127.0.0.1",
        *,
        begins: timedelta = timedelta(days=-1),
        ends: timedelta = timedelta(days=1),
    ) -> ssl.SSLContext:
        """Return what a server needs to pass for ``host``, from and until then, counted from now.

        ``host`` is an openssl alternative name, such as ``DNS:api.lune.co``.
        """
        key, request, chain = (self._folder / f"server.{end}" for end in ("key", "csr", "pem"))
        extensions = self._folder / "server.ext"
        extensions.write_text(f"subjectAltName = {host}\nauthorityKeyIdentifier = keyid\n")
        _openssl("req", *_EC, "-subj", "/CN=server", "-keyout", key, "-out", request)
        _openssl(
            "ca",
            "-batch",
            "-notext",
            "-config",
            self._folder / "ca.cnf",
            "-in",
            request,
            "-cert",
            self.file,
            "-keyfile",
            self._key,
            "-extfile",
            extensions,
            "-out",
            chain,
            "-startdate",
            _instant(begins),
            "-enddate",
            _instant(ends),
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(chain, key)
        return context


def _instant(offset: timedelta) -> str:
    return (datetime.now(UTC) + offset).strftime("%Y%m%d%H%M%SZ")


def _openssl(*arguments: str | Path) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True)
