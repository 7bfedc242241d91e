"""The implicitrec job of `benchmark_events.py`: a log to encoded sequences on disk.

`python scripts/implicitrec_loader.py LOG_FOLDER OUTPUT_FOLDER '{"max_events_per_day": 1000, ...}'`
prints what came out as a line of JSON.
"""

import json
import sys
import time
from pathlib import Path

from modeling_implicitrec import (
    CleaningOptions,
    EventSchema,
    ImplicitRecProcessor,
    build_sequences,
    encode_sequences,
    load_events,
    save_sequences,
    training_columns,
)

STRENGTHS = ("event_type", "duration", "item_duration", "count")


def prepare(log: Path, output: Path, settings: dict) -> dict:
    """Clean the log, fit the processor, encode every user's sequence and save both."""
    steps: dict[str, float] = {}
    started = time.perf_counter()

    def finished(step: str) -> None:
        nonlocal started
        steps[step], started = time.perf_counter() - started, time.perf_counter()

    events = load_events(
        str(log / "*.parquet"),
        EventSchema(**{name: name for name in STRENGTHS}),
        cleaning=CleaningOptions(
            max_events_per_day=settings["max_events_per_day"],
            clip_quantile=settings["clip_quantile"],
            merge_repeats=True,
            **settings.get("cleaning", {}),
        ),
        memory_limit="1500MB",
        temp_directory=str(output),
    )
    finished("events")
    sequences = build_sequences(events, path=output / "histories.arrow")
    finished("sequences")
    processor = ImplicitRecProcessor.fit(
        training_columns(sequences),
        event_type_weights=settings["event_type_weights"],
        max_weight=settings["max_weight"],
    )
    finished("processor")
    encoded = encode_sequences(sequences, processor, path=output / "encoded.arrow")
    finished("encoding")
    save_sequences({"train": encoded}, output / "sequences")
    processor.save_pretrained(output / "processor")
    finished("shards")
    facts = {"events": len(events), "users": len(encoded), "items": processor.vocab_size - 1}
    return facts | {"steps": steps}


def main() -> None:
    log, output, settings = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
    start = time.perf_counter()
    facts = prepare(log, output, settings)
    print(json.dumps(facts | {"seconds": time.perf_counter() - start}))


if __name__ == "__main__":
    main()
