"""Another release of deployctl: a virtual environment of its own, with this tree's package under another version, and its script."""

import shutil
import sys
import sysconfig
import venv
from pathlib import Path

import deployctl

HERE = Path(deployctl.__file__).parent


def install(folder, release, **changes):
    """Give its interpreter. `changes` are made to files: name with __ for / → (what is there, what comes in its place)."""
    venv.create(folder, symlinks=True, with_pip=False)
    site = folder / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    package = site / "deployctl"
    shutil.copytree(HERE, package)  # with what is compiled already
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    _change(package / "__init__.py", deployctl.__version__, release)
    for name, (before, after) in changes.items():
        _change(package / f"{name.replace('__', '/')}.py", before, after)
    python = folder / "bin" / "python"
    script = Path(sys.executable).with_name("deployctl").read_text()
    console_script = python.with_name("deployctl")
    # As pip writes it where the path has spaces: the kernel's own line cannot have any.
    console_script.write_text(
        f"#!/bin/sh\n'''exec' \"{python}\" \"$0\" \"$@\"\n' '''\n{script[script.index('import sys') :]}"
    )
    console_script.chmod(0o755)
    return python


def _change(file, before, after):
    text = file.read_text()
    assert before in text, f"{before!r} is not in {file.name}"
    file.write_text(text.replace(before, after))
