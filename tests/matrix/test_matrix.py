# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The oldest and the newest ansible-core that are supported: a new host, and the same host with the other one."""

from __future__ import annotations

import glob
import importlib.util
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from ansible_collections.trtllm.serving.tests.demo._site import ROOT, TIMEOUT, Recap, Site, environment, free_ports

# ansible-core by the Pythons that it runs on; requirements/ has a file for each.
CORES = {"2.16": ("3.11", "3.12", "3.10"), "2.21": ("3.12",)}


def find_python(versions: tuple[str, ...]) -> str | None:
    """The first that runs and has venv; a name on the PATH may be a shim with nothing behind it."""
    pyenv = os.environ.get("PYENV_ROOT", os.path.expanduser("~/.pyenv"))
    for version in versions:
        name = "python" + version
        for path in (shutil.which(name), *sorted(glob.glob("%s/versions/%s.*/bin/%s" % (pyenv, version, name)))):
            code = "import sys, venv, ensurepip; print('%d.%d' % sys.version_info[:2])"
            if path is not None:
                done = subprocess.run([path, "-I", "-c", code], capture_output=True, text=True, check=False)
                if done.returncode == 0 and done.stdout.strip() == version:
                    return path
    return None


@dataclass
class Core:
    version: str
    python: Path
    site: Site

    def playbook(self, *arguments: str) -> Recap:
        ports = {"http": self.site.http, "grpc": self.site.grpc, "metrics": self.site.metrics}
        variables = {"triton_serve_%s_port" % name: port for name, port in ports.items()}
        done = subprocess.run(
            [str(self.python), "-m", "ansible", "playbook", "-i", "inventory/local", "-e", json.dumps(variables),
             "-e", "mixtral_engine_weights_source=tiny", *arguments],
            cwd=ROOT, env=environment(TRTLLM_HOME=str(self.site.home)), stdin=subprocess.DEVNULL,
            capture_output=True, text=True, errors="replace", timeout=TIMEOUT, check=False,
        )  # fmt: skip
        return Recap.of(done)


@pytest.fixture(name="site", scope="module")
def _site() -> Iterator[Site]:
    home = ROOT / ".work" / "test" / "matrix"
    site = Site(home, *free_ports(3))
    if home.exists():
        site.make("down")
        shutil.rmtree(home)
    yield site
    site.make("down")


@pytest.fixture(name="core", scope="module", params=list(CORES))
def _core(request: pytest.FixtureRequest, site: Site) -> Core:
    version = request.param
    python = find_python(CORES[version])
    if python is None:
        pytest.skip("ansible-core %s needs Python %s, and there is none" % (version, " or ".join(CORES[version])))
    if " " in str(ROOT) and version == "2.16":
        pytest.skip("ansible-core 2.16 runs no interpreter with a space in its path, and this is below '%s'" % ROOT)
    spec = importlib.util.spec_from_file_location("bootstrap", ROOT / "scripts" / "bootstrap.py")
    assert spec is not None and spec.loader is not None
    bootstrap = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bootstrap)
    venv = ROOT / ".work" / ("core-" + version)
    bootstrap.make_environment(venv, ROOT / "requirements" / ("core-%s.txt" % version), python)
    return Core(version, venv / "bin" / "python", site)


def test_version(core: Core) -> None:
    done = subprocess.run(
        [str(core.python), "-m", "ansible", "playbook", "--version"],
        env=environment(), capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.startswith("ansible-playbook [core %s." % core.version), done.stdout


def test_check_mode_says_nothing_of_errors(core: Core) -> None:
    there = core.site.home.exists()
    recap = core.playbook("--check", "--diff", "site.yml").succeeded()
    # The first core finds a new host, the next one what the first has deployed.
    assert (recap.counts["changed"] == 0) == there, recap.output
    assert core.site.home.exists() == there


def test_run_deploys_once(core: Core) -> None:
    there = core.site.home.exists()
    recap = core.playbook("site.yml").succeeded()
    assert (recap.counts["changed"] == 0) == there, recap.output
    assert core.site.generate()
    assert core.playbook("site.yml").succeeded().counts["changed"] == 0
