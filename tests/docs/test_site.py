"""The site: it builds strictly, loads from nowhere else, and has every public name, option, setting and formula."""

import argparse
import re
from html import unescape
from html.parser import HTMLParser

import deform_attn
from deform_attn.cli import build_parser
from deform_attn.detr.config.run import Settings

# What a browser fetches by itself. A link (a) is fetched when someone clicks.
FETCHED = {"script": "src", "link": "href", "img": "src", "iframe": "src", "source": "src", "video": "src"}


class Fetched(HTMLParser):
    """Collects the addresses that a page fetches by itself."""

    def __init__(self):
        super().__init__()
        self.addresses = []

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        if address := attributes.get(FETCHED.get(tag, "")):
            self.addresses.append(address)


def fetched(html):
    parser = Fetched()
    parser.feed(html)
    return parser.addresses


def elsewhere(address):
    """Return whether an address leads away from the folder of the site."""
    return re.match(r"(?:[a-z]+:)?//", address, re.IGNORECASE) is not None


def text_of(path):
    return unescape(re.sub(r"<[^>]+>", "", path.read_text()))


def test_no_page_and_no_style_fetches_anything_from_elsewhere(site):
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 30
    away = {str(page.relative_to(site)): [a for a in fetched(page.read_text()) if elsewhere(a)] for page in pages}
    assert {page: addresses for page, addresses in away.items() if addresses} == {}
    styles = sorted(site.rglob("*.css"))
    loaded = [url for style in styles for url in re.findall(r"url\(['\"]?([^'\")]+)|@import", style.read_text())]
    assert styles
    assert [url for url in loaded if not url or elsewhere(url)] == []


def test_what_is_fetched_is_seen():
    html = '<link href="https://fonts.example/a.css"><a href="https://example.org">x</a><script src="a.js"></script>'
    assert [elsewhere(address) for address in fetched(html)] == [True, False]


def test_every_public_name_has_an_entry(site):
    pages = "".join(page.read_text() for page in (site / "reference").glob("*.html"))
    entries = set(re.findall(r'<dt class="sig[^>]*id="([\w.]+)"', pages))
    names = {f"deform_attn.{name}" for name in deform_attn.__all__}
    assert names - entries == set()
    for room in ("explore", "export", "stand_ins"):
        module = __import__(f"deform_attn.{room}", fromlist=["__all__"])
        assert {f"deform_attn.{room}.{name}" for name in module.__all__} - entries == set(), room


def test_formulas_are_markup_that_a_browser_draws(site):
    for name in ("maths.html", "reference/modules.html", "reference/functions.html"):
        page = (site / name).read_text()
        assert page.count("<math ") >= 2, name
        assert "\\sum" not in text_of(site / name)
    # In the table of symbols, and in the text of an argument whose description begins with a letter.
    modules = (site / "reference" / "modules.html").read_text()
    assert re.search(r"<td><p><math .*?<mover", modules)
    assert "M, attention heads." in text_of(site / "reference" / "modules.html")


def test_every_option_of_every_verb_is_on_the_page_of_options(site):
    text = text_of(site / "reference" / "options.html")
    (verbs,) = [a.choices for a in build_parser()._actions if isinstance(a, argparse._SubParsersAction)]
    for name, verb in verbs.items():
        part = text.partition(verb.description)[2]
        for action in verb._actions:
            assert all(option in part for option in action.option_strings), (name, action.dest)


def test_every_setting_is_on_the_page_of_settings_with_its_default(site):
    text = " ".join(text_of(site / "reference" / "settings.html").split())
    assert "num_queries integer 100" in text  # that of `train`, not of the class
    assert 'precision "float32" or "bfloat16" or "float16" "float32"' in text
    assert "crop list of numbers [0.7, 1.0]" in text

    def keys(table):
        for key, value in table.items():
            yield from keys(value) if isinstance(value, dict) else [key]

    missing = set(keys(Settings.from_layers().to_dict())) - {"num_classes"} - set(re.findall(r"\w+", text))
    assert missing == set()
