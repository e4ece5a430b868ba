# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Publishing to and fetching from a real registry: cuts, damage, mirrors, credentials, certificates."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import re
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.trtllm.serving.plugins.module_utils import _oci
from ansible_collections.trtllm.serving.plugins.module_utils._artifact import key_of, making, short_key, verify
from ansible_collections.trtllm.serving.plugins.module_utils._distribution import DistributionError, Missing
from ansible_collections.trtllm.serving.plugins.module_utils._distribution_fetch import Fetch, Notes
from ansible_collections.trtllm.serving.plugins.module_utils._distribution_work import Work
from ansible_collections.trtllm.serving.plugins.module_utils._runner import Cancellation

MIB = 1024 * 1024
SIGNATURE = hashlib.sha256(b"signature").hexdigest()
INPUTS = {"checkpoint": "0" * 64, "tensorrt_llm": "1.1.0", "gpu": {"name": "GPU", "compute_capability": "8.0"}}


def built(home: Path, size: int = 5 * MIB + 17) -> tuple[Path, Path]:
    """An engine of two ranks and its weights, as the tools leave them."""
    home.mkdir(parents=True)
    weights = home / "weights" / "model@1"
    weights.mkdir(parents=True)
    (weights / "tokenizer.json").write_text('{"version": "1.0"}')
    (weights / "config.json").write_text("{}")
    (weights / "model.safetensors").write_bytes(os.urandom(100))
    engine = home / "engines" / short_key(key_of(INPUTS))
    with making(engine, "engine", INPUTS, home=home) as made:
        mapping = {"world_size": 2, "tp_size": 2, "pp_size": 1}
        config = {"version": "1.1.0", "pretrained_config": {"mapping": mapping}, "build_config": {"max_batch_size": 8}}
        (made.path / "config.json").write_text(json.dumps(config))
        for rank in range(2):
            (made.path / f"rank{rank}.engine").write_bytes(os.urandom(size))
    return engine, weights


def options(registry: Any, **given: Any) -> dict[str, Any]:
    return {
        "repository": f"{registry.host}/trtllm/engines", "mirrors": [], "auth_file": "", "username": "",
        "password_file": "", "ca_file": str(registry.ca or ""), "plain_http": not registry.tls, "workers": 3,
        "retries": 2, "timeout": 5, "chunk_mib": 1, **given,
    }  # fmt: skip


def run(home: Path, settings: dict[str, Any], check_mode: bool = False, **params: Any) -> dict[str, Any]:
    home.mkdir(exist_ok=True)
    warnings: list[str] = []
    basic = {"state": "present", "home": str(home), "release": "1.1.0", "distribution": "registry"}
    given = {**basic, "registry": settings, "signature": SIGNATURE, **params}
    with Cancellation(watch_fd=None, watch_parent=False) as cancellation:
        result = Work(given, check_mode, cancellation, warn=warnings.append).run()
    return {**result, "warnings": warnings}


@pytest.fixture
def publish(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    def work(settings: dict[str, Any], **extra: Any) -> dict[str, Any]:
        home = tmp_path / "builder"
        if not home.exists():
            built(home)
        engine = next(path for path in (home / "engines").iterdir() if not path.name.startswith("."))
        return run(
            home,
            settings,
            state="published",
            engine_dir=str(engine),
            weights_dir=str(home / "weights" / "model@1"),
            **extra,
        )

    return work


class Cutter:
    """A relay before a registry that breaks each connection after so many bytes, as often as it is told."""

    def __init__(self, port: int, after: int, times: int) -> None:
        self.target, self.after, self.times = port, after, times
        self.cuts = 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.host = "127.0.0.1:%d" % self.listener.getsockname()[1]
        self.asked = bytearray()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                near, _address = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self._relay, args=(near,), daemon=True).start()

    def _relay(self, near: socket.socket) -> None:
        far = socket.create_connection(("127.0.0.1", self.target))

        def up() -> None:
            with contextlib.suppress(OSError):
                while data := near.recv(65536):
                    self.asked += data
                    far.sendall(data)

        threading.Thread(target=up, daemon=True).start()
        passed = 0
        with contextlib.suppress(OSError):
            while data := far.recv(65536):
                passed += len(data)
                near.sendall(data)
                if passed > self.after and self.cuts < self.times:
                    self.cuts += 1
                    break
        for each in (near, far):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def close(self) -> None:
        self.listener.close()


@pytest.fixture
def cutter() -> Iterator[Callable[..., Cutter]]:
    made: list[Cutter] = []

    def make(registry: Any, after: int, times: int) -> Cutter:
        made.append(Cutter(registry.port, after, times))
        return made[-1]

    yield make
    for each in made:
        each.close()


def test_there_and_back(registry: Any, publish: Any, tmp_path: Path) -> None:
    settings = options(registry())
    first = publish(settings)
    assert first["changed"] and first["published"] is True
    assert publish(settings)["changed"] is False
    got = run(tmp_path / "other", settings, key=first["key"], tokenizer=first["tokenizer"]["key"])
    assert got["changed"] and got["found"] and got["bytes"] > 10 * MIB
    assert verify(got["path"], full=True, kind="engine", key=first["key"]).ok
    assert verify(got["tokenizer"]["path"], full=True, kind="tokenizer").ok
    assert got["engine"] == first["engine"] and got["world_size"] == 2
    for rank in (0, 1):
        assert (Path(got["path"]) / f"rank{rank}.engine").read_bytes() == (
            Path(first["path"]) / f"rank{rank}.engine"
        ).read_bytes()
    assert not list((tmp_path / "other" / "engines").glob("*.download"))
    again = run(tmp_path / "other", settings, key=first["key"], tokenizer=first["tokenizer"]["key"])
    assert again["changed"] is False and again["origin"] == ""


def test_by_signature(registry: Any, publish: Any, tmp_path: Path) -> None:
    settings = options(registry())
    none = run(tmp_path / "other", settings, optional=True)
    assert (none["found"], none["changed"]) == (False, False)
    first = publish(settings)
    assert run(tmp_path / "other", settings, check_mode=True)["expected"]["key"] == first["key"]
    assert not (tmp_path / "other" / "engines").exists()
    assert run(tmp_path / "other", settings)["key"] == first["key"]


def test_large_files_are_cut_and_layers_are_named(registry: Any, publish: Any) -> None:
    there = registry()
    key = publish(options(there))["key"]
    found = _oci.RegistryStore(options(there)).find(key)
    assert found is not None
    sizes = [piece.size for piece in found.pieces if piece.file == "engine/rank0.engine"]
    assert sizes == [MIB] * 5 + [17]


def test_nothing_is_sent_twice(registry: Any, publish: Any) -> None:
    there = registry()
    publish(options(there))
    puts = len(there.requests("PUT", "/blobs/uploads/"))
    tags = there.folder / "data/docker/registry/v2/repositories/trtllm/engines/_manifests/tags"
    for tag in tags.iterdir():
        for path in sorted(tag.rglob("*"), reverse=True):
            path.unlink() if path.is_file() else path.rmdir()
        tag.rmdir()
    assert publish(options(there))["changed"] is True
    assert len(there.requests("PUT", "/blobs/uploads/")) == puts > 10


def test_goes_on_after_cuts(registry: Any, publish: Any, cutter: Any, tmp_path: Path) -> None:
    there = registry()
    first = publish(options(there, chunk_mib=4))
    relay = cutter(there, 1_500_000, 6)
    settings = options(there, workers=1)
    settings["repository"] = f"{relay.host}/trtllm/engines"
    got = run(tmp_path / "other", settings, key=first["key"], tokenizer=first["tokenizer"]["key"])
    assert relay.cuts == 6
    assert verify(got["path"], full=True).ok
    starts = [int(start) for start in re.findall(rb"[Rr]ange: bytes=(\d+)-", bytes(relay.asked))]
    assert len(starts) >= 5 and min(starts) > 500_000
    # What had come did not come again.
    assert got["bytes"] == sum(path.stat().st_size for folder in (got["path"], got["tokenizer"]["path"])
                               for path in Path(folder).iterdir() if path.name != "manifest.json")  # fmt: skip


def test_a_stopped_run_goes_on(registry: Any, publish: Any, cutter: Any, tmp_path: Path) -> None:
    there = registry()
    first = publish(options(there))
    relay = cutter(there, 3 * MIB, 1000)
    settings = options(there, workers=1, retries=0)
    settings["repository"] = f"{relay.host}/trtllm/engines"
    relay.after = 600_000
    given = {"key": first["key"], "tokenizer": first["tokenizer"]["key"]}
    place = tmp_path / "other" / "engines" / (short_key(first["key"]) + ".download")
    relay.times = 3
    with pytest.raises(DistributionError, match="attempts are used up, run again to go on"):
        relay_dead(relay, tmp_path / "other", settings, given)
    kept = [path for path in place.rglob("*") if path.is_file() and path.name != ".progress"]
    assert kept
    got = run(tmp_path / "other", options(there), **given)
    assert verify(got["path"], full=True).ok
    assert got["bytes"] < 2 * (5 * MIB + 17)
    assert not place.exists()


def relay_dead(relay: Cutter, home: Path, settings: dict[str, Any], given: dict[str, Any]) -> None:
    """Lets some bytes through, then nothing any more."""
    store = _oci.RegistryStore(settings)
    made = store.find(given["key"])
    assert made is not None
    place = home / "engines" / (short_key(made.key) + ".download")
    home.mkdir()
    fetch = Fetch(made, store.sources, place, workers=1, retries=0, pause_s=0.01)
    fetch.prepare(home, {})
    told: list[int] = []

    def tell(done: int, total: int) -> None:
        told.append(done)

    fetch.tell = tell
    original = store.registry.read

    def read(piece: Any, start: int) -> Any:
        if fetch.fetched > 3 * MIB:
            relay.close()
            raise _oci.Passing("the registry is gone")
        return original(piece, start)

    store.registry.read = read  # type: ignore[method-assign]
    fetch.run()


def test_progress_of_a_power_cut_is_not_believed(registry: Any, publish: Any, tmp_path: Path) -> None:
    """Notes that say more than there is, as when the file system lost what had been written."""
    there = registry()
    first = publish(options(there))
    store = _oci.RegistryStore(options(there))
    made = store.find(first["key"])
    assert made is not None
    home = tmp_path / "other"
    home.mkdir()
    place = home / "engines" / (short_key(made.key) + ".download")
    fetch = Fetch(made, store.sources, place)
    fetch.prepare(home, {})
    fetch.run()
    (place / "engine" / "rank0.engine").write_bytes(bytes(5 * MIB + 17))
    got = run(home, options(there), key=first["key"])
    assert verify(got["path"], full=True).ok
    assert got["bytes"] == 5 * MIB + 17


def test_damaged_blob_is_refused(registry: Any, publish: Any, tmp_path: Path) -> None:
    there = registry()
    first = publish(options(there))
    store = _oci.RegistryStore(options(there))
    found = store.find(first["key"])
    assert found is not None
    piece = next(piece for piece in found.pieces if piece.file == "engine/rank1.engine")
    blob = there.folder / f"data/docker/registry/v2/blobs/sha256/{piece.sha256[:2]}/{piece.sha256}/data"
    blob.write_bytes(os.urandom(piece.size))
    with pytest.raises(DistributionError, match=r"rank1\.engine comes damaged from"):
        run(tmp_path / "other", options(there), key=first["key"])
    assert not (tmp_path / "other" / "engines" / short_key(first["key"])).exists()


def test_mirrors_come_first_and_may_fail(registry: Any, publish: Any, tmp_path: Path) -> None:
    there = registry()
    first = publish(options(there))
    mirror = registry("mirror", mirror_of=f"http://{there.host}")
    settings = options(there, mirrors=[mirror.host])
    got = run(tmp_path / "other", settings, key=first["key"])
    assert got["origin"] == f"{mirror.host}/trtllm/engines"
    mirror.stop()
    got = run(tmp_path / "third", settings, key=first["key"])
    assert got["origin"] == f"{there.host}/trtllm/engines"
    # One that answers, but with something else.
    false = registry("false")
    got = run(tmp_path / "fourth", options(there, mirrors=[false.host]), key=first["key"])
    assert got["origin"] == f"{there.host}/trtllm/engines"


def test_a_mirror_that_breaks_off_is_left(registry: Any, publish: Any, cutter: Any, tmp_path: Path) -> None:
    there = registry()
    first = publish(options(there))
    relay = cutter(there, 400_000, 1000)
    got = run(tmp_path / "other", options(there, mirrors=[relay.host]), key=first["key"])
    assert verify(got["path"], full=True).ok
    assert f"{there.host}/trtllm/engines" in got["origin"]


def test_credentials(registry: Any, publish: Any, tmp_path: Path) -> None:
    there = registry(user="ann", password="s3cret-word")
    secret, config = tmp_path / "password", tmp_path / "config.json"
    secret.write_text("s3cret-word\n")
    auth = base64.b64encode(b"ann:s3cret-word").decode()
    config.write_text(json.dumps({"auths": {there.host: {"auth": auth}}}))
    for path in (secret, config):
        path.chmod(0o600)
    by_password = options(there, username="ann", password_file=str(secret))
    first = publish(by_password)
    assert first["published"] is True
    got = run(tmp_path / "other", options(there, auth_file=str(config)), key=first["key"])
    assert verify(got["path"]).ok
    with pytest.raises(DistributionError, match="wants a user and password: give auth_file"):
        run(tmp_path / "third", options(there), key=first["key"])
    secret.write_text("wrong-word\n")
    with pytest.raises(DistributionError, match="credentials are wrong") as caught:
        run(tmp_path / "third", by_password, key=first["key"])
    assert "wrong-word" not in str(caught.value)
    config.chmod(0o644)
    with pytest.raises(DistributionError, match=r"has mode 0644, so everybody may use it"):
        run(tmp_path / "third", options(there, auth_file=str(config)), key=first["key"])


def test_a_mirror_never_sees_the_password(registry: Any, publish: Any, cutter: Any, tmp_path: Path) -> None:
    there = registry(user="ann", password="s3cret-word")
    secret = tmp_path / "password"
    secret.write_text("s3cret-word")
    secret.chmod(0o600)
    settings = options(there, username="ann", password_file=str(secret))
    first = publish(settings)
    mirror = registry("mirror")
    relay = cutter(mirror, 1 << 40, 0)
    run(tmp_path / "other", {**settings, "mirrors": [relay.host]}, key=first["key"])
    assert relay.asked and b"uthorization" not in relay.asked


def test_certificates(registry: Any, publish: Any, tmp_path: Path) -> None:
    there = registry(tls=True)
    first = publish(options(there))
    assert first["published"] is True
    assert verify(run(tmp_path / "other", options(there), key=first["key"])["path"]).ok
    with pytest.raises(DistributionError, match="is not trusted .*give its authority as ca_file"):
        run(tmp_path / "third", options(there, ca_file=""), key=first["key"])
    plain = registry("plain")
    with pytest.raises(DistributionError, match="does not speak TLS: set plain_http"):
        run(tmp_path / "third", options(plain, plain_http=False), key=first["key"])


def test_a_registry_that_is_gone(registry: Any, publish: Any, tmp_path: Path) -> None:
    there = registry()
    there.stop()
    first = publish(options(there, retries=0))
    assert first["published"] is False and "cannot be reached" in first["publish_error"]
    assert first["warnings"] and first["path"]
    with pytest.raises(DistributionError, match="cannot be reached .*check its name, the route and the firewall"):
        run(tmp_path / "other", options(there, retries=0), key=first["key"])
    # Who has it asks nobody.
    assert run(tmp_path / "builder", options(there), key=first["key"], tokenizer=first["tokenizer"]["key"])["found"]


def test_missing_says_what_to_do(registry: Any, tmp_path: Path) -> None:
    with pytest.raises(Missing, match=r"has no engine 0000000000000000: its builder .* \(disk full\)"):
        run(tmp_path / "other", options(registry()), key="0" * 64, publish_error="disk full")


def test_another_gpu_or_release_is_refused(registry: Any, publish: Any, tmp_path: Path) -> None:
    settings = options(registry())
    key = publish(settings)["key"]
    with pytest.raises(DistributionError, match="was built for GPU name GPU, this host has H100"):
        run(tmp_path / "other", settings, key=key, gpu={"name": "H100", "compute_capability": "9.0"})
    with pytest.raises(DistributionError, match=r"was built by TensorRT-LLM 1\.1\.0, not 1\.0\.0"):
        run(tmp_path / "other", settings, key=key, release="1.0.0")


def test_notes_survive(tmp_path: Path, registry: Any, publish: Any) -> None:
    there = registry()
    made = _oci.RegistryStore(options(there)).find(publish(options(there))["key"])
    assert made is not None
    notes = Notes(tmp_path / "notes", made)
    notes.put(3, 1234)
    notes.put(4, 99, verified=True)
    notes.close()
    again = Notes(tmp_path / "notes", made)
    assert not again.fresh and again.get(3) == (1234, False) and again.get(4) == (99, True)
    again.close()
