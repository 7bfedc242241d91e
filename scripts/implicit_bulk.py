"""Times the lists of `implicit`'s ALS: `python scripts/implicit_bulk.py job.json`.

Fitted for one iteration: its time does not depend on its factors. Those of the users are there already.
"""

import numpy as np
from bulk_clock import measure, read_job
from implicit.als import AlternatingLeastSquares
from scipy.sparse import csr_matrix
from threadpoolctl import threadpool_limits


def main() -> None:
    threadpool_limits(limits=1)
    job, histories = read_job()
    lengths = [len(row) for row in histories]
    at = (np.repeat(np.arange(len(histories)), lengths), np.concatenate(histories))
    seen = csr_matrix((np.ones(len(at[0]), dtype=np.float32), at))
    model = AlternatingLeastSquares(iterations=1, num_threads=1, **job["settings"])
    model.fit(seen, show_progress=False)
    users = np.arange(len(histories))

    def first(size: int) -> np.ndarray:
        return model.recommend(users[:size], seen[:size], N=job["k"])[0]

    def one(user: int) -> np.ndarray:
        return model.recommend(user, seen[user], N=job["k"])[0]

    measure(job, len(users), first, one, lambda items: items)


if __name__ == "__main__":
    main()
