"""Romanised and English names of the Japanese labels, which are accepted wherever a label is typed."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from types import MappingProxyType

#: The romanised name (Hepburn, without long vowels) and the English name of each Japanese label.
LABEL_NAMES: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        # honorifics
        "尊敬語": ("sonkeigo", "respectful"),
        "謙譲語I": ("kenjogo-1", "humble I"),
        "謙譲語II": ("kenjogo-2", "humble II"),
        "丁寧語": ("teineigo", "polite"),
        "美化語": ("bikago", "beautifying"),
        # parts of speech
        "名詞": ("meishi", "noun"),
        "代名詞": ("daimeishi", "pronoun"),
        "形状詞": ("keijoshi", "adjectival noun"),
        "連体詞": ("rentaishi", "adnominal"),
        "副詞": ("fukushi", "adverb"),
        "接続詞": ("setsuzokushi", "conjunction"),
        "感動詞": ("kandoshi", "interjection"),
        "動詞": ("doshi", "verb"),
        "形容詞": ("keiyoshi", "adjective"),
        "助動詞": ("jodoshi", "auxiliary"),
        "助詞": ("joshi", "particle"),
        "接頭辞": ("settoji", "prefix"),
        "接尾辞": ("setsubiji", "suffix"),
        "記号": ("kigo", "symbol"),
        "補助記号": ("hojo-kigo", "punctuation"),
        "空白": ("kuhaku", "space"),
        # origins of words
        "和": ("wa", "native"),
        "漢": ("kan", "Sino-Japanese"),
        "外": ("gai", "foreign"),
        "混": ("kon", "hybrid"),
        "固": ("ko", "proper noun"),
        "不明": ("fumei", "unknown"),
        # forms of conjugation
        "語幹": ("gokan", "stem"),
        "未然形": ("mizenkei", "irrealis"),
        "連用形": ("renyokei", "continuative"),
        "終止形": ("shushikei", "conclusive"),
        "連体形": ("rentaikei", "attributive"),
        "仮定形": ("kateikei", "conditional"),
        "已然形": ("izenkei", "realis"),
        "命令形": ("meireikei", "imperative"),
        "意志推量形": ("ishi-suiryokei", "volitional form"),
        # ends of sentences
        "敬体": ("keitai", "polite style"),
        "常体": ("jotai", "plain style"),
        "言いさし": ("iisashi", "unfinished"),
        "体言止め": ("taigendome", "noun ending"),
        # particles and auxiliaries
        "格助詞が": ("kakujoshi-ga", "case particle ga"),
        "格助詞を": ("kakujoshi-o", "case particle o"),
        "格助詞に": ("kakujoshi-ni", "case particle ni"),
        "格助詞へ": ("kakujoshi-e", "case particle e"),
        "格助詞と": ("kakujoshi-to", "case particle to"),
        "格助詞から": ("kakujoshi-kara", "case particle kara"),
        "格助詞より": ("kakujoshi-yori", "case particle yori"),
        "格助詞で": ("kakujoshi-de", "case particle de"),
        "格助詞まで": ("kakujoshi-made", "case particle made"),
        "格助詞の": ("kakujoshi-no", "case particle no"),
        "係助詞は": ("kakarijoshi-wa", "topic particle wa"),
        "係助詞も": ("kakarijoshi-mo", "topic particle mo"),
        "終助詞か": ("shujoshi-ka", "final particle ka"),
        "終助詞ね": ("shujoshi-ne", "final particle ne"),
        "終助詞よ": ("shujoshi-yo", "final particle yo"),
        "終助詞な": ("shujoshi-na", "final particle na"),
        "終助詞わ": ("shujoshi-wa", "final particle wa"),
        "終助詞ぞ": ("shujoshi-zo", "final particle zo"),
        "終助詞ぜ": ("shujoshi-ze", "final particle ze"),
        "終助詞さ": ("shujoshi-sa", "final particle sa"),
        "丁寧": ("teinei", "polite auxiliary"),
        "過去": ("kako", "past"),
        "否定": ("hitei", "negation"),
        "受身・可能・自発・尊敬": ("ukemi-kano-jihatsu-sonkei", "passive or potential"),
        "使役": ("shieki", "causative"),
        "願望": ("ganbo", "desiderative"),
        "推定": ("suitei", "inference"),
        "断定": ("dantei", "copula"),
        "意志・推量": ("ishi-suiryo", "volitional"),
        "伝聞": ("denbun", "hearsay"),
        "様態": ("yotai", "appearance"),
        "アスペクト": ("asupekuto", "aspect"),
        # persons, demonstratives and missing subjects
        "一人称・改まった": ("ichininsho-aratamatta", "first person formal"),
        "一人称・普通": ("ichininsho-futsu", "first person neutral"),
        "一人称・くだけた": ("ichininsho-kudaketa", "first person casual"),
        "二人称・改まった": ("nininsho-aratamatta", "second person formal"),
        "二人称・普通": ("nininsho-futsu", "second person neutral"),
        "二人称・くだけた": ("nininsho-kudaketa", "second person casual"),
        "指示コ": ("shiji-ko", "demonstrative ko"),
        "指示ソ": ("shiji-so", "demonstrative so"),
        "指示ア": ("shiji-a", "demonstrative a"),
        "指示ド": ("shiji-do", "demonstrative do"),
        "二人称・呼称": ("nininsho-kosho", "second person by title or name"),
        "三人称・改まった": ("sanninsho-aratamatta", "third person formal"),
        "三人称・普通": ("sanninsho-futsu", "third person neutral"),
        "三人称・くだけた": ("sanninsho-kudaketa", "third person casual"),
        "三人称・呼称": ("sanninsho-kosho", "third person by title or name"),
        "再帰": ("saiki", "reflexive"),
        "主語なし・話し手": ("shugo-nashi-hanashite", "no subject speaker"),
        "主語なし・聞き手": ("shugo-nashi-kikite", "no subject addressee"),
        "主語なし・敬う第三者": ("shugo-nashi-uyamau-daisansha", "no subject honored third person"),
        "主語なし・不明": ("shugo-nashi-fumei", "no subject unknown"),
    }
)
_NUMERALS = {"-i": "-1", "-ii": "-2"}


def typed_names(label: str) -> tuple[str, ...]:
    """Return the names under which a label can be typed, besides its own: the romanised and the English one.

    Args:
        label: A label, with its family ("honorifics.尊敬語") or without it.

    Example:
        >>> typed_names("謙譲語I"), typed_names("honorifics.尊敬語"), typed_names("latin")
        (('kenjogo-1', 'humble-1'), ('honorifics.sonkeigo', 'honorifics.respectful'), ())
    """
    family, dot, name = label.rpartition(".")
    return tuple(f"{family}{dot}{_as_typed(other)}" for other in LABEL_NAMES.get(name, ()))


def find_labels(typed: str, labels: Iterable[str]) -> list[str]:
    """Return the labels that a typed name stands for: those that have it as their own, or else as another name.

    Case does not matter in romanised and English names, nor do spaces, hyphens and underscores.

    Args:
        typed: A label, its romanised or its English name.
        labels: The labels to choose from.

    Example:
        >>> find_labels("Humble I", ["尊敬語", "謙譲語I", "謙譲語II"]), find_labels("noun", ["尊敬語"])
        (['謙譲語I'], [])
    """
    labels = list(labels)
    exact = [label for label in labels if label == typed]
    return exact or [label for label in labels if _as_typed(typed) in typed_names(label)]


def _as_typed(name: str) -> str:
    """Return a name in the form in which two names are compared.

    >>> _as_typed("humble II"), _as_typed("Sino-Japanese"), _as_typed("first_person formal")
    ('humble-2', 'sino-japanese', 'first-person-formal')
    """
    family, dot, label = name.lower().rpartition(".")
    plain = re.sub(r"[\s_-]+", "-", label)
    return family + dot + re.sub("-i+$", lambda numeral: _NUMERALS.get(numeral[0], numeral[0]), plain)
