"""What a method does not heed and another does is refused by name where it was changed."""

import pathlib
from collections.abc import Callable
from typing import Any

import pytest
from ml_collections import ConfigDict

from experiments import build as builder
from experiments.build import FORMER, HEEDS, build
from experiments.configs import base, saved
from experiments.configs.ranges import FIELDS, SECTIONS, Word
from experiments.workdir.config import config_to_dict, write_config
from tests.experiments.catalog import covers, flat

Make = Callable[[], ConfigDict]
OWN = {"diffusion": "tiny", "vae": "tiny_vae"}  # method -> fixture of a config of it
IN_VAIN = [
    (name, other, field)
    for name, own in HEEDS.items()
    for other, fields in HEEDS.items()
    for field in fields
    if field not in own
]


def other_value(field: str, value: Any) -> Any:
    """Another value of a field, within its range."""
    rule = FIELDS.get(field)
    if isinstance(rule, Word):
        return next(name for name in rule.names if name != value)
    match value:
        case None | ConfigDict() | dict():
            return ConfigDict(dict(name="another"))
        case bool():
            return not value
        case int() | float():
            return 2 * value or 1
        case tuple():
            return (1, 2)
    return f"another {value}"


def put(config: ConfigDict, field: str) -> None:
    """Changes a dotted field, which the config may not have."""
    *sections, name = field.split(".")
    for section in sections:
        config = config[section]
    config[name] = other_value(field, config.get(name))


@pytest.mark.parametrize(("name", "other", "field"), IN_VAIN)
def test_what_only_others_heed_is_refused(name: str, other: str, field: str, request) -> None:
    config = request.getfixturevalue(OWN[name])()
    put(config, field)
    with pytest.raises(ValueError) as refusal:
        build(config)
    said = str(refusal.value)
    assert said.startswith(f"config.{field} = ") and f"name = {name!r}, but by {other!r}" in said
    assert "Leave it" in said


@pytest.mark.parametrize("name", HEEDS)
def test_a_config_of_a_method_begins_with_nothing_in_vain(name: str, request) -> None:
    build(request.getfixturevalue(OWN[name])())


def test_every_declared_field_is_one_that_exists() -> None:
    known = {*flat(base.get_config().to_dict()), *FIELDS, *SECTIONS}
    for field in (*FORMER, *(field for fields in HEEDS.values() for field in fields)):
        assert any(covers(field, each) for each in known), field


def test_a_saved_run_of_before_a_field_was_what_it_is_builds(
    tiny_vae: Make, tmp_path: pathlib.Path
) -> None:
    config = tiny_vae()
    for field, former in FORMER.items():
        section, _, name = field.rpartition(".")
        config[section][name] = ConfigDict(former)
    write_config(tmp_path, config)
    again = saved.get_config(str(tmp_path))
    assert config_to_dict(again) == config_to_dict(config)
    build(again)


def test_a_method_that_declares_nothing_may_heed_all(plain: Make) -> None:
    config = plain()
    assert config.method.name in builder.METHODS and config.method.name not in HEEDS
    put(config, "sample.guidance_scale")
    build(config)
