"""A web page of one checkpoint (extra `app`): change a history and see the ranking move, and why."""

from typing import Any

import gradio as gr
import numpy as np
from matplotlib.figure import Figure

from .showcase import Event, Showcase

TOP_K = 10
MAP_ITEMS = 3000  # most popular ones that the map shows
LABELS = 6  # names written on the map
SHORT = 38  # letters of a name
NEW = "an empty history"
HISTORY, LISTED, ADDED = "#2563eb", "#ea580c", "#94a3b8"
THEME = gr.themes.Soft(font=["system-ui", "sans-serif"], font_mono=["monospace"])
INTRO = """# {title}
People did things; nobody rated anything. Pick a history or build one, change what a person did, and see
what is recommended move. Everything on this page is computed by the model as you change it."""


class Page:
    """The figures and tables of a page, from a history and what was chosen."""

    def __init__(self, showcase: Showcase) -> None:
        self.show = showcase
        processor = showcase.processor
        self.types = processor.event_types
        self.has_counts = processor.use_counts
        self.has_durations = bool(processor.duration_quantiles or processor.mean_completion)
        names = {token: showcase.name(int(token)) for token in showcase.popularity[:MAP_ITEMS]}
        self.items = [(name, int(token)) for token, name in names.items()]

    def start(self, user: str) -> list[Event]:
        return [dict(event) for event in self.show.histories.get(user, [])]

    def history(self, events: list[Event]) -> list[list]:
        """Rows of the history's table, latest first."""
        rows = []
        weights, tokens = self.show.weights(events), self.show.tokens(events)
        for place in reversed(range(len(events))):
            event = events[place]
            row: list = [place + 1, self.label(int(tokens[place]), event)]
            row += [event.get("event_type", "")] if self.types else []
            row += [event.get("count", 1)] if self.has_counts else []
            row += [event.get("duration")] if self.has_durations else []
            rows.append([*row, round(weights[place], 2)])
        return rows

    def history_headers(self) -> list[str]:
        names = ["event", "item"] + ["what"] * bool(self.types) + ["count"] * self.has_counts
        return [*names, *["seconds"] * self.has_durations, "weight"]

    def label(self, token: int, event: Event | None = None) -> str:
        name = self.show.name(token) if token > 0 else f"{(event or {}).get('item_id')} (unknown)"
        return name if len(name) <= SHORT else name[: SHORT - 1] + "…"

    def event_choices(self, events: list[Event]) -> list[tuple[str, int]]:
        tokens = self.show.tokens(events)
        return [
            (f"{place + 1}. {self.label(int(tokens[place]), events[place])}", place)
            for place in reversed(range(len(events)))
        ]

    def ranking(self, ranked: list[tuple], before: list[int]) -> list[list]:
        """Rows of the ranking's table: how far each item moved since the history was picked."""
        rows = []
        for place, (token, score) in enumerate(ranked, start=1):
            moved = before.index(token) + 1 - place if token in before else None
            arrow = "new" if moved is None else f"▲ {moved}" if moved > 0 else f"▼ {-moved}"
            arrow = "" if moved == 0 or not before else arrow
            popular = int(self.show.popularity_place[token])
            rows.append([place, self.label(token), round(score, 3), arrow, popular])
        return rows

    def popular(self, ranked: list[tuple]) -> list[list]:
        """The most popular items, and where the model has them."""
        places = {token: place for place, (token, _) in enumerate(ranked, start=1)}
        return [
            [place, self.label(int(token)), places.get(int(token), "–")]
            for place, token in enumerate(self.show.popularity[:TOP_K], start=1)
        ]

    def why(self, events: list[Event], token: int | None) -> Figure:
        """A bar for every event: how much lower the item's score is without it."""
        figure = Figure(figsize=(8, 0.6 + 0.3 * max(3, min(len(events), 20))), layout="tight")
        axes = figure.subplots()
        if not events or token is None:
            axes.text(0.5, 0.5, "an empty history: the most popular items", ha="center")
            axes.axis("off")
            return figure
        parts = np.array(self.show.explain(events, token))
        weights, tokens = self.show.weights(events), self.show.tokens(events)
        shown = np.sort(np.argsort(-np.abs(parts), kind="stable")[:20])
        names = [
            f"{place + 1}. {self.label(int(tokens[place]), events[place])}  (w {weights[place]:.2f})"
            for place in shown
        ]
        places = np.arange(len(shown))
        colours = [LISTED if parts[place] >= 0 else HISTORY for place in shown]
        axes.barh(places, parts[shown], color=colours)
        axes.set_yticks(places, names, fontsize=8)
        axes.axvline(0, color="black", linewidth=0.8)
        axes.set_xlabel("score lost without the event (log intensity)", fontsize=9)
        axes.set_title(f"why {self.label(token)}", fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
        return figure

    def neighbours(self, token: int | None) -> list[list]:
        if token is None:
            return []
        near = self.show.neighbours(token, TOP_K)
        return [[self.label(other), round(cosine, 3)] for other, cosine in near]

    def add(self, events: list[Event], token: int | None) -> tuple[list[Event], None]:
        """The history with an item more, a minute after its last event; and no item chosen."""
        if token is None:
            return events, None
        latest = max((event["timestamp"] for event in events), default=0)
        item = self.show.processor.decode_items([int(token)])[0]
        return [*events, {"item_id": item, "timestamp": latest + 60}], None

    def map(self, events: list[Event], ranked: list[tuple]) -> Figure:
        """The items' embeddings on their two main axes, with history and ranking marked."""
        figure = Figure(figsize=(8, 5.5), layout="tight")
        axes = figure.subplots()
        own = [token for token in dict.fromkeys(self.show.tokens(events).tolist()) if token > 0]
        listed = [token for token, _ in ranked]
        every = self.show.plane[self.show.popularity[:MAP_ITEMS] - 1]
        axes.scatter(
            every[:, 0], every[:, 1], s=5, color=ADDED, alpha=0.5, label="catalogue", linewidths=0
        )
        for tokens, colour, name in ((own, HISTORY, "history"), (listed, LISTED, "recommended")):
            points = self.show.plane[np.array(tokens, dtype=np.int64) - 1]
            axes.scatter(
                points[:, 0], points[:, 1], s=32, color=colour, label=name, edgecolors="white"
            )
        for token in listed[:LABELS]:
            axes.annotate(
                self.label(token), self.show.plane[token - 1], fontsize=7,
                xytext=(5, 3), textcoords="offset points",
            )  # fmt: skip
        axes.legend(loc="best", fontsize=8, frameon=False)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[:].set_visible(False)
        return figure


def build_page(showcase: Showcase, *, title: str = "What comes next?") -> gr.Blocks:
    """The page; `build_page(...).launch(theme=THEME)` serves it, here or in a Space."""
    page = Page(showcase)
    with gr.Blocks(title=title, analytics_enabled=False) as blocks:
        gr.Markdown(INTRO.format(title=title))
        with gr.Row():
            with gr.Column(scale=5):
                widgets = _history_side(page)
            with gr.Column(scale=6):
                widgets |= _ranking_side(page)
        _connect(page, blocks, widgets)
    return blocks


def _history_side(page: Page) -> dict[str, Any]:
    """Whose history, what is in it, and what can be changed."""
    users = [*page.show.histories, NEW]
    user = gr.Dropdown(users, value=users[0], label="History of", elem_id="user")
    history = gr.Dataframe(
        headers=page.history_headers(), label="What happened, latest first",
        interactive=False, max_height=330, elem_id="history", wrap=True,
    )  # fmt: skip
    widgets = {"user": user, "history": history, **_event_controls(page)}
    widgets["added"] = gr.Dropdown(page.items, label="Add an item", value=None, elem_id="added")
    return widgets


def _ranking_side(page: Page) -> dict[str, Any]:
    """The ranking, and what is to be said about it."""
    only_new = page.show.serving.model.config.exclude_seen
    widgets: dict[str, Any] = {"seen": gr.Checkbox(only_new, label="Only items new to this person")}
    widgets["ranking"] = gr.Dataframe(
        headers=["", "recommended", "score", "moved", "place by popularity"],
        interactive=False, label="What comes next", elem_id="ranking", wrap=True,
        column_widths=["8%", "50%", "12%", "13%", "17%"],
    )  # fmt: skip
    with gr.Tab("Why"):
        widgets["item"] = gr.Dropdown([], label="Explain", elem_id="item")
        widgets["why"] = gr.Plot(show_label=False, elem_id="why")
    with gr.Tab("Item neighbours"):
        first = page.items[0][1]
        widgets["near_of"] = gr.Dropdown(page.items, label="Items near", value=first)
        widgets["near"] = gr.Dataframe(headers=["item", "cosine"], interactive=False)
    with gr.Tab("Map of the catalogue"):
        widgets["map"] = gr.Plot(show_label=False, elem_id="map")
    with gr.Tab("Beside popularity"):
        widgets["popular"] = gr.Dataframe(
            headers=["", "most popular", "place in the ranking"],
            interactive=False, elem_id="popular", wrap=True,
        )  # fmt: skip
    return widgets


def _connect(page: Page, blocks: gr.Blocks, widgets: dict[str, Any]) -> None:
    """What happens when something is picked or changed: all is drawn anew."""
    events, before = gr.State([]), gr.State([])
    user, seen, event, added = (widgets[name] for name in ("user", "seen", "event", "added"))
    names = ("history", "event", "ranking", "item", "why", "map", "popular")
    shown = [widgets[name] for name in names]

    def redraw(events: list[Event], before: list[int], exclude_seen: bool) -> list[Any]:
        ranked = page.show.rank(events, top_k=TOP_K, exclude_seen=exclude_seen)
        choices = page.event_choices(events)
        items = [(page.label(token), token) for token, _ in ranked]
        first = items[0][1] if items else None
        return [
            page.history(events),
            gr.Dropdown(choices, value=choices[0][1] if choices else None),
            page.ranking(ranked, before),
            gr.Dropdown(items, value=first),
            page.why(events, first),
            page.map(events, ranked),
            page.popular(ranked),
        ]

    def picked(user: str, exclude_seen: bool) -> list[Any]:
        events = page.start(user)
        ranked = page.show.rank(events, top_k=TOP_K, exclude_seen=exclude_seen)
        before = [token for token, _ in ranked]
        return [events, before, *redraw(events, before, exclude_seen)]

    for trigger in (user.change, seen.change, blocks.load):
        trigger(picked, [user, seen], [events, before, *shown])
    controls = [widgets[name] for name in ("kind", "count", "duration")]
    edits = [
        widgets["change"].click(_changed, [events, event, *controls], events),
        widgets["remove"].click(_removed, [events, event], events),
        added.input(page.add, [events, added], [events, added]),
    ]
    for edit in edits:
        edit.then(redraw, [events, before, seen], shown)
    widgets["item"].input(page.why, [events, widgets["item"]], widgets["why"])
    for trigger in (widgets["near_of"].change, blocks.load):
        trigger(page.neighbours, widgets["near_of"], widgets["near"])


def _event_controls(page: Page) -> dict[str, Any]:
    """What can be changed of one event: as much of it as the model's weights read."""
    event = gr.Dropdown([], label="Change the event", elem_id="event")
    with gr.Row():
        kind = gr.Dropdown(page.types, label="what", visible=bool(page.types), elem_id="kind")
        count = gr.Slider(1, 20, 1, step=1, label="count", visible=page.has_counts, elem_id="count")
        duration = gr.Slider(
            0, 3600, 60, step=5, label="dwell, seconds", visible=page.has_durations,
            elem_id="duration",
        )  # fmt: skip
    with gr.Row():
        can_change = bool(page.types) or page.has_counts or page.has_durations
        change = gr.Button("Change", variant="primary", visible=can_change, elem_id="change")
        remove = gr.Button("Remove", elem_id="remove")
    widgets = {"event": event, "kind": kind, "count": count, "duration": duration}
    return widgets | {"change": change, "remove": remove}


def _changed(
    events: list[Event], place: int | None, kind: str | None, count: float, duration: float
) -> list[Event]:
    if place is None:
        return events
    told = {"count": count, "duration": duration} | ({"event_type": kind} if kind else {})
    return [{**event, **told} if i == place else event for i, event in enumerate(events)]


def _removed(events: list[Event], place: int | None) -> list[Event]:
    return [event for i, event in enumerate(events) if i != place]
