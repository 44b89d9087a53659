"""Nothing in the package executes what it reads: no pickle in any guise, no YAML but its safe loader, no evaluated text."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted(p for d in ("ameir_fast", "kernels", "bench") for p in (ROOT / d).rglob("*.py")) + [
    ROOT / "setup.py"
]

MODULES = {
    "pickle",
    "_pickle",
    "cPickle",
    "dill",
    "cloudpickle",
    "joblib",
    "shelve",
    "marshal",
    "jsonpickle",
}
# Dotted names as written at the call, after import aliases are resolved.
CALLS = {
    "torch.load",
    "torch.save",
    "torch.jit.load",
    "torch.package.PackageImporter",
    "pandas.read_pickle",
    "numpy.core.multiarray._reconstruct",
}
#: All that may be used of a module.
ONLY = {"yaml": {"safe_load", "YAMLError"}}
BUILTINS = {"eval", "exec", "compile", "__import__"}


def violations(source: str) -> list[str]:
    """``line: what`` for everything forbidden in a piece of Python."""
    tree = ast.parse(source)
    names: dict[str, str] = {}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for item in node.names:
                names[item.asname or item.name.split(".")[0]] = (
                    item.name if item.asname else item.name.split(".")[0]
                )
                if item.name.split(".")[0] in MODULES:
                    found.append(f"{node.lineno}: import {item.name}")
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            for item in node.names:
                names[item.asname or item.name] = f"{node.module}.{item.name}"
                if node.module.split(".")[0] in (*MODULES, *ONLY) or f"{node.module}.{item.name}" in CALLS:
                    found.append(f"{node.lineno}: from {node.module} import {item.name}")
    harmless = {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr in ONLY.get(dotted(node.value, names), ())
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and names.get(node.id, "").split(".")[0] in ONLY and id(node) not in harmless:
            found.append(f"{node.lineno}: {names[node.id]}, of which only {ONLY[names[node.id].split('.')[0]]} may be used")
        if isinstance(node, ast.Attribute):  # also where it is passed on and not called
            name = dotted(node, names)
            if name in CALLS:
                found.append(f"{node.lineno}: {name}")
        elif isinstance(node, ast.Name) and node.id in BUILTINS and node.id not in names:
            found.append(f"{node.lineno}: {node.id}")
        elif isinstance(node, ast.Call):
            for keyword in node.keywords:
                allowed = isinstance(keyword.value, ast.Constant) and keyword.value.value is False
                if keyword.arg == "allow_pickle" and not allowed:
                    found.append(f"{node.lineno}: allow_pickle")
            if dotted(node.func, names) == "numpy.load" and not any(
                k.arg == "allow_pickle" for k in node.keywords
            ):
                found.append(f"{node.lineno}: numpy.load without allow_pickle=False")
    return found


def dotted(node: ast.expr, names: dict[str, str]) -> str | None:
    parts = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    if not isinstance(node, ast.Name):
        return None
    return ".".join([names.get(node.id, node.id), *reversed(parts)])


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_code_is_loaded_from_data(path: Path) -> None:
    assert violations(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "import torch as t\nt.load('x')",
        "from torch import load",
        "import yaml\nyaml.load(f, yaml.SafeLoader)",
        "import yaml as y\ny.unsafe_load(f)",
        "import yaml\nload = getattr(yaml, 'load')",
        "import yaml.loader\nyaml.loader.Loader(f)",
        "from yaml import load",
        "from yaml import safe_load as load",
        "eval('1')",
        "exec('1')",
        "f = eval",
        "import numpy as np\nnp.load('x')",
        "import numpy as np\nnp.load('x', allow_pickle=True)",
        "import torch\nread = torch.load",
        "__import__('os')",
    ],
)
def test_the_check_finds_each_form(source: str) -> None:
    assert violations(source)


@pytest.mark.parametrize(
    "source",
    [
        "model.eval()",
        "import re\nre.compile('a')",
        "import numpy as np\nnp.load('x', allow_pickle=False)",
        "import json\njson.load(f)",
        "model.compile()",
        "import torch\ntorch.compile(f)",
        "import yaml\ntry:\n    yaml.safe_load(f)\nexcept yaml.YAMLError:\n    pass",
    ],
)
def test_the_check_lets_harmless_names_pass(source: str) -> None:
    assert violations(source) == []
