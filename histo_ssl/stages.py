"""The stages: each reads what earlier ones wrote, and writes one folder named by what it depends on."""

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path
from typing import Any, cast

import lightning
from hydra.utils import instantiate
from lightning import Trainer
from lightning.pytorch.loggers import Logger

from histo_ssl.comparing import comparisons
from histo_ssl.config.filters import filters
from histo_ssl.config.plan import Listed, Plan
from histo_ssl.config.preflight import prepared
from histo_ssl.data.base import TileSource
from histo_ssl.data.datamodule import TileDataModule
from histo_ssl.data.loading import Loading
from histo_ssl.data.packed import PackedTiles, pack_tiles, with_packs
from histo_ssl.data.rows import InRuns
from histo_ssl.data.sheet import write_sheet
from histo_ssl.data.sources import open_source
from histo_ssl.embed import Embedding, Spread, embed_tiles
from histo_ssl.encode import Encoder
from histo_ssl.executors.base import Executor, Processes
from histo_ssl.export import card_of_trained, export, freeze
from histo_ssl.folders import artifacts
from histo_ssl.folders.artifacts import Counts, finished
from histo_ssl.methods.base import SSLMethod
from histo_ssl.online import online_scores
from histo_ssl.parallel import ranks, sharding
from histo_ssl.parallel.memory import keep_freed_memory
from histo_ssl.report.html import build_report
from histo_ssl.report.runs import read_results
from histo_ssl.report.study import study_tables, study_text
from histo_ssl.report.tables import scores_text
from histo_ssl.scoring import check_task, needs_embeddings, score, subjects_of
from histo_ssl.slides import stores
from histo_ssl.slides.stores import Store
from histo_ssl.training.fit import METRICS, Limits, Recording, device_for, precision_for, prepare, train

log = logging.getLogger(__name__)


def run(plan: Plan, *others: Plan) -> None:
    """The stages that the configuration lists, in its order.

    Rank 0 does them all; other ranks wait for its tiles and join it in pretraining.

    Args:
        plan: of the run.
        others: of the same run with other tasks, which come after it; the report comes last.
    """
    plans = [prepared(one, known=STAGES) for one in (plan, *others)]
    keep_freed_memory()
    stores.use(Store(**plans[0].group("store")))
    trainer = ranks.asked(_trainer(plans[0]))
    ranks.check_launched(trainer)
    sharding.check(trainer, compile=plan.cfg.compile, has_online=bool(plan.group("online")))
    if trainer.global_rank > 0:
        _join_pretraining(plans[0], trainer)
        return
    with ranks.serve(trainer):
        for name in plan.cfg.stages:
            if name == PRETRAIN and not plan.is_given:
                for one in plans:  # before the first trains
                    check_task(one)
            for one in plans[-1:] if name == REPORT else plans:
                _do(name, one)


def _do(name: str, plan: Plan) -> None:
    if plan.is_given and name in OF_ENCODERS:
        log.info("%s: nothing to do, since method=features has its features already", name)
        return
    before = stores.traffic()
    STAGES[name](plan)
    if (traffic := stores.traffic() - before).n_requests:
        log.info("%s: %s", name, traffic)


def tile(plan: Plan) -> None:
    """Cut the slides of the run and of its task, or list their images."""
    wanted = {}
    if not plan.has_images:
        wanted[plan.task_tile_folder] = plan.task_tile_config, plan.task_listing
    if not plan.is_frozen:
        wanted[plan.tile_folder] = plan.tile_config, plan.listing
    for folder, (config, listing) in wanted.items():
        build = partial(_tile, plan, config, listing)
        artifacts.complete(folder, build=build, label="tile", config=config, listing=listing.content)


def pretrain(plan: Plan) -> None:
    """Train the method's backbone and export its encoder; a frozen method's encoder is only exported."""
    if plan.is_frozen:
        build, config = partial(freeze, plan), plan.pretrain_config
        # of another method or backbone, a frozen encoder is another one, and what differs no news
        label = f"pretrain ({plan.choices['method']}, {plan.choices['backbone']})"
    else:
        finished(plan.tile_folder, stage="tile")
        build, config = partial(_pretrain, plan), {**plan.tile_config, **plan.pretrain_config}
        label = "pretrain"
    artifacts.complete(plan.pretrain_folder, build=build, label=label, config=config)


def embed(plan: Plan) -> None:
    """Embed the task's tiles with the encoder, and with the floors that its scores stand beside."""
    if not needs_embeddings(plan):
        log.info("embed: nothing to do, since the task takes the tiles themselves")
        return
    # by its whole name, since workers of a cluster open it too
    source = open_source(finished(plan.task_tile_folder, stage="tile").resolve())
    for subject, encoder in subjects_of(plan, source).items():
        folder = plan.embedding_folder(encoder.card.fingerprint)
        config = {"encoder": asdict(encoder.card), **plan.embedding_config}
        build = partial(_embed, plan, encoder, source)
        artifacts.complete(folder, build=build, label=f"embed ({subject})", config=config)


def evaluate(plan: Plan) -> None:
    """Score the embeddings by the task's protocol, and those of the floors; new scores go to the logger."""
    config, folder = plan.result_config, plan.result_folder
    is_new = not artifacts.is_done(folder)
    artifacts.complete(folder, build=partial(score, plan), label="evaluate", config=config)
    if is_new and plan.choices["logger"] != "none":
        from histo_ssl.report.wandb import log_results  # noqa: PLC0415 (starts W&B, which not all want)

        log_results(_logger(plan), runs_dir=plan.runs_dir, encoder_folder=plan.pretrain_folder)


def report(plan: Plan) -> None:
    """Make the report of all that is finished under `runs_dir`, and print the scores."""
    results = read_results(plan.runs_dir)
    page = build_report(plan.runs_dir, comparisons=comparisons(results))
    print(scores_text(plan.runs_dir))  # noqa: T201 (the table is what the command is for)
    tables = study_text(study_tables(results))
    if tables:
        print(tables)  # noqa: T201
    log.info("report: open %s", page.resolve())


OF_ENCODERS = ("tile", "pretrain", "embed")  # stages that features from elsewhere have no part in
PRETRAIN, REPORT = "pretrain", "report"
STAGES: Mapping[str, Callable[[Plan], None]] = {
    "tile": tile,
    PRETRAIN: pretrain,
    "embed": embed,
    "evaluate": evaluate,
    REPORT: report,
}


def _tile(plan: Plan, config: Mapping[str, Any], listing: Listed, folder: Path) -> Counts:
    data = instantiate(config["data"])
    if data.listing() != listing.content:
        raise ValueError(f"{folder}: the data's files changed since this run began; give the command again")
    tiling = instantiate(config["tiling"])
    processes = {name: plan.cfg[name] for name in ("n_processes", "slide_timeout_s")}
    home = plan.runs_dir / "data"
    return cast(Counts, data.tile(tiling, folder=folder, home=home, executor=_executor(plan), **processes))


def _pretrain(plan: Plan, folder: Path) -> Counts:
    if plan.is_packed:
        _pack(plan)
    data = _datamodule(plan)
    write_sheet(data, folder / "views.png")
    method, counted = _fit(plan, data, folder)
    export(method.encoder(), card_of_trained(plan, method.encoder(), data), folder)
    if plan.choices["logger"] != "none":
        from histo_ssl.report.wandb import log_encoder  # noqa: PLC0415 (starts W&B, which not all want)

        log_encoder(_logger(plan), folder=folder)
    return {"steps": data.total_steps, "tiles": len(data.rows), **counted}


def _join_pretraining(plan: Plan, trainer: Trainer) -> None:
    """What ranks other than 0 do: train with it, if there is anything to train."""
    logging.getLogger("histo_ssl").setLevel(logging.WARNING)  # rank 0 says the rest
    folder = plan.pretrain_folder
    is_done = partial(artifacts.is_done, folder)
    is_wanted = "pretrain" in plan.cfg.stages and not plan.is_frozen
    if is_wanted and ranks.is_called(trainer, folder.name, is_done=is_done):
        _fit(plan, _datamodule(plan), folder)


def _fit(plan: Plan, data: TileDataModule, folder: Path) -> tuple[SSLMethod, dict[str, int]]:
    lightning.seed_everything(plan.cfg.seed, verbose=False)
    config, why = plan.method(n_tiles=len(data.rows))
    if why:
        log.info("pretrain: %s", why)
    method: SSLMethod = instantiate(config, backbone=instantiate(plan.group("backbone")))
    prepare(method, data, compile=plan.cfg.compile, grad_checkpointing=plan.cfg.grad_checkpointing)
    card = card_of_trained(plan, method.encoder(), data)
    counted = train(
        method,
        data,
        folder=folder,
        trainer=partial(_trainer(plan), default_root_dir=str(folder)),
        logger=_logger(plan),
        online=online_scores(plan, data, card=card, folder=folder, metrics=folder / METRICS),
        recording=Recording(checkpoint_every=plan.cfg.checkpoint_every, log_every=plan.cfg.log_every),
        limits=Limits(**{field.name: plan.cfg[field.name] for field in fields(Limits)}),
    )
    return method, counted


def _trainer(plan: Plan) -> Callable[..., Trainer]:
    """A Trainer by the configuration, to be called with what the configuration does not say."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)  # its tips and hardware lines
    settings = plan.group("trainer")
    settings["precision"] = precision_for(settings["precision"], settings["accelerator"])
    trainer: Callable[..., Trainer] = instantiate(settings, _partial_=True)
    return trainer


def _logger(plan: Plan) -> Logger | None:
    logger: Logger | None = instantiate(plan.group("logger"))(
        folder=plan.runs_dir,  # W&B writes on until the process ends, so not into a folder that gets done
        run_id=plan.encoder_fingerprint,
        name=plan.pretrain_folder.name,
        tags=[plan.choices[group] for group in ("method", "backbone", "data")],
        config=filters(plan),
    )
    return logger


def _pack(plan: Plan) -> None:
    """Store the tiles that pretraining draws in packs, unless that was done before."""
    source, memory_gb = _source(plan), plan.group("data").get("max_memory_gb", math.inf)
    assert isinstance(source, PackedTiles)
    processes = Processes(n=plan.cfg.n_processes, timeout_s=plan.cfg.slide_timeout_s, memory_gb=memory_gb)
    build = partial(pack_tiles, source=source, processes=processes, executor=_executor(plan))
    artifacts.complete(source.packs, build=build, label="pack", config=plan.tile_config)


def _source(plan: Plan) -> TileSource:
    """The tiles for pretraining; from packs where the configuration asks for it."""
    source = open_source(plan.tile_folder)
    return with_packs(source, plan.pack_folder) if plan.is_packed else source


def _datamodule(plan: Plan) -> TileDataModule:
    source, run_length = _source(plan), plan.cfg.training.run_length
    rows = source.training_rows()
    return TileDataModule(
        source=source,
        rows=InRuns(rows, run_length) if run_length > 1 else rows,
        views=instantiate({**plan.group("views"), "stain": plan.group("stain") or None}),
        batch_size=plan.cfg.training.batch_size,
        epochs=plan.cfg.training.epochs,
        accumulate=plan.cfg.trainer.accumulate_grad_batches,
        seed=plan.cfg.seed,
        loading=Loading(**plan.group("loader")),
    )


def _executor(plan: Plan) -> Executor:
    executor: Executor = instantiate(plan.group("executor"))
    return executor


def _embed(plan: Plan, encoder: Encoder, source: TileSource, folder: Path) -> Counts:
    executor = _executor(plan)
    device = partial(device_for, plan.cfg.trainer.accelerator)
    processes = Processes(
        n=0,
        timeout_s=executor.embed_timeout_s,
        timeout_name="executor.embed_timeout_s",
        memory_gb=math.inf,
    )
    each = partial(executor.each, processes=processes, folder=folder)
    return embed_tiles(
        encoder.on(device()) if executor.is_here else encoder,
        source,
        folder=folder,
        how=Embedding(
            **plan.group("embedding"),
            loading=Loading(**plan.group("loader")),
            max_failed=plan.cfg.max_failed_tiles,
        ),
        spread=None if executor.is_here else Spread(each=each, device=device),
    )
