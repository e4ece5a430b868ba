# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Weights from a gated repository of a hub, deployed on a Docker host; and where the token is not."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[4]
NAME = "trtllm/tiny"
TOKEN = "hf_MoleculeTokenThatNobodyMaySee42"
URL = "http://127.0.0.1:8190"
# Where the deployment writes, and what the system and Ansible keep.
PLACES = ("/opt/trtllm", "/etc", "/root", "/run", "/tmp", "/var/log", "/var/tmp", "/var/lib/docker/containers")


@pytest.fixture(name="hub", scope="module")
def _hub(host: Any, outside: Any) -> Any:
    """The hub on the host's own loopback; its one commit."""
    host.check_output("mkdir -p /srv/hub/models/trtllm && cp -r /srv/weights/tiny /srv/hub/models/%s" % NAME)
    for name in ("server.py", "leaks.py"):
        outside.docker("cp", str(ROOT / "tests" / "hub" / name), "%s:/srv/hub/%s" % (outside.host, name))
    write = ["docker", "exec", "-i", outside.host, "sh", "-c", "umask 077 && cat > /srv/hub/token"]
    subprocess.run(write, input=TOKEN.encode(), check=True)
    host.check_output(
        "systemd-run --unit=hub --property=StandardOutput=file:/srv/hub/said /usr/bin/python3 /srv/hub/server.py"
        " --root /srv/hub/models --port 8190 --storage-port 8191 --token-file /srv/hub/token --gated %s" % NAME
    )
    said = outside.until("the hub", lambda: host.run("grep %s /srv/hub/said" % NAME).stdout, 30)
    yield said.strip().rpartition("@")[2]
    # It ends with 1 when it was asked what no client has to ask.
    host.run("systemctl stop hub")
    assert host.run("systemctl is-failed hub").stdout.strip() != "failed", host.run("journalctl -u hub").stdout


def test_gated_weights_are_served_and_the_token_is_nowhere(
    playbooks: Any, host: Any, outside: Any, server: Any, hub: str, tmp_path: Path
) -> None:
    before = server.inspect()["Id"]
    variables = tmp_path / "variables.json"
    variables.touch(mode=0o600)
    values = {
        "mixtral_engine_weights_source": "huggingface",
        "mixtral_engine_weights_repository": NAME,
        "mixtral_engine_weights_revision": hub,
        "mixtral_engine_weights_name": "",
        "mixtral_engine_weights_path": "",
        "mixtral_engine_hub_endpoint": URL,
        "mixtral_engine_hub_token": TOKEN,
    }
    variables.write_text(json.dumps(values), "utf-8")
    host.check_output(
        "systemd-run --unit=watch --property=StandardOutput=file:/srv/hub/watched /usr/bin/python3 /srv/hub/leaks.py"
        " --token-file /srv/hub/token --watch 900"
    )
    recap = playbooks.run("site", "-vvv", "--diff", "--extra-vars", "@%s" % variables).succeeded()
    assert recap.counts["changed"] >= 3, recap.output
    assert server.inspect()["Id"] != before and server.ask()
    host.run("systemctl stop watch")
    assert host.check_output("cat /srv/hub/watched").strip() == "0 places hold the token"

    # Files, names, container inspect, image history and logs of the host; what Ansible printed; the controller's files.
    found = host.run("/usr/bin/python3 /srv/hub/leaks.py --docker --token-file /srv/hub/token %s" % " ".join(PLACES))
    assert found.rc == 0 and found.stdout.strip() == "0 places hold the token", found.stdout + found.stderr
    assert TOKEN not in recap.output
    own = tmp_path / "token"
    own.write_text(TOKEN, "ascii")
    variables.unlink()
    leaks = [
        sys.executable, ROOT / "tests" / "hub" / "leaks.py", "--token-file", own, playbooks.ephemeral,
        Path.home() / ".ansible",
    ]  # fmt: skip
    here = subprocess.run([*map(str, leaks)], capture_output=True, text=True, check=False)
    assert here.returncode == 0, here.stdout + here.stderr

    # Nothing more to do, and nothing in what check mode shows either.
    variables.write_text(json.dumps(values), "utf-8")
    again = playbooks.run("site", "--check", "--diff", "--extra-vars", "@%s" % variables).unchanged()
    assert TOKEN not in again.output
