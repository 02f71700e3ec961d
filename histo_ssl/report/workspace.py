"""Saves a view of a W&B project: curves, scores beside their floors, pictures; runs by sweep and method.

    pip install 'histo-ssl[workspace]'
    python -m histo_ssl.report.workspace ENTITY PROJECT

A view lies on the server, so this wants to be logged in; it holds for runs that are there and for later ones.
"""

import argparse
import sys
from typing import Any

import wandb

VIEW = "histo_ssl"
CURVES = {  # title -> names of curves
    "Loss": ["loss"],
    "What the teacher tells": ["teacher_entropy", "mean_entropy", "max_entropy", "kl"],
    "RankMe": ["rankme"],
    "Scores while training goes on": ["online_knn_auc", "online_knn_accuracy"],
    "Learning rate, weight decay": ["lr", "weight_decay"],
}
SUBJECTS = ("encoder", "colour", "random")  # that a task's primary score is known of
COLUMNS = ("method", "backbone", "data", "mpp", "seed", "batch_size", "epochs")


def view(entity: str, project: str, *, tasks: list[str]) -> Any:
    """The view, not saved yet: a section of curves, one of scores for each task, one of pictures.

    Args:
        entity: user or team at W&B.
        project: the `logger.project` of the runs.
        tasks: whose scores it shows.
    """
    import wandb_workspaces.reports.v2 as panels  # noqa: PLC0415 (an extra)
    from wandb_workspaces import workspaces  # noqa: PLC0415

    axis = panels.Metric("trainer/global_step")
    curves = [panels.LinePlot(title=title, x=axis, y=list(names)) for title, names in CURVES.items()]
    scores = [
        workspaces.Section(name=f"Scores: {task}", panels=_scores(panels, task), is_open=True)
        for task in tasks
    ]
    pictures = workspaces.Section(name="Views", panels=[panels.MediaBrowser(media_keys=["views"])])
    return workspaces.Workspace(
        entity=entity,
        project=project,
        name=VIEW,
        sections=[*scores, workspaces.Section(name="Training", panels=curves, is_open=True), pictures],
        runset_settings=workspaces.RunsetSettings(
            groupby=[workspaces.Config(name) for name in ("method", "backbone")],
            pinned_columns=[f"config:{name}.value" for name in COLUMNS],
        ),
    )


def main() -> None:
    """Save the view and print its address."""
    parser = argparse.ArgumentParser(prog="python -m histo_ssl.report.workspace", description=__doc__)
    parser.add_argument("entity")
    parser.add_argument("project")
    parser.add_argument("--tasks", nargs="+", default=["knn"], help="whose scores it shows")
    asked = parser.parse_args()
    try:
        saved = view(asked.entity, asked.project, tasks=asked.tasks).save()
    except ModuleNotFoundError:
        sys.exit("error: a view needs W&B's own library for them: pip install 'histo-ssl[workspace]'")
    except (wandb.errors.Error, OSError, ValueError) as error:
        sys.exit(f"error: W&B did not take the view ({error}); log in by `wandb login`")
    print(saved.url)  # noqa: T201 (what the command is for)


def _scores(panels: Any, task: str) -> list[Any]:
    bars = [panels.BarPlot(title=f"{task}: {name}", metrics=[f"{task}/{name}"]) for name in SUBJECTS]
    return [*bars, panels.WeavePanelSummaryTable(table_name=f"{task}/scores")]


if __name__ == "__main__":
    main()
