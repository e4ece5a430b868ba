#!/usr/bin/python
# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Keep the signing key of a package repository, once its fingerprint is the one that was pinned."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: repository_key
short_description: Keep a package repository's signing key after checking its fingerprint
version_added: 0.1.0
description:
  - Downloads OpenPGP public keys, computes their fingerprints itself, and keeps them only when every key of the file is
    one of O(fingerprints). A wrong key is never written to the disk.
  - Needs no gnupg on the host.
extends_documentation_fragment:
  - trtllm.serving.attributes
attributes:
  check_mode:
    support: full
    details: Nothing is downloaded.
  diff_mode:
    support: full
    details: Shows fingerprints.
  idempotent:
    support: full
    details: Nothing is downloaded while O(dest) holds the keys of O(fingerprints).
options:
  url:
    description: Where the key is, also C(file:///PATH).
    type: str
    required: true
  dest:
    description: File that keeps it.
    type: path
    required: true
  fingerprints:
    description: Fingerprints that are accepted, in full; spaces do not matter.
    type: list
    elements: str
    required: true
  format:
    description: V(armored) is what rpm wants; V(binary) is what apt takes from a file named C(.gpg).
    type: str
    choices: [armored, binary]
    default: armored
  mode:
    description: Mode of the file.
    type: raw
    default: "0644"
  timeout:
    description: Seconds that the download may take.
    type: int
    default: 30
  http_proxy:
    description: Proxy for http and https; empty takes the environment's.
    type: str
    default: ""
  no_proxy:
    description: Hosts that are reached without O(http_proxy), separated by commas.
    type: str
    default: ""
author:
  - trtllm.serving contributors (@trtllm)
"""

EXAMPLES = r"""
- name: Key of Docker's packages
  trtllm.serving.repository_key:
    url: https://download.docker.com/linux/debian/gpg
    dest: /etc/apt/keyrings/docker.gpg
    format: binary
    fingerprints: ["9DC8 5822 9FC7 DD38 854A  E2D8 8D81 803C 0EBF CD88"]
"""

RETURN = r"""
fingerprints:
  description: Fingerprints of the keys in the file.
  returned: when it is known
  type: list
  elements: str
"""

import os
from typing import Any, List

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.urls import open_url
from ansible_collections.trtllm.serving.plugins.module_utils._openpgp import OpenPgpError, armor, dearmor, judge

LONGEST = 1024 * 1024


def kept(dest: str, wanted: List[str]) -> List[str]:
    """Fingerprints of the keys that are there already; none when they are not the wanted ones."""
    try:
        with open(dest, "rb") as stream:
            return judge(stream.read(), wanted, dest)
    except (OSError, OpenPgpError):
        return []


def download(url: str, timeout: int, proxy: str, no_proxy: str) -> bytes:
    if proxy:
        # For this process alone; an argument would show the proxy's password.
        os.environ.update(http_proxy=proxy, https_proxy=proxy, no_proxy=no_proxy)
    answer = open_url(url, timeout=timeout, http_agent="trtllm.serving")
    try:
        data: bytes = answer.read(LONGEST + 1)
    finally:
        answer.close()
    if len(data) > LONGEST:
        raise OpenPgpError("%s is larger than 1 MiB, which no key is" % url)
    return data


def main() -> None:
    module = AnsibleModule(
        argument_spec=dict(
            url=dict(type="str", required=True),
            dest=dict(type="path", required=True),
            fingerprints=dict(type="list", elements="str", required=True),
            format=dict(type="str", default="armored", choices=["armored", "binary"]),
            mode=dict(type="raw", default="0644"),
            timeout=dict(type="int", default=30),
            http_proxy=dict(type="str", default="", no_log=True),
            no_proxy=dict(type="str", default=""),
        ),
        supports_check_mode=True,
    )
    params = module.params
    dest, url = params["dest"], params["url"]
    result: dict[str, Any] = {"changed": False}
    there = kept(dest, params["fingerprints"])
    result["diff"] = {"before": "\n".join(there), "after": "\n".join(there)}
    if there:
        result["fingerprints"] = there
    elif module.check_mode:
        result.update(changed=True, diff={"before": "", "after": "\n".join(params["fingerprints"]) + "\n"})
    else:
        try:
            data = download(url, params["timeout"], params["http_proxy"], params["no_proxy"])
            found = judge(data, params["fingerprints"], url)
        except OpenPgpError as exc:
            module.fail_json(msg=str(exc))
        except Exception as exc:  # urllib, http.client and ssl have no error in common
            module.fail_json(
                msg="%s cannot be downloaded: %s; see that the host reaches it, or set docker_nvidia_mirror or the"
                " variable of this URL" % (url, " ".join(str(exc).split()))
            )
        try:
            os.makedirs(os.path.dirname(dest), mode=0o755, exist_ok=True)
            partial = "%s.partial" % dest
            with open(partial, "wb") as stream:
                stream.write(armor(data) if params["format"] == "armored" else dearmor(data))
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(partial, dest)
        except OSError as exc:
            module.fail_json(msg="%s cannot be written: %s; run as root (become)" % (dest, exc.strerror or exc))
        result.update(changed=True, fingerprints=found, diff={"before": "", "after": "\n".join(found) + "\n"})
    if os.path.exists(dest):
        result["changed"] = module.set_mode_if_different(dest, params["mode"], result["changed"])
    module.exit_json(**result)


if __name__ == "__main__":
    main()
