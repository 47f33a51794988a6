"""Laws of a configuration: what is written reads back, what is misspelt is named, every preset is one."""

from __future__ import annotations

from pathlib import Path

import pytest

from scanbridge.errors import UserError
from scanbridge.methods import METHODS
from scanbridge.methods.base import load_method
from scanbridge.runs.config import Common, read_tree, split_tree, to_toml, validate

PRESETS = sorted((Path(__file__).parents[2] / "configs").glob("*.toml"))


def resolve(path: Path, *settings: str):
    shared, own = split_tree(read_tree(path, settings))
    common = validate(Common, shared, path.name)
    return common, validate(load_method(common.method).Config, own, path.name)


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_every_preset_is_valid_and_builds_its_networks(path):
    import torch

    common, config = resolve(path)
    with torch.device("meta"):
        stages = load_method(common.method).stages(config, common.task.targets)
        assert all(stage.build() for stage in stages)


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_a_resolved_configuration_reads_back_to_itself(path, tmp_path):
    resolved = to_toml(*resolve(path))
    (tmp_path / "config.toml").write_text(resolved)
    again = resolve(tmp_path / "config.toml")
    assert again == resolve(path)
    assert to_toml(*again) == resolved


@pytest.mark.parametrize("name", METHODS)
def test_every_row_of_an_ablation_table_is_a_valid_change(name):
    path = next(path for path in PRESETS if path.stem == f"{name}-small")
    for row, changes in load_method(name).ABLATIONS.items():
        settings = [f"{key}={str(v).lower() if isinstance(v, bool) else repr(v)}" for key, v in changes.items()]
        assert resolve(path, *settings), row


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("train.images=7", 7),
        ("train.images = 7", 7),
        (" train.images =7", 7),
        ("train.images=1_000", 1000),
    ],
)
def test_a_setting_is_toml(setting, expected):
    assert resolve(PRESETS[0], setting)[0].train.images == expected


def test_a_setting_without_quotes_is_text():
    assert resolve(PRESETS[0], "task.source=t2w")[0].task.source == "t2w"
    assert resolve(PRESETS[0], 'task.source="a=b"')[0].task.source == "a=b"


def test_the_last_of_two_settings_counts():
    assert resolve(PRESETS[0], "train.images=7", "train.images=8")[0].train.images == 8


@pytest.mark.parametrize("setting", ["train", "=3", "train..images=3", ".images=3", "train.=3"])
def test_what_is_no_setting_is_refused(setting):
    with pytest.raises(UserError, match="--set"):
        resolve(PRESETS[0], setting)


def test_several_mistakes_are_counted_and_a_misspelt_key_comes_first():
    with pytest.raises(UserError, match=r"'train\.imagse' \(and 1 more\)"):
        resolve(PRESETS[0], "train.imagse=3", "train.ema=2.0")


@pytest.mark.parametrize("setting", ["train.images=1.5", "train.images=true", 'train.seed="0"', "train.ema=1.0"])
def test_nothing_is_bent_into_its_type(setting):
    with pytest.raises(UserError, match="train"):
        resolve(PRESETS[0], setting)


def test_whole_numbers_are_good_enough_for_real_ones():
    assert resolve(PRESETS[0], "train.clip=1")[0].train.clip == 1.0
