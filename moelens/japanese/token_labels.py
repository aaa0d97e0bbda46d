"""Which labels of a text's characters a token carries: the one definition for recordings, traces, views and probes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from moelens.errors import unknown
from moelens.japanese.families import Bools, CharacterLabels

Policy = Literal["ends", "last", "any", "majority"]
_Ints = npt.NDArray[np.integer]

#: When a token carries a label, in words, by policy. The first policy is the default.
POLICIES: Mapping[Policy, str] = {
    "ends": "a token carries the labels of every morpheme and span that ends in it",
    "last": "a token carries the labels of its last character",
    "any": "a token carries the labels of all of its characters",
    "majority": "a token carries the labels of more than half of its characters",
}


def policy_in_words(policy: Policy) -> str:
    """Return the name of a policy and what it means.

    Raises:
        UnknownNameError: If there is no such policy.

    Example:
        >>> policy_in_words("ends")
        'ends (a token carries the labels of every morpheme and span that ends in it)'
    """
    if policy not in get_args(Policy):
        raise unknown("label policy", policy, get_args(Policy))
    return f"{policy} ({POLICIES[policy]})"


def token_labels(labels: CharacterLabels, start: _Ints, end: _Ints, policy: Policy = "ends") -> Bools:
    """Derive the labels of tokens from those of the characters of their text.

    A model that reads from left to right knows that いらっしゃいました is respectful and polite when it has read the
    tokens that complete いらっしゃい and まし. The default policy "ends" labels these tokens, also where one token
    completes several words (ました). Of tokens that share a character, the last one completes it. Labels that say where
    a token stands, the register of its sentence and of its document, apply to each token of the sentence or document.

    Args:
        labels: The labels of the characters.
        start: Index of the first character of each token, `[token]`, in ascending order.
        end: Index after the last character of each token, `[token]`; equal to `start` for a token without characters.
        policy: One of `POLICIES`.

    Returns:
        The labels of the tokens, bool `[token, label]`.

    Raises:
        UnknownNameError: If there is no such policy.

    Example:
        >>> from moelens.japanese.families import COLUMNS, character_labels
        >>> found = token_labels(character_labels("来ました"), np.array([0, 1]), np.array([1, 4]))
        >>> [COLUMNS[i] for i in np.flatnonzero(found[1]) if COLUMNS[i].startswith(("pos", "honorifics"))]
        ['pos.助動詞', 'honorifics.丁寧語']
    """
    policy_in_words(policy)
    if not len(labels.has):
        return np.zeros((len(start), labels.has.shape[1]), dtype=np.bool_)
    if policy == "ends":
        return _that_end(labels.ends, start, completed(start, end))
    inside = labels.morpheme >= 0
    if policy == "last":
        last = last_of(inside, start, end)
        return np.asarray(labels.has[last] & (last >= 0)[:, None])
    counts = _counts(labels.has & inside[:, None], start, end)
    if policy == "any":
        return counts > 0
    return 2 * counts > _counts(inside[:, None], start, end)


def completed(start: _Ints, end: _Ints) -> _Ints:
    """Return for each token the index after the last character that it completes, `[token]`.

    Example:
        >>> completed(np.array([0, 0, 1]), np.array([1, 1, 2])).tolist()  # two tokens share the first character
        [0, 1, 2]
    """
    never = np.int64(np.iinfo(np.int64).max)  # of its own type, which int32 is widened to
    behind = np.where(end > start, start, never)
    following = np.append(np.minimum.accumulate(behind[::-1])[::-1], never)[1:]
    return np.asarray(np.minimum(end, np.maximum(following, start)))


def last_of(which: Bools, start: _Ints, end: _Ints) -> npt.NDArray[np.int64]:
    """Return for each token the index of its last character of a kind, `[token]`, or -1."""
    if not len(which):
        return np.full(len(start), -1, dtype=np.int64)
    last = np.maximum.accumulate(np.where(which, np.arange(len(which)), -1))[np.maximum(end - 1, 0)]
    return np.where((last >= start) & (end > start), last, -1)


def _that_end(ends: Bools, start: _Ints, end: _Ints) -> Bools:
    """Return which labels have a character that is their last in each token; no two tokens share a character."""
    found = np.zeros((len(start), ends.shape[1]), dtype=np.bool_)
    tokens = np.flatnonzero(end > start)
    last = np.flatnonzero(ends.any(axis=1))
    place = np.searchsorted(start[tokens], last, side="right") - 1
    within = (place >= 0) & (last < end[tokens[place]]) if len(tokens) else np.zeros(len(last), np.bool_)
    last, place = last[within], place[within]
    if len(last):
        holders, first = np.unique(place, return_index=True)
        found[tokens[holders]] = np.logical_or.reduceat(ends[last], first, axis=0)
    return found


def _counts(characters: Bools, start: _Ints, end: _Ints) -> npt.NDArray[np.int32]:
    """Return how many characters of each token have each label, `[token, label]`."""
    summed = np.zeros((len(characters) + 1, characters.shape[1]), np.int32)
    np.cumsum(characters, axis=0, out=summed[1:])
    return np.asarray(summed[end] - summed[start])
