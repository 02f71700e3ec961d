"""The published sets of labelled tiles: each task's YAML lists what lies in the set's own layout."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from hydra.utils import instantiate
from PIL import Image

from histo_ssl.config.plan import Plan
from histo_ssl.config.signatures import check_types
from histo_ssl.data.sources import open_source

CRC_CLASSES = ("ADI", "BACK", "DEB", "LYM", "MUC", "MUS", "NORM", "STR", "TUM")
CRC_FOLDERS = ("NCT-CRC-HE-100K", "NCT-CRC-HE-100K-NONORM", "CRC-VAL-HE-7K")
KATHER_CLASSES = (
    *("01_TUMOR", "02_STROMA", "03_COMPLEX", "04_LYMPHO"),
    *("05_DEBRIS", "06_MUCOSA", "07_ADIPOSE", "08_EMPTY"),
)
TASKS = ("crc100k", "crc100k_nonorm", "kather2016", "pcam", "bcss", "breastpathq", "images")

ListTask = Callable[..., pd.DataFrame]


@pytest.fixture
def list_task(compose: Callable[..., Plan], tmp_path: Path) -> ListTask:
    """A function that gives the table of a task's tiles, with the path below `root` as the slide."""

    def listed(task: str, *overrides: str) -> pd.DataFrame:
        plan = compose("method=random", "backbone=resnet18", f"task={task}", *overrides)
        check_types(plan.group("task"), "task")
        data, tiling = (instantiate(plan.group(f"task.{name}")) for name in ("data", "tiling"))
        folder = tmp_path / "tiles"
        data.tile(tiling, folder=folder, home=folder, n_processes=0, slide_timeout_s=60)
        source = open_source(folder)
        assert source.mpp == plan.cfg.task.tiling.mpp
        return source.table()

    return listed


def _paint(path: Path, side: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (side, side), (200, 100, 150)).save(path)


@pytest.fixture
def crc(tmp_path: Path) -> Path:
    """Two tiles of each class in both archives to learn from, one in the test's."""
    for folder in CRC_FOLDERS:
        for name in CRC_CLASSES:
            for i in range(1 if folder.endswith("7K") else 2):
                _paint(tmp_path / "crc" / folder / name / f"{name}-{folder[:3]}{i}.tif", 224)
    return tmp_path / "crc"


@pytest.mark.parametrize("task", TASKS)
def test_a_task_has_data_and_tiles_of_its_own(compose: Callable[..., Plan], task: str) -> None:
    plan = compose("method=dino", "backbone=vit_t", f"task={task}")
    assert plan.cfg.task.name == task
    # native size, but for one of which no ViT could cut patches of 16 px
    assert plan.group("task.tiling.size_px") == {"kather2016": 144}.get(task)
    assert plan.group("tiling.size_px") == 64  # the run's own is left alone
    assert plan.group("data._target_").endswith("SyntheticSlides")


@pytest.mark.parametrize("task", TASKS)
def test_without_its_folder_a_task_says_which_is_expected(
    compose: Callable[..., Plan], task: str, tmp_path: Path
) -> None:
    for root in ([], [f"task.root={tmp_path}/none"]):
        plan = compose("method=dino", "backbone=vit_t", f"task={task}", *root)
        with pytest.raises((ValueError, FileNotFoundError), match=r"expected: task\.root=<folder") as said:
            instantiate(plan.group("task.data")).listing()
        assert task == "images" or f"python -m histo_ssl.download {task}" in str(said.value)
        assert "\n" not in str(said.value)


@pytest.mark.parametrize(("task", "train"), [("crc100k", CRC_FOLDERS[0]), ("crc100k_nonorm", CRC_FOLDERS[1])])
def test_crc100k_learns_from_its_archive_and_counts_muscle_as_stroma(
    list_task: ListTask, crc: Path, task: str, train: str
) -> None:
    table = list_task(task, f"task.root={crc}")
    counts = Counter(zip(table["split"], table["label"], strict=True))
    others = [name for name in CRC_CLASSES if name not in ("MUS", "STR")]
    expected = {("train", name): 2 for name in others} | {("test", name): 1 for name in others}
    assert counts == expected | {("train", "STR"): 4, ("test", "STR"): 2}
    assert {path.split("/")[0] for path in table["slide"][table["split"] == "train"]} == {train}
    assert {path.split("/")[0] for path in table["slide"][table["split"] == "test"]} == {"CRC-VAL-HE-7K"}


def test_crc100k_has_nine_classes_where_none_are_merged(list_task: ListTask, crc: Path) -> None:
    table = list_task("crc100k", f"task.root={crc}", "task.data.merge=null")
    assert Counter(table["label"]) == dict.fromkeys(CRC_CLASSES, 3)


def test_crc100k_without_a_class_or_an_archive_is_refused(list_task: ListTask, crc: Path) -> None:
    (crc / "CRC-VAL-HE-7K").rename(crc / "test")
    with pytest.raises(FileNotFoundError, match=r"CRC-VAL-HE-7K: no such folder; expected: task.root"):
        list_task("crc100k", f"task.root={crc}")
    with pytest.raises(FileNotFoundError, match=r"100K/NCT-CRC-HE-100K: no such folder; expected: task.root"):
        list_task("crc100k", f"task.root={crc}/NCT-CRC-HE-100K")
    (crc / "test").rename(crc / "CRC-VAL-HE-7K")
    for folder in CRC_FOLDERS:
        (crc / folder / "MUS").rename(crc / folder / "MUSC")
    with pytest.raises(ValueError, match=r"data.classes names MUS: no image is of this class; found: ADI"):
        list_task("crc100k", f"task.root={crc}")


def test_kather2016_takes_the_slide_from_the_file_name(list_task: ListTask, tmp_path: Path) -> None:
    names = ["10A0_CRC-Prim-HE-07_014.tif_Row_1_Col_1.tif", "1BB8_CRC-Prim-HE-02.tif_Row_1_Col_1.tif"]
    for folder in KATHER_CLASSES:
        for name in names:
            _paint(tmp_path / "kather" / folder / name, 150)
    table = list_task("kather2016", f"task.root={tmp_path}/kather")
    assert Counter(table["label"]) == dict.fromkeys(KATHER_CLASSES, 2)
    assert Counter(table["patient"]) == {"CRC-Prim-HE-07": 8, "CRC-Prim-HE-02": 8}
    assert set(table["split"]) == {""}
    with pytest.raises(ValueError, match=r"all images lie in kather, .*/kather; expected: task\.root"):
        list_task("kather2016", f"task.root={tmp_path}")  # one folder too high


def test_pcam_is_a_list_with_splits(list_task: ListTask, tmp_path: Path) -> None:
    rows = [("train/tumor/a.jpg", "train", "tumor"), ("valid/normal/b.jpg", "valid", "normal")]
    rows += [("test/tumor/c.jpg", "test", "tumor")]
    for path, _, _ in rows:
        _paint(tmp_path / path, 96)
    pd.DataFrame(rows, columns=["path", "split", "label"]).assign(pcam_index=7).to_csv(
        tmp_path / "labels.csv", index=False
    )
    table = list_task("pcam", f"task.root={tmp_path}")
    assert table[["slide", "split", "label"]].to_numpy().tolist() == [list(row) for row in sorted(rows)]


def _bcss(root: Path, *, test_patient: str) -> None:
    rows = [("TCGA-A1-A0SK-DX1_1.png", 0, 1), ("TCGA-A1-A0SK-DX1_2.png", 3, 1)]
    rows += [(f"TCGA-A2-{test_patient}-DX1_1.png", 0, 0)]
    for name, _, _ in rows:
        _paint(root / name, 64)
    pd.DataFrame(rows, columns=["file", "label", "train"]).to_csv(root / "labels.csv", index=False)


def test_bcss_has_a_flag_for_train_and_the_patient_in_its_names(list_task: ListTask, tmp_path: Path) -> None:
    _bcss(tmp_path, test_patient="A0T2")
    table = list_task("bcss", f"task.root={tmp_path}")
    assert table[["label", "split", "patient"]].to_numpy().tolist() == [
        ["0", "train", "TCGA-A1-A0SK"],
        ["3", "train", "TCGA-A1-A0SK"],
        ["0", "test", "TCGA-A2-A0T2"],
    ]


def test_bcss_with_a_patient_on_both_sides_is_refused(list_task: ListTask, tmp_path: Path) -> None:
    _bcss(tmp_path, test_patient="A0T2")
    labels = (tmp_path / "labels.csv").read_text().replace("DX1_2.png,3,1", "DX1_2.png,3,0")
    (tmp_path / "labels.csv").write_text(labels)
    with pytest.raises(ValueError, match="found: TCGA-A1-A0SK in test/train"):
        list_task("bcss", f"task.root={tmp_path}")


def _breastpathq(root: Path, *, val_slide: int) -> None:
    (root / "train_labels.csv").write_text("slide,rid,y\n99791,1,0\n99791,2,0.7\n99792,1,0.25\n")
    (root / "val_labels.csv").write_text(f"slide,rid,y\n{val_slide},1,0.2\n{val_slide},1,0.5\n")
    for name in ("99791_1", "99791_2", "99792_1"):
        _paint(root / "train" / f"{name}.tif", 512)
    _paint(root / "validation" / f"{val_slide}_1.tif", 512)


def test_breastpathq_reads_the_numbers_of_one_reader_or_of_two(list_task: ListTask, tmp_path: Path) -> None:
    _breastpathq(tmp_path, val_slide=102174)
    table = list_task("breastpathq", f"task.root={tmp_path}")
    assert table[["slide", "patient", "split", "label"]].to_numpy().tolist() == [
        ["train/99791_1.tif", "99791", "train", "0"],
        ["train/99791_2.tif", "99791", "train", "0.7"],
        ["train/99792_1.tif", "99792", "train", "0.25"],
        ["validation/102174_1.tif", "102174", "test", "0.2;0.5"],
    ]


def test_breastpathq_with_a_slide_on_both_sides_is_refused(list_task: ListTask, tmp_path: Path) -> None:
    _breastpathq(tmp_path, val_slide=99791)
    with pytest.raises(ValueError, match="found: 99791 in test/train"):
        list_task("breastpathq", f"task.root={tmp_path}")


def test_images_of_ones_own_are_folders_or_a_list(list_task: ListTask, tmp_path: Path) -> None:
    for place in ("train/A/P1_1.png", "train/B/P1_2.png", "test/A/P2_1.png"):
        _paint(tmp_path / "own" / place, 32)
    pattern = "task.data.group_pattern='^(P[0-9])'"
    table = list_task("images", f"task.root={tmp_path}/own", pattern)
    assert table[["label", "split", "patient"]].to_numpy().tolist() == [
        ["A", "test", "P2"],
        ["A", "train", "P1"],
        ["B", "train", "P1"],
    ]
    (tmp_path / "own" / "list.csv").write_text("path,tissue,who\ntrain/A/P1_1.png,x,Q\ntest/A/P2_1.png,y,R\n")
    columns = ["task.data.columns.label=tissue", "task.data.columns.group=who"]
    table = list_task("images", f"task.csv={tmp_path}/own/list.csv", *columns)
    assert table[["label", "split", "patient"]].to_numpy().tolist() == [["y", "", "R"], ["x", "", "Q"]]


def test_the_sample_of_crc100k_has_79_tiles(list_task: ListTask, shared_data: Path) -> None:
    root = [f"task.root={shared_data}", "task.data.parts=[{folder: nct_crc}]"]
    table = list_task("crc100k", *root)
    expected = {"ADI": 11, "BACK": 1, "DEB": 1, "LYM": 11, "MUC": 11, "NORM": 11, "STR": 11 + 11, "TUM": 11}
    assert Counter(table["label"]) == expected
    assert len(table) == 79


def test_the_sample_of_kather2016_has_24_tiles(list_task: ListTask, shared_data: Path) -> None:
    table = list_task("kather2016", f"task.root={shared_data}/kather2016")
    assert Counter(table["label"]) == dict.fromkeys(KATHER_CLASSES, 3)
    assert table["patient"].str.fullmatch(r"CRC-Prim-HE-\d\d").all()


def test_the_sample_of_pcam_has_8000_tiles_and_its_splits(list_task: ListTask, shared_data: Path) -> None:
    table = list_task("pcam", f"task.root={shared_data}/pcam")
    counts = {"train": 2500, "valid": 500, "test": 1000}
    expected = {(split, label): n for split, n in counts.items() for label in ("normal", "tumor")}
    assert Counter(zip(table["split"], table["label"], strict=True)) == expected
