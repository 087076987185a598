"""The ablation tables: rows and what they share, tables and images from given figures, and two of them for real."""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib
import re

import jax
import numpy as np
import pytest
from PIL import Image

from pfcn_jax import main as front_door
from pfcn_jax.config.command_line import from_command_line
from pfcn_jax.config.schema import Config, to_json
from pfcn_jax.errors import UserError
from pfcn_jax.evaluation.curves import read_metrics
from pfcn_jax.models.build import abstract_variables
from pfcn_jax.models.options import ModelOptions
from pfcn_jax.models.panoptic_fcn import PanopticFCN
from pfcn_jax.studies.ablate import command, report
from pfcn_jax.studies.ablate.runs import Runs, evaluation_key, training_key, training_seconds
from pfcn_jax.studies.ablate.tables import METRICS, TABLES, Figures, Row, Table, apply, find_row
from pfcn_jax.training.trainer import Trainer
from tests.support.tiny import EAGER, TINY

CONFIG = pathlib.Path(__file__).parents[2] / "configs" / "ablations.py"
ROWS = [(table, row) for table in TABLES.values() for row in table.rows]
INFERENCE_ONLY = ("fusion_threshold", "removing_repeats")


@functools.cache
def _parameters(settings: ModelOptions) -> int:
    """Of the network with these heads on a small backbone, made by `eval_shape`; rows of one network share it."""
    model = PanopticFCN(options=dataclasses.replace(settings, backbone="resnet18"))
    return sum(leaf.size for leaf in jax.tree.leaves(abstract_variables(model)))


@pytest.mark.parametrize(("table", "row"), ROWS, ids=lambda part: part.name)
def test_every_row_is_a_named_config_that_makes_a_network(table, row):
    for base in ("coco", "scenes"):
        named = from_command_line([f"--config={CONFIG}:{base}:{table.name}:{row.name}"])
        applied = apply(from_command_line([f"--config={CONFIG}:{base}"]), row, seed=0)
        assert dataclasses.replace(named, name="") == dataclasses.replace(applied, name="")
        assert named.name.endswith(f"_{table.name}_{row.name}")
    canonical = apply(Config(), row, seed=0).model
    assert (_parameters(canonical) == _parameters(ModelOptions())) == (canonical == ModelOptions())


def test_the_tables_are_those_of_the_paper():
    assert list(TABLES) == [
        "kernel_generator", "coordinates", "fusion_threshold", "removing_repeats",
        "encoder_channels", "encoder_input", "weighted_dice",
    ]  # fmt: skip
    canonical = Config()
    published: dict[str, Figures] = {}
    for table, row in ROWS:
        config = apply(canonical, row, seed=0)
        same = published.setdefault(evaluation_key(config), row.published)
        assert same == row.published, f"{table.name}:{row.name}: published twice with other figures"
        if config == canonical:
            assert row.name == table.reference and row.published == Figures(41.3, 46.9, 32.9, 32.1, 41.7)
    assert find_row("weighted_dice:plain")[1].published.PQ == 40.2
    assert find_row("kernel_generator:plain_4")[1].published == Figures(39.2, 44.9, 30.8, 29.4, 39.9)
    for table in TABLES.values():  # all but the first differ from the method as published in one row at a time
        reference = apply(canonical, table.row(table.reference), seed=0)
        assert (reference == canonical) == (table.name != "kernel_generator")


def test_rows_share_what_is_the_same():
    base = from_command_line([f"--config={CONFIG}:scenes"])
    configs = {f"{table.name}:{row.name}": apply(base, row, seed=0) for table, row in ROWS}
    trainings = {name: training_key(config) for name, config in configs.items()}
    evaluations = {name: evaluation_key(config) for name, config in configs.items()}
    assert len(set(trainings.values())) == 18 and len(set(evaluations.values())) == 26
    assert evaluations["kernel_generator:deform_3"] == evaluations["coordinates:none"]
    of_base = {name for name, key in trainings.items() if key == training_key(base)}
    inference_only = {f"{name}:{row.name}" for name in INFERENCE_ONLY for row in TABLES[name].rows}
    references = {f"{table.name}:{table.reference}" for table in TABLES.values()} - {"kernel_generator:deform_3"}
    assert of_base == inference_only | references


def test_keys_follow_what_matters_only():
    base = from_command_line([f"--config={CONFIG}:scenes"])

    def changed(section: str, **keys) -> Config:
        return dataclasses.replace(base, **{section: dataclasses.replace(getattr(base, section), **keys)})

    for how in (changed("data", workers=3), changed("train", checkpoint_every=7), dataclasses.replace(base, name="x")):
        assert (training_key(how), evaluation_key(how)) == (training_key(base), evaluation_key(base))
    for scored in (changed("inference", merge_score=0.3), changed("data", eval_examples=5), changed("tta", flip=True)):
        assert training_key(scored) == training_key(base) and evaluation_key(scored) != evaluation_key(base)
    for other in (changed("train", steps=9), changed("data", root="x"), dataclasses.replace(base, seed=1)):
        assert training_key(other) != training_key(base) and evaluation_key(other) != evaluation_key(base)


def test_a_training_of_other_defaults_is_not_taken_for_this_one(tmp_path):
    runs = Runs(Config(), tmp_path)
    directory = runs.training_directory(Config())
    directory.mkdir(parents=True)
    before = json.loads(to_json(Config()))
    del before["train"]["ema_decay"]  # a key that the schema has got since then
    (directory / "config.json").write_text(json.dumps(before))
    runs.check_defaults(directory)
    before["model"]["encoder_channels"] = 32  # what the default was then
    (directory / "config.json").write_text(json.dumps(before))
    with pytest.raises(UserError, match="other defaults"):
        runs.measure(Config())


@pytest.mark.parametrize("name", ["nope", "encoder_channels:17", "encoder_channels"])
def test_a_row_that_is_not_there(name, capsys):
    assert front_door.main(["inspect", "--config", f"{CONFIG}:{name}"]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert "known: kernel_generator" in message or "it has 16, 32, 64, 128" in message


def fake_run(seed: int, pq: float, **more) -> dict:
    environment = {"devices": 1, "device": "cpu", "date": f"2026-01-0{seed + 1}"}
    figures = {name: pq + index for index, name in enumerate(METRICS)}
    return {"seed": seed, **figures, "pictures": 5, "train_seconds": 60.0, "environment": environment, **more}


def fake_record(table: Table, *, seeds=(0, 1)) -> report.Record:
    """Figures that differ by row and seed; the last row is not measured with the last seed."""
    measured = {
        row.name: {seed: fake_run(seed, 50.0 + 2 * number + seed * (number + 1)) for seed in seeds}
        for number, row in enumerate(table.rows)
    }
    del measured[table.rows[-1].name][seeds[-1]]
    return report.make_record(table, Config(), measured, seeds)


def test_a_table_says_mean_spread_and_difference():
    table = TABLES["encoder_channels"]  # 16: 50 and 51, 32: 52 and 54, 64: 54 and 57, 128: 56
    text = report.markdown(fake_record(table))
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if "|" in line]
    assert lines[0][2:7] == list(METRICS) and {len(line) for line in lines} == {9}
    paper, here = lines[2], lines[3]
    assert paper == ["16", "paper", "39.9", "45.0", "32.1", "30.8", "41.3", "-1.4", ""]
    assert here[1:3] == ["here", "50.5 (50.0 to 51.0)"] and here[6] == "54.5 (54.0 to 55.0)"
    assert here[7] == "-5.0 (-6.0 to -4.0)"  # 50 - 54 and 51 - 57, seed by seed
    assert here[8] == "60 s" and lines[6][0] == "**64**"
    assert lines[9][2] == "56.0" and lines[9][7] == "+2.0"  # one seed alone has no spread
    assert "1 runs not done yet" in text and "2026-01-01 to 2026-01-02" in text
    empty = report.make_record(table, Config(), {}, [0])
    assert report.markdown(empty).count("| - |") >= 4 and "4 runs not done yet" in report.markdown(empty)


def test_tables_are_files_and_a_document_takes_them_in(tmp_path, capsys):
    names = ("coordinates", "weighted_dice")
    records = [fake_record(TABLES[name]) for name in names]
    for record in records:
        report.write_table(tmp_path / "work", record)
    assert json.loads((tmp_path / "work" / "coordinates.json").read_text()) == json.loads(json.dumps(records[0]))
    image = np.asarray(Image.open(tmp_path / "work" / "coordinates.png").convert("RGB")).astype(int)
    for half in (image[:, : image.shape[1] // 2], image[:, image.shape[1] // 2 :]):  # paper, ours
        for color in ((255, 127, 14), (31, 119, 180)):
            assert (np.abs(half - color).max(axis=-1) < 12).sum() > 60
    document = tmp_path / "page.md"
    sections = [f"<!-- ablation {name} -->\nold\n<!-- end {name} -->\n" for name in (*names, "picture")]
    document.write_text("before\n" + "".join(sections) + "after\n")
    assert front_door.main(["ablate", "--workdir", str(tmp_path / "work"), "--collect", str(document)]) == 0
    text = document.read_text()
    assert "old" not in text and text.startswith("before\n") and text.endswith("after\n")
    assert all(report.markdown(record) in text for record in records)
    assert "(images/page.png)" in text and (tmp_path / "images" / "page.png").is_file()
    document.write_text("no sections")
    assert front_door.main(["ablate", "--workdir", str(tmp_path / "work"), "--collect", str(document)]) == 2
    assert "<!-- ablation coordinates -->" in capsys.readouterr().err


def test_the_seconds_of_a_run_are_those_of_all_its_sessions(tmp_path):
    laps = [(1, 9.0), (2, 1.0), (4, 0.5), (4, 2.0), (5, 1.5)]  # stopped after step 4, and again from 2 on
    lines = [json.dumps({"step": step, "step_seconds": seconds}) for step, seconds in laps]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    assert training_seconds(tmp_path) == 9.0 + 1.0 + 2 * 2.0 + 1.5
    assert read_metrics(tmp_path)["step_seconds"][0] == [1, 2, 4, 5]


def test_a_row_that_fails_does_not_stop_the_others(tmp_path, capsys):
    class Broken(Runs):
        def measure(self, config):
            if config.model.encoder_input == "p2":
                raise UserError("no luck")
            path = self.evaluation_file(config)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(fake_run(config.seed, 50.0)))

    failed = command.run_tables([TABLES["encoder_input"]], Broken(Config(), tmp_path), [0, 1])
    assert failed == ["encoder_input, p2, seed 0: no luck", "encoder_input, p2, seed 1: no luck"]
    rows = json.loads((tmp_path / "encoder_input.json").read_text())["rows"]
    assert [len(row["runs"]) for row in rows] == [0, 2, 2]
    assert "50.0 (50.0 to 50.0)" in capsys.readouterr().out


def test_what_is_asked_for_must_be_there(tmp_path, capsys):
    assert front_door.main(["ablate", "--workdir", str(tmp_path)]) == 2
    assert "--table kernel_generator" in capsys.readouterr().err
    assert front_door.main(["ablate", "--workdir", str(tmp_path), "--collect", "page.md"]) == 2
    assert "no tables here yet" in capsys.readouterr().err
    assert front_door.main(["ablate", "--table", "all", "--list", "--workdir", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "18 trainings, 0 done; 26 evaluations, 0 done" in shown
    assert re.search(r"0\.90_class_agnostic +seed 0  training \w{12}  to do +inference\.fusion_threshold=0\.9", shown)


RUN = [
    *TINY,
    *(f"--config.inference.{key}={value}" for key, value in EAGER.items()),
    "--config.train.steps=4",
    "--config.train.checkpoint_every=2",
    "--config.train.preview_images=0",
    "--config.optim.name=sgd",
]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_two_tables_end_to_end_with_a_stop_in_between(tmp_path, capsys, monkeypatch):
    two_rows = Table("dice", "two rows", "3", (
        Row("1", {"loss.positives": 1}, Figures(1.0, 1.0, 1.0, 1.0, 1.0)),
        Row("3", {"loss.positives": 3}, Figures(2.0, 2.0, 2.0, 2.0, 2.0)),
    ))  # fmt: skip
    repeats = TABLES["removing_repeats"]
    monkeypatch.setattr(command, "TABLES", {"dice": two_rows, repeats.name: repeats})
    flags = ["ablate", *RUN, "--config.loss.positives=3", "--workdir", str(tmp_path), "--table", "all"]

    class Killed(BaseException):
        pass

    save, saved = Trainer.save, []

    def dying_save(self, step, **keywords):
        save(self, step, **keywords)
        saved.append((self.config.loss.positives, step))
        if saved[-1] == (3, 2):  # in the middle of the second row
            self.checkpoints.wait()
            raise Killed

    monkeypatch.setattr(Trainer, "save", dying_save)
    with pytest.raises(Killed):
        front_door.main(flags)

    def noted_save(self, step, **keywords):
        saved.append("again")
        save(self, step, **keywords)

    monkeypatch.setattr(Trainer, "save", noted_save)
    base = from_command_line([*RUN, "--config.loss.positives=3"])
    runs = Runs(base, tmp_path)
    first, second = (apply(base, row, seed=0) for row in two_rows.rows)
    assert runs.is_measured(first) and not runs.is_trained(second)
    stamp = runs.evaluation_file(first).stat().st_mtime_ns
    capsys.readouterr()

    assert front_door.main(flags) == 0
    shown = capsys.readouterr().out
    assert "2 trainings, 1 done; 5 evaluations, 1 done" in shown  # of 6 rows; "fusion" is the base
    assert runs.evaluation_file(first).stat().st_mtime_ns == stamp
    assert saved == [(1, 2), (1, 4), (3, 2), "again"]  # the second row went on from step 2
    steps, _ = read_metrics(runs.training_directory(second))["loss"]
    assert steps == [1, 2, 3, 4]
    dice, of_repeats = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("dice", repeats.name))
    assert len({run["training"] for row in of_repeats["rows"] for run in row["runs"]}) == 1
    by_name = {row["row"]: row["runs"][0] for row in of_repeats["rows"]}
    assert by_name["fusion"] == dice["rows"][1]["runs"][0]  # measured once
    assert all(np.isfinite(run[name]) for run in by_name.values() for name in METRICS)
    own = json.loads((runs.training_directory(second) / "evaluation.json").read_text())
    assert by_name["fusion"]["PQ"] == own["All"]["PQ"] and by_name["fusion"]["AP"] == own["AP"]["AP"]

    for seed in (0,):  # once more: nothing is trained, nothing is scored
        assert front_door.main([*flags, "--seeds", str(seed)]) == 0
    assert "2 trainings, 2 done; 5 evaluations, 5 done" in capsys.readouterr().out and len(saved) == 4


def test_the_page_has_a_section_for_every_table():
    page = (CONFIG.parents[1] / "docs" / "ablations.md").read_text()
    for name in (*TABLES, "picture"):
        assert re.search(rf"<!-- ablation {name} -->\n(.*\n)*?<!-- end {name} -->", page), name
