"""Text as LaTeX."""

import re
from types import MappingProxyType

# Signs that LaTeX takes for commands, or that its standard fonts lack.
SIGNS = MappingProxyType(
    {
        **{sign: f"\\{sign}" for sign in "&%$#_{}"},
        **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
        **{
            "<": r"\textless{}",
            ">": r"\textgreater{}",
            "|": r"\textbar{}",
            '"': "''",
        },
        **{
            "±": r"$\pm$",
            "≤": r"$\leq$",
            "≥": r"$\geq$",
            "×": r"$\times$",
            "–": "--",
            "…": r"\dots{}",
        },
        **{"μ̃": r"$\tilde\mu$", "β̃": r"$\tilde\beta$", "√": r"$\surd$", "ᾱ": r"$\bar\alpha$"},
        **{"α": r"$\alpha$", "β": r"$\beta$", "ε": r"$\epsilon$", "μ": r"$\mu$", "Σ": r"$\Sigma$"},
        **{"σ": r"$\sigma$", "η": r"$\eta$", "λ": r"$\lambda$"},
    }
)


def plain(text: str) -> str:
    """Text that LaTeX shows as it is."""
    signs = "|".join(re.escape(sign) for sign in sorted(SIGNS, key=len, reverse=True))
    return re.sub(signs, lambda found: SIGNS[found.group()], " ".join(text.split()))
