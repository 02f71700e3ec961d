"""Who may import whom: the picture in docs/design.md, kept true."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "histo_ssl"

# Room -> rooms of ours that it may import. A room is a package, or a module at the top.
MAY_IMPORT = {
    "units": set(),
    "progress": set(),
    "signals": set(),
    "folders": set(),
    "parallel": set(),
    "config": {"folders"},
    "executors": {"folders"},
    "slides": {"units", "executors", "folders", "progress"},
    "drawing": {"units"},
    "stain": set(),
    "views": {"units", "stain"},
    "backbones": {"units"},
    "optim": {"units", "parallel"},
    "embeddings": {"units", "folders"},
    "mil": {"embeddings", "folders", "parallel"},
    "folds": set(),
    "download": {"folders", "progress", "signals"},
    "data": {"units", "drawing", "embeddings", "executors", "folders", "parallel", "slides", "views"},
    "methods": {"backbones", "optim", "parallel"},
    "training": {"data", "folders", "methods", "parallel", "progress", "signals", "stain"},
    "encode": {"backbones", "folders", "stain"},
    "embed": {"data", "embeddings", "encode", "executors", "folders", "progress", "stain"},
    "tasks": {
        *("backbones", "data", "embeddings", "encode", "folders", "folds"),
        *("heads", "mil", "optim", "parallel", "progress", "stain"),
    },
    "slidemaps": {"folders"},
    "heads": {"backbones", "encode", "slidemaps", "stain"},
    "report": {"embeddings", "folders", "slidemaps"},
    "online": {"config", "data", "embed", "embeddings", "encode", "folders", "methods", "tasks"},
    "export": {"backbones", "config", "data", "encode", "folders", "methods", "stain"},
    "comparing": {"report", "tasks"},
    "looking": {"data", "folders", "slidemaps", "tasks"},
    "scorebook": {"config", "data", "folders", "looking", "tasks"},
    "viewer": {"data", "embeddings", "folders", "heads", "signals", "slidemaps", "slides", "units"},
    "scoring": {
        "scorebook",
        "training",
        "config",
        "data",
        "embed",
        "embeddings",
        "encode",
        "export",
        "folders",
        "stain",
        "tasks",
    },
    "stages": {
        *(
            "comparing",
            "config",
            "data",
            "embed",
            "encode",
            "executors",
            "export",
            "folders",
            "methods",
            "online",
            "parallel",
        ),
        *("report", "scoring", "slides", "training"),
    },
    "sweeps": {"folders"},
    "cli": {"config", "executors", "folders", "signals", "stages", "sweeps"},
    "__main__": {"cli", "viewer"},
    "__init__": set(),
}

# Third-party package -> files that may import it.
OWNERS = {
    "tiffslide": {"slides/files.py"},
    "simplejpeg": {"slides/codecs.py"},
    "pebble": {"executors/processes.py"},
    "distributed": {"executors/cluster.py"},
    "wandb": {"report/wandb.py", "report/dashboard.py", "report/workspace.py"},
    "wandb_workspaces": {"report/workspace.py"},
    "hydra": {
        *("cli.py", "stages.py", "sweeps.py", "export.py", "online.py", "scoring.py"),
        *(f"config/{name}.py" for name in ("mistakes", "preflight", "signatures", "targets")),
    },
    "omegaconf": {"cli.py", "sweeps.py", "config/mistakes.py", "config/plan.py"},
    "timm": {
        f"backbones/{name}.py"
        for name in (
            "timm",
            "resnet_trunc",
            "vit",
            "quick_attention",
            "class_token",
            "attention",
            "hub",
            "depths",
        )
    },
    "huggingface_hub": {"backbones/hub.py"},
    "h5py": {"embeddings.py", "download/arrays.py", "mil/exports.py", "mil/features.py"},
    "umap": {"tasks/umap.py"},
    "torchmil": {"mil/libraries.py"},
    "safetensors": {"encode.py", "backbones/weights.py"},
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


@pytest.mark.parametrize("module", ["data.synthetic", "slides.survey", "slides.reader", "executors.child"])
def test_processes_for_slides_begin_without_torch(module: str) -> None:
    """Each of them is a fresh interpreter, which torch would hold up for longer than all else."""
    script = f"import sys, histo_ssl.{module}; print(*{{'torch', 'lightning'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


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


# A call whose module and name are these would run a stranger's code; no argument makes it safe.
FORBIDDEN = {
    *{f"pickle.{name}" for name in ("load", "loads", "Unpickler")},
    *{f"{module}.load" for module in ("marshal", "dill", "cloudpickle", "joblib", "yaml")},
    *{"shelve.open", "pd.read_pickle", "pd.read_hdf", "os.system", "os.popen", "eval", "exec"},
    *{"torch.hub.load", "tarfile.open", "zipfile.ZipFile", "shutil.unpack_archive"},
}
# Who may open a zip archive: the first for its check sums, taking nothing out of it; the second looks at all
# names, kinds and sizes before it writes a byte (tests/download/test_archives.py has the attacks).
OPENS_ZIP = ("training/checkpoints.py", "download/archives.py")
# Calls that must say that they don't unpickle.
WITHOUT_PICKLE = {"torch.load": ("weights_only", True), "np.load": ("allow_pickle", False)}


def _calls(path: Path) -> Iterator[tuple[str, dict[str, object]]]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            constants = {k.arg: k.value.value for k in node.keywords if isinstance(k.value, ast.Constant)}
            yield ast.unparse(node.func), {str(name): value for name, value in constants.items()}


@pytest.mark.parametrize("path", _files(), ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_nothing_unpickles_unpacks_or_evaluates_what_a_stranger_wrote(path: Path) -> None:
    may_open = {"zipfile.ZipFile"} if path.relative_to(PACKAGE).as_posix() in OPENS_ZIP else set()
    for name, constants in _calls(path):
        assert name not in FORBIDDEN - may_open, name
        assert not name.endswith((".extract", ".extractall")), name
        assert constants.get("shell") is not True, name
        key, value = WITHOUT_PICKLE.get(name, ("", None))
        assert constants.get(key) is value, f"{name} without {key}={value}"


def test_every_template_escapes_what_it_is_given() -> None:
    (settings,) = [
        words for name, words in _calls(PACKAGE / "report" / "html.py") if name == "jinja2.Environment"
    ]
    assert settings["autoescape"] is True
    for path in (PACKAGE / "report" / "templates").iterdir():
        assert not re.search(r"\|\s*safe|autoescape|Markup", path.read_text()), path.name
