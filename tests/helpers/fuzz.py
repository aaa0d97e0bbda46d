"""Strategies of values that a file may hold, and the change of a nested value."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

DTYPES = st.sampled_from(["<i8", ">i4", "<u8", "u1", "i1", "<f4", "<f8", "<c8", "?", "S3", "<U2", "M8[s]"])
SHAPES = st.lists(st.integers(0, 4), max_size=4).map(tuple)
ANY_ARRAY = st.tuples(DTYPES, SHAPES).flatmap(lambda of: arrays.arrays(*of))
ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


def replace_somewhere(data: st.DataObject, at: Any, values: st.SearchStrategy[Any]) -> None:
    """Walk down nested dicts and lists to some field, and replace its value."""
    while at:
        key = data.draw(st.sampled_from(list(at) if isinstance(at, dict) else list(range(len(at)))))
        if isinstance(at[key], (dict, list)) and at[key] and data.draw(st.booleans()):
            at = at[key]
        else:
            at[key] = data.draw(values)
            return
