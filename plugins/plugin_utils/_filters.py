# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The collection's filters, imported for an action plugin that a run begins with.

Ansible loads an action plugin in the controller's own process and forks one for each host and task. What is imported by
then is shared by all of them; otherwise each of them that meets a filter of the collection compiles all filters again.

Private to the collection.
"""

from __future__ import annotations

import importlib
import pkgutil

from ansible_collections.trtllm.serving.plugins import filter as filters


def bring() -> None:
    for module in pkgutil.iter_modules(filters.__path__, filters.__name__ + "."):
        importlib.import_module(module.name)
