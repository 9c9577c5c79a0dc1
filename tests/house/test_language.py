"""The language of the README, the documentation and the command's help: short sentences, and words that all know."""

import argparse
import inspect
import re
from pathlib import Path

import pytest
from pages import pages_of

import deform_attn
from deform_attn import explore
from deform_attn.backends.registry import Explanation
from deform_attn.cli import build_parser
from deform_attn.detr.config import detector
from deform_attn.detr.config.base import Config
from deform_attn.detr.config.run import DataConfig, Settings
from deform_attn.interop.report import Report, Row
from deform_attn.recording import Record, Sampling

ROOT = Path(__file__).parents[2]
MOST_WORDS = 25  # of a sentence
MOST_SEMICOLONS = 1  # of a paragraph
FOR_USERS = {"README.md", "SECURITY.md"}
NOT_SAID = [
    r"(?<!there )is no\b(?! longer)",
    r"belongs? to no\b",
    r"nothing is\b",
    r"anew",
    r"for good",
    r"all told",
    r"to the letter",
    r"tells?",
    r"told",
    r"asks? for",
    r"(?:goes|go) (?:on|first)",
    r"in turns",
    r"seen to agree",
    r"the house",
    r"lies?(?! between)",
    r"stands?(?![ -](?:for|ins?)\b)",
    r"whoever",
    r"nobody",
    r"beside(?! (?:the (?:images|image|picture|checkpoint)|it|each other)\b)",
]
SAID = re.compile(r"\b(?:" + "|".join(NOT_SAID) + r")\b", re.IGNORECASE)


def pages():
    """Return the pages that users read, by their names from the root."""
    ours = {str(path.relative_to(ROOT).as_posix()): path for path in pages_of(ROOT)}
    return {name: path for name, path in ours.items() if re.match("docs/(?!contributing/)", name) or name in FOR_USERS}


def paragraphs(markdown):
    """Yield the texts of paragraphs, items and cells of a page; code and formulas are one word each."""
    text = re.sub(r"^```.*?^```", "\n", markdown, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"<!-- (?:(?!-->).)* -->.*?<!-- end -->", "\n", text, flags=re.DOTALL)  # written by benchmarks
    text = re.sub(r"\$\$.*?\$\$|\$[^$\n]+\$|`[^`]+`", "code", text, flags=re.DOTALL)
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text)
    text = re.sub(r"^(#.*|\s*(?:[-*]|\d+\.) )", r"\n\1", text, flags=re.MULTILINE)
    text = re.sub(r"^\|(.*)\|$", lambda row: "\n" + row.group(1).replace("|", "\n\n") + "\n", text, flags=re.MULTILINE)
    for paragraph in re.split(r"\n\s*\n", text):
        plain = re.sub(r"[*#_]+", "", paragraph)
        if said := " ".join(re.sub(r"^\s*(?:[-*]|\d+\.) ", "", plain).split()):
            yield said


def sentences(paragraph):
    """Return the sentences of a paragraph; a dot inside of a number or a name ends none."""
    return re.split(r"(?<=[.!?])[\"')]* +(?=[\"'(]*[A-Z0-9]|code)", paragraph)


def words(sentence):
    """Return how many words a sentence has."""
    return len([word for word in sentence.split() if re.search(r"\w", word)])


def wrong(paragraph):
    """Yield what is wrong with a text, each with the place."""
    if paragraph.count(";") > MOST_SEMICOLONS:
        yield f"{paragraph.count(';')} semicolons: {paragraph[:70]}"
    for sentence in sentences(paragraph):
        if (count := words(sentence)) > MOST_WORDS:
            yield f"{count} words: {sentence[:70]}"
    for match in SAID.finditer(paragraph):
        yield f"{match.group()!r}: {paragraph[max(match.start() - 30, 0) : match.end() + 30]}"


def helps():
    """Return the help of each argument of each verb."""
    verbs = next(a for a in build_parser()._actions if isinstance(a, argparse._SubParsersAction)).choices
    return {f"{name} {action.dest}": action.help for name, verb in verbs.items() for action in verb._actions}


@pytest.mark.parametrize("name", sorted(pages()))
def test_a_page_says_it_in_short_sentences_and_common_words(name):
    text = pages()[name].read_text()
    assert [said for paragraph in paragraphs(text) for said in wrong(paragraph)] == []


def test_the_help_says_it_in_short_sentences_and_common_words():
    assert len(helps()) > 40
    assert {name: found for name, text in helps().items() if (found := list(wrong(text)))} == {}


def test_the_texts_on_the_page_of_settings_say_it_in_short_sentences_and_common_words():
    configs = [kind for kind in vars(detector).values() if isinstance(kind, type) and issubclass(kind, Config)]
    texts = {kind.__name__: inspect.getdoc(kind) for kind in (*configs, DataConfig, Settings)}
    assert len(texts) > 7
    assert {n: found for n, text in texts.items() if (found := [s for p in paragraphs(text) for s in wrong(p)])} == {}


def docstring_paragraphs(thing):
    """Yield the texts of a docstring, without its examples, formulas and tables."""
    text = re.sub(r"^ *(?:>>>|\.\.\. ).*$", "\n", inspect.getdoc(thing), flags=re.MULTILINE)
    text = re.sub(r"^\.\. math::.*?(?=^\S|\Z)|^=+ .*^=+ .*?$", "\n", text, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r":math:`[^`]+`", "code", text)
    yield from paragraphs(re.sub(r"^    (?=\S)", "\n    ", text, flags=re.MULTILINE))


def test_the_docstrings_of_the_public_names_say_it_in_short_sentences_and_common_words():
    modules = deform_attn.MultiScaleDeformableAttention, deform_attn.DeformableAttention
    things = [getattr(deform_attn, name) for name in deform_attn.__all__] + [module.forward for module in modules]
    things += [getattr(explore, name) for name in explore.__all__]
    things += [Report, Row, Record, Sampling, Explanation]
    found = {thing.__qualname__: [w for p in docstring_paragraphs(thing) for w in wrong(p)] for thing in things}
    assert {name: said for name, said in found.items() if said} == {}
    assert sum(len(list(docstring_paragraphs(thing))) for thing in things) > 100


def test_what_the_rules_forbid_is_found():
    long = "word " * 26
    text = f"# Title\n\nThis is no TOML. It goes on.\n\n- {long}\n\n| a cell; with; two | told |\n|---|---|\n"
    found = [said.partition(":")[0] for paragraph in paragraphs(text) for said in wrong(paragraph)]
    assert found == ["'is no'", "'goes on'", "26 words", "2 semicolons", "'told'"]


def test_code_and_links_do_not_count():
    text = "```\nThis is no prose; at; all\n```\n\nSee [the page](https://example.org/told) and `is no` $told$.\n"
    assert [list(wrong(paragraph)) for paragraph in paragraphs(text)] == [[]]
