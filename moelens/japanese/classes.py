"""Names, colours and marks of labels, shared by text, plots and tables. This module holds data and draws nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from moelens.japanese.label_names import LABEL_NAMES


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
        gloss: whether to add the gloss in parentheses.

    Example:
        >>> label_text("尊敬語"), label_text("名詞"), label_text("latin")
        ('▲ 尊敬語 (respectful)', '名詞 (noun)', 'latin')
    """
    mark = f"{CLASS_STYLE[name].mark} " if name in CLASS_STYLE else ""
    return f"{mark}{name}" + (f" ({GLOSS[name]})" if gloss and name in GLOSS else "")
