"""The floors of PatchCamelyon, by the protocol `logistic`: statistics of colours, and ResNet-18s as born.

    python benchmarks/pcam_floors.py --pcam FOLDER --draws 4

FOLDER holds labels.csv (path, label, split) and the tiles. A ResNet-18 of timm is born with the last
normalisation of each residual branch at 0, so that its branches are silent; torchvision's is not. Each is
scored with a C that is chosen on the training tiles, as the protocol does, and with some that are not.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import timm
import torch
import torchvision
from hydra.utils import instantiate
from numpy.typing import NDArray
from omegaconf import OmegaConf
from PIL import Image
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from torch import Tensor, nn

from histo_ssl.config.choices import conf_dir
from histo_ssl.tasks.floors import ColorStatistics
from histo_ssl.tasks.tiles import Lesson

MEAN, STD = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
BATCH = 250


def main() -> None:
    """Print balanced accuracy and AUC of the test tiles for each floor."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pcam", type=Path, required=True)
    parser.add_argument("--draws", type=int, default=4, help="of random weights")
    parser.add_argument("--strengths", type=float, nargs="*", default=[0.1, 1.0], help="C that is not chosen")
    asked = parser.parse_args()
    folder = asked.pcam
    table = pd.read_csv(folder / "labels.csv", dtype=str).query("split != 'valid'")
    tiles = np.stack([np.asarray(Image.open(folder / path).convert("RGB")) for path in table["path"]])
    tiles_B3SS = torch.from_numpy(tiles).permute(0, 3, 1, 2)
    columns = "".join(f" C = {strength:g} |" for strength in asked.strengths)
    print("Balanced accuracy / AUC of the test.\n")
    print(f"| floor | draw | C chosen |{columns}\n|---|---|---|{'---|' * len(asked.strengths)}")
    for name, network in floors().items():
        for draw in range(1 if name == "colour" else asked.draws):
            torch.manual_seed(draw)
            features = embedded(network(), tiles_B3SS, is_plain=name == "colour")
            cells = [scored(features, table, strengths=one) for one in (None, *asked.strengths)]
            print(f"| {name} | {draw} |{''.join(f' {cell} |' for cell in cells)}", flush=True)


def floors() -> dict[str, Callable[[], nn.Module]]:
    """How each floor is made."""
    return {"colour": ColorStatistics, "torchvision's ResNet-18": _torchvisions, "timm's ResNet-18": _timms}


def _torchvisions() -> nn.Module:
    network = torchvision.models.resnet18(weights=None)
    network.fc = nn.Identity()
    return network


def _timms() -> nn.Module:
    network: nn.Module = timm.create_model("resnet18", num_classes=0)
    return network


@torch.inference_mode()
def embedded(network: nn.Module, tiles_B3SS: Tensor, *, is_plain: bool) -> NDArray[np.float32]:
    """Features of all tiles, of plain RGB or standardised as ImageNet's."""
    network.eval()
    parts = []
    for start in range(0, len(tiles_B3SS), BATCH):
        rgb = tiles_B3SS[start : start + BATCH].float() / 255
        parts.append(network(rgb if is_plain else (rgb - MEAN) / STD))
    return torch.cat(parts).numpy()


def scored(features: NDArray[np.float32], table: pd.DataFrame, *, strengths: float | None) -> str:
    """Balanced accuracy and AUC of the test; None: the strength is chosen."""
    config = OmegaConf.load(conf_dir() / "task" / "protocols" / "logistic.yaml")["logistic"]
    protocol = instantiate(config, **({} if strengths is None else {"strengths": [strengths]}))
    truth, train = ((table[c] == v).to_numpy() for c, v in (("label", "tumor"), ("split", "train")))
    lesson = Lesson(
        features_ND=features[train],
        class_N=truth[train].astype(np.int64),
        group_N=np.arange(train.sum()),
        n_classes=2,
    )
    score_MC, _ = protocol.classify(lesson, features[~train])
    said, tested = score_MC.argmax(axis=1), truth[~train]
    auc = roc_auc_score(tested, score_MC[:, 1])
    return f"{balanced_accuracy_score(tested, said):.3f} / {auc:.3f}"


if __name__ == "__main__":
    main()
