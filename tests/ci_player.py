"""Plays the runner of a pipeline: reads the YAML of GitHub Actions or GitLab and runs what it says as their runners do.

The rules are those of actions/runner (ScriptHandler, FileCommandManager, ProcessInvoker) and of GitLab's shell executor. `uses:` steps are not
run; what an upload would upload has to exist. `pip install` is noted by a `pip` that installs nothing.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import uuid
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ci_runner
import yaml

PATIENCE = 90.0
KNOWN_ACTIONS = {"actions/checkout@v4", "actions/setup-python@v5", "actions/upload-artifact@v4"}


def tools(folder: Path) -> Path:
    """A folder for PATH: this Python, its deployctl, and a pip that notes what it shall install."""
    folder.mkdir()
    python = f'exec {sys.executable} "$@"'
    noted = f'if [ "$1 $2" = "-m pip" ]; then echo "$*" >> {folder}/installed; exit 0; fi'
    _script(folder / "python", f"{noted}\n{python}")
    _script(folder / "deployctl", f'exec {sys.executable} -m deployctl "$@"')
    return folder


def _script(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


@dataclass(frozen=True)
class Cancel:
    """Somebody cancels the job as soon as its log has these words. GitHub signals the step's first process, GitLab's shell executor the group."""

    when: str
    signals: tuple[tuple[signal.Signals, float], ...]
    """Each with the seconds until the next one, or until everything is killed."""
    group: bool


GITHUB_CANCEL = ((signal.SIGINT, 7.5), (signal.SIGTERM, 2.5))
GITLAB_CANCEL = ((signal.SIGTERM, 10.0),)


def run(
    command: list[str], cwd: Path, environment: dict[str, str], cancel: Cancel | None = None
) -> tuple[int, str]:
    """A process until it and everything that holds its output has ended; a background process that holds it would hang the step."""
    with subprocess.Popen(
        command,
        cwd=cwd,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        watchdog = threading.Timer(PATIENCE, os.killpg, (process.pid, signal.SIGKILL))
        watchdog.start()
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if cancel is not None and cancel.when in line:
                threading.Thread(target=_cancel, args=(process, cancel)).start()
                cancel = None
        watchdog.cancel()
        return process.wait(), "".join(lines)


def _cancel(process: subprocess.Popen[str], cancel: Cancel) -> None:
    for number, seconds in cancel.signals:
        (os.killpg if cancel.group else os.kill)(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
            return
    os.killpg(process.pid, signal.SIGKILL)


# ── GitHub ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class Step:
    """A step that has run: `outcome` is success, failure or skipped."""

    name: str
    outcome: str
    code: int = 0
    log: str = ""
    outputs: dict[str, str] = field(default_factory=dict)
    summary: str = ""


@dataclass
class Job:
    """A job that has run. `uploaded` are the artifacts by name, with their files."""

    result: str
    steps: dict[str, Step]
    outputs: dict[str, str]
    uploaded: dict[str, list[str]]


class GithubRunner:
    """Runs the job of a workflow in a workspace. `environment` is the machine's, `changed` replaces variables of the workflow."""

    def __init__(
        self,
        workflow: Path,
        workspace: Path,
        environment: dict[str, str],
        inputs: dict[str, Any] | None = None,
        changed: dict[str, str] | None = None,
    ) -> None:
        # Texts only: `on` is no boolean, as in GitHub's own reader.
        self._document = yaml.load(workflow.read_text(), yaml.BaseLoader)
        self._workspace = workspace
        self._tracking = f"github_{uuid.uuid4()}"
        self._temp = workspace.parent / f"runner-{self._tracking}"
        self._temp.mkdir()
        self._environment = {
            **environment,
            "CI": "true",
            "GITHUB_ACTIONS": "true",
            "GITHUB_WORKSPACE": str(workspace),
            "RUNNER_TEMP": str(self._temp),
            "RUNNER_TRACKING_ID": self._tracking,
        }
        self._path: list[str] = []
        self._contexts: dict[str, Any] = {"inputs": self._inputs(inputs or {}), "steps": {}, "env": {}}
        ((_, job),) = self._document["jobs"].items()
        self._env = {**self._document.get("env", {}), **(changed or {})}
        self._env |= self._filled(job.get("env", {}))
        self._left: list[dict[str, Any]] = list(job["steps"])
        self._steps: dict[str, Step] = {}
        self._uploaded: dict[str, list[str]] = {}
        self._status = "success"

    def _inputs(self, given: dict[str, Any]) -> dict[str, Any]:
        asked = (self._document["on"].get("workflow_dispatch") or {}).get("inputs", {})
        assert set(given) <= set(asked)
        defaults = {name: one["default"] for name, one in asked.items()}
        booleans = {name for name, one in asked.items() if one.get("type") == "boolean"}
        values = {**defaults, **given}
        return {
            name: value in {True, "true"} if name in booleans else value for name, value in values.items()
        }

    def run(self, cancel: tuple[str, str] | None = None, until: str = "") -> Job:
        """`cancel` is a step and the words in its log at which the job is cancelled; what says always() or cancelled() still runs.
        `until` is a step before which the runner pauses; the next call goes on from there.
        """
        ((_, job),) = self._document["jobs"].items()
        while self._left:
            step = self._left[0]
            name = step.get("name") or step["uses"]
            if name == until:
                return Job(
                    self._status, dict(self._steps), self._filled(job.get("outputs", {})), self._uploaded
                )
            self._left.pop(0)
            self._contexts["env"] = self._env
            if not self._applies(step.get("if", "success()"), self._status):
                self._steps[name] = Step(name, "skipped")
            elif "uses" in step:
                self._steps[name] = Step(name, "success")
                self._use(step, self._uploaded)
            else:
                self._run_or_cancel(name, step, cancel[1] if cancel and cancel[0] == name else None)
            if "id" in step:
                ran = self._steps[name]
                self._contexts["steps"][step["id"]] = {"outputs": ran.outputs, "outcome": ran.outcome}
        self._end_orphans()
        return Job(self._status, self._steps, self._filled(job.get("outputs", {})), self._uploaded)

    def _run_or_cancel(self, name: str, step: dict[str, Any], cancelled_at: str | None) -> None:
        self._steps[name] = self._run_step(name, step, cancelled_at)
        if cancelled_at is not None:
            self._status = "cancelled"
        elif self._status == "success" and self._steps[name].outcome == "failure":
            self._status = "failure"

    def _filled(self, texts: dict[str, str]) -> dict[str, str]:
        return {name: self._text(text) for name, text in texts.items()}

    def _text(self, text: str) -> str:
        return re.sub(r"\$\{\{(.*?)\}\}", lambda found: _as_text(self._value(found[1], "success")), text)

    def _applies(self, condition: str, status: str) -> bool:
        expression = re.sub(r"^\$\{\{(.*)\}\}$", r"\1", condition.strip())
        if not re.search(r"\b(always|success|failure|cancelled)\(\)", expression):
            expression = f"success() && ({expression})"
        return bool(self._value(expression, status))

    def _value(self, expression: str, status: str) -> Any:
        functions = {"always": True} | {name: name == status for name in ("success", "failure", "cancelled")}
        return Expression(expression, self._contexts, functions).value()

    def _use(self, step: dict[str, Any], uploaded: dict[str, list[str]]) -> None:
        assert step["uses"] in KNOWN_ACTIONS, step
        if step["uses"].startswith("actions/setup-python"):
            assert step["with"]["python-version"]
        if not step["uses"].startswith("actions/upload-artifact"):
            return
        found: list[str] = []
        for pattern in self._text(step["with"]["path"]).split():
            files = sorted(path.name for path in self._workspace.glob(pattern) if path.stat().st_size)
            assert files, f"there is no {pattern} to upload"
            found += files
        uploaded[step["with"]["name"]] = found

    def _run_step(self, name: str, step: dict[str, Any], cancelled_at: str | None) -> Step:
        files = {
            kind: self._temp / f"{kind}_{uuid.uuid4()}" for kind in ("OUTPUT", "ENV", "PATH", "STEP_SUMMARY")
        }
        for file in files.values():
            file.touch()
        script = self._temp / f"{uuid.uuid4()}.sh"
        script.write_text(self._text(step["run"]))
        shell = step.get("shell") or self._document.get("defaults", {}).get("run", {}).get("shell")
        options = ["--noprofile", "--norc", "-e", "-o", "pipefail"] if shell == "bash" else ["-e"]
        environment = self._environment | self._env | self._filled(step.get("env", {}))
        environment |= {f"GITHUB_{kind}": str(file) for kind, file in files.items()}
        environment["PATH"] = ":".join([*self._path, environment["PATH"]])
        folder = self._workspace / step.get("working-directory", ".")
        cancel = Cancel(cancelled_at, GITHUB_CANCEL, group=False) if cancelled_at else None
        code, log = run(["bash", *options, str(script)], folder, environment, cancel)
        outputs = ci_runner.file_command(files["OUTPUT"].read_text())
        self._env |= ci_runner.file_command(files["ENV"].read_text())
        self._path = [*files["PATH"].read_text().split(), *self._path]
        summary = files["STEP_SUMMARY"].read_text()
        assert len(summary.encode()) <= 1024 * 1024
        return Step(name, "failure" if code else "success", code, log, outputs, summary)

    def _end_orphans(self) -> None:
        """What still runs with the mark of this job is killed, as the runner does it."""
        mark = f"RUNNER_TRACKING_ID={self._tracking}".encode()
        for entry in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if mark in (entry / "environ").read_bytes().split(b"\0"):
                    os.kill(int(entry.name), signal.SIGKILL)


def _as_text(value: Any) -> str:
    return {True: "true", False: "false"}[value] if isinstance(value, bool) else str(value)


class Expression:
    """GitHub's expressions, as far as the examples use them: names, texts, functions of the status, ! == != && || and brackets."""

    TOKEN = re.compile(r"\s*(?:(&&|\|\||==|!=|[!()])|'((?:[^']|'')*)'|([A-Za-z_][\w.-]*))")

    def __init__(self, text: str, contexts: dict[str, Any], functions: dict[str, bool]) -> None:
        self._contexts, self._functions = contexts, functions
        self._tokens: list[tuple[str, str | None, str]] = []
        at = 0
        text = text.strip()
        while at < len(text):
            found = self.TOKEN.match(text, at)
            assert found, f"cannot read {text[at:]!r}"
            self._tokens.append((found[1] or "", found[2], found[3] or ""))
            at = found.end()

    def value(self) -> Any:
        value = self._either()
        assert not self._tokens, "the end of the expression was expected"
        return value

    def _take(self, *operators: str) -> str:
        if self._tokens and self._tokens[0][0] in operators and self._tokens[0][0]:
            return self._tokens.pop(0)[0]
        return ""

    def _either(self) -> Any:
        value = self._both()
        while self._take("||"):
            other = self._both()
            value = value or other
        return value

    def _both(self) -> Any:
        value = self._equal()
        while self._take("&&"):
            other = self._equal()
            value = value and other
        return value

    def _equal(self) -> Any:
        value = self._one()
        while operator := self._take("==", "!="):
            same = _as_text(value).lower() == _as_text(self._one()).lower()
            value = same is (operator == "==")
        return value

    def _one(self) -> Any:
        if self._take("!"):
            return not self._one()
        if self._take("("):
            value = self._either()
            assert self._take(")")
            return value
        _, text, name = self._tokens.pop(0)
        if text is not None:
            return text.replace("''", "'")
        if self._take("("):
            assert self._take(")")
            return self._functions[name]
        value: Any = self._contexts
        for part in name.split("."):
            value = value.get(part, "") if isinstance(value, dict) else ""
        return value


# ── GitLab ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class GitlabJob:
    """A job that has run: `status` is success, failed, warning (a failure that is allowed) or skipped."""

    status: str
    code: int = 0
    log: str = ""
    after: str = ""
    suites: list[ci_runner.Suite] = field(default_factory=list)
    variables: dict[str, str] = field(default_factory=dict)


def gitlab(
    file: Path,
    project: Path,
    environment: dict[str, str],
    cancel: tuple[str, str] | None = None,
    **variables: str,
) -> dict[str, GitlabJob]:
    """Every job of a pipeline, stage by stage; variables of the pipeline win over those of the file. `cancel` is a job and the words in
    its log at which it is cancelled.
    """
    document = yaml.safe_load(file.read_text())
    told = {"stages", "variables", "default"}
    jobs = {name: job for name, job in document.items() if name not in told}
    assert all(job["stage"] in document["stages"] for job in jobs.values())
    base = environment | {"CI": "true", "GITLAB_CI": "true", "CI_PROJECT_DIR": str(project)}
    base |= document.get("variables", {}) | variables
    ran: dict[str, GitlabJob] = {}
    for stage in document["stages"]:
        failed = any(job.status == "failed" for job in ran.values())
        inherited = {name: value for job in ran.values() for name, value in job.variables.items()}
        for name, job in jobs.items():
            if job["stage"] != stage:
                continue
            when = job.get("when", "on_success")
            if (when == "on_success" and failed) or (when == "on_failure" and not failed):
                ran[name] = GitlabJob("skipped")
            else:
                at = Cancel(cancel[1], GITLAB_CANCEL, group=True) if cancel and cancel[0] == name else None
                ran[name] = _gitlab_job(document.get("default", {}) | job, project, base | inherited, at)
    return ran


def _gitlab_job(
    job: dict[str, Any], project: Path, environment: dict[str, str], cancel: Cancel | None
) -> GitlabJob:
    for file in (path for path in _report_files(job) if path):
        (project / file).unlink(missing_ok=True)
    environment |= {name: str(value) for name, value in job.get("variables", {}).items()}
    lines = [*job.get("before_script", []), *job["script"]]
    code, log = run(["bash", "-c", "\n".join(["set -eo pipefail", *lines])], project, environment, cancel)
    allowed = job.get("allow_failure", {})
    accepted = allowed is True or code in (allowed.get("exit_codes", []) if isinstance(allowed, dict) else [])
    status = "success" if code == 0 else "warning" if accepted else "failed"
    after = ""
    if "after_script" in job:  # a shell of its own, whose failure changes nothing
        more = environment | {"CI_JOB_STATUS": "success" if code == 0 else "failed"}
        _, after = run(["bash", "-c", "\n".join(["set -eo pipefail", *job["after_script"]])], project, more)
    artifacts = job.get("artifacts", {})
    if code == 0 or artifacts.get("when") == "always":
        for path in artifacts.get("paths", []):
            assert (project / path).stat().st_size, f"there is no {path} to upload"
    reports = artifacts.get("reports", {})
    suites = [ci_runner.junit((project / reports["junit"]).read_text())] if "junit" in reports else []
    variables = ci_runner.dotenv((project / reports["dotenv"]).read_text()) if "dotenv" in reports else {}
    return GitlabJob(status, code, log, after, suites, variables)


def _report_files(job: dict[str, Any]) -> list[str]:
    reports = job.get("artifacts", {}).get("reports", {})
    return [str(file) for file in reports.values()]
