"""The gallery: its pictures are small and not blank, its commands are accepted, and they draw pictures of that size."""

import re
import shlex
from pathlib import Path
from xml.etree import ElementTree

import pytest
from PIL import Image

from benchmarks import trees
from benchmarks.pictures import __main__ as pictures
from benchmarks.pictures import animation, run
from benchmarks.pictures.files import MOST_BYTES, save_picture
from deform_attn.cli import build_parser
from deform_attn.detr.checkpoints import checkpoint
from deform_attn.detr.config.detector import ModelConfig
from deform_attn.detr.data.digits import DigitScenes
from deform_attn.detr.demo import CHECKPOINT
from deform_attn.detr.model.deformable_detr import build_model
from deform_attn.detr.model.detector import Detector

DOCS = Path(__file__).parents[2] / "docs"
ENTRY = re.compile(r"^!\[([^\]]+)\]\((images/\S+)\)\n\n\*([^*]+)\*[^\n]*\n\n```\n([^`]+)```$", re.MULTILINE)
PARSERS = {
    "benchmarks.pictures": pictures.build_parser,
    "benchmarks.pictures.animation": animation.build_parser,
    "benchmarks.trees": trees.build_parser,
}
MOST_OF_A_PAGE = 2_000_000  # bytes


def entries():
    """Return (words for those who see no picture, picture, caption, commands) of the gallery."""
    return ENTRY.findall((DOCS / "gallery.md").read_text())


def opened(path):
    """Return a picture as it is in its file, which is closed."""
    with Image.open(path) as picture:
        return picture.copy()


def is_blank(picture):
    """Return whether a picture has nearly one colour."""
    return max(high - low for low, high in picture.convert("RGB").getextrema()) < 50


def accepts(command):
    """Return whether the parser of a command takes its arguments; a command of another kind is an error."""
    words = [word for word in shlex.split(command) if "=" not in word]
    parser, arguments = (build_parser(), words[1:]) if words[0] == "deform-attn" else (PARSERS[words[2]](), words[3:])
    try:
        parser.parse_args(arguments)
    except SystemExit:
        return False
    return True


def test_every_picture_of_the_gallery_has_a_caption_and_a_command_that_is_accepted():
    text = (DOCS / "gallery.md").read_text()
    assert len(entries()) == text.count("![") >= 8
    for _, _, caption, commands in entries():
        assert caption.endswith(".")
        assert [line for line in commands.splitlines() if not accepts(line)] == []


def test_a_command_with_a_picture_or_an_option_that_is_not_there_is_not_accepted(capsys):
    assert not accepts("python -m benchmarks.pictures portrait")
    assert not accepts("deform-attn explore runs/demo scene.png --colour red")
    assert "invalid choice: 'portrait'" in capsys.readouterr().err


def test_every_picture_that_the_command_draws_is_in_the_gallery():
    shown = {Path(path).stem for _, path, _, _ in entries()}
    assert {*pictures.OF_A_RUN, *pictures.OF_RESULTS} - shown == set()


@pytest.mark.parametrize("path", sorted((DOCS / "images").glob("*.png")), ids=lambda path: path.name)
def test_a_picture_of_the_pages_is_small_and_not_blank(path):
    assert path.stat().st_size <= MOST_BYTES
    assert not is_blank(opened(path))


def test_a_picture_of_one_colour_is_blank():
    assert is_blank(Image.new("RGB", (8, 8), "white"))


@pytest.mark.parametrize("path", sorted((DOCS / "images").glob("*.svg")), ids=lambda path: path.name)
def test_a_diagram_has_a_title_and_a_ground_of_its_own_and_is_no_wider_than_a_phone(path):
    root = ElementTree.parse(path).getroot()
    names = {"svg": "http://www.w3.org/2000/svg"}
    assert root.find("svg:title", names).text
    ground = root.find("svg:rect", names)
    assert ground.get("fill") == "#ffffff"  # so that dark letters show on a dark page
    assert [ground.get(side) for side in ("width", "height")] == root.get("viewBox").split()[2:]
    assert int(root.get("width")) <= 400
    sizes = [float(one.get("font-size")) for one in root.iter() if one.get("font-size")]
    assert min(sizes) >= 11


def test_the_animation_moves_and_is_small():
    path, seen = DOCS / "images" / "explore.webp", set()
    assert path.stat().st_size <= MOST_OF_A_PAGE
    with Image.open(path) as film:
        for frame in range(film.n_frames):
            film.seek(frame)
            assert not is_blank(film)
            seen.add(film.convert("RGB").tobytes())
    assert len(seen) > 20


def test_the_live_page_is_small_and_shows_the_detector_of_digits():
    page = (DOCS / "_static" / "explore-digits.html").read_text()
    assert len(page) <= MOST_OF_A_PAGE
    assert '"decoder 2"' in page
    assert "_static/explore-digits.html" in (DOCS / "explore.md").read_text()


def test_a_picture_too_large_gets_fewer_colours_and_one_that_cannot_be_small_is_refused(tmp_path):
    noise = Image.effect_noise((500, 500), 60)
    small = save_picture(noise.convert("RGB"), tmp_path / "small.png")
    assert small.stat().st_size <= MOST_BYTES
    with pytest.raises(ValueError, match="expected at most 250000 bytes"):
        save_picture(Image.effect_noise((2000, 1000), 60).convert("RGB"), tmp_path / "large.png")
    assert not (tmp_path / "large.png").exists()


@pytest.mark.parametrize("name", pictures.OF_RESULTS)
def test_a_picture_of_committed_results_is_drawn_as_it_is_in_the_gallery(name, tmp_path):
    drawn = opened(pictures.OF_RESULTS[name](tmp_path / f"{name}.png"))
    assert drawn.size == opened(DOCS / "images" / f"{name}.png").size
    assert not is_blank(drawn)


@pytest.mark.slow
def test_pictures_of_a_run_are_drawn_in_the_size_of_those_in_the_gallery(tmp_path, monkeypatch):
    categories = DigitScenes("test", 1).categories
    checkpoint.save(tmp_path / CHECKPOINT, Detector(build_model(ModelConfig(10)), categories, max_size=160))
    monkeypatch.setattr(run, "THRESHOLD", 0.0)  # without training no detection is certain
    for name, draw in pictures.OF_A_RUN.items():
        drawn = opened(draw(run.Run(tmp_path), tmp_path / f"{name}.png"))
        assert drawn.size == opened(DOCS / "images" / f"{name}.png").size, name
        assert not is_blank(drawn), name


@pytest.mark.slow
def test_the_live_page_is_filmed_while_the_position_moves_and_detections_are_pinned(browser, monkeypatch):
    monkeypatch.setattr(animation, "POSITIONS", 3)
    browser.open(animation.PAGE, *animation.SIZE)
    frames, durations = zip(*animation.film(browser), strict=True)
    assert durations == (animation.QUICK,) * 3 + (animation.SLOW,) * 3
    assert {frame.size for frame in frames} == {animation.SIZE}
    assert len({frame.tobytes() for frame in frames}) == 6
