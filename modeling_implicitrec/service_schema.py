"""What the service takes and gives, as its OpenAPI document says."""

import time
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

MOST_EVENTS = 1000  # of one request
MOST_ITEMS = 1000
LATEST = 2**40  # seconds: some 35,000 years
ASKED = "seconds: when it is asked, for a model that reads it; now by default"


def _storable(text: str) -> str:
    """Text that every database holds: no NUL, no half of a surrogate pair."""
    if "\x00" in text or any("\ud800" <= c <= "\udfff" for c in text):
        raise ValueError("text must not hold NUL or lone surrogates")
    return text


def _as_text(given: int | str) -> str:
    return str(given)


Text = Annotated[str, Field(min_length=1, max_length=256), AfterValidator(_storable)]
Whole = Annotated[int, Field(ge=-(2**63), lt=2**63, strict=True)]
Id = Annotated[Whole | Text, AfterValidator(_as_text)]
Strength = Annotated[float, Field(ge=0, le=1e12, allow_inf_nan=False)]


class Strict(BaseModel):
    """A field that is not known is an error."""

    model_config = ConfigDict(extra="forbid")


class PastEvent(Strict):
    """Something a user did; without a timestamp (seconds since 1970) it is now."""

    item_id: Id
    timestamp: float = Field(
        default_factory=time.time, ge=0, le=LATEST, allow_inf_nan=False, description="seconds"
    )
    event_type: Text | None = None
    platform: Text | None = None
    count: Strength | None = None
    duration: Strength | None = None
    item_duration: Strength | None = None

    def row(self) -> dict[str, Any]:
        """As the store keeps it."""
        given = self.model_dump(exclude_none=True)
        return given | {"timestamp": int(self.timestamp)}


class UserEvent(PastEvent):
    """An event of a user; sent again with the same `event_id` it is stored once."""

    user_id: Id
    event_id: Text | None = None


class EventsIn(Strict):
    events: list[UserEvent] = Field(min_length=1, max_length=MOST_EVENTS)


class Stored(BaseModel):
    stored: int = Field(description="events that were new; all that were sent are on disk")


class ScoreIn(Strict):
    """Items to score after the stored history of a user, or after the one given."""

    item_ids: list[Id] = Field(min_length=1, max_length=MOST_ITEMS)
    user_id: Id | None = None
    history: list[PastEvent] | None = Field(default=None, max_length=MOST_EVENTS)
    query_time: int | None = Field(default=None, ge=1, le=LATEST, description=ASKED)


class Scores(BaseModel):
    scores: list[float | None] = Field(description="in the order asked; null for an unknown item")
    model: str


class RankedItem(BaseModel):
    item_id: int | str
    score: float
    name: str | None = None


class Recommendations(BaseModel):
    user_id: str
    items: list[RankedItem]
    model: str = Field(description="which checkpoint answered")


class Forgotten(BaseModel):
    deleted: int


class Health(BaseModel):
    status: str
    model: str


class Problem(BaseModel):
    detail: Any
