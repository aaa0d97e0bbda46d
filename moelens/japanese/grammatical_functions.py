"""Labels of grammatical functions, from a morpheme and its neighbours."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from moelens.japanese.morphology import Morpheme

_CASE = ("が", "を", "に", "へ", "と", "から", "より", "で", "まで", "の")
_TOPIC = ("は", "も")
_FINAL = ("か", "ね", "よ", "な", "わ", "ぞ", "ぜ", "さ")
_AUXILIARIES = {
    "丁寧": ("です", "ます"),
    "過去": ("た",),
    "否定": ("ない", "ず", "ぬ"),
    "受身・可能・自発・尊敬": ("れる", "られる"),
    "使役": ("せる", "させる"),
    "願望": ("たい", "たがる"),
    "推定": ("らしい",),
    "断定": ("だ",),
}
_ASPECT = ("居る", "有る", "置く", "仕舞う", "行く", "来る", "見る", "いらっしゃる", "てる", "ちゃう", "とく")

#: Labels of particles and auxiliaries: each case, topic and final particle, then auxiliaries by function.
FUNCTIONS = (
    *(f"格助詞{p}" for p in _CASE),
    *(f"係助詞{p}" for p in _TOPIC),
    *(f"終助詞{p}" for p in _FINAL),
    *_AUXILIARIES,
    "意志・推量",
    "伝聞",
    "様態",
    "アスペクト",
)

_FUNCTION_NAMES = frozenset(FUNCTIONS)
_AUXILIARY_OF = {lemma: name for name, lemmas in _AUXILIARIES.items() for lemma in lemmas}
_LabelSpans = Iterator[tuple[int, int, str]]


def function_labels(morphemes: Sequence[Morpheme]) -> _LabelSpans:
    """Yield the start, the end and the label, one of `FUNCTIONS`, of particles and auxiliaries.

    A morpheme may have several labels. (ら)れる has one label for all its functions; `honorifics` finds its uses as
    尊敬語.

    Example:
        >>> from moelens.japanese import parse_morphemes
        >>> [name for _, _, name in function_labels(parse_morphemes("先生が行かれましたか"))]
        ['格助詞が', '受身・可能・自発・尊敬', '丁寧', '過去', '終助詞か']
    """
    before = ""
    for m in morphemes:
        pos, lemma = m.pos, m.lemma
        if pos[0] == "助詞":
            name = pos[1] + lemma
            if name in _FUNCTION_NAMES:
                yield m.start, m.end, name
        elif pos[0] == "助動詞" and lemma in _AUXILIARY_OF:
            yield m.start, m.end, _AUXILIARY_OF[lemma]
        elif pos[1] == "助動詞語幹" and lemma == "そう":
            yield m.start, m.end, "伝聞" if pos[0] == "名詞" else "様態"
        if m.cform.startswith("意志推量形"):
            yield m.start, m.end, "意志・推量"
        if lemma in _ASPECT and (before in ("て", "で") or pos[0] == "助動詞"):
            yield m.start, m.end, "アスペクト"
        before = lemma
