"""What is looked at before the first stage: the configuration's names and values, the files of its data."""

import json
import os
from collections.abc import Collection
from dataclasses import replace
from typing import Any

from hydra.utils import instantiate
from lightning.pytorch.utilities import rank_zero_only

from histo_ssl.config.plan import Listed, Plan, listed
from histo_ssl.config.signatures import check_types
from histo_ssl.config.targets import KEY, check_targets

TYPED = ("data", "tiling", "stain", "views", "backbone", "task", "online", "executor")
# Rank 0 hands what it listed to the ranks that it starts: hours later the same folder may hold more files.
HANDED = "HISTO_SSL_LISTINGS"
READERS = {"tile", "pretrain", "embed", "evaluate"}  # stages whose folders depend on what the data list


def prepared(plan: Plan, *, known: Collection[str]) -> Plan:
    """The plan, its configuration checked, with what its data sets list.

    Args:
        plan: of a run that begins.
        known: names of the stages that there are.

    Raises:
        ValueError: there is no such stage, a value is of the wrong kind, or a `_target_` may not be named.
        FileNotFoundError: the data, or the target of stain normalisation, are not there.
    """
    plan.check()
    unknown = [name for name in plan.cfg.stages if name not in known]
    if unknown:
        raise ValueError(f"stages={unknown}: no such stage; the stages are {', '.join(known)}")
    for group in plan.cfg:
        check_targets(plan.group(str(group)), str(group), more=plan.group(KEY) or ())
    for group in TYPED:
        check_types(plan.group(group), group)
    check_types(plan.method(n_tiles=0)[0], "method")
    instantiate(plan.group("executor"))  # which may need a library that is not installed
    instantiate(plan.group("stain"))  # a target that can't be taken is better known now than after tiling
    return _listed(plan) if READERS & set(plan.cfg.stages) else plan


def _listed(plan: Plan) -> Plan:
    handed = _handed()
    if handed:
        listing, task_listing = (Listed({}, digits) for digits in handed)
        return replace(plan, listing=listing, task_listing=task_listing)
    data, task_data = plan.group("data"), plan.group("task.data")
    listing = _listing(data)
    task_listing = listing if task_data == data else _listing(task_data)
    os.environ[HANDED] = json.dumps([os.getpid(), listing.fingerprint, task_listing.fingerprint])
    return replace(plan, listing=listing, task_listing=task_listing)


def _handed() -> list[str]:
    """Fingerprints that this process's parent listed, if it is a rank that its rank 0 has started.

    Variables are inherited further: what another run listed, a few processes up, is none of this one's.
    """
    giver, *fingerprints = json.loads(os.environ.get(HANDED, "[null]"))
    return fingerprints if giver == os.getppid() and getattr(rank_zero_only, "rank", 0) else []


def _listing(config: Any) -> Listed:
    return listed(instantiate(config).listing())
