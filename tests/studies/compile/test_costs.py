"""HLO text -> costs, on a program written by hand and on a part of our own as libtpu compiled it."""

from __future__ import annotations

import pathlib

import pytest

from pfcn_jax.studies.compile import hlo
from pfcn_jax.studies.compile.chips import CHIPS, find_slice
from pfcn_jax.studies.compile.costs import COLLECTIVES, KINDS, LAYOUT, OTHER, PRODUCTS, REDUCTIONS, program_costs
from pfcn_jax.studies.compile.report import estimate, largest_that_fit, markdown, summarize, terminal

HERE = pathlib.Path(__file__).parent
NAMES = {"backbone": {"conv1": {"kernel": None}}, "head": {"kernel": None}}


@pytest.fixture(scope="module")
def module():
    return hlo.parse((HERE / "small.hlo").read_text())


@pytest.fixture(scope="module")
def costs(module):
    return program_costs(module, NAMES)


@pytest.fixture(scope="module")
def lines(costs):
    return {line.name: line for line in costs[0]}


def test_an_instruction_is_taken_apart(module):
    outer = module.computations["main"]["outer"]
    assert outer.opcode == "while" and outer.operands == ("begin.1",) and outer.computation("body") == "outer_body"
    assert outer.shape.startswith("(s32[]{:T(128)}, f32[64,128]") and outer.shape.endswith(")")
    product = module.computations["main"]["product"]
    assert product.cycles == 1000 and product.op_name.endswith("backbone/conv1/dot_general")
    assert module.computations["main"]["chosen"].branches == ("cheap", "dear")
    with pytest.raises(ValueError, match="ENTRY"):
        hlo.parse("HloModule nothing\n")


def test_the_source_is_the_innermost_line_of_this_package(module):
    body = module.computations["inner_body"]
    assert module.source(body["row_fusion"]) == "panoptic/targets.py:31 make_targets"  # called from Flax
    assert module.source(module.computations["main"]["product"]) == ""


def test_trips_of_loops(costs):
    # `inner` runs from 2 to a bound of 6 that the outer loop carries; the bound of `open` is computed.
    assert {loop.name: loop.trips for loop in costs[1]} == {"outer": 3, "inner": 4, "open": None}


def test_a_loop_that_the_compiler_annotates_or_that_counts_by_twos():
    text = (HERE / "small.hlo").read_text()
    annotated = text.replace("body=%open_body", 'body=%open_body, backend_config={"known_trip_count":{"n":"11"}}')
    _, loops = program_costs(hlo.parse(annotated), NAMES)
    assert {loop.name: loop.trips for loop in loops}["open"] == 11
    by_twos = text.replace("%one.1 = s32[]{:T(128)} constant(1)", "%one.1 = s32[]{:T(128)} constant(2)")
    _, loops = program_costs(hlo.parse(by_twos), NAMES)
    assert {loop.name: loop.trips for loop in loops}["inner"] is None


def test_cycles_count_as_often_as_a_line_runs(lines):
    assert (lines["row_fusion"].times, lines["row_fusion"].cycles, lines["row_fusion"].counted) == (12, 1200, True)
    assert (lines["turned"].times, lines["turned"].cycles, lines["turned"].counted) == (3, 21, False)
    assert "other" in lines and "same" not in lines  # of a conditional the dearest branch
    assert not lines["sum"].estimated and lines["sum"].cycles == 0


def test_kinds_and_modules(lines):
    assert {name: lines[name].kind for name in ("product", "row_fusion", "turned", "other", "sum")} == {
        "product": PRODUCTS, "row_fusion": LAYOUT, "turned": LAYOUT, "other": OTHER, "sum": COLLECTIVES,
    }  # fmt: skip
    assert lines["product"].module == "backbone/conv1" and lines["row_fusion"].module == "head"
    assert lines["turned"].module == "panoptic/targets" and lines["sum"].module == "unknown"


def test_bytes_that_pass_through_hbm(lines):
    assert lines["product"].hbm_bytes == 8 * 128 * 2  # the operand [8, 16] fills its tile; the rest is on the chip
    assert lines["row_fusion"].hbm_bytes == 12 * (128 * 4 + 128 * 4 + 4)  # reads a row of the map, and the index
    assert lines["turned"].hbm_bytes == 3 * (64 * 128 + 128 * 128) * 4  # columns of 64 fill tiles of 128
    assert lines["sum"].result_bytes == 8 * 128 * 4


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ("f32[]{:T(128)}", 4),
        ("f32[3,3,64,27]{3,2,1,0:T(8,128)}", 3 * 3 * 64 * 128 * 4),
        ("bf16[5,9]{0,1:T(8,128)(2,1)}", 128 * 16 * 2),
        ("pred[100]{0:T(512)(128)(4,1)}", 512),
        ("(f32[8]{0:T(128)}, /*index=1*/s8[4])", 512 + 4),
        ("token[]", 0),
    ],
)
def test_bytes_of_a_shape_with_its_padding(shape, size):
    assert hlo.shape_bytes(shape) == size


def test_a_part_of_our_own_program():
    """The loop over the taps of a deformable convolution on the smallest level, and a convolution of the FPN."""
    recorded = hlo.parse((HERE / "recorded.hlo").read_text())
    names = {"position_head": {"conv1": {}}, "fpn": {"output3": {}}}
    lines, (loop,) = program_costs(recorded, names)
    assert loop.trips == 9 and loop.source == "models/ops/deformable.py:128 tap_by_tap"
    found = {line.name: line for line in lines}
    product = found["fusion.619"]
    assert (product.kind, product.module, product.cycles, product.times) == (PRODUCTS, "fpn/output3", 2751, 1)
    reduction = found["fusion.771"]
    assert (reduction.kind, reduction.module, reduction.cycles) == (REDUCTIONS, "position_head/conv1", 9 * 1868)
    assert sum(line.cycles for line in lines) == 101751


def test_summary_and_estimate(costs):
    summary = summarize(*costs)
    total = 1000 + 1200 + 21 + 50
    assert summary["mcycles"] == pytest.approx(total / 1e6) and set(summary["kinds"]) == set(KINDS)
    assert summary["mcycles_loops_once"] == pytest.approx((1000 + 100 + 7 + 50) / 1e6)
    assert summary["kinds"][PRODUCTS]["share"] == pytest.approx(1000 / total)
    assert summary["modules"]["backbone/conv1"]["in_products"] == 1.0
    assert summary["sources"]["panoptic/targets.py:31 make_targets"]["cycles"] == 1221
    assert next(iter(summary["modules"])) == "head" and summary["dearest"][0]["name"] == "row_fusion"
    assert summary["collectives"] == {"all-reduce": {"lines": 1, "executions": 1, "mbytes": 4096 / 1e6}}
    chip = CHIPS["v5e"]
    row = {"mcycles": 15.0, "hbm_traffic_gb": 81.9, "gflop_per_image": 394.0}
    by_hbm = estimate(row, chip, images=2, batch=8)
    assert by_hbm["bound"] == "HBM" and by_hbm["ms_by_hbm"] == pytest.approx(100.0)
    assert by_hbm["images_per_s"] == pytest.approx(80.0) and by_hbm["of_peak"] == pytest.approx(0.04)
    assert estimate(row | {"hbm_traffic_gb": 0.0}, chip, images=2, batch=8)["bound"] == "cycles"


def test_the_report_has_the_largest_that_fits(costs):
    known = {
        "topology": "v5e:2x2",
        "program": "train",
        "canvas": "64x64",
        "lower_s": 1.0,
        "compile_s": 2.0,
        "cpu_s": 3.0,
    }
    counted = summarize(*costs) | {"gflop_per_image": 0.1, "hbm_gb": 0.2}
    counted |= estimate(counted, CHIPS["v5e"], images=1, batch=4)
    rows = [known | {"images_per_chip": images, "fits": True} | counted for images in (1, 2)]
    rows.append(known | {"images_per_chip": 64, "fits": False, "gflop_per_image": 0.1, "error": "Ran out of memory"})
    assert [row["images_per_chip"] for row in largest_that_fit(rows)] == [2]
    text = terminal(rows)
    assert "train, v5e:2x2, 64 x 64x64 a chip: Ran out of memory" in text
    assert "== train, v5e:2x2, 2 x 64x64 a chip (the largest that fits)" in text
    assert "1 whose length follows from the data, counted once (0.9 %): open." in text
    page = markdown({"commands": ["x"], "date": "d", "versions": {"jax": "1"}, "rows": rows})
    assert page.startswith("    x\n") and page.count("\n| v5e:2x2 | train |") == 3


def test_slices_by_name():
    assert find_slice("v5e:4x4").chips == 16 and find_slice("v5e:4x4").accelerator_type == "v5litepod-16"
    assert find_slice("v4:2x2x1").chips == 4 and find_slice("v4:2x2x1").accelerator_type == "v4-8"
    for chip in (CHIPS["v4"], CHIPS["v5e"], CHIPS["v5p"]):
        assert chip.clock == pytest.approx(chip.peak_flops / (2 * chip.cores * 4 * 128 * 128), rel=0.003)


def test_an_unknown_clock_is_said(costs):
    row = summarize(*costs) | {"gflop_per_image": 0.1, "hbm_gb": 0.2, "topology": "v6e:2x2", "program": "train"}
    row |= {"canvas": "64x64", "images_per_chip": 1, "fits": True, "lower_s": 1.0, "compile_s": 2.0, "cpu_s": 3.0}
    row |= estimate(row, CHIPS["v6e"], images=1, batch=4)
    assert "not published: cycles are scaled by 1.5 GHz" in terminal([row])
    page = markdown({"commands": [], "date": "d", "versions": {}, "rows": [row]})
    assert page.endswith("\n\n\\* The chip's clock is not published: cycles are scaled by 1.5 GHz.")
