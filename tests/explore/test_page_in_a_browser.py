"""The page in a real browser: what a click, a tap and a key show, and that nothing is loaded."""

import re

import pytest
from explore_cases import DETECTIONS, QUERIES, SHAPES, SIZE, expected_points, recorded, small_scene

from deform_attn.explore import Detection, write_page

HEIGHT, WIDTH = SIZE
MARGIN = max(SIZE) / 16
READ = """(() => {
  const frame = document.getElementById("image").getBoundingClientRect();
  const place = (one) => {
    const at = new DOMPoint(0, 0).matrixTransform(one.getScreenCTM());
    return [(at.x - frame.left) / frame.width * %d, (at.y - frame.top) / frame.height * %d];
  };
  const of = (selector) => [...document.querySelectorAll(selector)];
  return {
    points: of("#points .point").map((one) =>
      [...["layer", "head", "level", "weight"].map((name) => Number(one.dataset[name])), ...place(one)]),
    crosses: of("#reference .cross").map(place),
    boxes: of("#reference .around").length,
    status: document.getElementById("status").textContent,
    pinned: of("#found [aria-pressed=true]").map((one) => Number(one.dataset.detection)),
    values: ["layer", "head", "level", "from"].map((id) => document.getElementById(id).selectedOptions[0].textContent),
    focus: document.activeElement.dataset.detection || document.activeElement.id,
  };
})()"""
# Where things are comes from whole screen pixels of the window and from floats of the browser's layout.
EXACT = 0.02  # pixels of the picture


def seen(browser):
    """Return what the page shows, places in pixels of the picture as measured on the screen."""
    browser.settle()
    return browser.run(READ % (WIDTH, HEIGHT))


def screen(browser, x, y):
    """Return where a place in the picture is in the window."""
    left, top, width, height = browser.run(
        "(() => { const r = document.getElementById('image').getBoundingClientRect();"
        " return [r.left, r.top, r.width, r.height]; })()"
    )
    return left + x / WIDTH * width, top + y / HEIGHT * height


def middle(browser, selector):
    """Return the middle of an element in the window."""
    return browser.run(
        f"(() => {{ const r = document.querySelector({selector!r}).getBoundingClientRect();"
        " return [r.left + r.width / 2, r.top + r.height / 2]; })()"
    )


def choose(browser, name, text):
    """Choose an option of a control by its text."""
    browser.run(
        f"(() => {{ const s = document.getElementById({name!r});"
        f" s.selectedIndex = [...s.options].findIndex((o) => o.textContent === {text!r});"
        " s.dispatchEvent(new Event('change')); })()"
    )


def assert_shows(shown, layer, points, *, head=None, level=None):
    """Check that exactly these points of a layer (head, level, x, y, weight) are drawn, those on view."""
    expected = sorted(
        (h, v, x, y, weight)
        for h, v, x, y, weight in points
        if (head is None or h == head)
        and (level is None or v == level)
        and -MARGIN <= x <= WIDTH + MARGIN
        and -MARGIN <= y <= HEIGHT + MARGIN
    )
    actual = sorted((h, v, x, y, weight) for at, h, v, weight, x, y in shown["points"] if at == layer)
    assert [one[:2] for one in actual] == [one[:2] for one in expected]
    for one, other in zip(actual, expected, strict=True):
        assert one[2:4] == pytest.approx(other[2:4], abs=EXACT)
        assert one[4] == pytest.approx(other[4], abs=1e-4)
    return len(expected)


@pytest.fixture(scope="module")
def records():
    return recorded()


@pytest.fixture(scope="module")
def path(tmp_path_factory, records):
    page = tmp_path_factory.mktemp("page") / "page.html"
    write_page(small_scene(records=records), page, title="a picture")
    return page


@pytest.fixture
def desktop(browser, path):
    browser.open(path)
    return browser


def test_the_comparison_of_points_sees_a_point_that_is_moved_or_missing(desktop, records):
    shown, points = seen(desktop), expected_points(records[4], 3)
    assert assert_shows(shown, 4, points) > 3
    moved = [(h, v, x + 3 * EXACT, y, weight) for h, v, x, y, weight in points]
    for wrong in (moved, points[1:], [(h, 1 - v, x, y, weight) for h, v, x, y, weight in points]):
        with pytest.raises(AssertionError):
            assert_shows(shown, 4, wrong)


@pytest.mark.parametrize("at", [(35.0, 22.0), (150.0, 100.0)])
@pytest.mark.parametrize("level", [0, 1])
@pytest.mark.parametrize("layer", [0, 1])
def test_a_click_shows_where_the_pixel_of_an_encoder_looks(desktop, records, at, level, layer):
    choose(desktop, "layer", f"encoder {layer}")
    choose(desktop, "from", f"level {level}")
    desktop.click(*screen(desktop, *at))
    shown = seen(desktop)
    H, W = SHAPES[level]
    row, column = int(at[1] / HEIGHT * H), int(at[0] / WIDTH * W)
    query = (0, SHAPES[0][0] * SHAPES[0][1])[level] + row * W + column
    on_view = assert_shows(shown, layer, expected_points(records[layer], query))
    assert len(shown["points"]) == on_view
    centre = ((column + 0.5) / W * WIDTH, (row + 0.5) / H * HEIGHT)
    assert shown["crosses"] == [pytest.approx(centre, abs=EXACT)]
    assert shown["status"].startswith("Pinned: From (")
    total = len(expected_points(records[layer], query))
    assert f"{total} points" in shown["status"]
    assert (f", {total - on_view} of them further out" in shown["status"]) == (on_view < total)


@pytest.mark.parametrize("index", range(3))
def test_a_click_on_the_border_or_name_of_a_box_shows_where_its_query_looks(desktop, records, index):
    left, top, _, bottom = DETECTIONS[index].box
    for place in (screen(desktop, left, (top + bottom) / 2), middle(desktop, f"#names [data-detection='{index}']")):
        desktop.press("Escape")
        desktop.click(*place)
        shown = seen(desktop)
        assert shown["pinned"] == [index]
        count = assert_shows(shown, 4, expected_points(records[4], DETECTIONS[index].query))
        assert len(shown["points"]) == count
        assert shown["boxes"] == 1
        x, y = records[4].reference_points[0, DETECTIONS[index].query, :2].tolist()
        assert shown["crosses"] == [pytest.approx((x * WIDTH, y * HEIGHT), abs=EXACT)]


def test_a_click_beside_all_boxes_shows_the_decoder_query_whose_reference_point_is_nearest(desktop, records):
    centres = records[-1].reference_points[0, :, :2].tolist()
    for at in ((5.0, 110.0), (100.0, 20.0), (180.0, 10.0)):
        distances = [(cx * WIDTH - at[0]) ** 2 + (cy * HEIGHT - at[1]) ** 2 for cx, cy in centres]
        query = distances.index(min(distances))
        desktop.click(*screen(desktop, *at))
        shown = seen(desktop)
        assert_shows(shown, 4, expected_points(records[4], query))
        assert f"query {query}" in shown["status"]
        choose(desktop, "layer", "decoder 0")
        assert_shows(seen(desktop), 2, expected_points(records[2], query))
        choose(desktop, "layer", "decoder 2")


def test_layer_head_and_level_show_exactly_their_points(desktop, records):
    desktop.click(*middle(desktop, "#found button"))
    query = DETECTIONS[0].query
    for layer in (2, 3, 4):
        choose(desktop, "layer", f"decoder {layer - 2}")
        points = expected_points(records[layer], query)
        for head in (None, 0, 2):
            choose(desktop, "head", "all heads" if head is None else f"head {head}")
            for level in (None, 0, 1):
                choose(desktop, "level", "all levels" if level is None else f"level {level}")
                shown = seen(desktop)
                assert len(shown["points"]) == assert_shows(shown, layer, points, head=head, level=level)
        choose(desktop, "head", "all heads")
        choose(desktop, "level", "all levels")
    choose(desktop, "layer", "all of the decoder")
    shown = seen(desktop)
    on_view = sum(assert_shows(shown, layer, expected_points(records[layer], query)) for layer in (2, 3, 4))
    assert len(shown["points"]) == on_view > 20
    assert len(shown["crosses"]) == 3


def test_the_strongest_points_are_largest_darkest_and_on_top(desktop):
    desktop.click(*middle(desktop, "#found button"))
    sizes = desktop.run(
        "[...document.querySelectorAll('#points .point')].map((one) =>"
        " [Number(one.dataset.weight), one.getScreenCTM().a, Number(getComputedStyle(one).fill.match(/\\d+/g)[1])])"
    )
    assert sizes == sorted(sizes)
    assert [one[1] for one in sizes] == sorted(one[1] for one in sizes)
    assert [one[2] for one in sizes] == sorted((one[2] for one in sizes), reverse=True)
    assert desktop.run("document.getElementById('strongest').textContent") == f"{sizes[-1][0]:.2f}"


def test_what_is_pinned_stays_while_the_pointer_moves_and_escape_unpins_it(desktop, records):
    choose(desktop, "layer", "encoder 0")
    desktop.move(*screen(desktop, 30, 20))
    preview = seen(desktop)
    desktop.move(*screen(desktop, 150, 100))
    other = seen(desktop)
    assert preview["points"] != other["points"]
    assert not other["status"].startswith("Pinned")
    desktop.click(*screen(desktop, 30, 20))
    desktop.move(*screen(desktop, 150, 100))
    assert seen(desktop)["points"] == preview["points"]
    desktop.press("Escape")
    assert seen(desktop)["points"] == []
    desktop.move(*screen(desktop, 151, 100))
    assert seen(desktop)["points"] == other["points"]


def test_the_pointer_on_a_point_of_what_is_pinned_names_it(desktop, records):
    desktop.click(*middle(desktop, "#found button"))
    _, head, level, weight, x, y = seen(desktop)["points"][-1]
    desktop.move(*screen(desktop, x, y))
    desktop.settle()
    tip = desktop.run("[document.getElementById('tip').hidden, document.getElementById('tip').textContent]")
    assert tip[0] is False
    assert tip[1].startswith(f"decoder 2, head {head}, level {level}: weight {weight:.2f} at ({x:.1f}, {y:.1f}")
    desktop.move(*screen(desktop, 1, 1))
    desktop.settle()


def test_all_can_be_done_by_keyboard(desktop, records):
    def press_until(key, focus):
        for _ in range(12):
            if seen(desktop)["focus"] == focus:
                return
            desktop.press(key)
        raise AssertionError(f"{key} never reaches {focus}")

    press_until("Tab", "0")
    shown = seen(desktop)
    assert_shows(shown, 4, expected_points(records[4], DETECTIONS[0].query))
    desktop.press("ArrowDown")
    assert seen(desktop)["focus"] == "1"
    desktop.press("Enter")
    shown = seen(desktop)
    assert shown["pinned"] == [1]
    assert_shows(shown, 4, expected_points(records[4], DETECTIONS[1].query))
    desktop.press("ArrowUp")
    desktop.press("ArrowUp")
    shown = seen(desktop)
    assert (shown["focus"], shown["pinned"]) == ("2", [1])
    desktop.press("l", shift=True)
    desktop.press("h")
    desktop.press("v")
    shown = seen(desktop)
    assert shown["values"][:3] == ["decoder 1", "head 0", "level 0"]
    assert len(shown["points"]) == assert_shows(
        shown, 3, expected_points(records[3], DETECTIONS[1].query), head=0, level=0
    )
    for key in "hv":
        desktop.press(key, shift=True)
    desktop.press("l")
    desktop.press("l")
    assert seen(desktop)["values"] == ["all of the encoder", "all heads", "all levels", "level 0"]
    desktop.press("l")
    desktop.press("p")
    desktop.press("Escape")
    assert seen(desktop)["pinned"] == []
    press_until("Tab", "view")
    for key in ("ArrowRight", "ArrowRight", "ArrowDown"):
        desktop.press(key)
    desktop.press("Enter")
    shown = seen(desktop)
    step = max(SIZE) / 40
    H, W = SHAPES[1]
    row, column = int((HEIGHT / 2 + step) / HEIGHT * H), int((WIDTH / 2 + 2 * step) / WIDTH * W)
    query = SHAPES[0][0] * SHAPES[0][1] + row * W + column
    assert_shows(shown, 0, expected_points(records[0], query))
    assert shown["status"].startswith("Pinned: From (105, 65)")


def taken(browser, key, **options):
    """Return whether the page keeps a key from the browser, which would scroll or find with it."""
    browser.run("window.addEventListener('keydown', (one) => { window.taken = one.defaultPrevented; }, { once: true })")
    browser.press(key, **options)
    return browser.run("window.taken")


def test_arrows_scroll_the_page_unless_the_picture_or_the_list_has_the_focus(desktop):
    before = seen(desktop)
    for key in ("ArrowDown", "ArrowRight"):
        assert not taken(desktop, key)
        assert seen(desktop) == before
    for selector in ("#view", "#found button"):
        desktop.run(f"document.querySelector({selector!r}).focus()")
        assert taken(desktop, "ArrowDown")


@pytest.mark.parametrize("modifiers", [1, 2, 4], ids=["Alt", "Ctrl", "Meta"])
def test_letters_with_another_key_are_left_to_the_browser(desktop, modifiers):
    desktop.click(*middle(desktop, "#found button"))
    before = seen(desktop), desktop.run("document.getElementById('view').getAttribute('viewBox')")
    for key in "lhvpz":
        assert not taken(desktop, key, modifiers=modifiers)
    assert (seen(desktop), desktop.run("document.getElementById('view').getAttribute('viewBox')")) == before


def test_letters_in_a_control_choose_there(desktop):
    desktop.run("document.getElementById('level').focus()")
    before = seen(desktop)["values"]
    desktop.press("h")
    assert seen(desktop)["values"] == before


@pytest.mark.parametrize(("focus", "key"), [("unpin", "Enter"), ("zoom", "Escape")])
def test_the_focus_moves_to_the_picture_when_the_button_that_has_it_goes(desktop, focus, key):
    desktop.click(*middle(desktop, "#found button"))
    desktop.run(f"document.getElementById({focus!r}).focus()")
    desktop.press(key)
    shown = seen(desktop)
    assert (shown["pinned"], shown["focus"]) == ([], "view")


def test_the_strongest_points_are_told_in_words_too(desktop):
    desktop.click(*middle(desktop, "#found button"))
    desktop.run("document.querySelector('summary').focus()")
    desktop.press("Enter")
    for head in ("all heads", "head 1"):
        choose(desktop, "head", head)
        strongest = seen(desktop)["points"][::-1][:10]
        listed = desktop.run("document.getElementById('listed').innerText").split("\n")
        assert len(listed) == len(strongest) > 1
        for words, (_, head, level, weight, x, y) in zip(listed, strongest, strict=True):
            told = f"decoder 2, head {head}, level {level}: weight "
            assert words.startswith(told)
            numbers = [float(one) for one in re.findall(r"\d+[.]\d+", words.removeprefix(told))]
            assert numbers == [pytest.approx(weight, abs=0.006), *(pytest.approx(at, abs=0.06) for at in (x, y))]


def test_focus_is_visible_and_every_control_has_a_name(desktop):
    desktop.press("Tab")
    for _ in range(8):
        width = desktop.run("getComputedStyle(document.activeElement).outlineWidth")
        assert width == "3px", desktop.run("document.activeElement.outerHTML")
        desktop.press("Tab")
    nodes = desktop.call("Accessibility.getFullAXTree")["nodes"]
    named = [n for n in nodes if n["role"]["value"] in ("button", "combobox", "application", "heading")]
    assert len(named) > 10
    assert all(n["name"]["value"] for n in named)
    assert {"tree 0.91, 1 of 3", "Layer L"} <= {n["name"]["value"] for n in named}


def test_zoomed_in_a_click_means_the_same_place(desktop, records):
    desktop.click(*middle(desktop, "#found button:nth-of-type(3)"))
    choose(desktop, "layer", "encoder 1")
    before = seen(desktop)
    width = desktop.run("document.getElementById('image').getBoundingClientRect().width")
    desktop.press("z")
    zoomed = seen(desktop)
    assert desktop.run("document.getElementById('image').getBoundingClientRect().width") > 1.1 * width
    for one, other in zip(zoomed["points"], before["points"], strict=True):
        assert one == pytest.approx(other, abs=EXACT)
    at = screen(desktop, 100, 60)
    desktop.click(*at)
    shown = seen(desktop)
    H, W = SHAPES[0]
    assert_shows(shown, 1, expected_points(records[1], int(60 / HEIGHT * H) * W + int(100 / WIDTH * W)))
    assert screen(desktop, 100, 60) == pytest.approx(at)
    desktop.press("Escape")
    assert desktop.run("document.getElementById('image').getBoundingClientRect().width") == pytest.approx(width)


def test_on_a_phone_a_tap_pins_and_everything_fits(browser, path, records):
    browser.open(path, 390, 844, touch=True)
    choose(browser, "layer", "encoder 0")
    browser.tap(*screen(browser, 150, 100))
    shown = seen(browser)
    H, W = SHAPES[0]
    assert_shows(shown, 0, expected_points(records[0], int(100 / HEIGHT * H) * W + int(150 / WIDTH * W)))
    assert shown["status"].startswith("Pinned")
    browser.tap(*middle(browser, "#unpin"))
    assert seen(browser)["points"] == []
    assert browser.run("document.documentElement.scrollWidth") == 390
    small = browser.run(
        "[...document.querySelectorAll('button, select, #names .hit')].filter((one) => one.checkVisibility())"
        ".map((one) => one.getBoundingClientRect()).filter((r) => r.width < 24 || r.height < 24).length"
    )
    assert small == 0


def test_a_tap_on_a_point_of_what_is_pinned_names_it_and_one_elsewhere_pins_anew(browser, path):
    browser.open(path, 390, 844, touch=True)
    browser.tap(*middle(browser, "#found button"))
    before = seen(browser)
    assert before["pinned"] == [0]
    inside = [one for one in before["points"] if 0 < one[4] < WIDTH and 0 < one[5] < HEIGHT]
    for _, head, level, weight, x, y in inside[-2:]:
        browser.tap(*screen(browser, x, y))
        shown = seen(browser)
        assert (shown["points"], shown["pinned"]) == (before["points"], [0])
        tip = browser.run("[document.getElementById('tip').hidden, document.getElementById('tip').textContent]")
        assert tip[0] is False
        assert tip[1].startswith(f"decoder 2, head {head}, level {level}: weight {weight:.2f} at (")
    pixel = WIDTH / browser.run("document.getElementById('image').getBoundingClientRect().width")
    x, y = next(
        (x, y)
        for x in range(5, WIDTH, 5)
        for y in range(5, HEIGHT, 5)
        if all((x - one[4]) ** 2 + (y - one[5]) ** 2 > (16 * pixel) ** 2 for one in before["points"])
    )
    browser.tap(*screen(browser, x, y))
    shown = seen(browser)
    assert shown["status"].startswith(f"Pinned: Nearest to ({x}, {y})")


def test_a_page_whose_script_does_not_run_says_what_it_needs(browser, path, tmp_path):
    text = path.read_text(encoding="utf-8")
    changed = tmp_path / "page.html"
    changed.write_text(text.replace('"use strict";', '"use strict"; '), encoding="utf-8")  # refused by its policy
    for page, expected in ((changed, True), (path, False)):
        browser.open(page)
        words = browser.run("document.querySelector('.bar').innerText").strip()
        assert (words == "This page needs JavaScript and a recent browser.") == expected


def test_nothing_is_loaded_and_nothing_fails(browser, path):
    browser.open(path)
    browser.click(*screen(browser, 100, 60))
    seen(browser)
    names = [event["method"] for event in browser.events]
    assert "Log.entryAdded" not in names
    assert "Runtime.exceptionThrown" not in names
    requests = [event["params"]["request"]["url"] for event in browser.events if names and "request" in event["params"]]
    assert [url for url in requests if not url.startswith("data:")] == [path.as_uri()]
    # What a page with an address of another machine would show here, so that the test can see it.
    browser.run("document.body.append(Object.assign(new Image(), { src: 'https://example.invalid/x.png' }))")
    browser.settle()
    assert "Log.entryAdded" in [event["method"] for event in browser.events]  # refused by the page's policy


LABEL = '</script><b id="evil">bold</b><img src=x onerror="document.title=1">'


def test_a_label_is_text_wherever_it_is_shown(browser, tmp_path):
    detections = [Detection(0, (20, 30, 90, 80), LABEL, 0.5), Detection(1, (100, 30, 150, 80))]
    write_page(small_scene(detections=detections), tmp_path / "page.html", title=LABEL)
    browser.open(tmp_path / "page.html")
    browser.click(*middle(browser, "#found button"))
    shown = seen(browser)
    assert browser.run("document.querySelectorAll('#evil, body img').length") == 0
    assert browser.run("document.title") == LABEL
    assert browser.run("document.querySelector('#found button span').textContent") == LABEL
    assert browser.run("document.querySelector('#names text').textContent") == f"{LABEL[:29]}…"
    assert LABEL in shown["status"]
    assert browser.run("document.querySelectorAll('#found button span')[2].textContent") == "query 1"


def test_a_page_without_detections_or_decoder_still_answers(browser, tmp_path, records):
    write_page(small_scene(detections=[], records=records[:2]), tmp_path / "page.html")
    browser.open(tmp_path / "page.html")
    assert "Nothing was found" in browser.run("document.getElementById('found').textContent")
    assert browser.run("[...document.querySelectorAll('#layer option')].map((one) => one.textContent)") == [
        "all of the encoder", "encoder 0", "encoder 1",
    ]  # fmt: skip
    browser.click(*screen(browser, 35, 22))
    H, W = SHAPES[0]
    query = int(22 / HEIGHT * H) * W + int(35 / WIDTH * W)
    assert_shows(seen(browser), 1, expected_points(records[1], query))
    assert query > QUERIES
