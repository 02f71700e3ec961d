"""Mistakes in a command, each explained in one sentence with the choices that there are."""

import difflib
import re
import traceback
from collections.abc import Iterable
from pathlib import Path

from hydra.errors import (
    HydraException,
    InstantiationException,
    MissingConfigException,
    OverrideParseException,
)
from omegaconf import DictConfig
from omegaconf.errors import InterpolationKeyError, OmegaConfBaseException

from histo_ssl.config.choices import PACKAGE, choices_of, groups
from histo_ssl.folders import disk

FULL_ERROR = "HYDRA_FULL_ERROR"  # Hydra's own switch for tracebacks
HIDDEN_KEYS = ("_target_", "_partial_", "_convert_", "hydra")  # of the machinery, not for users to set
PLUGINS = {  # of Hydra, and the extra of ours that installs them
    "hydra/launcher/joblib": "joblib",
    "hydra/launcher/submitit_slurm": "slurm",
    "hydra/launcher/submitit_local": "slurm",
    "hydra/sweeper/optuna": "optuna",
}


def explain(error: BaseException) -> str:
    """One sentence on what was wrong with a command, with the valid choices where there are any."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        missing = error.missing_cfg_file
        return _explain_choice(missing, error.options or choices_of(missing.rpartition("/")[0]))
    if isinstance(error, InstantiationException) and error.__cause__ is not None:
        return explain(error.__cause__)
    cause = error.__cause__
    if isinstance(cause, OmegaConfBaseException):
        return _explain_key(error, cause)
    unread = _unread_override(error)
    if unread:
        return _explain_override(unread)
    if isinstance(error, HydraException | OmegaConfBaseException):
        return _explain_group(error)
    return (isinstance(error, OSError) and disk.sentence(error)) or str(error) + _hint(error)


def _explain_choice(missing: str, options: Iterable[str]) -> str:
    if missing in PLUGINS:
        return f"{missing} is a plugin that is not installed: pip install 'histo-ssl[{PLUGINS[missing]}]'"
    group, _, choice = missing.rpartition("/")
    return f"{group}={choice}: no such choice; {_valid(choice, options, of=group)}"


def _unread_override(error: BaseException) -> str:
    """The argument that Hydra's grammar does not take as it stands, if that is what the error is about."""
    if isinstance(error, OverrideParseException):
        return str(error.override)
    return _quoted(error) if str(error).startswith("Ambiguous value for argument") else ""


def _explain_override(override: str) -> str:
    key, equals, value = override.partition("=")
    if not equals:
        return f"{override}: key=value is expected"
    quoted = value.replace("\\", "\\\\").replace('"', '\\"')
    return (
        f"{override}: {value} can't be read as a value; if it is one text, put it into two pairs of quotes, "
        f"""'{key}="{quoted}"'; if it is a list, into brackets, '{key}=[a,b]'; several jobs need -m"""
    )


def _explain_key(error: BaseException, cause: OmegaConfBaseException) -> str:
    key = str(cause.full_key or _quoted(error))
    parent, _, last = key.rpartition(".")
    node = cause.parent_node
    if not isinstance(node, DictConfig):
        return f"{key}: {_first_line(cause)}"
    keys = {str(name) for name in node if name not in HIDDEN_KEYS}
    if not parent:
        return f"{key}: no such key; {_valid(last, keys | set(groups()), of='the configuration')}"
    if not keys:  # such as task.data=${data}: the values are those of another place
        _, _, rest = key.partition(".")
        guess = f"did you mean {rest}? " if rest.partition(".")[0] in groups() else ""
        return f"{key}: no such key; {guess}{parent} has no values of its own here"
    return f"{key}: no such key; {_valid(last, keys, of=parent)}"


def _explain_group(error: BaseException) -> str:
    """Mistakes in the name of a group or no choice of it, and whatever else Hydra says on its first line."""
    name = _quoted(error)
    if isinstance(error, InterpolationKeyError) and choices_of(name.replace(".", "/")):
        group = name.replace(".", "/")  # nothing was chosen of it, so that it is not there
        return f"{group}=[]: one or more are expected; choose among {', '.join(choices_of(group))}"
    if "No match in the defaults list" in str(error):
        return f"{name}: no such group; {_valid(name, groups(), of='the configuration')}"
    return _first_line(error)


def _valid(wrong: str, options: Iterable[str], *, of: str) -> str:
    options = sorted(options)
    close = difflib.get_close_matches(wrong, options, n=1)
    guess = f"did you mean {close[0]}? " if close else ""
    return f"{guess}{of} has {', '.join(options)}"


def _quoted(error: BaseException) -> str:
    found = re.search(r"'([^']+)'", str(error))
    return found[1] if found else ""


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0]


def _hint(error: BaseException) -> str:
    """Where to look when the sentence is another library's rather than ours."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = bool(frames) and Path(frames[-1].filename).is_relative_to(PACKAGE)
    return "" if ours or not frames else f" ({type(error).__name__}; {FULL_ERROR}=1 shows where)"
