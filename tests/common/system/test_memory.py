from __future__ import annotations

import os

import pytest

from common.system.memory import MemoryLimitError, free_memory, require_memory


def test_free_memory_is_less_than_all_of_it() -> None:
    free = free_memory()
    assert free is not None
    assert 0 < free < os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def test_what_cannot_fit_is_refused_with_both_figures_and_advice() -> None:
    require_memory(2**20, "a scan", "crop it")
    text = r"^a scan will not fit: 38,000 GB wanted, [\d,.]+ GB free; lower model\.patch_size$"
    with pytest.raises(MemoryLimitError, match=text):
        require_memory(38 * 10**12, "a scan", "lower model.patch_size")
