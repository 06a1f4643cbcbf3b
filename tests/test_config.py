"""Settings survive YAML unchanged, and each wrong one is refused with its name, its value and what is allowed."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wildcat.config import TrainConfig
from wildcat.errors import ConfigError
from wildcat.methods import HEAD_SETTINGS, HEADS, METHODS
from wildcat.settings import config_text, from_dict, list_recipes, load_recipe, method_settings, read_config

positive = st.floats(1e-8, 1e3)


@settings(max_examples=60)
@given(
    config=st.builds(
        TrainConfig,
        backbone=st.sampled_from(["lite0", "resnet50.a1_in1k", "yes", "1e3"]),
        pooling=st.sampled_from(["wildcat", "lse", "csra", "attention"]),
        architecture=st.sampled_from(["a", "b", "c"]),
        kmax=st.integers(1, 500) | st.floats(1e-6, 1.0),
        kmin=st.none() | st.integers(0, 500) | st.floats(0, 1.0),
        alpha=st.floats(0, 5),
        residual=st.floats(0, 5),
        temperature=positive | st.just(math.inf),
        lr=positive,
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
    assert [type(v) for v in asdict(read).values()] == [type(v) for v in asdict(config).values()], "1 is not 1.0"


def test_the_file_has_a_line_for_each_setting_in_order(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(config_text(TrainConfig()))
    lines = (tmp_path / "config.yaml").read_text(encoding="utf-8").splitlines()
    assert [line.split(":")[0] for line in lines] == [f.name for f in dataclasses.fields(TrainConfig)]


def test_defaults_are_valid_and_the_papers() -> None:
    config = TrainConfig()
    config.validate()
    assert (config.pooling, config.architecture, config.num_maps, config.alpha) == ("wildcat", "a", 4, 0.7)
    assert (config.peak_lr, config.backbone_lr_scale) == (0.04, 0.01)
    assert TrainConfig(num_maps=1).peak_lr == 0.01 and TrainConfig(num_maps=1, lr=0.5).peak_lr == 0.5
    competing = TrainConfig(class_pool="max")
    assert (competing.peak_lr, competing.decay) == (0.01, 0.06), "one of the M maps receives the whole gradient"
    assert TrainConfig(num_maps=1).decay == 4 * config.decay == 0.06 and TrainConfig(weight_decay=0.5).decay == 0.5


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"kmax": 1.5}, "kmax=1.5: give an int (a count of regions) or a float in (0, 1] (a proportion); did you mean"),
        ({"kmax": 0}, "kmax=0"),
        ({"kmin": 1e308}, "kmin=1e+308: give an int (a count of regions) or a float in (0, 1] (a proportion)."),
        ({"kmin": -1}, "kmin=-1"),
        ({"kmin": math.nan}, "kmin=nan"),
        ({"alpha": -0.1}, "alpha=-0.1"),
        ({"class_pool": "maximum"}, "class_pool='maximum': give mean, max, lse or softmax"),
        ({"map_information": -0.1}, "map_information=-0.1: give a number of at least 0"),
        ({"class_sharpness": 0.0}, "class_sharpness=0.0: give a positive number"),
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
        ({"residual": -0.1}, "residual=-0.1: give a finite number of at least 0"),
        ({"residual": math.nan}, "residual=nan"),
        ({"temperature": 0.0}, "temperature=0.0: give a number above 0, or inf"),
        ({"temperature": math.nan}, "temperature=nan"),
        ({"attention_size": 0}, "attention_size=0: give a whole number of at least 1"),
        ({"head": "netvald"}, "there is no head 'netvald'"),
        ({"head_size": 5}, "head_size=5: give a whole number above 0, with a head that has a size"),
        ({"head": "netvlad"}, "num_maps=4 is a setting of maps and their pooling, which head=netvlad replaces"),
        ({"head": "rrsvm", "num_maps": 1, "pooling": "max"}, "pooling=max is a setting of maps"),
        ({"backbone_lr_scale": -0.1}, "backbone_lr_scale=-0.1: give a number of at least 0"),
        ({"weight_decay": math.nan}, "weight_decay=nan"),
        ({"warmup": -1.0}, "warmup=-1.0"),
        ({"momentum": 1.0}, "momentum=1.0: give a number in [0, 1)"),
        ({"momentum": math.nan}, "momentum=nan"),
        ({"crop_scale": 0.0}, "crop_scale=0.0"),
        ({"crop_scale": 1.1}, "crop_scale=1.1: give a part of the image's area in (0, 1]"),
        ({"workers": -2}, "workers=-2"),
        ({"seed": -1}, "seed=-1"),
        ({"seed": 2**63}, "seed=9223372036854775808"),
        ({"schedule": "cosin"}, "schedule='cosin': give cosine, step or constant"),
        ({"flip": "vertical"}, "flip='vertical'"),
        ({"tune": "heads"}, "tune='heads': give all, last or head"),
        ({"pooling": "mean"}, "pooling='mean'"),
        ({"architecture": "d"}, "architecture='d': give a, b or c."),
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
        ({"epochs": "20"}, "f.yaml: epochs: '20' should be int.", ""),
        ({"epochs": 2.0}, "f.yaml: epochs: 2.0 should be int.", ""),
        ({"epochs": True}, "f.yaml: epochs: True should be int.", ""),
        ({"balance": 1}, "f.yaml: balance: 1 should be bool.", ""),
        ({"backbone": None}, "f.yaml: backbone: None should be str.", ""),
        ({"kmax": "big"}, "f.yaml: kmax: 'big' should be int or float.", ""),
        ({"kmin": "none"}, "f.yaml: kmin: 'none' should be int or float or null.", ""),
        ({"flip": "vertical"}, "f.yaml: flip: 'vertical' should be none, horizontal, both.", ""),
        ({"alpha": [0.7]}, "f.yaml: alpha: [0.7] should be float.", ""),
        ({"weight_decay": "1e-4"}, "f.yaml: weight_decay: '1e-4' should be float or null.", "Write it as 0.0001."),
        ({"temperature": "inf"}, "f.yaml: temperature: 'inf' should be float.", "Write it as .inf."),
        ({"temperature": "nan"}, "f.yaml: temperature: 'nan' should be float.", ""),
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
        (b"epochs: 0\n", "mine.yaml: epochs: 0: give"),
        (b"!!python/object/apply:os.getcwd []\n", "uses aliases or tags of YAML"),
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


def test_temperature_in_a_file_may_be_infinite(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("temperature: .inf\nresidual: 1\n")
    assert read_config(tmp_path / "mine.yaml") == TrainConfig(temperature=math.inf, residual=1.0)


def test_the_settings_of_runs_from_before_there_were_methods_still_load(tmp_path: Path) -> None:
    """Their files lack the newer settings, which then have their defaults; what they compute has not changed."""
    old = asdict(TrainConfig(kmax=3, epochs=7))
    for name in ("residual", "temperature", "attention_size", "head", "head_size"):
        del old[name]
    (tmp_path / "config.yaml").write_text("".join(f"{k}: {json.dumps(v)}\n" for k, v in old.items()))
    assert read_config(tmp_path / "config.yaml") == TrainConfig(kmax=3, epochs=7)


# --- methods --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_each_method_decides_the_head_and_nothing_else(name: str) -> None:
    method = METHODS[name]
    assert set(method.settings) <= set(HEAD_SETTINGS) == set(method_settings(name))
    assert method.description and method.paper and "\n" not in method.description + method.paper
    from_dict(method_settings(name), "method").validate()
    other = TrainConfig(
        backbone="resnet50",
        epochs=3,
        pooling="topk",
        architecture="c",
        num_maps=7,
        kmax=5,
        kmin=2,
        alpha=0.1,
        sharpness=9.0,
        residual=0.9,
        temperature=2.0,
        attention_size=3,
        class_pool="max",
        class_sharpness=3.0,
        map_information=0.1,
        head="netvlad",
        head_size=7,
    )
    over = dataclasses.replace(other, **method_settings(name))
    assert (over.backbone, over.epochs) == ("resnet50", 3)
    assert over == dataclasses.replace(TrainConfig(backbone="resnet50", epochs=3), **method_settings(name))


def test_methods_are_those_of_the_papers_tables_and_newer_ones() -> None:
    older = ["global", "deepmil", "top-instances", "gap-a", "gap-b", "weldon", "pronet", "wildcat"]
    heads = ["rrsvm", "spleap", "negative-parts", "compact-bilinear", "mop-cnn", "netvlad", "wsddn"]
    assert [*METHODS] == [*older, "wildcat-parts", "csra", "attention", *heads]
    assert [*HEADS] == heads
    wildcat = method_settings("wildcat")
    assert dataclasses.replace(TrainConfig(), **wildcat) == TrainConfig(), "the defaults are the paper's"
    assert all(method_settings(name)["num_maps"] == 1 for name in METHODS if not name.startswith("wildcat"))
    assert [method_settings(name)["architecture"] for name in ("global", "gap-a", "gap-b")] == ["b", "a", "b"]


def test_settings_of_a_method_are_the_callers_own() -> None:
    method_settings("csra")["residual"] = 9.0
    assert method_settings("csra")["residual"] == 0.2


def test_an_unknown_method() -> None:
    with pytest.raises(ConfigError) as caught:
        method_settings("deep-mil")
    assert caught.value.message == "there is no method 'deep-mil'."
    assert caught.value.hint == "did you mean deepmil?"
    with pytest.raises(ConfigError, match=r"(?s)'xyz'.*Methods are: global, deepmil, .*, wsddn\."):
        method_settings("xyz")


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


def test_the_default_learning_rate_follows_the_head() -> None:
    assert TrainConfig(num_maps=1).peak_lr == 0.01
    assert TrainConfig(num_maps=4).peak_lr == 0.04
    assert TrainConfig(num_maps=1, head="wsddn").peak_lr == 0.04
    assert TrainConfig(num_maps=1, head="wsddn", lr=0.3).peak_lr == 0.3
