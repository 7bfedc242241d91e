"""Requests that arrive while others are computed are computed together."""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any


class Overloaded(Exception):
    """More requests wait than the service takes."""


class MicroBatcher:
    """Calls a function of many values in a thread, with all values that came since its last call.

    No request waits for others to come: a batch is what has gathered while the last one ran. An error
    goes to each request of its batch.

    Args:
        function: from a list of values to a list of as many results.
        max_size: values of one call.
        max_waiting: values that may wait; [`Overloaded`] is raised for one more.

    >>> async def main():
    ...     batcher = MicroBatcher(lambda values: [value + 1 for value in values])
    ...     async with batcher:
    ...         return await asyncio.gather(*(batcher(n) for n in range(3)))
    >>> asyncio.run(main())
    [1, 2, 3]
    """

    def __init__(
        self,
        function: Callable[[list], Sequence],
        *,
        max_size: int = 32,
        max_waiting: int = 1000,
        on_batch: Callable[[int], Any] = lambda size: None,
    ) -> None:
        self.function, self.on_batch = function, on_batch
        self.max_size, self.max_waiting = max_size, max_waiting
        self.waiting: list[tuple[Any, asyncio.Future]] = []
        self.arrived = asyncio.Event()
        self.thread = ThreadPoolExecutor(1)

    async def __aenter__(self) -> "MicroBatcher":
        self.task = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *error: Any) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        self.thread.shutdown()

    async def __call__(self, value: Any) -> Any:
        """The result of one value."""
        if len(self.waiting) >= self.max_waiting:
            raise Overloaded(f"{self.max_waiting} requests are waiting")
        future = asyncio.get_running_loop().create_future()
        self.waiting.append((value, future))
        self.arrived.set()
        return await future

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self.arrived.wait()
            batch, self.waiting = self.waiting[: self.max_size], self.waiting[self.max_size :]
            if not self.waiting:
                self.arrived.clear()
            batch = [(value, future) for value, future in batch if not future.cancelled()]
            if not batch:
                continue
            self.on_batch(len(batch))
            values = [value for value, _ in batch]
            try:
                results = await loop.run_in_executor(self.thread, self.function, values)
            except Exception as error:  # each waiting request gets it
                for _, future in batch:
                    if not future.done():
                        future.set_exception(error)
                continue
            for (_, future), result in zip(batch, results):
                if not future.done():
                    future.set_result(result)
