"""Labels of grammatical functions and of reference to persons, from a morpheme and its neighbours."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

from moelens.japanese.honorific_spans import HonorificSpan, split_sentences
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

# Pronouns and nouns for the first and the second person as written, by person and register.
_PERSONS = {
    "一人称・改まった": ("わたくし", "当方", "弊社", "弊店", "小社", "小生", "手前ども", "私ども", "当社", "拙者"),
    "一人称・普通": ("私", "わたし", "我々", "われわれ", "自分"),
    "一人称・くだけた": ("僕", "ぼく", "ボク", "俺", "おれ", "オレ", "あたし", "わし", "おいら", "うち"),
    "二人称・改まった": ("貴社", "御社", "貴殿", "貴方様", "そちら様", "貴店", "貴校", "御地"),
    "二人称・普通": ("あなた", "貴方", "貴女"),
    "二人称・くだけた": ("君", "きみ", "お前", "おまえ", "あんた", "てめえ", "貴様", "てめー"),
}
_DEMONSTRATIVES = {"こ": "指示コ", "そ": "指示ソ", "あ": "指示ア", "ど": "指示ド"}
_PERSON_OF = {word: name for name, words in _PERSONS.items() for word in words}

#: Labels of persons by register, of demonstratives, and of honorific predicates that imply their missing subject.
REFERENCES = (*_PERSONS, *_DEMONSTRATIVES.values(), "主語なし・話し手側", "主語なし・敬う人")

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


def reference_labels(text: str, morphemes: Sequence[Morpheme], spans: Sequence[HonorificSpan]) -> _LabelSpans:
    """Yield the start, the end and the label, one of `REFERENCES`, of references to persons.

    These are words for persons, demonstratives, and honorific predicates without a subject. A predicate counts as
    without a subject if neither が nor は precedes it in its sentence. 尊敬語 then implies a respected person, usually
    the addressee, and 謙譲語 the side of the speaker.

    Example:
        >>> from moelens.japanese import parse_morphemes, honorifics
        >>> text = "僕はそれを見た。もう召し上がりましたか。"
        >>> [(text[a:b], name) for a, b, name in reference_labels(text, parse_morphemes(text), honorifics(text))]
        [('僕', '一人称・くだけた'), ('それ', '指示ソ'), ('召し上がり', '主語なし・敬う人')]
    """
    rest = list(spans)[::-1]
    for sentence in split_sentences(text, morphemes):
        subject = next((m.start for m in sentence if m.pos[0] == "助詞" and m.normal in ("が", "は")), len(text))
        found = list(_person_labels(sentence))
        while rest and rest[-1].start < sentence[-1].end:
            span = rest.pop()
            if span.start < subject and span.tells == "honorific" and span.classes:
                name = "主語なし・敬う人" if "subject" in span.raises else "主語なし・話し手側"
                if "尊敬語" in span.classes or "謙譲語I" in span.classes or "謙譲語II" in span.classes:
                    found.append((span.start, span.end, name))
        yield from sorted(found)


def _person_labels(sentence: Sequence[Morpheme]) -> _LabelSpans:
    for last, m in pairwise([sentence[0], *sentence]):
        joined = f"{last.normal}{m.normal}"
        if joined in _PERSON_OF and last.end == m.start:  # 御 + 社
            yield last.start, m.end, _PERSON_OF[joined]
        elif m.normal in _PERSON_OF and m.pos[0] in ("代名詞", "名詞"):
            yield m.start, m.end, _PERSON_OF[m.normal]
        elif m.pos[0] in ("代名詞", "連体詞") and m.normal[:1] in _DEMONSTRATIVES:
            yield m.start, m.end, _DEMONSTRATIVES[m.normal[:1]]
