"""Write a synthetic behaviour log of any size: `python scripts/make_events.py --output_dir log`.

Parquet files of half a million rows each, one period of the log after the other. Every file has a
random generator of its own, so memory does not grow with the number of rows, and equal settings give
equal files. The log has the faults of a real one, in the shares that the constants below name.
"""

import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from modeling_implicitrec import parse_arguments

DAY = 86_400
START = 1_704_067_200  # 2024-01-01 UTC
EVENT_TYPES = ("view", "cart", "purchase", "return")
TYPE_SHARES = (0.80, 0.12, 0.07, 0.01)
SESSION_EVENTS = 8
ITEM_HEAD = 20.0  # the popularity of the item at rank r falls as 1 / (r + ITEM_HEAD)
USER_HEAD = 1 / 2000  # that of a user as 1 / (r + USER_HEAD * users)
DUPLICATES, REPEATS = 0.01, 0.01
BOT_USERS, BOT_EVENTS = 0.001, (2500, 4000)  # a bot is seen once, so many events on end
MISSING_ITEMS, BAD_DURATIONS, UNKNOWN_LENGTHS = 0.002, 0.002, 0.02
FUTURE_TIMES, MILLISECONDS = 1e-4, 1e-4


@dataclass
class EventArguments:
    """How much to write, and where."""

    output_dir: str = field(metadata={"help": "folder to write; one that is there is replaced"})
    rows: int = field(default=1_000_000, metadata={"help": "number of events"})
    users: int | None = field(default=None, metadata={"help": "by default a fiftieth of the rows"})
    items: int | None = field(
        default=None, metadata={"help": "by default a hundredth, at most 2 million"}
    )
    days: int = field(default=365, metadata={"help": "length of the log"})
    rows_per_file: int = field(default=500_000, metadata={"help": "rows that are made at once"})
    seed: int = 0
    threads: int = field(default=2, metadata={"help": "files that are made at the same time"})

    def __post_init__(self) -> None:
        self.users = self.users or max(self.rows // 50, 100)
        self.items = self.items or min(max(self.rows // 100, 100), 2_000_000)
        for name in ("rows", "users", "items", "days", "rows_per_file", "threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")


class World:
    """What all files share: the lengths of the items' content, and which ids users and items have."""

    def __init__(self, users: int, items: int, seed: int) -> None:
        generator = np.random.default_rng([seed, 0])
        lengths = np.exp(generator.normal(np.log(180), 1.0, items))
        self.lengths = np.maximum(lengths.round(), 5)
        self.lengths[generator.random(items) < UNKNOWN_LENGTHS] = np.nan
        self.dwell = 0.5 * np.nan_to_num(self.lengths, nan=180.0) ** 0.8  # the median dwell
        self.users, self.bots = users, max(round(users * BOT_USERS), 1)
        self.user_ids = permutation(users + self.bots)
        self.item_ids = permutation(items)

    def draw_items(self, generator: np.random.Generator, size: int) -> np.ndarray:
        return draw_ranks(generator, size, len(self.lengths), ITEM_HEAD)

    def draw_users(self, generator: np.random.Generator, size: int) -> np.ndarray:
        return draw_ranks(generator, size, self.users, max(USER_HEAD * self.users, 1.0))


def permutation(size: int) -> int:
    """A step that is prime to `size`: `rank * step % size` hides the ranks in the ids."""
    step = int(size * 0.618) | 1
    while np.gcd(step, size) != 1:
        step += 2
    return step


def to_ids(ranks: np.ndarray, size: int, step: int) -> np.ndarray:
    return ranks * step % size + 1


def draw_ranks(generator: np.random.Generator, size: int, number: int, head: float) -> np.ndarray:
    """Ranks from 0 to `number` - 1 with probability proportional to 1 / (rank + head)."""
    ranks = head * np.exp(generator.random(size) * np.log1p(number / head)) - head
    return np.minimum(ranks.astype(np.int64), number - 1)


def visits(
    world: World, generator: np.random.Generator, rows: int, period: tuple[float, float]
) -> dict[str, np.ndarray]:
    """Sessions that start in the period: views of some seconds, what follows them, and long gaps."""
    lengths = generator.geometric(1 / SESSION_EVENTS, rows // SESSION_EVENTS * 2 + 50)
    sessions = int(np.searchsorted(np.cumsum(lengths), rows)) + 1
    lengths = lengths[:sessions]
    session = np.repeat(np.arange(sessions), lengths)[:rows]
    first = np.flatnonzero(np.diff(session, prepend=-1))
    kind = generator.choice(np.arange(len(EVENT_TYPES), dtype=np.int8), rows, p=TYPE_SHARES)
    item = world.draw_items(generator, rows)
    follows = kind > 0
    follows[first] = False
    after_view = np.flatnonzero(follows)
    after_view = after_view[kind[after_view - 1] == 0]
    item[after_view] = item[after_view - 1]  # one carts and buys what one has just looked at
    again = generator.random(rows) < REPEATS
    again[first] = False
    again = np.flatnonzero(again)
    item[again], kind[again] = item[again - 1], kind[again - 1]
    columns = {"user": world.draw_users(generator, sessions)[session], "item": item, "kind": kind}
    columns |= strengths(world, generator, item, kind)
    start = generator.uniform(*period, sessions)[session]
    seconds = np.minimum(np.nan_to_num(columns["duration"], nan=0.0), 1800.0)
    seconds += generator.exponential(5.0, rows) + 1
    passed = np.cumsum(seconds) - seconds
    columns["timestamp"] = (start + passed - passed[first][session]).astype(np.int64)
    return columns


def strengths(
    world: World, generator: np.random.Generator, item: np.ndarray, kind: np.ndarray
) -> dict[str, np.ndarray]:
    """Dwell of views, log-normal around what the content's length asks for; quantities of the rest."""
    spread = np.exp(generator.standard_normal(len(item), dtype=np.float32))
    duration = np.round(world.dwell[item] * spread, 1) + 0.1
    duration[kind > 0] = np.nan
    count = np.full(len(item), np.nan)
    bought = np.flatnonzero(kind)
    count[bought] = generator.geometric(0.7, len(bought))
    count[kind == EVENT_TYPES.index("return")] *= -1  # goods that come back
    return {"duration": duration, "count": count}


def bots(
    world: World,
    generator: np.random.Generator,
    users: np.ndarray,
    rows: int,
    period: tuple[float, float],
) -> dict[str, np.ndarray]:
    """Programs that view an item every few seconds, at most `rows` events in all."""
    sizes = generator.integers(*BOT_EVENTS, len(users))
    sizes = np.diff(np.minimum(np.cumsum(sizes), rows), prepend=0)
    bot = np.repeat(np.arange(len(users)), sizes)
    item = generator.integers(0, len(world.lengths), len(bot))
    kind = np.zeros(len(bot), dtype=np.int8)
    start, gap = generator.uniform(*period, len(users)), generator.integers(5, 13, len(users))
    place = np.arange(len(bot)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    columns = {"user": users[bot], "item": item, "kind": kind}
    columns["timestamp"] = (start[bot] + place * gap[bot]).astype(np.int64)
    columns |= strengths(world, generator, item, kind)
    return columns


def soil(generator: np.random.Generator, columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Missing items, dwell that is zero or negative, and times in the future or in milliseconds."""

    def some(share: float) -> np.ndarray:
        size = len(columns["item"])
        return generator.integers(0, size, generator.binomial(size, share))

    columns["missing"] = np.zeros(len(columns["item"]), dtype=bool)
    columns["missing"][some(MISSING_ITEMS)] = True
    wrong = some(BAD_DURATIONS)
    columns["duration"][wrong] *= generator.choice([0, -1], len(wrong))
    future, milliseconds = some(FUTURE_TIMES), some(MILLISECONDS)
    columns["timestamp"][future] += generator.integers(1, 10, len(future)) * 365 * DAY
    columns["timestamp"][np.unique(milliseconds)] *= 1000
    return columns


def in_time(timestamps: np.ndarray) -> np.ndarray:
    """The order of time, rows of one second staying as they are; faster than a stable argsort."""
    bits = int(len(timestamps)).bit_length()
    keys = (timestamps - START << bits) | np.arange(len(timestamps))
    return np.sort(keys) & ((1 << bits) - 1)


def make_file(args: EventArguments, world: World, number: int) -> pa.Table:
    """The events of one file, in order of time but for those that come late or twice."""
    generator = np.random.default_rng([args.seed, 1, number])
    files = -(-args.rows // args.rows_per_file)
    rows = min(args.rows_per_file, args.rows - number * args.rows_per_file)
    length = args.days * DAY * args.rows_per_file / args.rows
    period = (START + number * length, START + number * length + length * rows / args.rows_per_file)
    copies = generator.binomial(rows, DUPLICATES)
    users = world.users + np.arange(number, world.bots, files)
    parts = [bots(world, generator, users, (rows - copies) // 4, period)]
    parts.append(visits(world, generator, rows - copies - len(parts[0]["item"]), period))
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    order = in_time(columns["timestamp"])
    twice = np.ones(len(order), dtype=np.int64)
    np.add.at(twice, generator.integers(0, len(order), copies), 1)
    order = np.repeat(order, twice)  # a row is sent again, and its copy lies right after it
    columns = soil(generator, columns)
    columns = {name: values[order] for name, values in columns.items()}
    return to_table(world, columns)


def to_table(world: World, columns: dict[str, np.ndarray]) -> pa.Table:
    missing, item = columns["missing"], columns["item"]
    kinds = pa.DictionaryArray.from_arrays(pa.array(columns["kind"]), pa.array(EVENT_TYPES))
    users = to_ids(columns["user"], world.users + world.bots, world.user_ids)
    return pa.table(
        {
            "user_id": users,
            "item_id": pa.array(to_ids(item, len(world.lengths), world.item_ids), mask=missing),
            "event_type": kinds,
            "timestamp": columns["timestamp"],
            "duration": pa.array(columns["duration"], from_pandas=True),
            "item_duration": pa.array(
                np.where(missing, np.nan, world.lengths[item]), from_pandas=True
            ),
            "count": pa.array(columns["count"], from_pandas=True),
        }
    )


def write_file(args: EventArguments, world: World, folder: Path, number: int) -> int:
    table = make_file(args, world, number)
    # Without the Arrow schema the event type is a plain string to every reader.
    pq.write_table(
        table,
        folder / f"events-{number:05d}.parquet",
        use_dictionary=["item_id", "event_type", "item_duration", "count"],
        compression="zstd",
        compression_level=1,
        store_schema=False,
    )
    return table.num_rows


def write_events(args: EventArguments) -> Path:
    """Write the log to a folder beside the wanted one and rename it once it is whole."""
    target = Path(args.output_dir)
    partial = target.with_name(target.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    world = World(args.users or 0, args.items or 0, args.seed)
    files = range(-(-args.rows // args.rows_per_file))
    with (
        ThreadPoolExecutor(args.threads) as pool,
        tqdm(total=args.rows, unit=" events", unit_scale=True) as bar,
    ):
        for rows in pool.map(lambda number: write_file(args, world, partial, number), files):
            bar.update(rows)
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)
    return target


def main() -> None:
    (args,) = parse_arguments(EventArguments)
    print(f"{args.rows:,} events written to {write_events(args)}")


if __name__ == "__main__":
    main()
