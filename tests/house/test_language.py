"""The language of the pages, the command's help and the public docstrings: short sentences, and words that all know."""

import argparse
import ast
import inspect
import pkgutil
import re
from pathlib import Path

import pytest
from pages import pages_of

import deform_attn
from deform_attn.cli import build_parser
from deform_attn.detr.config import detector
from deform_attn.detr.config.base import Config
from deform_attn.detr.config.run import DataConfig, Settings

ROOT = Path(__file__).parents[2]
MOST_WORDS = 25  # of a sentence
MOST_SEMICOLONS = 1  # of a paragraph
LOG = "CHANGELOG.md"  # a list of what changed, of many hands
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
    """Return the pages, by their names from the root."""
    return {name: path for path in pages_of(ROOT) if (name := path.relative_to(ROOT).as_posix()) != LOG}


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
    """Return the summary of each command, and the help of each of its arguments."""
    commands = next(a for a in build_parser()._actions if isinstance(a, argparse._SubParsersAction)).choices
    texts = {f"{name} {action.dest}": action.help for name, command in commands.items() for action in command._actions}
    return texts | {name: command.description for name, command in commands.items()}


def error_texts(source):
    """Return the texts of a file that may end up in an error."""
    strings = []
    for node in ast.walk(ast.parse(source)):
        names = node.targets if isinstance(node, ast.Assign) else [node.func] if isinstance(node, ast.Call) else []
        named = {getattr(name, "id", getattr(name, "attr", "")) for name in names}
        if isinstance(node, ast.Raise) or named & {"fail", "require", "fix", "advice", "cure", "message"}:
            strings += [string for string in ast.walk(node) if isinstance(string, ast.JoinedStr | ast.Constant)]
    inner = {part for string in strings if isinstance(string, ast.JoinedStr) for part in string.values}
    return [text_of(string) for string in strings if string not in inner]


def text_of(string):
    """Return the text of a string in a source; what is computed in it is one word."""
    parts = string.values if isinstance(string, ast.JoinedStr) else [string]
    return "".join(str(part.value) if isinstance(part, ast.Constant) else "code" for part in parts)


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


def documented():
    """Return the names that the reference documents by their docstrings, those of members included."""
    names = set()
    for page in (ROOT / "docs" / "reference").glob("*.md"):
        for name, options in re.findall(r"^\.\. auto\w+:: (\S+)\n((?:   :.*\n)*)", page.read_text(), re.MULTILINE):
            names.add(name)
            listed = {key: given.replace(",", " ").split() for key, given in re.findall(r":([\w-]+):(.*)", options)}
            if "members" in listed:
                members = set(listed["members"] or own_members(pkgutil.resolve_name(name)))
                names |= {f"{name}.{member}" for member in members - set(listed.get("exclude-members", ()))}
    return sorted(names)


def own_members(cls):
    """Return the names of the public methods and properties that a class itself has."""
    things = vars(cls).items()
    return [name for name, it in things if name[0] != "_" and (inspect.isroutine(it) or isinstance(it, property))]


DOCUMENTED = documented()


def test_the_reference_documents_every_public_name():
    assert {f"deform_attn.{name}" for name in deform_attn.__all__} <= set(DOCUMENTED)
    assert {"deform_attn.export.to_onnx", "deform_attn.explore.Scene.query"} <= set(DOCUMENTED)
    assert len(DOCUMENTED) > 60


@pytest.mark.parametrize("name", DOCUMENTED)
def test_a_public_docstring_says_it_in_short_sentences_and_common_words(name):
    said = [*docstring_paragraphs(pkgutil.resolve_name(name))]
    assert said
    assert [found for paragraph in said for found in wrong(paragraph)] == []


@pytest.mark.parametrize("room", ["detr", "export", "cli"])
def test_an_error_says_it_in_common_words(room):
    files = sorted((ROOT / "src" / "deform_attn" / room).rglob("*.py"))
    texts = [(path.name, text) for path in files for text in error_texts(path.read_text())]
    assert len(texts) > 5
    assert [(name, text) for name, text in texts if SAID.search(text)] == []


def test_the_texts_of_errors_are_found():
    source = 'raise ValueError(f"{name}: is no file")\nfail("form", got, "Nothing is written.")\n'
    source += 'f("lies")\nfix = "Told."\n'
    found = {text for text in error_texts(source) if SAID.search(text)}
    assert found == {"code: is no file", "Nothing is written.", "Told."}


def test_what_the_rules_forbid_is_found():
    long = "word " * 26
    text = f"# Title\n\nThis is no TOML. It goes on.\n\n- {long}\n\n| a cell; with; two | told |\n|---|---|\n"
    found = [said.partition(":")[0] for paragraph in paragraphs(text) for said in wrong(paragraph)]
    assert found == ["'is no'", "'goes on'", "26 words", "2 semicolons", "'told'"]


def test_code_and_links_do_not_count():
    text = "```\nThis is no prose; at; all\n```\n\nSee [the page](https://example.org/told) and `is no` $told$.\n"
    assert [list(wrong(paragraph)) for paragraph in paragraphs(text)] == [[]]
