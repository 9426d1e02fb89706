"""The report as a reader meets it: in a browser, wide and narrow, light and dark, by mouse and by keys."""

from __future__ import annotations

import base64
from dataclasses import replace

import pytest
from report.example import example_measurements

from deepvit.report import compare_reports, write_report

pytestmark = pytest.mark.browser

EVIL = "<script>window.ran = 1</script><img src=x onerror='window.ran = 1'>"
LONG = "vit_" + "very_long_name_without_a_space_" * 4

# Elements that stick out of the window, leaving out those inside a box that scrolls by itself.
OVERFLOW = """() => {
  const width = document.documentElement.clientWidth;
  const out = [];
  for (const node of document.querySelectorAll("body *")) {
    if (node.closest(".scroll, .command code, .skip, svg")) continue;
    const box = node.getBoundingClientRect();
    if (box.width && (box.right > width + 1 || box.left < -1)) out.push(node.outerHTML.slice(0, 120));
  }
  if (document.documentElement.scrollWidth > width) out.push("the page scrolls sideways");
  return out;
}"""
# Text of a chart that leaves its picture.
CUT = """() => [...document.querySelectorAll(".plot svg text")].filter((text) => {
  const [inner, outer] = [text.getBoundingClientRect(), text.closest("svg").getBoundingClientRect()];
  return inner.left < outer.left - 2 || inner.right > outer.right + 6;
}).map((text) => text.textContent)"""
PIXELS = "(node) => node.toDataURL()"


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    results = example_measurements(
        EVIL + LONG, depth=12, heads=3, grid=7, labels=[EVIL, "second image"], collapse_from=8
    )
    results.provenance["unreadable"] = [EVIL + "/" + LONG]
    results.verdict.cures[0].why = EVIL
    for image in results.maps:
        asked = [
            replace(entry, query=f"patch ({place}, {place})", patch=[place, place])
            for entry in image.maps
            for place in (1, 5)
        ]
        for entry in asked:  # the same bytes would paint the same picture
            entry.data = base64.b64encode(entry.bytes()[::-1]).decode()
        image.maps += asked
    return write_report(results, tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def comparison(tmp_path_factory):
    names = ["plain", "Re-attention", LONG]
    models = [
        example_measurements(
            name, depth=depth, heads=2, grid=7, seed=seed, mixed=seed == 1, collapse_from=start
        )
        for seed, (name, depth, start) in enumerate(zip(names, (8, 8, 40), (5, None, 30), strict=True))
    ]
    curves = {
        name: {"val accuracy": [[epoch, epoch / (9 + k)] for epoch in range(9)]}
        for k, name in enumerate(names)
    }
    rows = [{"model": name, "top-1": 0.9 + k / 100, "note": EVIL} for k, name in enumerate(names)]
    return compare_reports(models, curves=curves, table=rows, out=tmp_path_factory.mktemp("compare"))


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("kind", ["report", "comparison"])
def test_nothing_overflows(request, open_page, kind, width, scheme):
    page = open_page(request.getfixturevalue(kind), width, scheme).page
    assert page.evaluate(OVERFLOW) == []
    assert page.evaluate(CUT) == []
    page.evaluate("document.querySelectorAll('details').forEach((node) => (node.open = true))")
    assert page.evaluate(OVERFLOW) == []


def test_names_stay_text(report, comparison, open_page):
    for path in (report, comparison):
        page = open_page(path).page
        assert page.evaluate("window.ran") is None
        assert page.locator("img:not(.thumb img)").count() == 0
        assert page.locator("script").count() == 3
        assert EVIL in page.locator("body").inner_text()


def test_the_policy_stops_a_foreign_script(report, tmp_path, open_page):
    # Were a name ever to slip through as markup, the browser itself would still refuse to run it.
    text = report.read_text("utf-8")
    broken = tmp_path / "broken.html"
    broken.write_text(text.replace("<main", "<script>window.ran = 1</script><main", 1), "utf-8")
    opened = open_page(broken)
    assert opened.page.evaluate("window.ran") is None
    assert "Content Security Policy" in opened.complaints.pop()


def test_block_slider_changes_the_picture(report, open_page):
    page = open_page(report).page
    overlay, slider = page.locator("canvas.overlay"), page.locator("#map-block")
    assert slider.input_value() == "8"  # where the verdict starts
    page.locator(".map-note", has_text="Block 8").wait_for()
    before = overlay.evaluate(PIXELS)
    slider.focus()
    page.keyboard.press("ArrowRight")
    page.locator(".map-note", has_text="Block 9, mean of heads, class token").wait_for()
    after = overlay.evaluate(PIXELS)
    assert after != before
    assert page.locator("#maps .frame[aria-pressed=true]").inner_text() == "9"
    page.locator(".frame").nth(8).click()
    page.locator(".map-note", has_text="Block 8,").wait_for()
    assert overlay.evaluate(PIXELS) == before


def test_head_and_scale_and_image_change_the_picture(report, open_page):
    page = open_page(report).page
    overlay = page.locator("canvas.overlay")
    page.locator(".map-note", has_text="Block 8").wait_for()
    seen = {overlay.evaluate(PIXELS)}
    page.locator("#map-head").fill("2")
    page.locator(".map-note", has_text="head 1").wait_for()
    seen.add(overlay.evaluate(PIXELS))
    page.locator(".frame").nth(0).click()  # a block whose own scale is not the one that all share
    page.locator(".map-note", has_text="Block 0, head 1").wait_for()
    seen.add(overlay.evaluate(PIXELS))
    page.locator("#map-scale").select_option("shared")
    page.locator('canvas.overlay[data-scale="shared"]').wait_for()  # painted, not only asked for
    seen.add(overlay.evaluate(PIXELS))
    page.locator(".thumb").nth(1).click()
    page.locator(".caption", has_text="second image").wait_for()
    seen.add(overlay.evaluate(PIXELS))
    assert len(seen) == 5


def test_a_click_on_the_image_asks_from_that_patch(report, open_page):
    page = open_page(report).page
    page.locator(".map-note", has_text="class token").wait_for()
    before = page.locator("canvas.overlay").evaluate(PIXELS)
    picture = page.locator("canvas.picture").first
    box = picture.bounding_box()
    picture.click(position={"x": box["width"] * 0.8, "y": box["height"] * 0.8})
    page.locator(".map-note", has_text="patch (5, 5)").wait_for()
    assert page.locator("#map-query").input_value() == "2"
    assert page.locator("canvas.overlay").evaluate(PIXELS) != before
    page.locator("#map-query").select_option("0")
    page.locator(".map-note", has_text="class token").wait_for()
    assert page.locator("canvas.overlay").evaluate(PIXELS) == before


def test_hover_on_the_matrix_shows_the_value(report, open_page):
    page = open_page(report).page
    host = page.locator("[data-matrix='0:attention_similarity']")
    box = host.locator("g rect").nth(12 * 10 + 9).bounding_box()
    host.scroll_into_view_if_needed()
    box = host.locator("g rect").nth(12 * 10 + 9).bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    assert page.locator(".tip").inner_text() == "blocks 10 and 9: 0.970"
    assert host.locator(".readout").inner_text() == "blocks 10 and 9: 0.970"
    page.mouse.move(2, 2)
    assert not page.locator(".tip").is_visible()
    host.locator(".plot").focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    assert host.locator(".readout").inner_text().startswith("blocks 1 and 0: ")


def test_pointing_at_a_block_shows_it_in_every_chart(report, open_page):
    page = open_page(report).page
    entropy = page.locator(".chart", has_text="Entropy of the attention maps").first
    entropy.scroll_into_view_if_needed()
    entropy.locator(".plot").focus()
    for _ in range(6):
        page.keyboard.press("ArrowRight")
    for readout in page.locator(".charts .readout").all_inner_texts():
        assert readout.startswith("block 5:")
    assert "block 5:" in page.locator(".strip-host .readout").inner_text()
    dot = entropy.locator("circle.dot").nth(2).bounding_box()
    page.mouse.move(dot["x"] + 2, dot["y"] + 20)
    assert entropy.locator(".readout").inner_text().startswith("block 2:")


def test_theme_follows_the_system_and_the_button(report, open_page):
    paper = "getComputedStyle(document.body).backgroundColor"
    light = open_page(report, scheme="light").page
    dark = open_page(report, scheme="dark").page
    assert light.evaluate(paper) != dark.evaluate(paper)
    night = dark.evaluate(paper)
    cell = "getComputedStyle(document.querySelector('.strip rect.h0, .strip rect[class^=h]')).fill"
    assert light.evaluate(cell) != dark.evaluate(cell)
    button = light.locator("#theme")
    assert button.inner_text() == "Dark page"
    button.click()
    assert light.evaluate(paper) == night
    assert button.inner_text() == "Light page"
    # On paper it is light, whatever the screen was.
    dark.emulate_media(media="print")
    assert dark.evaluate(paper) == "rgb(255, 255, 255)"
    assert not dark.locator(".bar").is_visible()


def test_table_sorts_and_copies(report, open_page):
    opened = open_page(report)
    page = opened.page
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    blocks = page.locator("#numbers tbody tr td:first-child")
    assert blocks.all_inner_texts() == [str(k) for k in range(12)]
    head = page.locator("#numbers th", has_text="Entropy of the attention maps")
    head.locator("button").click()
    column = head.evaluate("(node) => node.cellIndex")
    values = page.locator(f"#numbers tbody tr td:nth-child({column + 1})")
    numbers = [float(node.get_attribute("data-value")) for node in values.all()]
    assert numbers == sorted(numbers)
    assert head.get_attribute("aria-sort") == "ascending"
    page.locator("[data-copy-numbers]").click()
    page.locator("[data-copy-numbers]", has_text="Copied").wait_for()
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied.splitlines()[0].startswith("model,block,name,attention_similarity,")
    assert len(copied.strip().splitlines()) == 13


def test_comparison_draws_every_model_in_its_colour(comparison, open_page):
    page = open_page(comparison).page
    assert page.locator("h1").inner_text() == "2 of 3 networks collapse"
    assert page.locator(".strip svg").count() == 3
    chart = page.locator("[data-chart='0']")
    assert chart.locator("path.line").count() == 3
    colours = {
        node.evaluate("(node) => getComputedStyle(node).stroke") for node in chart.locator("path.line").all()
    }
    assert len(colours) == 3
    assert page.locator("[data-curve='0'] path.line").count() == 3
    assert page.locator("canvas.overlay").count() == 3
    assert page.locator(".film").nth(2).locator(".frame").count() == 40
    page.locator("#map-block").fill("39")
    page.locator(".map-note", has_text="Block 39,").wait_for()
    assert page.locator(".map-note").first.inner_text().startswith("Block 7,")  # the last that it has


def test_the_words_are_there_without_any_script(report, chromium):
    context = chromium.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(report.as_uri())
    assert page.locator("h1").inner_text() == "Collapse: all maps alike from block 8 on"
    assert page.locator("#numbers tbody tr").count() == 12
    context.close()


BOX = "(node) => { const b = node.getBoundingClientRect(); return [b.left, b.right, b.top, b.bottom]; }"


@pytest.mark.parametrize("width", [1280, 390])
def test_the_copy_button_covers_nothing_of_the_command(report, open_page, width):
    page = open_page(report, width).page
    command = page.locator(".command").first
    left, right, top, bottom = command.locator("code").evaluate(BOX)
    l2, r2, t2, b2 = command.locator("button").evaluate(BOX)
    assert r2 <= left or l2 >= right or b2 <= top or t2 >= bottom


def test_a_wide_table_says_that_it_scrolls(report, open_page):
    page = open_page(report, 390).page
    box = page.locator(".scroll", has=page.locator("#numbers"))
    hint = page.locator("#table .scroll-hint")
    assert hint.is_visible()
    assert "scroll sideways" in hint.inner_text()
    shade = "(node) => getComputedStyle(node).boxShadow"
    assert box.evaluate(shade) != "none"
    box.evaluate("(node) => { node.scrollLeft = node.scrollWidth; }")
    page.wait_for_function("!document.querySelector('#table .scroll').classList.contains('more')")
    assert box.evaluate(shade) == "none"


def test_the_map_has_a_colour_bar_with_weights(report, comparison, open_page):
    page = open_page(report).page
    page.locator(".map-note", has_text="Block 8").wait_for()
    ends = page.locator("#maps .map-scale span").all_inner_texts()
    assert ends[0] == "weight of a patch: 0"
    assert float(ends[1]) > 0
    assert "times what an even map would give each" in page.locator("#maps .map-note").inner_text()
    several = open_page(comparison).page
    note = several.locator(".map-note", has_text="Heads are mixed here")
    note.wait_for()
    assert "times" not in note.inner_text()
    assert "run from −0.0" in note.inner_text()
    assert several.locator(".map-scale").nth(1).locator("span").count() == 3


def test_epochs_have_whole_ticks(open_page, tmp_path):
    one = example_measurements("one", depth=4, heads=1, grid=2, images=0)
    curves = {"one": {"loss": [[1, 2.0], [2, 1.5], [3, 1.0]]}}
    page = open_page(compare_reports([one, one], curves=curves, out=tmp_path / "c.html")).page
    texts = page.locator("[data-curve='0'] text.tick[text-anchor='middle']").all_text_contents()
    assert texts == ["1", "2", "3"]


def test_what_differs_stands_before_the_charts(open_page, tmp_path):
    one, two = (example_measurements(name, depth=4, heads=1, grid=2, images=0) for name in ("one", "two"))
    one.provenance["run"], two.provenance["run"] = {"epochs": 3}, {"epochs": 9}
    page = open_page(compare_reports([one, two], out=tmp_path / "c.html"), 390).page
    assert "Different budgets (3, 9 epochs)" in page.locator(".warnings").inner_text()
    assert page.locator("#differ-table tbody tr").all_inner_texts() == ["Epochs\t3\t9"]


def test_cka_of_near_values_is_not_one_colour(open_page, tmp_path):
    one = example_measurements("one", depth=4, heads=1, grid=2, images=0)
    one.matrices["cka"] = [[1.0 if p == q else 0.99 - 0.02 * abs(p - q) for q in range(4)] for p in range(4)]
    page = open_page(write_report(one, tmp_path)).page
    cells = page.locator("[data-matrix='0:cka'] g rect").all()
    colours = {cell.evaluate("(node) => getComputedStyle(node).fill") for cell in cells}
    assert len(colours) == 4
    assert "0.9 least here" in page.locator("[data-matrix='0:cka'] .scale-row").inner_text()


def test_a_clicked_patch_is_compared_with_all_others(report, open_page):
    page = open_page(report).page
    picture, note = page.locator("#patch-picture"), page.locator("#patches .map-note")
    page.locator("#patches .map-note", has_text="Block 11. Patch (3, 3)").wait_for()
    before = picture.evaluate(PIXELS)
    picture.scroll_into_view_if_needed()
    box = picture.bounding_box()
    picture.click(position={"x": box["width"] * 0.95, "y": box["height"] * 0.05})
    page.locator("#patches .map-note", has_text="Patch (0, 6)").wait_for()
    assert picture.evaluate(PIXELS) != before
    picture.focus()
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowDown")
    page.locator("#patches .map-note", has_text="Patch (1, 5)").wait_for()
    assert "Outlined in blue: 1 of high norm (above 3 times the median)" in note.inner_text()
    page.locator("#patches .frame").nth(2).click()
    page.locator("#patches .map-note", has_text="Block 2.").wait_for()
    assert page.locator("#patch-block").input_value() == "2"
    page.locator("#patch-show").select_option("norm")
    page.locator("#patches .map-note", has_text="4.0 times as long as the median").wait_for()
    assert page.locator("#patches .map-scale span").all_inner_texts() == ["norm: 0", "4.0 times the median"]


def test_the_pairs_of_the_file_are_the_cosines_that_are_said(open_page, tmp_path):
    results = example_measurements(depth=1, heads=1, grid=2, images=1)
    pairs = [0, 51, 102, 153, 204, 255]  # of (0,1) (0,2) (0,3) (1,2) (1,3) (2,3): -1, -0.6, -0.2, 0.2, 0.6, 1
    results.maps[0].patches[0].similarity = base64.b64encode(bytes(pairs)).decode()
    page = open_page(write_report(results, tmp_path)).page
    said = page.locator("#patches .map-note", has_text="Patch (1, 1)")
    said.wait_for()
    assert "0.47 on the average, from −0.20 to 1.00" in said.inner_text()
    page.locator("#patch-picture").focus()
    page.keyboard.press("ArrowUp")
    page.locator("#patches .map-note", has_text="Patch (0, 1)").wait_for()
    assert "−0.07 on the average, from −1.00 to 0.60" in page.locator("#patches .map-note").inner_text()
