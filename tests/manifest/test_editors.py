"""What an editor shows: the real yaml-language-server from npm, with nothing told to it but the first line of a manifest.

It is looked for in .bench/yaml-language-server; `pytest --long` installs it there (27 MB, once).
"""

import json
import shutil
import subprocess
from itertools import count
from pathlib import Path

import pytest

from deployctl.cli.init import run_init

ROOT = Path(__file__).parents[2]
HOME = ROOT / ".bench" / "yaml-language-server"
SERVER = HOME / "node_modules" / "yaml-language-server" / "bin" / "yaml-language-server"
MANIFESTS = sorted((ROOT / "manifests").glob("*.yaml"))
SETTINGS = {"yaml": {"validate": True, "hover": True, "completion": True, "schemaStore": {"enable": False}}}


@pytest.fixture(scope="module")
def server(request):
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None:
        pytest.skip("node is not installed")
    if not SERVER.exists():
        if npm is None or not request.config.getoption("--long"):
            pytest.skip("yaml-language-server is not in .bench; `pytest --long` installs it with npm")
        HOME.mkdir(parents=True, exist_ok=True)
        install = [npm, "install", "--no-audit", "--no-fund", "--prefix", str(HOME), "yaml-language-server"]
        if subprocess.run(install, capture_output=True, check=False, cwd=HOME, timeout=100).returncode:
            pytest.skip("npm could not install yaml-language-server")
    process = subprocess.Popen(
        [node, str(SERVER), "--stdio"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    editor = Editor(process)
    try:
        yield editor
    finally:
        process.kill()
        process.communicate()


class Editor:
    """As little of an editor as is needed: it opens files, and is told what is wrong with them."""

    def __init__(self, process):
        self.process = process
        self.numbers = count(1)
        self.ask(
            "initialize",
            processId=None,
            rootUri=ROOT.as_uri(),
            capabilities={"workspace": {"configuration": True}},
        )
        self.send(method="initialized", params={})
        self.send(method="workspace/didChangeConfiguration", params={"settings": SETTINGS})

    def open(self, path, text):
        """The problems of a file with this text, as (line, message), lines from 1."""
        uri = Path(path).as_uri()
        item = {"uri": uri, "languageId": "yaml", "version": 1, "text": text}
        self.send(method="textDocument/didOpen", params={"textDocument": item})
        found = self.until(
            lambda said: (
                said.get("method") == "textDocument/publishDiagnostics" and said["params"]["uri"] == uri
            )
        )
        return [(one["range"]["start"]["line"] + 1, one["message"]) for one in found["params"]["diagnostics"]]

    def ask(self, method, **params):
        number = next(self.numbers)
        self.send(id=number, method=method, params=params)
        return self.until(lambda said: said.get("id") == number and "method" not in said)["result"]

    def at(self, path, line, character):
        return {
            "textDocument": {"uri": Path(path).as_uri()},
            "position": {"line": line - 1, "character": character},
        }

    def send(self, **message):
        body = json.dumps({"jsonrpc": "2.0", **message}).encode()
        self.process.stdin.write(b"Content-Length: %d\r\n\r\n%b" % (len(body), body))
        self.process.stdin.flush()

    def until(self, wanted):
        while not wanted(said := self.read()):
            if said.get("method") == "workspace/configuration":
                sections = [SETTINGS.get(item.get("section")) for item in said["params"]["items"]]
                self.send(id=said["id"], result=sections)
            elif "id" in said and "method" in said:
                self.send(id=said["id"], result=None)
        return said

    def read(self):
        length = 0
        while (line := self.process.stdout.readline().strip()) or not length:
            assert line or self.process.poll() is None, "the language server has ended"
            if line.lower().startswith(b"content-length:"):
                length = int(line.split(b":")[1])
        return json.loads(self.process.stdout.read(length))


@pytest.mark.parametrize("manifest", MANIFESTS, ids=lambda path: path.stem)
def test_an_editor_finds_nothing_wrong_with_an_example(server, manifest):
    assert server.open(manifest, manifest.read_text("utf-8")) == []


def test_an_editor_finds_nothing_wrong_with_what_init_writes(server, tmp_path, capsys):
    run_init(str(tmp_path), as_json=True)
    capsys.readouterr()
    written = tmp_path / "rollout.yaml"
    assert server.open(written, written.read_text("utf-8")) == []


@pytest.mark.parametrize(
    ("right", "wrong", "said"),
    [
        ("    timeout: 500ms", "    timeuot: 500ms", "timeuot"),
        ("      minDwell: 3s", "      minDwell: soon", "pattern"),
        ('    version: "2"', "    version: 2", "string"),
        ("      - setWeight: 5", "      - setWeight: 150", ""),
        ("      onInconclusive: rollback", "      onInconclusive: promote", "rollback"),
        ("name: null-rate", "name: nul-rate", "null-rate"),
    ],
)
def test_an_editor_marks_a_mistake_at_its_line_and_nothing_else(server, right, wrong, said):
    example = ROOT / "manifests" / "digits-v2.yaml"
    text = example.read_text("utf-8")
    assert right in text
    line = text[: text.index(right)].count("\n") + 1
    problems = server.open(example.with_name(f"wrong-{line}.yaml"), text.replace(right, wrong, 1))
    assert {at for at, _ in problems} == {line}, problems
    assert any(said in message for _, message in problems), problems


def test_an_editor_tells_what_a_key_means_and_which_there_are(server):
    example = ROOT / "manifests" / "digits-v2.yaml"
    text = example.read_text("utf-8")
    server.open(example.with_name("hovered.yaml"), text)
    line = text[: text.index("minDwell")].count("\n") + 1
    told = server.ask("textDocument/hover", **server.at(example.with_name("hovered.yaml"), line, 8))
    assert "Least time per step, beside the evidence." in json.dumps(told)
    offered = server.ask("textDocument/completion", **server.at(example.with_name("hovered.yaml"), line, 6))
    items = offered["items"] if isinstance(offered, dict) else offered
    assert {"holdback", "keepWarm"} <= {item["label"] for item in items}
