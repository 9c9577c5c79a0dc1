"""Tables of the command's options, read from its own parser, so that page and help cannot differ.

A page says ```` ```{options} train ```` below the heading of each verb. A verb without a table is a warning, which ends
a strict build.
"""

import argparse
import re

from docutils import nodes
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

from deform_attn.cli import build_parser
from text_table import table

DEFAULT = re.compile(r" \(default: (.*)\)$", re.DOTALL)
LOG = logging.getLogger(__name__)


def verbs():
    """Return the parser of each verb, by name."""
    (sub,) = [action for action in build_parser()._actions if isinstance(action, argparse._SubParsersAction)]
    return sub.choices


def rows(verb):
    """Yield what is written, what it means and its default for each argument of a verb, as texts."""
    formatter = verb._get_formatter()
    for action in verb._actions:
        text = formatter._expand_help(action)
        default = DEFAULT.search(text)
        yield written(action), DEFAULT.sub("", text), default.group(1) if default else ""


def written(action):
    """Return an argument as one writes it, such as `--lr X`."""
    if not action.option_strings:
        return action.metavar or action.dest
    value = "" if action.nargs == 0 else " " + (action.metavar or choices(action))
    return ", ".join(f"{option}{value}" for option in action.option_strings)


def choices(action):
    """Return what may stand after an option without a metavar."""
    return "{" + ", ".join(action.choices) + "}" if action.choices else action.dest.strip("-").upper()


class Options(SphinxDirective):
    """The table of one verb: its summary, its usage, and a row for each argument."""

    required_arguments = 1

    def run(self):
        """Return the nodes."""
        name = self.arguments[0]
        if name not in verbs():
            raise self.error(f"no verb is called {name!r}")
        self.env.metadata[self.env.docname].setdefault("verbs", []).append(name)
        verb = verbs()[name]
        usage = re.sub(r"\s+", " ", verb.format_usage().removeprefix("usage: ")).strip()
        return [
            nodes.paragraph("", verb.description),
            nodes.literal_block(usage, usage, language="text", classes=["usage"]),
            table(("option", "meaning", "default"), rows(verb), code=(0,)),
        ]


def check(app, env):
    """Warn of a verb that no page has a table of."""
    shown = {name for metadata in env.metadata.values() for name in metadata.get("verbs", [])}
    for name in sorted(set(verbs()) - shown):
        LOG.warning("the verb %r has no table of options; add a heading and {options} %s", name, name)


def setup(app):
    """Add the directive."""
    app.add_directive("options", Options)
    app.connect("env-check-consistency", check)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
