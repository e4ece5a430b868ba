# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""site.yml with weights from a hub: fetched, converted, built, served and asked. And where the token is not."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from ansible_collections.trtllm.serving.tests.demo._site import ROOT, Site, free_ports
from ansible_collections.trtllm.serving.tests.hub import leaks
from ansible_collections.trtllm.serving.tests.hub.conftest import TOKEN
from ansible_collections.trtllm.serving.tests.hub.server import Hub, Repository

NAME = "trtllm/tiny-mixtral"
GENERATE = ROOT / "roles/tensorrtllm_backend_build/files/reference/tools/generate_tiny.py"


@pytest.fixture(name="served", scope="module")
def _served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Site, Hub, Repository, Path]]:
    tmp = tmp_path_factory.mktemp("site")
    model = tmp / "model"
    subprocess.run([sys.executable, str(GENERATE), "--output_dir", str(model)], check=True, capture_output=True)
    home = ROOT / ".work" / "test" / "hub"
    with Hub(token=TOKEN) as hub:
        repository = hub.add(NAME, model, gated=True)
        variables = tmp / "variables.json"
        variables.touch(mode=0o600)
        values = {
            "mixtral_engine_weights_source": "huggingface",
            "mixtral_engine_weights_repository": NAME,
            "mixtral_engine_weights_revision": repository.commit,
            "mixtral_engine_hub_endpoint": hub.url,
            "mixtral_engine_hub_token": TOKEN,
        }
        variables.write_text(json.dumps(values))
        site = Site(home, *free_ports(3), arguments=f"-e @{variables} -vvv --diff")
        if home.exists():
            site.make("down")
            # Its environments take longest, and are the same every time.
            for path in home.iterdir():
                if path.name not in ("venvs", "venv"):
                    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        yield site, hub, repository, variables
        site.make("down")


def test_check_mode_asks_nobody(served: tuple[Site, Hub, Repository, Path]) -> None:
    site, hub, _repository, _variables = served
    recap = site.make("check").succeeded()
    assert recap.counts["changed"] >= 4 and hub.requests == []
    assert not (site.home / "weights").exists()


def test_weights_from_the_hub_are_served(served: tuple[Site, Hub, Repository, Path]) -> None:
    site, hub, repository, variables = served
    with leaks.Watch(TOKEN) as watch:
        recap = site.make("demo").succeeded()
    assert site.generate() and site.generate("tensorrt_llm_bls")
    assert hub.unexpected == [] and {request.token for request in hub.requests if request.server == "hub"} == {TOKEN}
    weights = site.home / "weights" / f"{NAME.replace('/', '--')}@{repository.commit}"
    manifest = json.loads((weights / "manifest.json").read_text("utf-8"))
    for name, entry in manifest["files"].items():
        assert entry["sha256"] == repository.files[name].sha256
    # The token: used, and nowhere to be seen.
    assert watch.rounds > 10 and watch.found == set()
    assert TOKEN not in recap.output and not leaks.in_bytes(recap.output.encode(), leaks.forms(TOKEN))
    assert leaks.in_trees([site.home, Path.home() / ".ansible", variables.parent], TOKEN, besides=[variables]) == []


def test_second_run_asks_nobody(served: tuple[Site, Hub, Repository, Path]) -> None:
    site, hub, _repository, _variables = served
    hub.requests.clear()
    recap = site.make("demo").succeeded()
    assert recap.counts["changed"] == 0, recap.output
    assert TOKEN not in recap.output and hub.requests == []


def test_refusal_is_told_without_the_token(served: tuple[Site, Hub, Repository, Path]) -> None:
    site, hub, _repository, variables = served
    hub.strangers.add(TOKEN)
    shutil.rmtree(site.home / "weights")
    recap = site.make("demo")
    assert recap.returncode != 0 and f"{NAME} is gated (403): accept its conditions" in recap.output
    assert TOKEN not in recap.output
    values = json.loads(variables.read_text())
    variables.write_text(json.dumps({**values, "mixtral_engine_weights_revision": "main"}))
    recap = site.make("demo")
    assert recap.returncode != 0 and "'main' is a branch or a tag" in recap.output and TOKEN not in recap.output
    # What was served is served on.
    assert site.generate()
