"""An encoder that tells PatchCamelyon's tumour tiles, for the bags of `pcam_bags.py`.

    python benchmarks/pcam_encoder.py --pcam FOLDER --to pcam_encoder.safetensors

A ResNet-10 learns the classes of the train tiles by their centres (a tile is tumour if its middle 32 px
are), with the histology views of the framework, AdamW, one cycle, bfloat16 and a moving average of its
weights, which is kept. Prints its AUC on valid and test after each epoch; what they say chooses nothing.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from PIL import Image
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from histo_ssl.backbones.timm import timm_backbone
from histo_ssl.config.choices import conf_dir
from histo_ssl.encode import Card, Encoder, save_encoder
from histo_ssl.folders.artifacts import fingerprint

NAME = "resnet10t"
CENTRE_PX, SEEN_PX = 64, 80  # what it is shown, and what that is drawn from
MPP = 0.97
VIEWS = (
    *("method=simclr", "backbone=resnet18", "views=pair_histology"),
    *("views.kinds.both.count=1", f"views.kinds.both.side={CENTRE_PX / SEEN_PX}"),
    *("views.kinds.both.scale=[0.5,1.0]", "views.kinds.both.jitter_p=0.0", "views.kinds.both.grey_p=0.0"),
    "views.kinds.both.blur_p=0.0",
)
BATCH, LR, WEIGHT_DECAY, DECAY, SMOOTHING, DROPOUT = 64, 2e-3, 0.05, 0.995, 0.1, 0.2


def main() -> None:
    """Train, say how well it tells tiles, and write the encoder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pcam", type=Path, required=True)
    parser.add_argument("--to", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    torch.manual_seed(asked.seed)
    table = pd.read_csv(asked.pcam / "labels.csv", dtype=str)
    tiles = np.stack([np.asarray(Image.open(asked.pcam / path).convert("RGB")) for path in table["path"]])
    tiles_B3SS = torch.from_numpy(tiles).permute(0, 3, 1, 2)
    class_B = torch.from_numpy((table["label"] == "tumor").to_numpy()).long()
    rows = {
        split: torch.from_numpy(np.flatnonzero(table["split"] == split)) for split in table["split"].unique()
    }
    views = _views()
    net = nn.Sequential(timm_backbone(name=NAME, drop_path=0.0), nn.Dropout(DROPOUT), nn.LazyLinear(2))
    net(torch.zeros(2, 3, CENTRE_PX, CENTRE_PX))
    kept = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(DECAY), use_buffers=True)
    n_steps = asked.epochs * (len(rows["train"]) // BATCH)
    optimizer = torch.optim.AdamW(net.parameters(), lr=LR, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, total_steps=n_steps)
    shown_B3SS = centre(tiles_B3SS, SEEN_PX)
    for epoch in range(asked.epochs):
        order = rows["train"][torch.randperm(len(rows["train"]))]
        for few in order[: len(order) // BATCH * BATCH].split(BATCH):
            (x,) = views(shown_B3SS[few], ids=few, epoch=epoch, seed=asked.seed)
            learn(net.train(), x, class_B[few], optimizer)
            schedule.step()
            kept.update_parameters(net)
        scores = {
            split: auc(kept, views, tiles_B3SS[rows[split]], class_B[rows[split]])
            for split in ("valid", "test")
        }
        print(epoch + 1, scores, flush=True)
    save_encoder(asked.to, Encoder(kept.module[0].eval(), _card(views, asked.epochs, asked.seed)))


def _views() -> Any:
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return instantiate(compose("config", overrides=list(VIEWS)).views, stain=None)


def centre(tiles_B3SS: Tensor, side_px: int) -> Tensor:
    """The middle of each tile."""
    first = (tiles_B3SS.shape[-1] - side_px) // 2
    return tiles_B3SS[..., first : first + side_px, first : first + side_px]


def learn(net: nn.Module, x: Tensor, class_B: Tensor, optimizer: torch.optim.Optimizer) -> None:
    """One step."""
    with torch.autocast("cpu", torch.bfloat16):
        logits_BC = net(x.contiguous(memory_format=torch.channels_last))
    loss = nn.functional.cross_entropy(logits_BC.float(), class_B, label_smoothing=SMOOTHING)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


@torch.inference_mode()
def auc(net: nn.Module, views: Any, tiles_B3SS: Tensor, class_B: Tensor) -> float:
    """Of the centres of tiles."""
    net.eval()
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (views.mean, views.std))
    logits = [net((few.float() / 255 - mean) / std) for few in centre(tiles_B3SS, CENTRE_PX).split(250)]
    said_B = torch.cat(logits).diff(dim=1)[:, 0]
    return round(float(roc_auc_score(class_B, said_B)), 4)


def _card(views: Any, epochs: int, seed: int) -> Card:
    facts = {"benchmark": "pcam_encoder", "epochs": epochs, "seed": seed}
    return Card(
        architecture={"_target_": "histo_ssl.backbones.timm.timm_backbone", "name": NAME, "drop_path": 0.0},
        dim=512,
        mean=tuple(views.mean),
        std=tuple(views.std),
        tile_px=CENTRE_PX,
        mpp=MPP,
        method="supervised",
        fingerprint=fingerprint(facts),
    )


if __name__ == "__main__":
    main()
