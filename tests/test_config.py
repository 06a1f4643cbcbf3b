"""Settings survive YAML unchanged, and each wrong one is refused with its name, its value and what is allowed."""

from __future__ import annotations

import dataclasses
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wildcat.config import TrainConfig, config_text, from_dict, list_recipes, load_recipe, read_config, to_dict
from wildcat.errors import ConfigError

positive = st.floats(1e-8, 1e3)


@settings(max_examples=60)
@given(
    config=st.builds(
        TrainConfig,
        backbone=st.sampled_from(["lite0", "resnet50.a1_in1k", "yes", "1e3"]),
        pooling=st.sampled_from(["wildcat", "lse"]),
        kmax=st.integers(1, 500) | st.floats(1e-6, 1.0),
        kmin=st.none() | st.integers(0, 500) | st.floats(0, 1.0),
        alpha=st.floats(0, 5),
        lr=st.none() | positive,
        weight_decay=st.floats(0, 1),
        flip=st.sampled_from(["none", "horizontal", "both"]),
        val_split=st.sampled_from(["val", "none", "null", "été"]),
        balance=st.booleans(),
        seed=st.integers(0, 2**63 - 1),
    )
)
def test_yaml_round_trip(config: TrainConfig, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "config.yaml"
    path.write_text(config_text(config))
    read = read_config(path)
    assert read == config
    assert [type(v) for v in to_dict(read).values()] == [type(v) for v in to_dict(config).values()], "1 is not 1.0"


def test_the_file_has_a_line_for_each_setting_in_order(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(config_text(TrainConfig()))
    lines = (tmp_path / "config.yaml").read_text(encoding="utf-8").splitlines()
    assert [line.split(":")[0] for line in lines] == [f.name for f in dataclasses.fields(TrainConfig)]


def test_defaults_are_valid_and_the_papers() -> None:
    config = TrainConfig()
    config.validate()
    assert (config.pooling, config.architecture, config.num_maps, config.alpha) == ("wildcat", "a", 4, 0.7)
    assert TrainConfig(lr=0.3).peak_lr == TrainConfig(lr=0.3, tune="head").peak_lr == 0.3
    assert TrainConfig(tune="head").peak_lr > TrainConfig(tune="all").peak_lr > 0


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"kmax": 1.5}, "kmax=1.5: give an int (a count of regions) or a float in (0, 1] (a proportion); did you mean"),
        ({"kmax": 0}, "kmax=0"),
        ({"kmin": -1}, "kmin=-1"),
        ({"kmin": math.nan}, "kmin=nan"),
        ({"alpha": -0.1}, "alpha=-0.1"),
        ({"alpha": math.nan}, "alpha=nan"),
        ({"num_maps": 0}, "num_maps=0: give a whole number of at least 1"),
        ({"image_size": 16}, "image_size=16: backbones need at least 32 pixels"),
        ({"epochs": 0}, "epochs=0"),
        ({"batch_size": -4}, "batch_size=-4"),
        ({"accumulate": 0}, "accumulate=0"),
        ({"output_stride": 4}, "output_stride=4: give 8, 16 or 32"),
        ({"lr": 0.0}, "lr=0.0: give a positive number"),
        ({"lr": math.inf}, "lr=inf"),
        ({"sharpness": -1.0}, "sharpness=-1.0"),
        ({"backbone_lr_scale": -0.1}, "backbone_lr_scale=-0.1: give a number of at least 0"),
        ({"weight_decay": math.nan}, "weight_decay=nan"),
        ({"warmup": -1.0}, "warmup=-1.0"),
        ({"momentum": 1.0}, "momentum=1.0: give a number in [0, 1)"),
        ({"momentum": math.nan}, "momentum=nan"),
        ({"crop_scale": 0.0}, "crop_scale=0.0"),
        ({"crop_scale": 1.1}, "crop_scale=1.1: give a part of the picture's area in (0, 1]"),
        ({"workers": -2}, "workers=-2"),
        ({"seed": -1}, "seed=-1"),
        ({"seed": 2**63}, "seed=9223372036854775808"),
        ({"schedule": "cosin"}, "schedule='cosin': give cosine, step or constant"),
        ({"flip": "vertical"}, "flip='vertical'"),
        ({"tune": "heads"}, "tune='heads': give all or head"),
        ({"pooling": "mean"}, "pooling='mean'"),
        ({"architecture": "c"}, "architecture='c'"),
        ({"tune": "head", "weights": "none"}, "tune=head with weights=none"),
    ],
)
def test_each_value_out_of_range_is_named(values: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        TrainConfig(**values).validate()
    assert says in caught.value.message


@pytest.mark.parametrize(
    ("values", "says", "hint"),
    [
        ({"epochs": "20"}, "f.yaml: epochs='20' should be int.", ""),
        ({"epochs": 2.0}, "f.yaml: epochs=2.0 should be int.", ""),
        ({"epochs": True}, "f.yaml: epochs=True should be int.", ""),
        ({"balance": 1}, "f.yaml: balance=1 should be bool.", ""),
        ({"backbone": None}, "f.yaml: backbone=None should be str.", ""),
        ({"kmax": "big"}, "f.yaml: kmax='big' should be int or float.", ""),
        ({"kmin": "none"}, "f.yaml: kmin='none' should be int or float or null.", ""),
        ({"flip": "vertical"}, "f.yaml: flip='vertical' should be none, horizontal, both.", ""),
        ({"alpha": [0.7]}, "f.yaml: alpha=[0.7] should be float.", ""),
        ({"weight_decay": "1e-4"}, "f.yaml: weight_decay='1e-4' should be float.", "Write it as 0.0001."),
        ({"num_map": 4}, "f.yaml: there is no setting 'num_map'.", "did you mean num_maps?"),
        ({"Kmax": 4}, "f.yaml: there is no setting 'Kmax'.", "did you mean kmax"),
        ({7: 4}, "f.yaml: there is no setting 7.", "Settings are: backbone, weights, "),
    ],
)
def test_wrong_types_and_unknown_names(values: dict[str, Any], says: str, hint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        from_dict(values, "f.yaml")
    assert caught.value.message == says
    assert caught.value.hint.startswith(hint)
    assert bool(caught.value.hint) == bool(hint)


def test_whole_numbers_are_proportions_only_where_counts_mean_nothing() -> None:
    config = from_dict({"alpha": 1, "lr": 1, "kmax": 1, "kmin": 1.0}, "f.yaml")
    assert config == TrainConfig(alpha=1.0, lr=1.0, kmax=1, kmin=1.0)
    assert (type(config.alpha), type(config.kmax), type(config.kmin)) == (float, int, float)


def test_values_go_over_a_base() -> None:
    base = TrainConfig(num_maps=8, epochs=3)
    assert from_dict({"epochs": 5}, "f.yaml", base) == TrainConfig(num_maps=8, epochs=5)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"epochs: [1", "is not YAML"),
        (b"\xff\xfe\x00\x80", "is not YAML: it is not a text file"),
        (b"- epochs\n- 3\n", "should hold 'name: value' lines"),
        (b"epochs", "should hold 'name: value' lines"),
        (b"epochs: 0\n", "epochs=0"),
        (b"!!python/object/apply:os.getcwd []\n", "is not YAML"),
    ],
)
def test_damaged_files(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        read_config(path)
    assert says in caught.value.message


def test_an_empty_file_is_the_defaults(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("# nothing\n")
    assert read_config(tmp_path / "mine.yaml") == TrainConfig()
    assert load_recipe(str(tmp_path / "mine.yaml")) == TrainConfig()


def test_packaged_recipes_are_valid() -> None:
    for name in list_recipes():
        load_recipe(name).validate()


def test_an_unknown_recipe() -> None:
    with pytest.raises(ConfigError) as caught:
        load_recipe("no-such-recipe")
    assert caught.value.message == "there is no recipe 'no-such-recipe'."
    assert caught.value.hint
    with pytest.raises(ConfigError, match="there is no recipe"):
        load_recipe("absent.yaml")


def test_settings_and_errors_do_not_need_torch() -> None:
    """`wildcat --help` would take seconds otherwise."""
    code = "import sys, wildcat, wildcat.config, wildcat.errors; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
