#!/usr/bin/env python3
# Copyright (c) 2026, trtllm.serving contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Everything that is checked, stage by stage; the last line says how much passed and how much failed.

`make test` runs it by the development environment's Python. Everything it makes is below .work, and the logs of the
stages are in .work/test/logs. The stages testbed, docker, debian, redhat and fleet need root and Docker Engine, others
HAProxy, Prometheus' promtool or a registry: on a machine of the Debian family what is missing is installed, and an
engine that nothing else manages is started, and stopped again at the end. Where they cannot run they fail and say why;
ALLOW_SKIP=1 skips them instead. Images of the test bed stay in the engine for the next run, under the name trtllm-test.
rollout, lb, once and fleet-full (the whole of the scenario fleet) run only when they are named.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from testbed.machine import Machine

WORK = ROOT / ".work"
LOGS = WORK / "test" / "logs"
BIN = Path(sys.executable).parent
ALLOW_SKIP = os.environ.get("ALLOW_SKIP") == "1"
MACHINE = Machine(LOGS / "machine.log")
PYTEST = [sys.executable, "-m", "pytest", "-q", "--color=no"]
# Settings of the caller's shell must not decide what is tested.
FOREIGN = re.compile(r"ANSIBLE_|TRTLLM_|MAKE|MFLAGS|PYTHONPATH$|PYTEST_|MOLECULE_")


def environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not FOREIGN.match(name)}
    kept.setdefault("PIP_CACHE_DIR", str(WORK / "cache" / "pip"))
    return {
        **kept,
        "PATH": os.pathsep.join([str(BIN), kept.get("PATH", os.defpath), "/usr/sbin", "/sbin"]),
        "LC_ALL": "C.UTF-8",
        "NO_COLOR": "1",
        "ANSIBLE_NOCOLOR": "1",
        "ANSIBLE_HOME": str(WORK / "test" / "ansible"),
        "XDG_STATE_HOME": str(WORK / "test" / "state"),
        "ANSIBLE_COLLECTIONS_PATH": str(ROOT / ".collections"),
        "PYTHONPYCACHEPREFIX": str(WORK / "pycache"),
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        # Tiny models have nothing for a second thread to do, which would wait for it with all of a processor.
        "OPENBLAS_NUM_THREADS": "1",
    }


class Running:
    """The processes that were started, so that an interrupted run ends them all."""

    lock = threading.Lock()
    processes: set[subprocess.Popen[bytes]] = set()
    stopped = False

    @classmethod
    def signal(cls, number: int) -> None:
        for process in list(cls.processes):
            try:
                os.killpg(process.pid, number)
            except ProcessLookupError:
                pass

    @classmethod
    def stop(cls) -> None:
        """First as Ctrl-C would, so that servers are stopped by the tests that started them."""
        with cls.lock:
            cls.stopped = True
        for number, patience in ((signal.SIGINT, 60.0), (signal.SIGTERM, 20.0), (signal.SIGKILL, 10.0)):
            cls.signal(number)
            deadline = time.monotonic() + patience
            while cls.processes and time.monotonic() < deadline:
                time.sleep(0.1)
            if not cls.processes:
                return


@dataclass
class Stage:
    name: str
    what: str
    body: Callable[[Stage], None]
    passed: int = 0
    failed: int = 0
    skipped: int = 0
    lines: list[str] = field(default_factory=list)

    def log(self, name: str) -> Path:
        return LOGS / ("%s-%s.log" % (self.name, re.sub(r"\W+", "-", name)))

    def add(self, passed: int, failed: int, skipped: int, line: str) -> None:
        self.passed += passed
        self.failed += failed
        self.skipped += skipped
        self.lines.append(line)

    def skip(self, name: str, why: str) -> None:
        self.add(0, 0, 1, "skipped  %s: %s" % (name, why))

    def run(
        self, name: str, argv: Iterable[object], timeout: float, cwd: Path = ROOT, **env: str
    ) -> tuple[int, str, float]:
        """Return code, output and time; the code is -1 for a command that took too long."""
        log = self.log(name)
        begun = time.monotonic()
        with log.open("wb") as stream:
            with Running.lock:
                if Running.stopped:
                    return -1, "interrupted\n", 0.0
                process = subprocess.Popen(
                    [str(part) for part in argv], cwd=cwd, env={**environment(), **env}, stdin=subprocess.DEVNULL,
                    stdout=stream, stderr=subprocess.STDOUT, start_new_session=True,
                )  # fmt: skip
                Running.processes.add(process)
            try:
                code = process.wait(timeout)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGTERM)
                try:
                    process.wait(20)
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
                stream.write(b"\nnot done after %d s\n" % timeout)
                code = -1
            finally:
                Running.processes.discard(process)
        return code, log.read_text("utf-8", "replace"), time.monotonic() - begun

    def check(self, name: str, argv: Iterable[object], timeout: float = 300, cwd: Path = ROOT, **env: str) -> bool:
        """One command that passes or fails as a whole."""
        code, output, seconds = self.run(name, argv, timeout, cwd, **env)
        if code == 0:
            self.add(1, 0, 0, "passed   %s (%.1f s)" % (name, seconds))
        else:
            self.add(0, 1, 0, "FAILED   %s (%.1f s)\n%s" % (name, seconds, output.rstrip()))
        return code == 0

    def pytest(self, name: str, argv: Iterable[object], timeout: float, **env: str) -> None:
        """Tests, each of which passes, fails or is skipped."""
        report = self.log(name).with_suffix(".xml")
        report.unlink(missing_ok=True)
        code, output, seconds = self.run(
            name, [*PYTEST, "-rs", "--junitxml", report, *argv], timeout, **env
        )
        counts = {"tests": 0, "failures": 0, "errors": 0, "skipped": 0}
        if report.is_file():
            for suite in ElementTree.parse(report).iter("testsuite"):
                counts = {key: counts[key] + int(suite.get(key, 0)) for key in counts}
        failed = counts["failures"] + counts["errors"]
        passed = counts["tests"] - failed - counts["skipped"]
        if code != 0 and failed == 0:
            failed = 1
        why = re.findall(r"(?m)^SKIPPED .*$", output)
        text = output.rstrip() if failed else "\n".join(why)
        head = "%s %s: %d passed, %d failed, %d skipped (%.1f s)" % (
            "FAILED  " if failed else "passed  ", name, passed, failed, counts["skipped"], seconds,
        )  # fmt: skip
        self.add(passed, failed, counts["skipped"], head + ("\n" + text if text else ""))


def ports(count: int = 3) -> list[int]:
    path = ROOT / "tests" / "demo" / "_site.py"
    spec = importlib.util.spec_from_file_location("_site", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["_site"] = module
    spec.loader.exec_module(module)
    found: list[int] = module.free_ports(count)
    return found


def source_files() -> list[Path]:
    """What git knows or would add; without git, everything but what a run makes."""
    done = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-co", "--exclude-standard", "-z"], capture_output=True, check=False
    ) if shutil.which("git") else None  # fmt: skip
    if done is not None and done.returncode == 0 and done.stdout:
        names = [Path(os.fsdecode(name)) for name in done.stdout.split(b"\0") if name]
        return sorted({name for name in names if os.path.lexists(ROOT / name)})
    found = []
    made = {".git", ".work", ".ansible", "__pycache__", ".mypy_cache", ".ruff_cache", ".pytest_cache"}
    for parent, folders, names in os.walk(ROOT):
        links = [name for name in folders if os.path.islink(os.path.join(parent, name))]
        folders[:] = sorted(set(folders) - made - set(links))
        found += [Path(parent, name).relative_to(ROOT) for name in sorted(names + links) if not name.endswith(".pyc")]
    return found


# --- the stages ---


def lint(stage: Stage) -> None:
    stage.check("ruff", [BIN / "ruff", "check", "--no-cache", "."])
    stage.check("yamllint", [BIN / "yamllint", "--strict", "."])
    stage.check("ansible-lint", [BIN / "ansible-lint", "--offline", "--profile", "production", "--project-dir", ROOT])
    stage.check("mypy", [BIN / "mypy", "-p", "ansible_collections.trtllm.serving.plugins"], MYPYPATH=".collections")
    stage.check("antsibull-changelog", [BIN / "antsibull-changelog", "lint"])
    stage.check("antsibull-docs", [BIN / "antsibull-docs", "lint-collection-docs", "--plugin-docs", "."])


def unit(stage: Stage) -> None:
    stage.pytest("tests/unit tests/parity tests/fleet", ["tests/unit", "tests/parity", "tests/fleet"], 600)


GET_PIP = '''\
"""In place of the get-pip that ansible-test would download: the bundled pip first, and by it the wanted one."""
import subprocess
import sys

# In a process of its own: ensurepip switches pip's configuration off in the process that runs it.
subprocess.check_call([sys.executable, "-m", "ensurepip"])
arguments = [argument for argument in sys.argv[1:] if argument not in ("--no-setuptools", "--no-wheel")]
sys.exit(subprocess.call([sys.executable, "-m", "pip", "install"] + arguments))
'''


def sanity(stage: Stage) -> None:
    """ansible-test wants a real directory, whose name is the collection's, and a home for its environments."""
    home = WORK / "cache" / "ansible-test"
    (home / ".ansible" / "test" / "cache").mkdir(parents=True, exist_ok=True)
    (home / ".ansible" / "test" / "cache" / "get_pip_24_2.py").write_text(GET_PIP, "utf-8")
    copy = WORK / "test" / "sanity" / "ansible_collections" / "trtllm" / "serving"
    shutil.rmtree(copy, ignore_errors=True)
    # Its link to the checkout would lead the copy to itself.
    for name in (name for name in source_files() if name.parts[0] != ".collections"):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, copy / name, follow_symlinks=False)
    # A checkout around the copy would have its own say in what belongs to the collection: the copy is one itself.
    if shutil.which("git"):
        subprocess.run(["git", "init", "--quiet", str(copy)], check=True, env=environment())
        (copy / ".git" / "info").mkdir(exist_ok=True)
        (copy / ".git" / "info" / "exclude").write_text("/tests/output/\n", "utf-8")
    # Another home must not hide where the user has told pip to look.
    env = {"HOME": str(home)}
    for path in (Path.home() / ".config" / "pip" / "pip.conf", Path.home() / ".pip" / "pip.conf"):
        if path.is_file() and "PIP_CONFIG_FILE" not in os.environ:
            env["PIP_CONFIG_FILE"] = str(path)
    command = [BIN / "ansible-test", "sanity", "--color", "no"]
    code, output, _seconds = stage.run("list", [*command, "--list-tests"], 120, copy, **env)
    if code != 0:
        said = [line for line in output.splitlines() if line.strip()] or ["no output"]
        stage.skip("ansible-test sanity", "ansible-test does not run here: %s" % said[-1])
        return
    version = "%d.%d" % sys.version_info[:2]
    argv = [*command, "--venv", "--python", version, "--requirements"]
    code, output, seconds = stage.run("ansible-test", argv, 900, copy, **env)
    ran = len(re.findall(r'(?m)^Running sanity test "', output))
    if code == 0 and ran:
        stage.add(ran, 0, 0, "passed   ansible-test sanity: %d tests (%.1f s)" % (ran, seconds))
        return
    # Anything else than a finding is no result.
    unreachable = re.search(r"No matching distribution|NewConnectionError", output)
    if unreachable and not re.search(r"(?m)^ERROR: Found \d+ ", output):
        stage.skip("ansible-test sanity", "no package index for its environments, see %s" % stage.log("ansible-test"))
        return
    failed = re.search(r"(?m)^FATAL: The (\d+) sanity test", output)
    count = int(failed.group(1)) if failed else 1
    said = "\n".join(line for line in output.splitlines() if line.startswith(("ERROR", "FATAL"))) or output
    stage.add(max(ran - count, 0), count, 0, "FAILED   ansible-test sanity (%.1f s)\n%s" % (seconds, said))


def demo(stage: Stage) -> None:
    stage.pytest("tests/demo", ["tests/demo"], 900)


def triton(stage: Stage) -> None:
    """The demo's environment with Triton, which is made here when the demo has not run."""
    home = WORK / "test" / "demo"
    playbook = [sys.executable, "-m", "ansible", "playbook", "-i", "inventory/local", "tests/triton/backend.yml"]
    if stage.check("environment with Triton", playbook, 600, TRTLLM_HOME=str(home)):
        stage.pytest("tests/triton", ["tests/triton"], 600, TRITONSERVER_VENV=str(home / "venv"))


def molecule(stage: Stage) -> None:
    names = ("HTTP", "GRPC", "METRICS")
    env = {"TRTLLM_TEST_%s_PORT" % name: str(port) for name, port in zip(names, ports())}
    env.update(MOLECULE_COMMAND_BORDERS="false")
    command = [BIN / "molecule", "--base-config", ".config/molecule/config.yml"]
    home = WORK / "test" / "molecule"
    if home.exists():
        stage.run("destroy", [*command, "destroy", "--scenario-name", "default"], 200, **env)
        shutil.rmtree(home, ignore_errors=True)
    stage.check("molecule test", [*command, "test", "--scenario-name", "default"], 600, **env)


def machine(stage: Stage, *tools: str) -> bool:
    """Whether a stage can run here that needs Docker, or only these programs; why not is said once for each."""

    def say(what: str) -> None:
        with PRINTING:
            print("\n%s: %s" % (stage.name, what), flush=True)

    problem = MACHINE.tools(say, tools) if tools else MACHINE.prepare(say)
    if problem and ALLOW_SKIP:
        stage.skip(stage.name, problem)
    elif problem:
        stage.add(0, 1, 0, "FAILED   %s cannot run here: %s; ALLOW_SKIP=1 skips it" % (stage.name, problem))
    return not problem


def testbed(stage: Stage) -> None:
    if machine(stage):
        stage.check("images", [sys.executable, "tests/testbed/build.py"], 1200)


def docker(stage: Stage) -> None:
    if machine(stage):
        stage.pytest("tests/docker", ["tests/docker"], 1200)


def host(stage: Stage) -> None:
    """A scenario of molecule on a host of the test bed; its tests are counted one by one."""
    if not machine(stage):
        return
    env = {"MOLECULE_COMMAND_BORDERS": "false", "ANSIBLE_HOME": str(WORK / "test" / stage.name)}
    shutil.rmtree(env["ANSIBLE_HOME"], ignore_errors=True)
    try:
        scenario(stage, stage.name, 1500, env)
    finally:
        # Also when the run was interrupted or took too long, and molecule could not do it.
        name = "trtllm-test-%s" % stage.name
        containers = ["%s-%s" % (name, part) for part in ("host", "repo", "registry")]
        for argv in (["docker", "rm", "--force", "--volumes", *containers], ["docker", "network", "rm", name]):
            subprocess.run(argv, env=environment(), capture_output=True, check=False)


def scenario(stage: Stage, name: str, timeout: float, env: dict[str, str]) -> None:
    """A whole scenario of molecule: its steps and its tests are counted one by one."""
    argv = [BIN / "molecule", "--base-config", ".config/molecule/config.yml", "test", "--scenario-name", name]
    code, output, seconds = stage.run("molecule test", argv, timeout, **env)
    counts = {
        what: sum(int(number) for number in re.findall(r"(?m)^.*?(\d+) %s\b.* in [0-9.:]+s" % what, output))
        for what in ("passed", "failed", "skipped")
    }
    steps = len(re.findall(r"Executed: Successful", output.partition("DETAILS")[0]))
    failed = counts["failed"] or int(code != 0)
    text = "\n" + output.rstrip() if failed else ""
    head = "%s molecule test: %d steps, %d tests passed, %d failed (%.1f s)" % (
        "FAILED  " if failed else "passed  ", steps, counts["passed"], failed, seconds,
    )  # fmt: skip
    stage.add(counts["passed"] + steps, failed, counts["skipped"], head + text)


def hub(stage: Stage) -> None:
    stage.pytest("tests/hub", ["tests/hub"], 900)


def installed(stage: Stage) -> None:
    stage.pytest("tests/installed", ["tests/installed"], 600)


def matrix(stage: Stage) -> None:
    stage.pytest("tests/matrix", ["tests/matrix"], 600)


def rollout(stage: Stage) -> None:
    stage.pytest("tests/rollout", ["tests/rollout"], 1500)


def lb(stage: Stage) -> None:
    if machine(stage, "haproxy", "openssl"):
        stage.pytest("tests/lb", ["tests/lb"], 900)


def distribution(stage: Stage) -> None:
    if machine(stage, "docker-registry", "htpasswd", "openssl"):
        stage.pytest("tests/distribution", ["tests/distribution/test_registry.py"], 300)


def once(stage: Stage) -> None:
    if machine(stage, "docker-registry", "htpasswd", "openssl"):
        stage.pytest("tests/distribution", ["tests/distribution/test_role.py"], 1200)


def monitoring(stage: Stage) -> None:
    if machine(stage, "promtool"):
        stage.pytest("tests/monitoring", ["tests/monitoring"], 300)


def fleet(stage: Stage) -> None:
    """molecule's scenario of hosts behind a balancer, short or whole."""
    if not machine(stage):
        return
    variant = "full" if stage.name == "fleet-full" else "short"
    home = WORK / "test" / "fleet"
    env = {"MOLECULE_COMMAND_BORDERS": "false", "ANSIBLE_HOME": str(home), "TRTLLM_TEST_FLEET": variant}
    shutil.rmtree(home, ignore_errors=True)
    try:
        scenario(stage, "fleet", 1700, env)
    finally:
        # Also when the run was interrupted or took too long, and molecule could not do it.
        bed = [sys.executable, "tests/fleet/bed.py", "destroy", "--name", "trtllm-test-fleet"]
        subprocess.run(bed, cwd=ROOT, env=environment(), capture_output=True, check=False)


STAGES = {
    stage.name: stage
    for stage in (
        Stage("lint", "ruff, yamllint, ansible-lint, mypy, antsibull", lint),
        Stage("unit", "plugins, roles and reference backend, without a server", unit),
        Stage("sanity", "ansible-test on a copy of the collection", sanity),
        Stage("demo", "make demo end to end, with tiny weights on spare ports", demo),
        Stage("triton", "every rendered config.pbtxt before the real Triton", triton),
        Stage("hub", "weights from a hub on loopback, by the real client", hub),
        Stage("molecule", "check, converge, idempotence, verify, rollback, destroy", molecule),
        Stage("installed", "the collection built, installed and run by its names", installed),
        Stage("matrix", "the oldest and the newest ansible-core", matrix),
        Stage("rollout", "Ansible's traps, batches and budgets, and runs that are killed, by real playbooks", rollout),
        Stage("lb", "real HAProxy processes: drain, reload, the role triton_lb", lb),
        Stage("distribution", "engines to and from a real registry", distribution),
        Stage("once", "one build for each kind of host, and builders that die, by real playbooks", once),
        Stage("monitoring", "rules and targets before promtool", monitoring),
        Stage("testbed", "images of the test hosts, of Debian's packages and PyPI's", testbed),
        Stage("docker", "modules with the machine's Docker Engine", docker),
        Stage("debian", "a host with apt and Docker: check, converge, idempotence, verify, reboot, faults", host),
        Stage("redhat", "the same on a host with dnf", host),
        Stage("fleet", "three hosts behind HAProxy under load: redeploy, rollback, poisoned engine", fleet),
        Stage("fleet-full", "six hosts in two pools, 10,000 requests, and every fault", fleet),
    )
}
# Only when named: with them the whole would take longer than half an hour on two cores.
BY_NAME = ("rollout", "lb", "once", "fleet-full")
# One more at a time than there are processors, for a deployment waits for its server much of the time; long ones first.
LANES = min((os.cpu_count() or 1) + 1, 4)
ORDER = (
    "testbed", "demo", "docker", "debian", "fleet", "fleet-full", "rollout", "redhat", "unit", "once", "lb", "hub",
    "triton", "sanity", "lint", "matrix", "molecule", "monitoring", "installed", "distribution",
)  # fmt: skip
# What a stage finds ready when another one has run, or has for itself.
AFTER = {
    "triton": {"demo"}, "docker": {"testbed"}, "debian": {"testbed"}, "redhat": {"testbed"}, "fleet": {"testbed"},
    "fleet-full": {"testbed", "fleet"},
}  # fmt: skip

PRINTING = threading.Lock()


def perform(stage: Stage) -> None:
    begun = time.monotonic()
    try:
        stage.body(stage)
    except Exception as error:  # a stage that breaks is a failure of that stage, not the end of the others
        stage.add(0, 1, 0, "FAILED   %s: %s: %s" % (stage.name, type(error).__name__, error))
    seconds = time.monotonic() - begun
    with PRINTING:
        print("\n=== %s: %s (%.0f s)" % (stage.name, stage.what, seconds))
        print("\n".join(stage.lines), flush=True)


class Queue:
    """The stages that are wanted, each given out once, and not before those that it comes after have ended."""

    def __init__(self, wanted: Iterable[str]) -> None:
        self.waiting = [name for name in ORDER if name in wanted]
        self.running: set[str] = set()
        self.changed = threading.Condition()

    def take(self) -> str | None:
        with self.changed:
            while self.waiting and not Running.stopped:
                for name in self.waiting:
                    if not AFTER.get(name, set()) & {*self.waiting, *self.running}:
                        self.waiting.remove(name)
                        self.running.add(name)
                        return name
                self.changed.wait(0.5)
        return None

    def work(self) -> None:
        while (name := self.take()) is not None:
            perform(STAGES[name])
            with self.changed:
                self.running.remove(name)
                self.changed.notify_all()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    told = "one or more of %s; without, all but %s" % (", ".join(STAGES), ", ".join(BY_NAME))
    parser.add_argument("stages", nargs="*", metavar="STAGE", help=told)
    options = parser.parse_args()
    unknown = [name for name in options.stages if name not in STAGES]
    if unknown:
        parser.error("unknown stage %s: choose from %s" % (", ".join(unknown), ", ".join(STAGES)))
    wanted = options.stages or [name for name in STAGES if name not in BY_NAME]
    shutil.rmtree(LOGS, ignore_errors=True)
    LOGS.mkdir(parents=True)
    begun = time.monotonic()
    queue = Queue(wanted)
    threads = [threading.Thread(target=queue.work) for _lane in range(LANES)]
    # A closed terminal or a CI system that has run out of patience is an interruption too.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            while thread.is_alive():
                thread.join(0.5)
    except KeyboardInterrupt:
        print("\nInterrupted: what was started is being stopped", file=sys.stderr, flush=True)
        Running.stop()
        for thread in threads:
            thread.join()
        return 130
    finally:
        MACHINE.stop()
    done = [STAGES[name] for name in STAGES if name in wanted]
    passed, failed, skipped = (sum(getattr(stage, name) for stage in done) for name in ("passed", "failed", "skipped"))
    print("\n%d stages in %.0f s; the logs are in %s" % (len(done), time.monotonic() - begun, LOGS.relative_to(ROOT)))
    print("%d passed, %d failed%s" % (passed, failed, ", %d skipped" % skipped if skipped else ""), flush=True)
    return 1 if failed or not passed else 0


if __name__ == "__main__":
    sys.exit(main())
