"""Data as annotation tools write it: each case ends with an error or a counted warning that names what is wrong."""

from __future__ import annotations

import json
import pathlib
import shutil
import unicodedata

import numpy as np
import pytest
from PIL import Image

from pfcn_jax import main as front_door
from pfcn_jax.data.datasets.coco import CocoFolder
from pfcn_jax.data.example import DataError
from pfcn_jax.data.inputs import open_evaluation, open_training
from pfcn_jax.data.options import DataOptions

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of pycocotools' decoder
OWN = f"--config={pathlib.Path(__file__).parents[2] / 'configs' / 'own_data.py'}"


def prepare(kind: str, *words: object) -> int:
    return front_door.main(["prepare", kind, *map(str, words)])


def prepare_instances(case: pathlib.Path, output: pathlib.Path, *flags: str) -> int:
    words = ["--json", case / "instances.json", "--images", case / "images", "--output", output]
    return prepare("instances", *words, "--split", "train", *flags)


def validate(root: pathlib.Path, output: pathlib.Path) -> tuple[int, dict]:
    status = front_door.main(["validate-data", OWN, f"--config.data.root={root}", "--output", str(output)])
    return status, json.loads(output.read_text())["findings"]


def first_message(findings: dict, kind: str) -> str:
    return findings[kind]["examples"][0]["message"]


def test_clean_data_pass(cases_dir, tmp_path):
    status, findings = validate(cases_dir / "00-clean", tmp_path / "report.json")
    assert status == 0 and not any(group["severity"] == "error" for group in findings.values())


@pytest.mark.parametrize(
    ("case", "kind", "words"),
    [
        ("02-strings/iscrowd", "value-invalid", ("iscrowd is '0' (text), must be 0 or 1",)),
        ("02-strings/segment_id", "value-invalid", ("id is '1' (text), must be a whole number",)),
        ("02-strings/segments_null", "value-invalid", ("segments_info is null, must be a list of segments",)),
        ("39-top-list", "json-part-missing", ("panoptic_train.json: holds a list",)),
        ("11-bgr", "id-unlisted", ("written as BGR",)),
        ("12-png-kinds/rgba", "label-format", ("8-bit RGB + alpha",)),
        ("22-swapped-size", "picture-size", ("height and width are exchanged", "96 x 128 (height x width)")),
        ("01-exif/half_turn", "image-rotated", ("train",)),
    ],
)
def test_damaged_panoptic_folders(cases_dir, tmp_path, case, kind, words):
    status, findings = validate(cases_dir / case, tmp_path / "report.json")
    assert kind in findings and all(word in first_message(findings, kind) for word in words)
    is_error = findings[kind]["severity"] == "error"
    assert status == int(is_error)
    if is_error:  # training stops at the same fault
        with pytest.raises(DataError) as caught:
            CocoFolder(cases_dir / case, "train")[0]
        assert caught.value.kind == kind and all(word in str(caught.value) for word in words)


def test_training_and_evaluation_warn_of_exif(cases_dir, capsys):
    options = DataOptions(root=str(cases_dir / "01-exif/half_turn"))
    open_training(options)
    assert "of the first 6 images have an EXIF orientation" in capsys.readouterr().err
    open_evaluation(options, 1)


def test_accents_may_be_composed_or_decomposed(cases_dir, tmp_path):
    root = shutil.copytree(cases_dir / "00-clean", tmp_path / "data")
    path = root / "annotations/panoptic_train.json"
    content = json.loads(path.read_text())
    content["images"][0]["file_name"] = unicodedata.normalize("NFC", "kuh-\u00e4.jpg")
    path.write_text(json.dumps(content))
    (root / "train/train_001.jpg").rename(root / "train" / unicodedata.normalize("NFD", "kuh-\u00e4.jpg"))
    assert len(CocoFolder(root, "train")[0].class_id)
    assert "file-unlisted" not in validate(root, tmp_path / "report.json")[1]


@pytest.mark.parametrize("case", ["17-colours/hex", "32-colours-per-export"])
def test_colors_decide_nothing(cases_dir, tmp_path, case):
    status, findings = validate(cases_dir / case, tmp_path / "report.json")
    assert status == 0 and "splits-differ" not in findings


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        ("04-two-points/line", "fewer than three points"),
        ("05-empty-segmentation", "empty segmentation"),
        ("29-nesting/pairs", "wrongly nested"),
    ],
)
def test_unusable_polygons_are_counted_and_can_be_left_out(cases_dir, tmp_path, capsys, case, reason):
    assert prepare_instances(cases_dir / case, tmp_path / "out") == 2
    message = capsys.readouterr().err
    assert reason in message and "p1.jpg" in message and "--skip-bad" in message
    assert prepare_instances(cases_dir / case, tmp_path / "out", "--skip-bad") == 0
    out = capsys.readouterr().out
    assert reason in out and "lie completely below" not in out
    assert ("no-instances" in out) == (case == "29-nesting/pairs")


def test_predictions_written_as_bgr_are_named(cases_dir, capsys):
    case = cases_dir / "08-scoring"
    labels = ["--gt-json", case / "gt/annotations/panoptic_val.json", "--gt-dir", case / "gt/annotations/panoptic_val"]
    words = [*labels, "--pred-json", case / "bgr/pred.json", "--pred-dir", case / "bgr/png"]
    assert front_door.main(["evaluate", *map(str, words)]) == 2
    assert "the PNG was written as BGR [id-unlisted: " in capsys.readouterr().err


def test_repeated_file_names_are_refused(cases_dir, tmp_path, capsys):
    assert prepare_instances(cases_dir / "45-detection-collision/same_file", tmp_path / "out") == 2
    assert "appears twice in images" in capsys.readouterr().err


def test_backslashes_are_named(cases_dir, tmp_path, capsys):
    assert prepare_instances(cases_dir / "07-backslash/detection", tmp_path / "out") == 2
    assert "file_name has backslashes" in capsys.readouterr().err


def test_an_unused_category_of_the_same_name_is_left_out(cases_dir, tmp_path, capsys):
    assert prepare_instances(cases_dir / "18-categories/root_same_name", tmp_path / "out") == 0
    assert "category 0 'disk' is unused" in capsys.readouterr().out
    assert CocoFolder(tmp_path / "out", "train").classes.names == ("disk", "box", "background")


@pytest.mark.parametrize("folder", ["roboflow", "coco_detection"])
def test_a_detection_file_in_place_of_a_panoptic_one_is_recognized(cases_dir, folder, capsys):
    assert front_door.main(["validate-data", OWN, f"--config.data.root={cases_dir / '30-raw-exports' / folder}"]) == 1
    assert "prepare instances --json" in capsys.readouterr().out


def prepare_masks(case: pathlib.Path, output: pathlib.Path, *flags: str) -> int:
    words = ["--masks", f"disk={case / 'masks'}", "--images", case / "pictures", "--output", output]
    return prepare("masks", *words, "--split", "train", *flags)


def test_masks_with_a_suffix_are_found(cases_dir, tmp_path, capsys):
    assert prepare_masks(cases_dir / "10-mask-names/suffix", tmp_path / "out") == 0
    assert "no mask" not in capsys.readouterr().out
    source = CocoFolder(tmp_path / "out", "train")
    assert all(source.classes.is_thing[source[i].class_id[0]] for i in range(len(source)))


def test_plain_masks_get_a_hint(cases_dir, tmp_path, capsys):
    assert prepare_masks(cases_dir / "27-binary-masks", tmp_path / "out") == 0
    assert "6 images: the mask has 0 and 255 only" in capsys.readouterr().out
    assert prepare_masks(cases_dir / "27-binary-masks", tmp_path / "parts", "--components") == 0
    assert "the mask has" not in capsys.readouterr().out
    one, parts = (CocoFolder(tmp_path / name, "train") for name in ("out", "parts"))
    assert sum(len(parts[i].class_id) for i in range(6)) > sum(len(one[i].class_id) for i in range(6)) == 12


def test_a_color_coded_mask_is_recognized(cases_dir, tmp_path, capsys):
    case = cases_dir / "26-semantic-colours"
    words = ["--masks", case / "masks", "--images", case / "pictures", "--classes", case / "classes.json"]
    assert prepare("semantic", *words, "--output", tmp_path / "out", "--split", "train") == 2
    assert "the mask is color-coded" in capsys.readouterr().err


@pytest.fixture
def disks(tmp_path) -> pathlib.Path:
    """Three images of 60 x 90 with a mask of a disk, drawn here."""
    y, x = np.mgrid[:60, :90]
    disk = ((y - 20) ** 2 + (x - 30) ** 2 < 150).astype(np.uint8)
    for folder in ("pictures", "masks"):
        (tmp_path / "case" / folder).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in ("a", "b", "c"):
        Image.fromarray(rng.integers(0, 255, (60, 90, 3), np.uint8)).save(tmp_path / f"case/pictures/{name}.jpg")
        Image.fromarray(disk * 255).save(tmp_path / f"case/masks/{name}.png")
    return tmp_path / "case"


def test_softened_masks_are_refused_and_a_threshold_mends_them(disks, tmp_path, capsys):
    for path in (disks / "masks").iterdir():
        with Image.open(path) as mask:
            small = mask.resize((45, 30), Image.Resampling.BILINEAR)
        small.resize((90, 60), Image.Resampling.BICUBIC).save(path)
    assert prepare_masks(disks, tmp_path / "out") == 2
    assert "--threshold 128" in capsys.readouterr().err
    assert prepare_masks(disks, tmp_path / "out", "--threshold", "128") == 0
    assert len(CocoFolder(tmp_path / "out", "train")[0].class_id) == 2  # the disk and the background


def test_a_border_of_255_is_named_and_can_be_ignored(disks, tmp_path, capsys):
    for path in (disks / "masks").iterdir():
        with Image.open(path) as mask:
            values = (np.asarray(mask) > 0).astype(np.uint8)
        values[np.diff(values, axis=1, append=0) != 0] = 255
        Image.fromarray(values).save(path)
    assert prepare_masks(disks, tmp_path / "out") == 0
    assert "3 images: 255 beside other values" in capsys.readouterr().out
    assert prepare_masks(disks, tmp_path / "out", "--ignore", "255") == 0
    example = CocoFolder(tmp_path / "out", "train")[0]
    assert len(example.class_id) == 2 and (example.segment_map == 0).any()


def test_images_without_a_mask_and_masks_without_an_image_are_counted(disks, tmp_path, capsys):
    (disks / "masks/c.png").rename(disks / "masks/other.png")
    (disks / "masks/notes.txt").write_text("")
    (disks / "masks/._a.png").write_bytes(b"")
    shutil.copy(disks / "masks/a.png", disks / "masks/a_mask.png")
    assert prepare_masks(disks, tmp_path / "out") == 2
    assert "two masks of" in capsys.readouterr().err
    (disks / "masks/a_mask.png").unlink()
    assert prepare_masks(disks, tmp_path / "out") == 0
    out = capsys.readouterr().out
    assert "1 of 3 images have no mask" in out and "1 masks belong to no image" in out
    assert "1 files are not PNG or TIFF" in out


@pytest.mark.parametrize("orientation", [3, 6])
def test_exif_is_counted_or_baked_in(disks, tmp_path, capsys, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    with Image.open(disks / "pictures/b.jpg") as image:
        stored = np.asarray(image)
        image.save(disks / "pictures/b.jpg", exif=exif, quality=95)
    assert prepare_masks(disks, tmp_path / "out") == 0
    assert "1 images have an EXIF orientation: copied as stored" in capsys.readouterr().out
    turned = Image.fromarray(stored).transpose(
        {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_270}[orientation]
    )
    upright = np.zeros((turned.height, turned.width), np.uint8)
    upright[5:20, 10:30] = 1
    Image.fromarray(upright).save(disks / "masks/b.png")
    status = prepare_masks(disks, tmp_path / "out")
    assert status == (2 if orientation == 6 else 0)
    assert ("--upright" in capsys.readouterr().err) == (orientation == 6)
    assert prepare_masks(disks, tmp_path / "out", "--upright") == 0
    example = CocoFolder(tmp_path / "out", "train")[1]
    np.testing.assert_array_equal(example.segment_map == 1, upright == 1)
    assert (
        np.abs(example.image.astype(int) - np.asarray(turned)).mean() < 12
    )  # noise, two times through JPEG; another turn: 80


def test_all_crowds_are_no_instances(cases_dir, tmp_path, capsys):
    case = shutil.copytree(cases_dir / "05-empty-segmentation", tmp_path / "case")
    content = json.loads((case / "instances.json").read_text())
    for annotation in content["annotations"]:
        annotation["iscrowd"] = 1
    (case / "instances.json").write_text(json.dumps(content))
    assert prepare_instances(case, tmp_path / "out", "--skip-bad") == 0
    assert "no-instances" in capsys.readouterr().out
    status, findings = validate(tmp_path / "out", tmp_path / "report.json")
    assert status == 1 and "--crowds-as-instances" in first_message(findings, "no-instances")
    assert findings["class-crowds-only"]["severity"] == "warning"
    with pytest.raises(DataError, match="--crowds-as-instances") as caught:
        open_training(DataOptions(root=str(tmp_path / "out")))
    assert caught.value.kind == "no-instances"
    assert prepare_instances(case, tmp_path / "out", "--skip-bad", "--crowds-as-instances") == 0
    assert "no-instances" not in validate(tmp_path / "out", tmp_path / "report.json")[1]
