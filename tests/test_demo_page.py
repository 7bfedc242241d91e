"""The page: its parts are the model's, and in a real browser a change moves the ranking."""

# ruff: noqa: E402

import os
import re
import shutil

import numpy as np
import pytest

gr = pytest.importorskip("gradio", reason="the page is tested with the extra `app`")
import torch
from test_service import ITEMS, write_checkpoint

from modeling_implicitrec import Showcase
from modeling_implicitrec.demo_page import THEME, Page, build_page

SECONDS = 60_000  # milliseconds: a browser on a busy machine
HISTORY = [
    {"item_id": f"item {n}", "timestamp": 1000 * n, "event_type": "view", "count": 1}
    for n in (2, 5, 8)
]


@pytest.fixture(scope="module")
def showcase(tmp_path_factory) -> Showcase:
    folder = write_checkpoint(tmp_path_factory.mktemp("shown") / "model")
    return Showcase(folder, histories={"ann": HISTORY})


def test_an_events_part_is_what_the_score_loses_without_it(showcase):
    served = showcase.serving
    token = int(served.processor.encode_items(["item 5"])[0])
    parts = showcase.explain(HISTORY, token)

    def score(history: list) -> float:
        inputs = served.processor([history])
        return float(served.model(**inputs).logits[0, token].detach())

    expected = [score(HISTORY) - score(HISTORY[:j] + HISTORY[j + 1 :]) for j in range(3)]
    assert parts == pytest.approx(expected, abs=1e-5)
    assert int(np.argmax(parts)) == 1  # the copy prior: its own event carries it
    alone = showcase.explain(HISTORY[:1], token)
    empty = float(
        served.model(input_ids=torch.zeros(1, 1, dtype=torch.long)).logits[0, token].detach()
    )
    assert alone[0] == pytest.approx(score(HISTORY[:1]) - empty, abs=1e-5)


def test_neighbours_popularity_and_moves(showcase):
    page = Page(showcase)
    table = showcase.serving.retriever.table.numpy()
    unit = table[1:] / np.linalg.norm(table[1:], axis=1, keepdims=True)
    near = showcase.neighbours(4, 3)
    expected = [t for t in np.argsort(-(unit @ unit[3])) + 1 if t != 4][:3]
    assert [token for token, _ in near] == expected
    ranked = showcase.rank(HISTORY, top_k=5, exclude_seen=False)
    tokens = [token for token, _ in ranked]
    before = [tokens[1], tokens[0], *tokens[2:4]]
    assert [row[3] for row in page.ranking(ranked, before)] == ["▲ 1", "▼ 1", "", "", "new"]
    assert [row[4] for row in page.ranking(ranked, before)] == [
        int(showcase.popularity_place[token]) for token in tokens
    ]
    assert page.history(HISTORY)[0][:4] == [3, "item 8", "view", 1]
    assert len(page.popular(ranked)) == 10 and showcase.plane.shape == (ITEMS, 2)


def choose_an_item_that_moves_up(showcase: Showcase) -> tuple[str, int]:
    """Makes it the first event of the page's history; its place once it is bought twenty times."""

    def place(history: list[dict]) -> int:
        token = showcase.tokens(history)[0]
        ranked = showcase.rank(history, top_k=10, exclude_seen=False)
        return next((n for n, (other, _) in enumerate(ranked, 1) if other == token), 99)

    for number in range(ITEMS):
        event = {"item_id": f"item {number}", "timestamp": 1, "event_type": "view"}
        showcase.histories["ann"] = [event, *HISTORY]
        strong = [event | {"event_type": "buy", "count": 20}, *HISTORY]
        if place(strong) < place(showcase.histories["ann"]) < 99:
            return event["item_id"], place(strong)
    raise AssertionError("no item moves up")


def test_in_a_browser_a_stronger_event_moves_its_item_up(showcase, tmp_path):
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("no Chromium on this machine (apt-get install chromium)")
    item, expected = choose_an_item_that_moves_up(showcase)
    blocks = build_page(showcase)
    _, url, _ = blocks.launch(prevent_thread_lock=True, quiet=True, theme=THEME, server_port=None)
    try:
        with sync_api.sync_playwright() as player:
            browser = player.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
            tab = browser.new_page(viewport={"width": 1300, "height": 1250})
            errors: list = []
            tab.on("pageerror", lambda error: errors.append(str(error)))
            tab.goto(url, timeout=SECONDS)
            tab.wait_for_selector("#why img", timeout=SECONDS)
            assert item in tab.locator("#history").inner_text()
            weights = tab.locator("#history").inner_text()
            tab.locator("#event input").click()
            tab.get_by_role("option", name="1. item").click()
            tab.locator("#kind input").click()
            tab.get_by_role("option", name="buy").click()
            tab.locator("#count input[type=number]").fill("20")
            tab.locator("#change").click()
            tab.wait_for_function(
                "old => document.querySelector('#history').innerText !== old", arg=weights
            )
            tab.wait_for_function("document.querySelector('#ranking').innerText.includes('▲')")
            shown = re.findall(r"item \d+", tab.locator("#ranking").inner_text())
            assert list(dict.fromkeys(shown))[expected - 1] == item
            tab.get_by_role("tab", name="Map of the catalogue").click()
            tab.wait_for_selector("#map img", timeout=SECONDS)
            tab.screenshot(path=os.environ.get("PAGE_SCREENSHOT", str(tmp_path / "page.png")))
            assert errors == []
            browser.close()
    finally:
        blocks.close()
