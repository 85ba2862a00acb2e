"""Parallel processing of cases in threads.

Threads suffice: reading, decompression, sorting and checksums release the interpreter lock, and nothing needs to be
copied between processes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
CountProgress = Callable[[int, int], None]
"""Called with how many are done, and of how many."""


def map_in_threads(
    function: Callable[[Item], Result], items: Sequence[Item], workers: int, progress: CountProgress | None = None
) -> list[Result]:
    """Apply a function to each item.

    Parameters
    ----------
    function
        Called in several threads at once.
    items
        Arguments of the function.
    workers
        Number of threads; 1 runs in the calling thread.
    progress
        Called in the calling thread with (items done, total items) after each item.

    Returns
    -------
    list[Result]
        The results in the order of the items.

    Raises
    ------
    Exception
        The first exception that the function raises; items not yet started are skipped.
    """
    report = progress or (lambda _done, _total: None)
    if workers <= 1:
        results = []
        for item in items:
            results.append(function(item))
            report(len(results), len(items))
        return results
    with ThreadPoolExecutor(workers, thread_name_prefix="cases") as executor:
        futures = [executor.submit(function, item) for item in items]
        try:
            for done, future in enumerate(as_completed(futures), start=1):
                future.result()
                report(done, len(items))
        except BaseException:
            executor.shutdown(wait=True, cancel_futures=True)
            raise
        return [future.result() for future in futures]
