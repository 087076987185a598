"""The command around the checks: areas, JSON, tables, exit status."""

from __future__ import annotations

import json

import numpy as np

from pfcn_jax import main as front_door
from pfcn_jax.studies.parity.page import TITLES, Section, page_text, write_page
from pfcn_jax.studies.parity.reference import Check, check


def test_one_area_as_json_and_markdown(reference_dir, tmp_path):
    output, table = tmp_path / "r.json", tmp_path / "parity.md"
    argv = ["parity", "--reference", str(reference_dir), "--output", str(output), "--markdown", str(table)]
    assert front_door.main([*argv, "--areas", "schedule"]) == 0
    checks = json.loads(output.read_text())
    assert checks and set(checks[0]) == {"file", "tensor", "max_abs_diff", "tolerance", "ok"}
    assert all(entry["ok"] for entry in checks)
    assert "Learning rates" in table.read_text()


def test_a_wrong_tensor_gives_exit_status_1(reference_dir, tmp_path, monkeypatch, capsys):
    tensors = tmp_path / "tensors"
    tensors.mkdir()
    with np.load(reference_dir / "tensors" / "lr_schedule.npz") as archive:
        arrays = dict(archive)
    arrays["R50-1x.lr"] = arrays["R50-1x.lr"] * 1.001
    np.savez(tensors / "lr_schedule_other.npz", **arrays)
    assert front_door.main(["parity", "--reference", str(tmp_path), "--areas", "schedule"]) == 1
    assert "1 not ok" in capsys.readouterr().out


def test_a_folder_without_tensors_is_refused(tmp_path, capsys):
    assert front_door.main(["parity", "--reference", str(tmp_path)]) == 2
    assert "no folder 'tensors'" in capsys.readouterr().err


def test_checks_never_pass_on_nan_or_another_shape():
    assert not check("f", "t", np.array([np.nan]), np.array([0.0]), 1.0).ok
    assert not check("f", "t", np.zeros(2), np.zeros(3), 1.0).ok
    assert check("f", "t", np.array([1.0]), np.array([1.5]), 0.5).ok


def test_the_table_shows_the_worst_file_of_a_tensor():
    checks = [Check("a", "p3", 1e-6, 1e-5, True), Check("b", "p3", 9e-6, 1e-5, True), Check("a", "p4", 2.0, 1.0, False)]
    text = page_text({"network": Section(checks)})
    assert "| p3 | 2 | 9e-06 | 1e-05 | 90 % |" in text and "| p4 | 1 | 2 | 1 | **not ok** |" in text


def test_a_run_of_some_areas_keeps_the_sections_of_the_others(tmp_path):
    page = tmp_path / "parity.md"
    passed, failed = (Section([Check("a", "p3", 1e-6, 1e-5, ok)]) for ok in (True, False))
    everything = page_text({"network": passed, "training": passed, "schedule": passed})
    page.write_text(everything)
    write_page(page, {"training": failed})
    changed = page.read_text()
    assert changed.count("**not ok**") == 1 and changed.index("not ok") > changed.index(TITLES["training"])
    write_page(page, {"training": passed})
    assert page.read_text() == everything
    drawn = Section([], ["![an image](images/x.png)"], lambda folder: folder.mkdir() or (folder / "x.png").touch())
    write_page(page, {"trace": drawn})
    assert (tmp_path / "images" / "x.png").is_file() and "images/x.png" in page.read_text()
