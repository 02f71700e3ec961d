"""Where the YAML files lie, and what there is to choose among them."""

from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]


def conf_dir() -> Path:
    """The folder of YAML files: inside the package when installed from a wheel, beside it in a checkout."""
    inside = PACKAGE / "conf"
    return inside if inside.is_dir() else PACKAGE.parent / "conf"


def groups() -> list[str]:
    """Groups of the configuration."""
    return sorted(path.name for path in conf_dir().iterdir() if path.is_dir())


def choices_of(group: str) -> list[str]:
    """Choices of a group, such as "task" or "task/models"; none where there is no such group."""
    return sorted(path.stem for path in (conf_dir() / group).glob("*.yaml"))
