"""Folders are named by all that their content depends on, and by nothing else."""

from collections.abc import Callable
from pathlib import Path

from histo_ssl.config.plan import Plan


def test_embeddings_and_scores_depend_on_how_embeddings_are_rounded(compose: Callable[..., Plan]) -> None:
    def planned(*overrides: str) -> Plan:
        return compose("method=dino", "backbone=vit_t", *overrides)

    plain, exact, half = planned(), planned("embedding.dtype=float32"), planned("embedding.dtype=float16")
    assert plain.embedding_folder("e") == exact.embedding_folder("e") != half.embedding_folder("e")
    assert plain.result_folder == exact.result_folder != half.result_folder
    assert plain.pretrain_folder == half.pretrain_folder
    assert plain.task_tile_folder == half.task_tile_folder
    assert half.result_config == {**plain.result_config, "dtype": "float16"}
    assert planned("embedding.batch_size=7").embedding_folder("e") == plain.embedding_folder("e")
    mixed = planned("embedding.precision=bf16-mixed")
    assert mixed.result_config == {**plain.result_config, "precision": "bf16-mixed"}
    assert mixed.embedding_folder("e") != plain.embedding_folder("e")


def test_a_result_depends_on_what_is_in_the_images_it_draws_wherever_they_lie(
    compose: Callable[..., Plan], tmp_path: Path
) -> None:
    def folder_of(name: str, content: bytes) -> Path:
        (tmp_path / name / "below").mkdir(parents=True, exist_ok=True)
        (tmp_path / name / "below" / "a.png").write_bytes(content)
        given = f"task.protocol.input={tmp_path / name}"
        return compose("method=random", "backbone=vit_t", "task=attention", given).result_folder

    assert folder_of("here", b"1") == folder_of("there", b"1") != folder_of("elsewhere", b"2")


def test_images_of_one_s_own_take_no_tiles_and_a_table_of_tiles_does(compose: Callable[..., Plan]) -> None:
    asked = ("method=random", "backbone=vit_t", "task=attention")
    given = {name: compose(*asked, f"task.protocol.input={name}") for name in ("null", "a.png", "a.csv")}
    assert {name: plan.has_images for name, plan in given.items()} == {
        "null": False,
        "a.png": True,
        "a.csv": False,
    }
    assert not compose("method=random", "backbone=vit_t").has_images


def test_only_runs_of_several_tiles_make_another_training(compose: Callable[..., Plan]) -> None:
    def planned(*overrides: str) -> Plan:
        return compose("method=dino", "backbone=vit_t", *overrides)

    plain, alone, runs = planned(), planned("training.run_length=1"), planned("training.run_length=4")
    assert plain.pretrain_folder == alone.pretrain_folder != runs.pretrain_folder
    assert plain.pretrain_config["training"] == {"epochs": 3, "batch_size": 32}  # as before there were runs
    assert runs.pretrain_config["training"]["run_length"] == 4


def test_nothing_but_where_tiles_are_read_from_depends_on_packs(compose: Callable[..., Plan]) -> None:
    asked = ("method=dino", "backbone=vit_t", "data=slides", "data.root=/slides", "task.data=${data}")
    plain, packed = compose(*asked), compose(*asked, "data.pack=true")
    assert (plain.is_packed, packed.is_packed) == (False, True)
    for name in ("tile_folder", "task_tile_folder", "pretrain_folder", "result_folder"):
        assert getattr(plain, name) == getattr(packed, name), name
    assert plain.tile_config == packed.tile_config
    assert packed.task_tile_folder == packed.tile_folder
    assert packed.pack_folder("a") != packed.pack_folder("b")
    assert packed.pack_folder("a").parent.name == "packs"
    assert not compose("method=dino", "backbone=vit_t", "data=images", "data.root=/tiles").is_packed
