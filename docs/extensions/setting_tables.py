"""Tables of the settings of a training, read from the dataclasses, so that page and code cannot differ.

A page says ```` ```{settings} train.loss ```` below the heading of each table of the config file, and `{settings} file`
for the keys outside of tables. A table without a place on a page is a warning, which ends a strict build.
"""

import inspect
from dataclasses import fields
from functools import reduce
from typing import Literal, get_args, get_origin, get_type_hints

import tomlkit
from docutils import nodes
from docutils.statemachine import StringList
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

from deform_attn.detr.config.base import Config
from deform_attn.detr.config.run import Settings
from text_table import table

LOG = logging.getLogger(__name__)
OUTSIDE = "file"  # what a page calls the keys outside of tables


def configs(config=Settings, path=()):
    """Return the class of each table, by its path."""
    found = {path: config}
    for name, kind in get_type_hints(config).items():
        if isinstance(kind, type) and issubclass(kind, Config):
            found |= configs(kind, (*path, name))
    return found


def rows(config, path):
    """Yield key, kind and default of each field of a table, without the tables in it."""
    defaults = reduce(lambda inner, name: inner[name], path, Settings.from_layers().to_dict())
    hints = get_type_hints(config)
    for field in fields(config):
        kind = hints[field.name]
        is_table = isinstance(kind, type) and issubclass(kind, Config)
        if not is_table and field.name != "num_classes":  # which comes from the data
            yield field.name, kind_text(kind), default_text(defaults[field.name])


def kind_text(kind):
    """Return a type in the words of TOML."""
    if get_origin(kind) is Literal:
        return " or ".join(f'"{choice}"' for choice in get_args(kind))
    if get_origin(kind) is tuple:
        return f"list of {kind_text(get_args(kind)[0])}s"
    if get_origin(kind) is dict:
        return "table"
    if options := [option for option in get_args(kind) if option is not type(None)]:
        return " or ".join(map(kind_text, options))
    return {int: "integer", float: "number", bool: "boolean", str: "string"}[kind]


def default_text(value):
    """Return a default as it is written in TOML, or "not set"."""
    return "not set" if value is None else tomlkit.item(value).as_string()


class SettingTable(SphinxDirective):
    """One table of the file: what its class says of the fields, then a row for each."""

    required_arguments = 1

    def run(self):
        """Return the nodes."""
        name = self.arguments[0]
        path = () if name == OUTSIDE else tuple(name.split("."))
        if path not in configs():
            raise self.error(f"no table of settings is called {name!r}")
        self.env.metadata[self.env.docname].setdefault("settings", []).append(path)
        config = configs()[path]
        text = StringList(inspect.getdoc(config).splitlines(), source=self.env.docname)
        container = nodes.container()
        self.state.nested_parse(text, 0, container)
        return [*container.children, table(("key", "value", "default"), rows(config, path), code=(0, 2))]


def check(app, env):
    """Warn of a table that has no place on a page."""
    shown = {path for metadata in env.metadata.values() for path in metadata.get("settings", [])}
    for path in sorted(set(configs()) - shown):
        LOG.warning("the settings %r have no table on a page", ".".join(path) or OUTSIDE)


def setup(app):
    """Add the directive."""
    app.add_directive("settings", SettingTable)
    app.connect("env-check-consistency", check)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
