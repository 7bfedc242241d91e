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
    training_columns,
)

STRENGTHS = ("event_type", "duration", "item_duration", "count")


def prepare(log: Path, output: Path, settings: dict) -> dict[str, int]:
    """Clean the log, fit the processor, encode every user's sequence and save both."""
    events = load_events(
        str(log / "*.parquet"),
        EventSchema(**{name: name for name in STRENGTHS}),
        cleaning=CleaningOptions(
            max_events_per_day=settings["max_events_per_day"],
            clip_quantile=settings["clip_quantile"],
            merge_repeats=True,
        ),
        temp_directory=str(output),
    )
    sequences = build_sequences(events, path=output / "sequences.arrow")
    processor = ImplicitRecProcessor.fit(
        training_columns(sequences),
        event_type_weights=settings["event_type_weights"],
        max_weight=settings["max_weight"],
    )
    encoded = encode_sequences(sequences, processor)
    encoded.save_to_disk(output / "sequences")
    processor.save_pretrained(output / "processor")
    return {"events": len(events), "users": len(encoded), "items": processor.vocab_size - 1}


def main() -> None:
    log, output, settings = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
    start = time.perf_counter()
    facts = prepare(log, output, settings)
    print(json.dumps(facts | {"seconds": time.perf_counter() - start}))


if __name__ == "__main__":
    main()
