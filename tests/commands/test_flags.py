"""Flags of the verbs, as the front door reads them."""

from __future__ import annotations

import pytest

from pfcn_jax.main import parse

PREPARE = ["prepare", "semantic", "--masks", "M", "--classes", "C", "--output", "O", "--val", "0.2"]


@pytest.mark.parametrize("words", [["--pictures", "P"], ["--pictures=P"]])
def test_a_flag_of_an_old_name_is_the_new_one_and_says_so(capsys, words):
    assert parse([*PREPARE, *words]).images == "P"
    assert "--images" in capsys.readouterr().err


def test_a_flag_of_the_new_name_says_nothing(capsys):
    assert parse([*PREPARE, "--images", "pictures"]).images == "pictures"
    assert capsys.readouterr().err == ""
