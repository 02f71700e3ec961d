"""Folders are named by all that their content depends on, and by nothing else."""

from collections.abc import Callable

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
