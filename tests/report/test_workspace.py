"""The view of a W&B project, where W&B's library for views is at hand; without its server."""

import subprocess
import sys

import pytest

from histo_ssl.report.workspace import view


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the library, at its import
def test_a_view_has_the_scores_of_its_tasks_beside_their_floors() -> None:
    pytest.importorskip("wandb_workspaces", reason="histo-ssl[workspace] is not installed")
    model = view("me", "histo_ssl", tasks=["knn", "crc100k"])._to_model()
    text = model.model_dump_json()
    for name in ("knn/encoder", "knn/colour", "crc100k/random", "crc100k/scores", "trainer/global_step"):
        assert name in text
    assert text.count("Scores: ") == 2


def test_without_the_library_the_command_says_what_to_install() -> None:
    program = (
        "import sys, runpy; sys.modules['wandb_workspaces'] = None;"
        "sys.modules['wandb_workspaces.reports.v2'] = None;"
        "sys.argv = ['w', 'me', 'p']; runpy.run_module('histo_ssl.report.workspace', run_name='__main__')"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert "pip install 'histo-ssl[workspace]'" in ended.stderr
