"""Part `step`: one step of DINO, ViT-S/16, 2 x 224 + 8 x 96 px, K 65,536, against lightly's parts.

Ours is `histo_ssl.methods.dino` with the values that 2.06 million tiles get: forward passes, loss, its look
at what is not finite, backward pass, clipping, AdamW, centre and teacher. Theirs is the same backbone of timm
in the step that lightly's documentation gives: `DINOProjectionHead`, `DINOLoss`, `update_momentum`, one view
at a time, with torch's clipping and AdamW. Both see the same random views.

On a GPU also: both in bfloat16, our step with its views from uint8 tiles, and the share of the GPU's peak.
"""

from collections.abc import Callable
from typing import Any

import hydra
import timm
import torch
from contests import (
    OURS,
    CannotRunError,
    Contest,
    Ratio,
    Work,
    compete,
    in_turn,
    ratio_of,
    settling,
    timed,
    within,
)
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from histo_ssl.config.choices import conf_dir
from histo_ssl.config.sizing import sized
from histo_ssl.methods.dino import DINO
from histo_ssl.methods.switches import switch_on
from histo_ssl.training.fit import precision_for

N_TILES = 2_060_000  # the study's, which decide K and temperatures
BATCH = {"cpu": 8, "cuda": 256}
N_ROUNDS = {"cpu": 4, "cuda": 10}
SIDES = [224] * 2 + [96] * 8
TILES_PER_S = 2_400  # 100 epochs of 2.06 million tiles in a day
PEAK_FLOPS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}  # dense bfloat16, NVIDIA's data sheets
AUTOCAST = {"bf16-mixed": torch.bfloat16}
CLIP_NORM, STUDENT_TEMP = 3.0, 0.1


def measure(device: str) -> list[Ratio]:
    """Ratios to lightly's parts at our default precision and at equal precision."""
    if device == "cuda" and not torch.cuda.is_available():
        raise CannotRunError("there is no GPU that torch can use")
    try:
        from lightly.loss import DINOLoss  # noqa: F401
    except ImportError as error:
        raise CannotRunError(f"lightly is not here ({error}); install histo_ssl[bench]") from error
    torch.manual_seed(0)
    default = precision_for("auto", "cpu" if device == "cpu" else "auto")
    views = [torch.randn(BATCH[device], 3, side, side, device=device) for side in SIDES]
    if device == "cpu":
        return _on_cpu(views, default)
    return _on_gpu(views, default)


def _on_cpu(views: list[Tensor], default: str) -> list[Ratio]:
    """Both of ours in turn with one of theirs, which takes longest."""
    cases = {
        f"default precision ({default}), lightly's in float32": (default, 3.0),
        "equal precision (float32)": ("32-true", 1.3),
    }
    works = {case: by_us(views, precision=precision) for case, (precision, _) in cases.items()}
    theirs = by_lightly(views, precision="32-true")
    ours = {OURS + case: work for case, work in works.items()}
    seconds = in_turn({"lightly": theirs, **ours}, n_rounds=N_ROUNDS["cpu"], settle=settling("cpu"))
    return [
        ratio_of(
            _contest(case, works[case], theirs, target, "cpu"),
            "lightly",
            ours=seconds[OURS + case],
            theirs=seconds["lightly"],
        )
        for case, (_, target) in cases.items()
    ]


def _on_gpu(views: list[Tensor], default: str) -> list[Ratio]:
    ours = by_us(views, precision=default)
    rows = compete(
        _contest(f"equal precision ({default})", ours, by_lightly(views, precision=default), 1.5, "cuda")
    )
    step = _rounds(ours)
    flops, peak = flops_of(ours), _peak_flops()
    for name, work in {"": ours, ", compiled": by_us(views, precision=default, compile=True)}.items():
        seconds = sorted(wall for _, wall in _rounds(work))[N_ROUNDS["cuda"] // 2]
        share = f"{flops / seconds / peak:.1%} of the peak" if peak else "of a GPU whose peak is not listed"
        speed = f"{BATCH['cuda'] / seconds:,.0f} tiles/s, {flops / seconds / 1e12:.0f} TFLOP/s"
        print(f"step{name}: {speed}, {share}")
    everything = _rounds(with_views(by_us(views, precision=default)))
    rows.append(_as_row(everything, "with its views, from uint8 tiles", 1e3 / TILES_PER_S, "2,400 tiles/s"))
    views_s = sorted(wall for _, wall in _rounds(only_views()))[N_ROUNDS["cuda"] // 2]
    step_s = sorted(wall for _, wall in step)[N_ROUNDS["cuda"] // 2]
    allowed_ms = 1e3 * 0.05 * step_s / BATCH["cuda"]
    rows.append(_as_row([(views_s, views_s)], "views alone", allowed_ms, "5 % of the step"))
    return rows


def _contest(case: str, ours: Work, theirs: Work, target: float, device: str) -> Contest:
    return Contest(
        part="step",
        case=f"DINO ViT-S/16, {case}",
        n_items=BATCH[device],
        item="tile",
        ours=ours,
        peers={"lightly": theirs},
        targets={"lightly": target},
        n_rounds=N_ROUNDS[device],
        clock="processor" if device == "cpu" else "wall",
        settle=settling(device),
    )


def _rounds(work: Work) -> list[tuple[float, float]]:
    return [timed(work, i, settle=settling("cuda")) for i in range(N_ROUNDS["cuda"] + 3)][3:]


def _as_row(seconds: list[tuple[float, float]], case: str, limit_ms: float, limit: str) -> Ratio:
    return within(
        seconds,
        part="step",
        case=f"DINO ViT-S/16, {case}",
        limit_ms=limit_ms,
        limit=limit,
        item="tile",
        clock="wall",
        n_items=BATCH["cuda"],
    )


def method_for(device: str) -> DINO:
    """Our method as a training of the study's size would make it, outside of a Trainer."""
    with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
        cfg = hydra.compose("config", overrides=["method=dino", "backbone=vit_s"])
    config, _ = sized(OmegaConf.to_container(cfg.method, resolve=True), n_tiles=N_TILES)
    made = instantiate(config, _partial_=True, _convert_="all")
    method = DINO(**{**made.keywords, "backbone": instantiate(cfg.backbone)}).to(device).train()
    method.total_steps, method.steps_per_epoch, method.log_every = 10**6, 10**4, 10**6
    method.tiles_per_step = BATCH[device]
    return method


def by_us(views: list[Tensor], *, precision: str, compile: bool = False) -> Work:
    """A step of ours; what Lightning adds to it costs the same with any method."""
    method = method_for(views[0].device.type)
    switch_on(method, compile=compile, grad_checkpointing=False)
    optimizer = method.configure_optimizers()

    def work(i: int, views: list[Tensor] = views) -> float:  # noqa: ARG001
        optimizer.zero_grad()
        with _autocast(views[0].device.type, precision):
            out = method.step(views)
        method._over_ranks(out)
        out["loss"].backward()
        method.on_before_optimizer_step(optimizer)
        optimizer.step()
        method.after_step(method.progress)
        return 0.0

    return work


class LightlyDINO(nn.Module):
    """Student and teacher of lightly's parts."""

    def __init__(self) -> None:
        from lightly.models.modules import DINOProjectionHead

        super().__init__()
        self.backbone = timm.create_model("vit_small_patch16_224", num_classes=0, dynamic_img_size=True)
        self.head = DINOProjectionHead(384, 2048, 256, 65_536, freeze_last_layer=1)

    def forward(self, view: Tensor) -> Tensor:
        """Logits of one view."""
        logits: Tensor = self.head(self.backbone(view))
        return logits


def by_lightly(views: list[Tensor], *, precision: str) -> Work:
    """A step of lightly's parts."""
    from lightly.loss import DINOLoss
    from lightly.models.utils import deactivate_requires_grad, update_momentum

    device = views[0].device.type
    student, teacher = LightlyDINO().to(device), LightlyDINO().to(device)
    teacher.load_state_dict(student.state_dict())
    deactivate_requires_grad(teacher)
    criterion = DINOLoss(output_dim=65_536, student_temp=STUDENT_TEMP, warmup_teacher_temp_epochs=30).to(
        device
    )
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-4, weight_decay=0.04)

    def work(i: int) -> float:  # noqa: ARG001
        update_momentum(student.backbone, teacher.backbone, m=0.996)
        update_momentum(student.head, teacher.head, m=0.996)
        with _autocast(device, precision):
            with torch.no_grad():
                targets = [teacher(view) for view in views[:2]]
            loss = criterion(targets, [student(view) for view in views], epoch=0)
        optimizer.zero_grad()
        loss.backward()
        student.head.cancel_last_layer_gradients(current_epoch=0)
        nn.utils.clip_grad_norm_(student.parameters(), CLIP_NORM)
        optimizer.step()
        return loss.item()

    return work


def with_views(step: Callable[..., Any]) -> Work:
    """A step that begins with uint8 tiles on the GPU."""
    make = only_views()
    return lambda i: step(i, make(i))


def only_views() -> Work:
    """The views of a batch of 256 px tiles on the GPU."""
    from views import multicrop

    tiles = torch.randint(0, 256, (BATCH["cuda"], 3, 256, 256), dtype=torch.uint8, device="cuda")
    views, ids = multicrop(), torch.arange(BATCH["cuda"], device="cuda")
    return lambda i: views(tiles, ids=ids, epoch=i, seed=0)


def flops_of(work: Work) -> float:
    """Floating-point operations of one call by torch's count: products only, both passes."""
    with FlopCounterMode(display=False) as counter:
        work(0)
    return float(counter.get_total_flops())


def _peak_flops() -> float | None:
    name = torch.cuda.get_device_name()
    return next((flops for known, flops in PEAK_FLOPS.items() if known in name), None)


def _autocast(device: str, precision: str) -> Any:
    dtype = AUTOCAST.get(precision)
    return torch.autocast(device, dtype=dtype or torch.bfloat16, enabled=dtype is not None)
