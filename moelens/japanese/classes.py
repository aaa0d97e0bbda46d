"""Names, colours and marks of labels, shared by text, plots and tables. This module holds data and draws nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from moelens.japanese.label_names import LABEL_NAMES
from moelens.texts import Texts


@dataclass(frozen=True)
class ClassStyle:
    """The look of one honorific class in every view.

    The colours are those of Okabe and Ito (2008), which colour-blind readers can distinguish.

    Attributes:
        color: Hexadecimal colour.
        mark: Character that stands for the class where colour is not enough.
        gloss: Short English name.
    """

    color: str
    mark: str
    gloss: str


#: The style of each class in `moelens.japanese.CLASSES`.
CLASS_STYLE: Mapping[str, ClassStyle] = MappingProxyType(
    {
        "尊敬語": ClassStyle("#D55E00", "▲", "respectful"),
        "謙譲語I": ClassStyle("#0072B2", "▼", "humble I"),
        "謙譲語II": ClassStyle("#56B4E9", "▽", "humble II, courteous"),
        "丁寧語": ClassStyle("#009E73", "●", "polite"),
        "美化語": ClassStyle("#CC79A7", "✿", "beautifying"),
    }
)

#: English glosses of Japanese labels.
GLOSS: Mapping[str, str] = MappingProxyType(
    {name: english for name, (_, english) in LABEL_NAMES.items()}
    | {name: style.gloss for name, style in CLASS_STYLE.items()}
)


def label_text(name: str, *, gloss: bool = True) -> str:
    """Return a label with its mark and its English gloss, as far as it has them.

    Args:
        name: the label.
        gloss: whether to add the gloss in parentheses; see `label_words`.

    Example:
        >>> label_text("尊敬語"), label_text("名詞"), label_text("latin")
        ('▲ 尊敬語 (respectful)', '名詞 (noun)', 'latin')
    """
    mark = f"{CLASS_STYLE[name].mark} " if name in CLASS_STYLE else ""
    text, other = label_words(name, gloss=gloss)
    return f"{mark}{text}" + (f" ({other})" if other else "")


def label_words(name: str, *, gloss: bool = True) -> tuple[str, str]:
    """Return a label in words, and what stands beside it in parentheses, "" for nothing.

    Args:
        name: the label.
        gloss: whether Japanese labels have an English gloss; without it, English ones have their Japanese name.

    Example:
        >>> label_words("名詞"), label_words("名詞", gloss=False), label_words("kanji", gloss=False)
        (('名詞', 'noun'), ('名詞', ''), ('漢字', 'kanji'))
    """
    if gloss:
        return name, GLOSS.get(name, "")
    japanese = Texts("ja").name("label", name)
    return japanese, "" if japanese == name else name
