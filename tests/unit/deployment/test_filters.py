# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Filters: settings judged on the controller before any host is contacted, and the report that ends a run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import yaml
from ansible.errors import AnsibleFilterError
from ansible_collections.trtllm.serving.plugins.filter import release as filters

CONVERT = {"dtype": "float16", "tp_size": 2, "pp_size": 1, "moe_tp_size": -1, "moe_ep_size": -1, "workers": 1}
BUILD = {"max_batch_size": 8, "max_input_len": 1024, "max_seq_len": 2048, "max_num_tokens": 8192, "gemm_plugin": "auto"}
GPU = MappingProxyType({"name": "cpu-reference", "count": 8})
PORTS = {"http_port": 8000, "grpc_port": 8001, "metrics_port": 8002}


def engine(
    release: str = "1.1.0",
    flavour: str = "engine",
    *,
    gpu: Any = GPU,
    more_convert: Any = None,
    more_build: Any = None,
    **values: Any,
) -> list[str]:
    convert = {**CONVERT, **{name: value for name, value in values.items() if name in CONVERT}}
    build = {**BUILD, **{name: value for name, value in values.items() if name not in CONVERT}}
    return filters.engine_problems(release, flavour, convert, build, more_convert, more_build, gpu)


def serve(release: str = "1.1.0", ports: Any = None, **values: Any) -> list[str]:
    return filters.serve_problems(release, ports or PORTS, **{"exit_timeout": 30, "stop_timeout": 60, **values})


def test_good_settings_have_no_problems() -> None:
    assert engine() == [] and engine("0.12.0") == [] and serve() == [] and serve("0.12.0") == []
    assert engine(more_convert={"load_model_on_cpu": True}, more_build={"use_paged_context_fmha": "enable"}) == []
    assert serve(arguments=["--log-verbose=1"], environment={"A": 1}, smoke_expect="(?i)x", kv_cache_fraction=0.9) == []


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"release": "9.9.9"}, "release '9.9.9' is not supported"),
        ({"release": "r25.12"}, "release 'r25.12' is a tag, not a TensorRT-LLM version; use 1.1.0"),
        ({"release": "1.3.0"}, "release '1.3.0' has no engines"),
        ({"release": "1.1.0", "flavour": "llmapi"}, "flavour 'llmapi' has no engine to build"),
        ({"tp_size": 16}, "tp_size 16 x pp_size 1 needs 16 GPUs, the host has 8"),
        ({"tp_size": 0}, "tp_size 0 is not a number of ranks"),
        ({"tp_size": True}, "'tp_size': true is not allowed, give an integer"),
        ({"tp_size": "two"}, "'tp_size': 'two' is not allowed, give an integer"),
        ({"tp_size": 4, "moe_tp_size": 2, "moe_ep_size": 4}, "moe_tp_size 2 x moe_ep_size 4 = 8 is not tp_size 4"),
        ({"workers": 0}, "workers 0 is not possible"),
        ({"dtype": "int3"}, "'int3' is not allowed"),
        ({"gemm_plugin": "float8"}, "'float8' is not allowed"),
        ({"max_batch_size": 0}, "max_batch_size 0 is not possible"),
        ({"max_input_len": 4096}, "max_input_len 4096 is above max_seq_len 2048"),
        ({"more_convert": "a=b"}, "mixtral_engine_convert_options 'a=b' is not a dictionary"),
        ({"more_build": ["a"]}, "mixtral_engine_build_options ['a'] is not a dictionary"),
        ({"more_convert": {"tp_size": 4}}, "tp_size is given twice"),
        ({"more_convert": {"output_dir": "/x"}}, "options.output_dir cannot be given"),
        ({"more_build": {"dry_run": True}}, "options.dry_run cannot be given"),
        ({"more_convert": {"load_modl_on_cpu": True}}, "did you mean 'load_model_on_cpu'?"),
        ({"more_build": {"tp_size": 2}}, "options.tp_size cannot be given"),
        ({"more_build": {"use_custom_all_reduce": "disable"}}, "is not in release 1.1.0: it was last in 0.11.0"),
        ({"release": "0.12.0", "more_build": {"norm_quant_fusion": "enable"}}, "is not in release 0.12.0"),
        ({"gpu": {"name": "x"}}, "mixtral_engine_gpu {'name': 'x'} has no count"),
        ({"gpu": "h100"}, "mixtral_engine_gpu 'h100' has no count"),
        ({"gpu": {"count": "many"}}, "has no count"),
    ],
)
def test_engine_settings_that_cannot_be(given: dict[str, Any], named: str) -> None:
    problems = engine(**given)
    assert len(problems) == 1 and named in problems[0], problems
    assert "\n" not in problems[0]


def test_a_host_of_unknown_gpus_is_not_judged_by_their_number() -> None:
    assert engine(tp_size=16, gpu={"count": 0}) == [] == engine(tp_size=16, gpu=None)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (
            {"release": "1.0.0"},
            "release '1.0.0' has no config.pbtxt templates in this collection; use one of 0.12.0, 1.1.0",
        ),
        ({"release": "9.9.9"}, "release '9.9.9' is not supported"),
        ({"ports": {"http_port": 0}}, "triton_serve_http_port 0 is not a TCP port"),
        ({"ports": {"http_port": 65536}}, "65536 is not a TCP port"),
        ({"ports": {"http_port": 1, "grpc_port": "1"}}, "triton_serve_grpc_port and triton_serve_http_port are both 1"),
        ({"stop_timeout": 30}, "triton_serve_stop_timeout 30 is not above triton_serve_exit_timeout 30"),
        ({"smoke_expect": "["}, "triton_serve_smoke_expect '[' is no regular expression"),
        ({"arguments": "--foo"}, "triton_serve_arguments '--foo' is not a list"),
        ({"arguments": [True]}, "triton_serve_arguments has True, which is not a string"),
        ({"environment": "A=b"}, "triton_serve_environment 'A=b' is not a dictionary"),
        ({"environment": {"A": None}}, "triton_serve_environment has None"),
        ({"kv_cache_fraction": 1.5}, "triton_serve_kv_cache_free_gpu_mem_fraction 1.5 is not a share"),
        ({"kv_cache_fraction": "half"}, "'half' is not a share"),
        ({"kv_cache_fraction": 0}, "is not a share"),
    ],
)
def test_server_settings_that_cannot_be(given: dict[str, Any], named: str) -> None:
    problems = serve(**given)
    assert len(problems) == 1 and named in problems[0], problems


CONTAINER = {
    "address": "127.0.0.1", "user": "trtllm", "name": "trtllm-triton", "shm_size": "2g", "memory": "", "gpus": "all",
    "ulimits": {"memlock": -1, "nofile": {"soft": 1}}, "mpirun_arguments": ["--oversubscribe"], "tmpfs": {"/tmp": "rw"},
}  # fmt: skip


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"address": "localhost"}, "triton_serve_address 'localhost' is no IP address"),
        ({"address": ""}, "is no IP address"),
        ({"user": "root"}, "triton_serve_user 'root' is root"),
        ({"user": "0:0"}, "triton_serve_user '0:0' is root"),
        ({"name": "-x"}, "triton_serve_container_name '-x' is no name of a container"),
        ({"shm_size": "2x"}, "triton_serve_shm_size: '2x' is no size"),
        ({"memory": "much"}, "triton_serve_memory: 'much' is no size"),
        ({"ulimits": {"memlock": "all"}}, "triton_serve_ulimits: memlock 'all' is no number"),
        ({"ulimits": ["memlock"]}, "triton_serve_ulimits: ['memlock'] is not a dictionary"),
        ({"gpus": "first"}, "triton_serve_gpus: gpus 'first' names no GPU"),
        ({"mpirun_arguments": "--x"}, "triton_serve_mpirun_arguments '--x' is not a list"),
        ({"tmpfs": ["/tmp"]}, "triton_serve_tmpfs ['/tmp'] is not a dictionary"),
        ({"tmpfs": {"/var/tmp": "rw"}, "read_only": True}, "triton_serve_tmpfs has no /tmp"),
    ],
)
def test_container_settings_that_cannot_be(given: dict[str, Any], named: str) -> None:
    assert serve(container=CONTAINER) == [] == serve(container={**CONTAINER, "address": "::1", "user": "1000:1000"})
    problems = serve(container={**CONTAINER, **given})
    assert len(problems) == 1 and named in problems[0], problems


def test_command_and_environment_of_a_container() -> None:
    ports = {"http_port": "8000", "grpc_port": 8001, "metrics_port": 8002}
    words = filters.server_command("2", ports=ports, exit_timeout="30")
    assert words[0] == "mpirun" and words.count("--http-port=8000") == 2 and words.count(":") == 1
    with pytest.raises(AnsibleFilterError, match="server_command: world_size 0 is not possible"):
        filters.server_command(0, ports=ports, exit_timeout=30)
    with pytest.raises(AnsibleFilterError, match="server_command"):
        filters.server_command(1, ports={}, exit_timeout=30)
    one, two = filters.server_environment(1), filters.server_environment("2")
    assert one["HOME"] == "/tmp" and set(two) - set(one) == {
        "OMPI_MCA_odls_base_sigkill_timeout", "PRTE_MCA_odls_base_sigkill_timeout",
    }  # fmt: skip


def test_flavours_and_methods() -> None:
    assert filters.release_problems("1.1.0", "engine", "reference") == []
    assert filters.release_problems("1.3.0", "llmapi", "pull") == []
    (problem,) = filters.release_problems("1.1.0", "llmapi", "reference")
    assert "flavour 'llmapi' is not served by the method reference" in problem and "use flavour engine" in problem
    (problem,) = filters.release_problems("1.1.0", "engin")
    assert "'engin' is not one of engine, llmapi" in problem


def test_sources_of_weights() -> None:
    assert filters.weights_problems("directory", "/srv/mixtral") == [] == filters.weights_problems("tiny", "")
    for path in ("", "relative", None):
        (problem,) = filters.weights_problems("directory", path)
        assert "mixtral_engine_weights_path %r is not an absolute path" % (path,) in problem
    (problem,) = filters.weights_problems("tiny", "/srv/mixtral")
    assert "'/srv/mixtral' is given" in problem and "'tiny'" in problem


def test_a_release_is_a_row_without_tables() -> None:
    row = filters.release("1.1.0")
    assert row["config_line"] == "1.1.0" and not set(filters.TABLES) & set(row)
    with pytest.raises(AnsibleFilterError, match="'9.9.9' is not supported"):
        filters.release("9.9.9")


@pytest.mark.parametrize(
    ("address", "host"),
    [("0.0.0.0", "127.0.0.1"), ("::", "[::1]"), ("::1", "[::1]"), ("10.0.0.1", "10.0.0.1"), ("name", "name")],
)
def test_reachable_host(address: str, host: str) -> None:
    assert filters.reachable_host(address) == host


def test_command_option() -> None:
    assert filters.command_option({"key": "experts", "value": 4}) == "--experts=4"


@pytest.mark.parametrize(
    ("offset", "named"),
    [
        (-1, "triton_serve_surge_port_offset -1 is negative"),
        (1, "triton_serve_surge_port_offset 1 leads from triton_serve_http_port 8000 to triton_serve_grpc_port 8001"),
        (60000, "triton_serve_surge_port_offset 60000 leads from triton_serve_http_port 8000 to 68000, which is not"),
    ],
)
def test_a_second_server_needs_ports_of_its_own(offset: int, named: str) -> None:
    ports = {"http_port": 8000, "grpc_port": 8001, "metrics_port": 8002}
    assert serve(ports=ports, surge_port_offset=0) == [] == serve(ports=ports, surge_port_offset="100")
    assert named in serve(ports=ports, surge_port_offset=offset)[0]


def test_the_first_action_of_a_run_brings_all_filters() -> None:
    """Each process that Ansible forks for a host would compile them again."""
    names = sorted(path.stem for path in Path(filters.__file__).parent.glob("*.py"))
    code = (
        "from ansible.plugins.loader import action_loader, init_plugin_loader; init_plugin_loader(sys.path);"
        " action_loader.get('trtllm.serving.rollout_plan', class_only=True);"
        " print(*sorted(n.rpartition('.')[2] for n in sys.modules if '.serving.plugins.filter.' in n))"
    )
    done = subprocess.run([sys.executable, "-c", f"import sys; sys.path[:] = {sys.path!r}; {code}"],
                          capture_output=True, text=True, check=True)  # fmt: skip
    assert done.stdout.split() == names and "release" in names
    validate = yaml.safe_load((Path(filters.__file__).parents[2] / "playbooks" / "validate.yml").read_text("utf-8"))
    assert validate[0]["tasks"][0]["ansible.builtin.import_role"]["name"] == "trtllm.serving.triton_pool"
