"""The house rules as a test: who may import whom, how long a function may be, what a file may not say.

MAY_IMPORT is the table to edit. An entry holds for everything below it that has no entry of its own.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "deployctl"
LONGEST_FUNCTION = 64
NO_MODULES = {"utils", "common", "base", "manager"}

# room: (rooms of deployctl that it may import beside itself, * for all of them; third parties)
MAY_IMPORT: dict[str, tuple[set[str], set[str]]] = {
    "": (set(), set()),
    "__main__": ({"cli", "errors", "views"}, {"typer", "click"}),
    "errors": (set(), set()),
    "durable": (set(), set()),
    "core": (set(), {"numpy"}),
    "core.plan": ({"core"}, set()),
    "core.rollout": ({"core"}, set()),
    "core.assignment": ({"core"}, set()),
    "core.service": ({"core"}, set()),
    "wire": ({"core", "errors"}, {"msgspec", "numpy", "simdjson", "h11", "httpx"}),
    "manifest": ({"core", "errors"}, {"yaml", "pydantic", "pydantic_core"}),
    "reserve": (set(), set()),
    "journal": ({"core", "errors", "durable", "reserve"}, set()),
    "statedir": ({"core", "errors", "durable"}, set()),
    "store": ({"core", "errors", "durable"}, set()),
    # httpx, tenacity, fsspec and yaml are imported when something is fetched
    "sources": (
        {"errors", "durable", "manifest.model_uri", "statedir", "store"},
        {"httpx", "tenacity", "fsspec", "yaml"},
    ),
    # the one walk over the bytes of a model
    "sources.one_file": ({"errors", "serving.external"}, set()),
    "labels": ({"core", "errors", "durable"}, {"msgspec"}),
    # a batch is admitted in the form in which it crossed the wire
    "records": ({"core", "errors", "durable", "wire.orders"}, {"msgspec", "numpy"}),
    "outcome_log": ({"core", "errors"}, {"msgspec", "numpy"}),
    # labels are kept in the form in which they crossed the wire
    "prediction_log": (
        {"core", "errors", "journal", "records", "statedir", "wire.orders"},
        {"msgspec", "numpy"},
    ),
    "export": ({"core", "errors", "prediction_log", "records", "outcome_log", "statedir"}, {"msgspec"}),
    # pyarrow is an extra, and is imported when a Parquet file is asked for
    "prediction_export": (
        {"core", "errors", "durable", "prediction_log", "statedir"},
        {"msgspec", "numpy", "pyarrow"},
    ),
    "replay": ({"core", "outcome_log"}, {"numpy"}),
    "traffic": ({"core", "errors", "wire"}, {"msgspec"}),
    "webhooks": ({"errors"}, {"httpx", "tenacity"}),
    "router": ({"core", "errors", "wire"}, {"httptools", "uvloop", "msgspec"}),
    "serving": ({"core", "errors", "wire"}, {"onnxruntime", "numpy", "uvloop", "msgspec"}),
    "controller": (
        {
            "core",
            "errors",
            "journal",
            "records",
            "labels",
            "manifest",
            "statedir",
            "store",
            "wire.orders",
            "wire.admin",
        },
        {"numpy", "msgspec"},
    ),
    "controller.door": ({"core", "errors", "statedir", "wire.credentials"}, set()),
    # the one place where the loop is wired to the world
    "controller.__main__": (
        {"core", "errors", "journal", "statedir", "store", "traffic", "webhooks", "wire"},
        {"uvloop"},
    ),
    # tells the manifest loader which engines, label sources and model sources there are
    "controller.commands": (
        {"core", "errors", "labels", "manifest", "sources", "statedir", "traffic"},
        set(),
    ),
    # both ends of the tie between it and its children
    "supervisor": ({"errors", "statedir", "handover", "wire.lifeline", "wire.priority"}, set()),
    "handover": ({"errors", "wire.lifeline"}, set()),
    # imports the code of every process by name, and only to see that it is there
    "rehearsal": ({"controller.fold", "errors", "handover", "journal", "statedir", "wire.lifeline"}, set()),
    # looks at what every other room leaves on the machine, and changes nothing of it
    "doctor": (
        {
            "controller.fold",
            "core",
            "errors",
            "journal",
            "records",
            "rehearsal",
            "reserve",
            "statedir",
            "store",
            "views.figures",
            "wire.admin",
            "wire.credentials",
            "wire.priority",
        },
        set(),
    ),
    "views": ({"core"}, {"rich"}),
    "cli": ({"*"}, {"typer", "click", "rich", "httpx", "numpy"}),
}

MACHINE_WORDS = re.compile(
    r"/[w]ork/|/[f]arm/|[.]library\b|[p]ypi[.]org|[p]ythonhosted|[r]egistry[.]npmjs|[d]eb[.]debian"
    r"|\b[s]hared/(architecture|contract|research|hooks|product)"
)
NOT_OURS = {".git", ".venv", ".bench", "__pycache__", "dist", "build"}
IGNORE = re.compile(r"#\s*(noqa|type:\s*ignore)\b(?P<rest>.*)")
CODE_AND_REASON = re.compile(
    r"(:\s*|\[)[A-Za-z][A-Za-z0-9-]*(, ?[A-Za-z][A-Za-z0-9-]*)*\]?\s+[#-]*\s*\S+ \S+"
)


def files_of_the_project() -> Iterator[Path]:
    for path in sorted(ROOT.rglob("*")):
        parts = path.relative_to(ROOT).parts
        cache = any(
            part in NOT_OURS or part.endswith(("_cache", ".egg-info", ".hypothesis")) for part in parts
        )
        if path.is_file() and not cache:
            yield path


def module_name(path: Path) -> str:
    """`core.plan` for deployctl/core/plan.py, `core` for deployctl/core/__init__.py."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def rule_of(module: str) -> str:
    """The entry of MAY_IMPORT that holds for a module: its own, or that of the nearest room around it."""
    while module not in MAY_IMPORT:
        around, _, _ = module.rpartition(".")
        assert around, f"deployctl.{module} has no line in MAY_IMPORT: decide what it may know"
        module = around
    return module


def imports(source: str) -> Iterator[str]:
    """Every module that a source imports, at the top, inside functions, for typing only or by its name in a string."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute"
            for alias in node.names:
                longer = f"{node.module}.{alias.name}"
                yield longer if longer.removeprefix("deployctl.") in MODULES else str(node.module)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            yield from (arg.value for arg in node.args[:1] if isinstance(arg, ast.Constant))


def forbidden_imports(module: str, source: str) -> list[str]:
    """What a module imports and may not."""
    rule = rule_of(module)
    rooms, third_parties = MAY_IMPORT[rule]
    own = module.partition(".")[0]
    found = []
    for name in imports(source):
        top, _, inside = name.partition(".")
        if top == "deployctl":
            allowed = {own, *rooms} if own else rooms
            if (
                inside
                and "*" not in allowed
                and not any(f"{inside}.".startswith(f"{room}.") for room in allowed)
            ):
                found.append(f"deployctl.{module} imports {name}, and may not")
        elif top not in sys.stdlib_module_names and top not in third_parties:
            found.append(f"deployctl.{module} imports {name}, and may not")
    return found


WALL_CLOCK = {
    "cli.demo": "asks its callers for a report that is newer than the question",
    "controller.labels": "refuses a label whose own time is in the future",
    "controller.loop": "when an event happened, for people",
    "doctor.clock": "whether it can be right, and until when a certificate holds",
    "labels.folder": "how long ago a file was written to, before it is spoken of",
    "router.http": "the Date of an answer",
    "router.server": "refuses a label whose own time is in the future",
}
"""Who may look at the wall clock, and for what. Steps, windows and time-outs are measured on the monotonic one: the other one steps."""

WALL_CLOCK_CALL = re.compile(
    r"\btime\.(time|time_ns|localtime|gmtime|ctime|asctime)\b|\b(datetime|date)\.(now|utcnow|today)\b"
    r"|from time import [^\n]*\b(time|time_ns|localtime|gmtime)\b|\bCLOCK_REALTIME\b"
)


def test_only_those_who_show_it_look_at_the_wall_clock() -> None:
    found = {module for module, path in MODULES.items() if WALL_CLOCK_CALL.search(path.read_text())}
    assert found == set(WALL_CLOCK)


@pytest.mark.parametrize(
    ("source", "looks"),
    [
        ("deadline = time.time() + 5", True),
        ("from time import monotonic, time", True),
        ("now: Callable[[], datetime] = partial(datetime.now, UTC)", True),
        ("from time import monotonic", False),
        ("deadline = time.monotonic() + 5", False),
        ("at = datetime.fromisoformat(text)", False),
    ],
)
def test_a_planted_look_at_the_wall_clock_is_caught(source: str, looks: bool) -> None:
    assert bool(WALL_CLOCK_CALL.search(source)) is looks


def long_functions(source: str) -> list[str]:
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    return [
        f"{node.name} has {lines} lines"
        for node in ast.walk(ast.parse(source))
        if isinstance(node, functions)
        and (lines := (node.end_lineno or 0) - node.lineno + 1) > LONGEST_FUNCTION
    ]


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_what_its_room_may_know(module: str) -> None:
    assert forbidden_imports(module, MODULES[module].read_text()) == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("core.metrics", "import os, scipy"),
        ("core.plan", "import numpy as np"),
        ("core.rollout", "def f():\n    from numpy import array"),
        ("core.plan", "from deployctl.errors import InvalidError"),
        ("journal", "from deployctl import store"),
        ("router.server", "import deployctl.serving.model"),
        ("serving.worker", "from deployctl import router"),
        ("traffic.builtin", "from deployctl.router.server import serve"),
        ("controller.loop", "from deployctl.traffic import builtin"),
        ("controller.loop", "if TYPE_CHECKING:\n    from deployctl.wire.frames import Frame"),
        ("views.status", "from deployctl.journal import read"),
        ("views.status", "from deployctl.controller.loop import Controller"),
        ("supervisor", "import deployctl.cli.app"),
        ("wire.admin", "import importlib\nimportlib.import_module('deployctl.cli.app')"),
        ("manifest.load", "import requests"),
        ("", "from deployctl.core import plan"),
    ],
)
def test_a_planted_import_is_caught(module: str, source: str) -> None:
    assert len(forbidden_imports(module, source)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("core.metrics", "import math, numpy as np\nfrom deployctl.core.plan import Plan"),
        ("journal", "from deployctl import errors"),
        ("controller.loop", "from deployctl.wire import orders"),
        ("cli.demo", "def f():\n    from deployctl.views import status"),
    ],
)
def test_an_allowed_import_is_not(module: str, source: str) -> None:
    assert forbidden_imports(module, source) == []


def test_only_the_starter_imports_the_command_line() -> None:
    assert [module for module, (rooms, _) in MAY_IMPORT.items() if "cli" in rooms] == ["__main__"]


def test_importing_deployctl_does_nothing() -> None:
    lines = "import sys; before = set(sys.modules); import deployctl; print(*set(sys.modules) - before, sep='\\n')"
    run = subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True, check=True)
    ours = {name for name in run.stdout.split() if name.partition(".")[0] not in sys.stdlib_module_names}
    assert ours == {"deployctl"}


@pytest.mark.parametrize("module", [name for name, path in MODULES.items() if path.name == "__init__.py"])
def test_a_package_opens_with_its_sentence_and_holds_at_most_a_registry(module: str) -> None:
    tree = ast.parse(MODULES[module].read_text())
    assert ast.get_docstring(tree)
    allowed = (ast.Import, ast.ImportFrom, ast.Assign, ast.AnnAssign, ast.Expr)
    assert [type(node).__name__ for node in tree.body if not isinstance(node, allowed)] == []


@pytest.mark.parametrize("module", MODULES)
def test_a_module_says_what_it_is_and_its_functions_fit_a_screen(module: str) -> None:
    source = MODULES[module].read_text()
    assert ast.get_docstring(ast.parse(source))
    assert long_functions(source) == []


def test_a_planted_long_function_is_caught() -> None:
    body = "    pass\n" * LONGEST_FUNCTION
    assert long_functions(f"async def endless():\n{body}") == [f"endless has {LONGEST_FUNCTION + 1} lines"]
    assert long_functions(f"def fits():\n{body[len('    pass;') :]}") == []


def test_no_module_has_a_name_that_says_nothing() -> None:
    assert {path.stem for path in PACKAGE.rglob("*")} & NO_MODULES == set()


def bare_ignores(source: str) -> list[str]:
    return [
        line.strip()
        for line in source.splitlines()
        if (ignore := IGNORE.search(line)) and not CODE_AND_REASON.match(ignore["rest"])
    ]


def test_every_ignore_names_its_code_and_its_reason() -> None:
    sources = [path for path in files_of_the_project() if path.suffix == ".py" and path != Path(__file__)]
    assert {str(path): bare for path in sources if (bare := bare_ignores(path.read_text()))} == {}


@pytest.mark.parametrize(
    ("line", "is_bare"),
    [
        ("x = 1  # noqa", True),
        ("x = 1  # noqa: S603", True),
        ("x = 1  # type: ignore", True),
        ("x = 1  # type: ignore[misc]", True),
        ("x = 1  # noqa: S603  # the arguments are ours", False),
        ("x = 1  # noqa: S603, S607 - the arguments are ours", False),
        ("x = 1  # type: ignore[no-untyped-call]  # ships no types", False),
    ],
)
def test_an_ignore_without_a_reason_is_caught(line: str, is_bare: bool) -> None:
    assert bool(bare_ignores(line)) is is_bare


def test_no_file_names_a_machine_or_a_registry() -> None:
    texts = {path: path.read_bytes().decode(errors="ignore") for path in files_of_the_project()}
    assert {
        str(path): found.group() for path, text in texts.items() if (found := MACHINE_WORDS.search(text))
    } == {}


@pytest.mark.parametrize(
    "text", ["see /" + "work/x", "https://" + "pypi" + ".org/simple", "." + "library/search"]
)
def test_a_planted_machine_path_is_caught(text: str) -> None:
    assert MACHINE_WORDS.search(text)
