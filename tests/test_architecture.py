"""Who may import whom: the picture in docs/design.md, kept true."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "histo_ssl"

# Room -> rooms of ours that it may import. A room is a package, or a module at the top.
MAY_IMPORT = {
    "units": set(),
    "distributed": set(),
    "redaction": set(),
    "disk": set(),
    "changes": set(),
    "provenance": {"redaction"},
    "artifacts": {"changes", "disk", "provenance", "redaction"},
    "progress": set(),
    "slides": {"units", "artifacts", "disk", "progress"},
    "drawing": {"units"},
    "views": {"units"},
    "backbones": {"units"},
    "optim": {"units"},
    "embeddings": {"units", "artifacts", "disk"},
    "data": {"units", "artifacts", "drawing", "redaction", "slides", "embeddings", "views"},
    "methods": {"backbones", "optim", "distributed"},
    "callbacks": {"artifacts", "progress"},
    "training": {"callbacks", "data", "methods"},
    "encode": {"artifacts", "backbones", "data", "distributed", "embeddings", "progress"},
    "tasks": {"data", "embeddings", "encode", "optim", "distributed"},
    "sizing": set(),
    "report": {"artifacts", "embeddings", "redaction"},
    "plan": {"artifacts", "changes", "sizing"},
    "signatures": set(),
    "targets": {"redaction"},
    "preflight": {"plan", "signatures", "targets"},
    "stages": {
        "artifacts",
        "data",
        "encode",
        "methods",
        "plan",
        "preflight",
        "report",
        "tasks",
        "training",
        "views",
    },
    "cli": {"disk", "plan", "redaction", "stages", "targets"},
    "__main__": {"cli"},
    "__init__": set(),
}

# Third-party package -> files that may import it.
OWNERS = {
    "tiffslide": {"slides/reader.py"},
    "wandb": {"report/wandb.py"},
    "hydra": {"cli.py", "preflight.py", "stages.py", "signatures.py", "targets.py"},
    "omegaconf": {"cli.py", "plan.py"},
    "timm": {"backbones/timm.py", "backbones/resnet_trunc.py"},
    "h5py": {"embeddings.py"},
    "safetensors": {"encode.py"},
}


def _files() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def _imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", _files(), ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_a_room_imports_only_the_rooms_that_it_may(path: Path) -> None:
    ours = {name.split(".")[1] for name in _imports(path) if name.startswith("histo_ssl.")}
    assert ours - {_room(path)} <= MAY_IMPORT[_room(path)]


@pytest.mark.parametrize("path", _files(), ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_a_third_party_package_is_imported_by_its_owners_only(path: Path) -> None:
    for name in _imports(path):
        owners = OWNERS.get(name.split(".")[0])
        assert owners is None or path.relative_to(PACKAGE).as_posix() in owners, name


def test_the_help_needs_no_torch() -> None:
    for name in ("cli.py", "__main__.py", "__init__.py"):
        heavy = [module for module in _top_level_imports(PACKAGE / name) if module in ("torch", "lightning")]
        assert heavy == [], name


def _top_level_imports(path: Path) -> list[str]:
    nodes = ast.parse(path.read_text()).body
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]
    return [name.split(".")[0] for name in names]


def test_files_and_functions_keep_the_sizes_of_the_house() -> None:
    lines = {path: len(path.read_text().splitlines()) for path in _files()}
    assert {path.name: n for path, n in lines.items() if n > 300} == {}
    functions = {
        f"{path.name}:{node.name}": _body_lines(node)
        for path in _files()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef)
    }
    assert {name: n for name, n in functions.items() if n > 60} == {}
    sizes = sorted(functions.values())
    assert sizes[int(0.9 * len(sizes))] <= 30


def _body_lines(function: ast.FunctionDef) -> int:
    docstring = ast.get_docstring(function, clean=False)
    n_docstring = docstring.count("\n") + 1 if docstring else 0
    assert function.end_lineno is not None
    return function.end_lineno - function.lineno + 1 - n_docstring
