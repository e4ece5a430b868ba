# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A registry of the Open Container Initiative as a store of engines, spoken to with oras.

oras knows how a registry wants to be asked for credentials, and how manifests and uploads go. Its own downloads
begin anew after a cut and hold nothing to its digest, so bytes are fetched here.

Private to the collection.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Callable

from ansible_collections.trtllm.serving.plugins.module_utils import _oci_words
from ansible_collections.trtllm.serving.plugins.module_utils._distribution import (
    Damaged,
    Description,
    DistributionError,
    Missing,
    Piece,
)
from ansible_collections.trtllm.serving.plugins.module_utils._distribution_fetch import Passing

ARTIFACT = "application/vnd.trtllm.serving.engine.v1"
CONFIG = "application/vnd.trtllm.serving.engine.config.v1+json"
LAYER = "application/vnd.trtllm.serving.engine.file.v1"
MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
FILE, OFFSET = "io.trtllm.serving.file", "io.trtllm.serving.offset"
TITLE = "org.opencontainers.image.title"
_BLOCK = 256 * 1024
# Larger ones are no manifests of ours, and would be held in memory.
_LARGEST_TEXT = 64 * 1024 * 1024


def client_missing() -> str:
    """Why oras cannot be used by this interpreter; empty when it can."""
    try:
        importlib.import_module("oras.provider")
    except ImportError as exc:
        return str(exc)
    return ""


class Remote:
    """One repository of one registry: a source of pieces."""

    def __init__(self, address: _oci_words.Address, pair: str, ca_file: str, timeout: float, workers: int) -> None:
        self.address, self.pair, self.ca_file = address, pair, ca_file
        self.timeout, self.workers = timeout, workers
        self.name = address.name
        self._client: Any = None
        self._lock = threading.Lock()

    def client(self) -> Any:
        with self._lock:
            if self._client is None:
                self._client = self._connect()
            return self._client

    def _connect(self) -> Any:
        provider = importlib.import_module("oras.provider")
        adapters = importlib.import_module("requests.adapters")
        limit = (min(10.0, self.timeout), self.timeout)

        class Patient(adapters.HTTPAdapter):  # type: ignore[misc,name-defined]
            def send(self, request: Any, **options: Any) -> Any:
                # oras gives no time limit, and a silent registry would hold the run for ever.
                options["timeout"] = options.get("timeout") or limit
                return super().send(request, **options)

        def made(backend: str) -> Any:
            client = provider.Registry(
                self.address.host,
                insecure=self.address.plain_http,
                tls_verify=self.ca_file or True,
                auth_backend=backend,
            )
            adapter = Patient(pool_connections=2, pool_maxsize=self.workers + 2)
            client.session.mount("http://", adapter)
            client.session.mount("https://", adapter)
            # Its own repetitions take minutes and begin at the first byte.
            client.do_request = functools.partial(provider.Registry.do_request.__wrapped__, client)
            # Not empty, or it would look for credentials in the home of whoever runs this.
            client.auth._auth_config = {"auths": {}, "asked": True}
            return client

        client = made("token")
        answer = self._guard(lambda: client.session.get(f"{self.address.origin}/v2/", verify=self.ca_file or True))
        scheme = str(answer.headers.get("Www-Authenticate", "")).partition(" ")[0].lower()
        if answer.status_code == 401 and scheme == "basic":
            if not self.pair:
                raise DistributionError(
                    f"{self.address.host} wants a user and password: give auth_file, or username and password_file"
                )
            client = made("basic")
        if self.pair:
            client.auth._basic_auth = self.pair
        if answer.status_code == 401 and scheme == "basic":
            # Given at once, so that no upload is sent twice.
            client.session.headers["Authorization"] = f"Basic {self.pair}"
        return client

    def _guard(self, work: Callable[[], Any]) -> Any:
        requests = importlib.import_module("requests")
        try:
            return work()
        except requests.exceptions.SSLError as exc:
            text = str(exc)
            if "WRONG_VERSION_NUMBER" in text or "wrong version number" in text:
                raise DistributionError(f"{self.address.host} does not speak TLS: set plain_http, or mend it") from exc
            raise DistributionError(
                f"the certificate of {self.address.host} is not trusted ({_short(text)}): give its authority as ca_file"
            ) from exc
        except requests.exceptions.ProxyError as exc:
            raise DistributionError(f"the proxy does not let {self.address.host} through ({_short(str(exc))})") from exc
        except requests.exceptions.RequestException as exc:
            raise Passing(
                f"{self.address.host} cannot be reached ({_short(str(exc))}):"
                " check its name, the route and the firewall"
            ) from exc
        except OSError as exc:
            raise Passing(f"the connection to {self.address.host} broke ({exc.strerror or exc})") from exc
        except ValueError as exc:
            raise DistributionError(self._refused("401", str(exc))) from exc

    def _refused(self, status: str, text: str = "") -> str:
        how = "the credentials are wrong or may not do this" if self.pair else "it was asked without credentials"
        shown = f": {text}" if text else ""
        return f"{self.name} refuses ({status}{shown}), {how}: give auth_file, or username and password_file"

    def request(self, method: str, url: str, *, ok: Sequence[int] = (200,), **options: Any) -> Any:
        """An answer with one of the wanted codes; Missing, Passing or DistributionError otherwise."""
        client = self.client()
        url = url if "://" in url else f"{self.address.origin}/v2/{self.address.repository}/{url}"
        body = options.get("data")
        headers = options.pop("headers", {})
        answer = self._guard(lambda: client.do_request(url, method, headers=dict(headers), **options))
        if answer.status_code == 401 and hasattr(client.auth, "token"):
            # A token lasts minutes, a download longer; oras takes the old one again.
            client.auth.token = None
            if body is not None and hasattr(body, "seek"):
                body.seek(0)
            answer = self._guard(lambda: client.do_request(url, method, headers=dict(headers), **options))
        if answer.status_code in ok:
            return answer
        code, text = answer.status_code, _said(answer)
        answer.close()
        if code == 404:
            raise Missing(f"{url} was not found")
        if code in (401, 403):
            raise DistributionError(self._refused(str(code), text))
        if code == 429 or code >= 500:
            raise Passing(f"{self.address.host} has a fault ({code} {text or answer.reason})")
        raise DistributionError(f"{self.name} answers {method} with {code} {text or answer.reason}: see its log")

    # --- reading ---

    def text(self, url: str, accept: str = "*/*") -> bytes:
        answer = self.request("GET", url, headers={"Accept": accept, "Accept-Encoding": "identity"}, stream=True)
        with contextlib.closing(answer):
            data = bytearray()
            for block in self._blocks(answer):
                data += block
                if len(data) > _LARGEST_TEXT:
                    raise Damaged(f"{url} at {self.name} is larger than any description: use another repository")
        return bytes(data)

    def _blocks(self, answer: Any) -> Iterator[bytes]:
        blocks = answer.iter_content(_BLOCK)
        while True:
            block = self._guard(lambda: next(blocks, b""))
            if not block:
                return
            yield block

    def read(self, piece: Piece, start: int) -> Iterator[bytes]:
        headers = {"Accept-Encoding": "identity"}
        if start:
            headers["Range"] = f"bytes={start}-{piece.size - 1}"
        answer = self.request("GET", f"blobs/sha256:{piece.sha256}", ok=(200, 206), headers=headers, stream=True)
        with contextlib.closing(answer):
            skip = start if answer.status_code == 200 else 0
            if answer.status_code == 206 and not str(answer.headers.get("Content-Range", "")).startswith(
                f"bytes {start}-"
            ):
                raise Damaged(f"{self.name} sent another part than bytes {start}- of {piece.file}: use another mirror")
            for block in self._blocks(answer):
                if skip >= len(block):
                    skip -= len(block)
                    continue
                yield block[skip:]
                skip = 0

    def describe(self, tag: str) -> Description | None:
        """The engine that a tag names; None when there is no such tag."""
        try:
            data = self.text(f"manifests/{tag}", MANIFEST_TYPE)
        except Missing:
            return None
        where = f"{self.name}:{tag}"
        try:
            manifest = json.loads(data)
            if manifest["config"]["mediaType"] != CONFIG:
                raise DistributionError(f"{where} is no engine of this collection: use a repository of its own")
            digest = str(manifest["config"]["digest"])
            pieces = [
                Piece(
                    str(layer["annotations"][FILE]),
                    int(layer["annotations"][OFFSET]),
                    int(layer["size"]),
                    str(layer["digest"]).partition("sha256:")[2],
                )
                for layer in manifest["layers"]
            ]
        except (ValueError, KeyError, TypeError) as exc:
            raise Damaged(f"{where} is no engine ({exc!r}): remove the tag, and it is published anew") from exc
        config = self.text(f"blobs/{digest}")
        if "sha256:" + hashlib.sha256(config).hexdigest() != digest:
            raise Damaged(f"{where} has a description of another digest: use another mirror")
        return Description.parse(config, where, pieces)


def _short(text: str) -> str:
    """The cause at the end of requests' nested messages."""
    plain = " ".join(text.split())
    return plain.rpartition("Caused by ")[2][-160:].strip("()'\" ")


def _said(answer: Any) -> str:
    try:
        errors = json.loads(answer.content[:4096])["errors"]
        return str(errors[0].get("message") or errors[0].get("code"))
    except Exception:  # whatever a proxy may have answered with
        return ""


class RegistryStore:
    """A registry with its mirrors: mirrors are asked first, and only the registry is written to."""

    def __init__(self, registry: Mapping[str, Any], tick: Callable[[], None] | None = None) -> None:
        plain = bool(registry.get("plain_http"))
        own = _oci_words.parse_address(str(registry["repository"]), plain)
        pair_of = _oci_words.credentials(registry, _helper)
        addresses = [
            _oci_words.parse_address(str(name), plain, own.repository) for name in registry.get("mirrors") or []
        ]
        ca_file = _oci_words.ca_of(registry)
        timeout, workers = float(registry.get("timeout") or 30), int(registry.get("workers") or 4)
        self.sources = [Remote(at, pair_of(at.host), ca_file, timeout, workers) for at in [*addresses, own]]
        self.registry = self.sources[-1]
        self.workers, self.tick = workers, tick
        self.retries = int(registry["retries"]) if registry.get("retries") is not None else 5
        self.chunk = int(registry.get("chunk_mib") or 256) * 1024 * 1024
        self.name = own.name
        self.secrets = _oci_words.secrets_of([source.pair for source in self.sources])

    def find(self, key: str) -> Description | None:
        return self._look(key)

    def resolve(self, signature: str) -> Description | None:
        return self._look(f"signature-{signature}")

    def _look(self, tag: str) -> Description | None:
        for mirror in self.sources[:-1]:
            with contextlib.suppress(DistributionError):
                found = mirror.describe(tag)
                if found is not None:
                    return found
        found = self.patiently(lambda: self.registry.describe(tag))
        return found if isinstance(found, Description) else None

    def patiently(self, work: Callable[[], Any]) -> Any:
        stopped = threading.Event()
        for attempt in range(self.retries + 1):
            try:
                return work()
            except Passing:
                if attempt == self.retries:
                    raise
                for _tenth in range(min(100, 5 * 2**attempt)):
                    if self.tick is not None:
                        self.tick()
                    stopped.wait(0.1)
        raise AssertionError

    def read(self, piece: Piece, start: int) -> Iterator[bytes]:
        return self.registry.read(piece, start)

    def publish(self, made: Description, folders: Mapping[str, Path], signature: str) -> bool:
        # Only a builder needs it.
        from ansible_collections.trtllm.serving.plugins.module_utils._oci_push import Push

        return Push(self, made, folders).run([made.key] + ([f"signature-{signature}"] if signature else []))


def _helper(program: str, host: str) -> str | None:
    base = importlib.import_module("oras.auth.base")
    return base.AuthBackend()._get_auth_from_creds_store(program, host)  # type: ignore[no-any-return]
