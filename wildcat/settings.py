"""Settings as YAML files: reading them with every value checked, writing them, and the packaged recipes."""

from __future__ import annotations

import dataclasses
import math
import re
import reprlib
import types
import typing
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import yaml

from wildcat.config import TrainConfig
from wildcat.errors import ConfigError, did_you_mean
from wildcat.methods import HEAD_SETTINGS, find_method


def from_dict(values: typing.Mapping[str, Any], source: str, base: TrainConfig | None = None) -> TrainConfig:
    """Settings from plain values over the defaults (or over `base`); `source` names the file in errors.

    Raises:
        ConfigError: an unknown name, a value of the wrong type, or a value out of range.
    """
    hints = typing.get_type_hints(TrainConfig)
    clean: dict[str, Any] = {}
    for name, value in values.items():
        if name not in hints:
            raise ConfigError(
                f"{source}: there is no setting {reprlib.repr(name)}.",
                did_you_mean(str(name), hints) or f"Settings are: {', '.join(hints)}.",
            )
        clean[name] = _typed(name, value, hints[name], source)
    config = dataclasses.replace(base or TrainConfig(), **clean)
    try:
        config.validate()
    except ConfigError as error:
        raise ConfigError(f"{source}: {_as_yaml(error.message)}", _as_yaml(error.hint)) from error
    return config


def _as_yaml(text: str) -> str:
    """Write each setting `name=value` in a message as in a file: `name: value`."""
    return re.sub(rf"\b({'|'.join(typing.get_type_hints(TrainConfig))})=", r"\1: ", text)


def _typed(name: str, value: Any, hint: Any, source: str) -> Any:
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    for option in options:
        if typing.get_origin(option) is Literal:
            if value in typing.get_args(option):
                return value
        elif option is types.NoneType:
            if value is None:
                return None
        elif type(value) is option:
            return value
        elif option is float and type(value) is int and int not in options and abs(value) < 2**63:
            return float(value)
    wanted = " or ".join(
        ", ".join(map(str, typing.get_args(o))) if typing.get_origin(o) is Literal else getattr(o, "__name__", str(o))
        for o in options
    )
    # YAML 1.1 reads 1e-4 without a point, and inf without one, as text
    number = _yaml_number(value) if float in options else ""
    raise ConfigError(
        f"{source}: {name}: {reprlib.repr(value)} should be {wanted.replace('NoneType', 'null')}.",
        f"Write it as {number}." if number else "",
    )


def _yaml_number(text: Any) -> str:
    """How YAML writes the number in a text; "" if it is none."""
    try:
        number = float(text) if isinstance(text, str) else math.nan
    except ValueError:
        number = math.nan
    return "" if math.isnan(number) else str(yaml.safe_dump(number)).splitlines()[0]


def config_text(config: TrainConfig) -> str:
    """The settings as YAML, one line a field."""
    return str(yaml.safe_dump(dataclasses.asdict(config), sort_keys=False))


def read_config(path: Path, base: TrainConfig | None = None) -> TrainConfig:
    """Read settings from a YAML file over the defaults (or over `base`).

    Raises:
        ConfigError: the file is not YAML, or holds an unknown or wrong setting.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not YAML: it is not a text file.") from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}.") from error
    return _parse(text, str(path), base)


def list_recipes() -> tuple[str, ...]:
    """Names of the packaged recipes."""
    folder = resources.files("wildcat") / "recipes"
    return tuple(sorted(f.name.removesuffix(".yaml") for f in folder.iterdir() if f.name.endswith(".yaml")))


def load_recipe(name: str, base: TrainConfig | None = None) -> TrainConfig:
    """The settings of a packaged recipe or of a YAML file, over the defaults (or over `base`).

    Raises:
        ConfigError: no such recipe or file.
    """
    if name in list_recipes():
        text = (resources.files("wildcat") / "recipes" / f"{name}.yaml").read_text(encoding="utf-8")
        return _parse(text, f"recipe {name}", base)
    path = Path(name)
    if path.suffix in (".yaml", ".yml") and path.is_file():
        return read_config(path, base)
    raise ConfigError(
        f"there is no recipe {name!r}.",
        did_you_mean(name, list_recipes()) or f"Recipes are: {', '.join(list_recipes())}; or give a .yaml file.",
    )


def method_settings(name: str) -> dict[str, Any]:
    """All of `HEAD_SETTINGS` for a method of `wildcat.methods`, so that a method is the same with any recipe.

    The settings of the training stay those of the recipe; the default learning rate follows `Method.lr_scale`.

    Raises:
        ConfigError: no such method.

    >>> method_settings("deepmil")["pooling"], method_settings("deepmil")["num_maps"]
    ('max', 1)
    """
    method, defaults = find_method(name), dataclasses.asdict(TrainConfig())
    return {setting: defaults[setting] for setting in HEAD_SETTINGS} | dict(method.settings)


def _parse(text: str, source: str, base: TrainConfig | None = None) -> TrainConfig:
    try:
        if any(isinstance(token, yaml.AliasToken | yaml.TagToken) for token in yaml.scan(text)):
            raise ConfigError(f"{source} uses aliases or tags of YAML.", "Settings are plain 'name: value' lines.")
        values = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # dates and numbers that are none are ValueErrors
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{source} is not YAML: {(str(error).splitlines() or ['too deep'])[0][:200]}.") from error
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise ConfigError(f"{source} should hold 'name: value' lines.")
    return from_dict(values, source, base)
