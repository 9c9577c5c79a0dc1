"""The page of the command, docs/command.md: it knows every verb, and names no flag that does not exist."""

import argparse
import re
import shlex
import tomllib
from pathlib import Path

import pytest

from deform_attn.cli import VERBS, build_parser
from deform_attn.detr.config.run import Settings

PAGE = (Path(__file__).parents[2] / "docs" / "command.md").read_text()
SECTIONS = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))
COMMANDS = re.findall(r"^deform-attn (.*?)(?: > \S+)?$", PAGE, re.MULTILINE)


def flags_of(name):
    """Return the flags of a verb."""
    parser = argparse.ArgumentParser()
    next(module for module in VERBS if name == module.NAME).add_arguments(parser)
    return {flag for action in parser._actions for flag in action.option_strings}


def test_every_verb_has_a_section_with_an_example_and_there_are_no_others():
    assert SECTIONS.keys() == {module.NAME for module in VERBS}
    for name, text in SECTIONS.items():
        assert f"\ndeform-attn {name}" in text


@pytest.mark.parametrize("name", sorted(SECTIONS))
def test_every_flag_that_a_section_names_is_one_of_its_verb(name):
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", SECTIONS[name]))
    assert named <= flags_of(name)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_example_is_a_command_that_parses(command):
    options = build_parser().parse_args(shlex.split(command))
    assert callable(options.run)


def test_the_example_of_a_config_file_is_one():
    (text,) = re.findall(r"^```toml\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    settings = Settings.from_layers(tomllib.loads(text))
    assert (settings.model.strides, settings.train.epochs, settings.data.dir) == ((8, 16, 32), 100, "trees")


def test_the_help_of_every_verb_says_what_each_argument_is_for():
    for module in VERBS:
        parser = argparse.ArgumentParser()
        module.add_arguments(parser)
        assert all(action.help for action in parser._actions)
        assert module.SUMMARY[0].islower()
