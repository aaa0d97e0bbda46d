"""Words that the dictionaries spell otherwise: with ruby, with small or drawn-out kana, or as in former times.

`ROWS` is applied from top to bottom to the uniform copy of a text (see `normalize`). Ordinary words are left alone:
each pattern asks for letters that present spelling does not have in this place.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

_KANJI = "\u3400-\u4dbf\u4e00-\u9fff々〆ヶ"
_LETTER = f"ぁ-ゖァ-ヺー{_KANJI}"
# In parentheses after kanji, these are no reading of it: 最高（です）ね.
_NO_READING = (
    "です|でした|でしょう|ます|ました|だ|だね|よ|ね|な|か|かな|が|の|も|は|を|に|と|や|など|ら|たち|では?ない|さん|くん|"
    "から|まで|だけ|とか|より|って|する|した|して|できる|かも|らしい|みたい|または|あるいは|および|もしくは|ふりがな"
)
_PARTICLE = "[はをへとでもの]|が(?![っりる])|な(?!さ)|に(?!な)"  # after a reading in parentheses that hides nothing
_DRAWN = "[ー〜～]+"
_LARGE = str.maketrans("ぁぃぅぇぉゃゅょゎ", "あいうえおやゆよわ")
_PRESENT = str.maketrans("つやゐ", "っゃい")
_Reading = Callable[[str], Sequence[str]]  # from what a pattern finds to what is read for each of its characters


def _nothing(found: str) -> Sequence[str]:
    return [""] * len(found)


def _without_spaces(found: str) -> Sequence[str]:
    return ["" if c.isspace() else c for c in found]


def _without_ruby(found: str) -> Sequence[str]:
    base = found.index("《")
    return ["", *found[1:base], *[""] * (len(found) - base)]


def _characters(table: Mapping[int, int]) -> _Reading:
    return lambda found: list(found.translate(table))


def _as(*read: str) -> _Reading:
    """Read the first characters as these, and the others not at all."""
    return lambda found: [*read, *[""] * (len(found) - len(read))]


#: The kind of a spelling, its pattern, and how to read what the pattern finds.
ROWS: Sequence[tuple[str, re.Pattern[str], _Reading]] = tuple(
    (kind, re.compile(pattern), reading)
    for kind, pattern, reading in (
        # Ruby is left out: 先生《せんせい》, ｜お客様《おきゃくさま》, 召（め）し上がる
        ("ruby", rf"｜[{_LETTER}]+《[ぁ-ヺー]+》", _without_ruby),
        ("ruby", rf"(?<=[{_KANJI}])(?:《[ぁ-ゖー]+》)+", _nothing),
        (
            "ruby",
            rf"(?<=[{_KANJI}])（(?!(?:{_NO_READING})）)[ぁ-ゖー]{{1,5}}）(?=[ぁ-ゖ{_KANJI}])(?!{_PARTICLE})",
            _nothing,
        ),
        # A space after each letter: お 客 様 へ
        ("spaced", rf"(?<!\S)(?:[{_LETTER}][ \u3000]){{3,}}[{_LETTER}](?![^\s。！？])", _without_spaces),
        # Small kana for large: ぉ願い, くださぃ, ですょ, ゎたし
        ("small kana", rf"(?<![{_LETTER}])[ぁぃぅぇぉゃゅょ](?=[{_LETTER}])", _characters(_LARGE)),
        (
            "small kana",
            "(?<=[ぁあかがさざただなはばまやゃらわこそとどのほぼもよょろくぐむぬるゆゅ])ぃ",
            _characters(_LARGE),
        ),
        (
            "small kana",
            "(?<=[あ-おかがくぐけ-ごさざす-ぞただなぬ-はばまむ-もや-らる-わん])[ゃゅょ]",
            _characters(_LARGE),
        ),
        ("small kana", "(?<![くぐ])ゎ", _characters(_LARGE)),
        # Drawn-out kana: 雨でーす, ございま〜す, くださーい, 行きましょー
        ("drawn out", f"(?<=[でま]){_DRAWN}(?=す)|(?:(?<=くださ)|(?<=っしゃ)|(?<=なさ)){_DRAWN}(?=い)", _nothing),
        ("drawn out", f"(?:(?<=でしょ)|(?<=ましょ)|(?<=おはよ)|(?<=ありがと)){_DRAWN}う?", _as("う")),
        # Former spelling of honorifics: ませう, いらつしやる, なすつた, and kanji for kana
        ("former", "(?<=[でま])せう(?![るれ])", _as("しょ", "う")),
        ("former", "[いゐ]らつし[やゃ]|おつし[やゃ]", _characters(_PRESENT)),
        ("former", "(?:(?<=な[さす])|(?<=しゃ)|(?<=[下だ]さ)|(?<=し上)|(?<=召上))つ(?=[たて])", _characters(_PRESENT)),
        ("former", "(?<=[にでて])をり(?=ま[しすせ])", _as("お", "り")),
        ("former", "御座居(?=ま)", _as("御", "座", "い")),
        ("former", "仰有(?=[いっらりる])", _as("仰", "言")),
        ("former", "(?<=[てで])戴(?=[いかきくけこ])|(?<![冠雪霜]を)戴(?=き(?:ま[しすせ]|た[いく]))", _as("頂")),
    )
)

# Text without any of these has no spelling of `ROWS`, which is found out at once: rare letters, letters in a place
# where present spelling does not have them, and letters with spaces between them.
_RARE = re.compile("[《（ぁぃぅぇぉゎ〜～居有戴]")
_PLACES = re.compile("[ゃゅょー](?:(?<=[ゃゅょ])(?<![きしちにひみりぎじぢびぴ].)|(?<=[でまさゃょとよ]ー))")
_FORMER = ("せう", "つし", "つた", "つて", "をり")
_SPACED = re.compile("[ \u3000].[ \u3000]")


def may_be_respelled(text: str) -> bool:
    """Whether a text may have a spelling of `ROWS`.

    Example:
        >>> may_be_respelled("雨でーす"), may_be_respelled("雨です")
        (True, False)
    """
    return bool(
        _RARE.search(text)
        or _PLACES.search(text)
        or any(former in text for former in _FORMER)
        or ((" " in text or "\u3000" in text) and _SPACED.search(text))
    )
