"""The answer that a response settles on, as a string that equal answers share."""

import threading


def math_answer(text: str) -> str | None:
    r"""The answer of a mathematical solution as math-verify reads it, `\boxed{}` first.

    It is read as `trl.rewards.accuracy_reward` reads it, so what is voted on is what is judged. `\frac{1}{2}`, `1/2`
    and `0.5` give the same string, and so do `x+1` and `1+x`. Answers that are equal only after algebra, such as
    `(x+1)^2` and `x^2+2x+1`, or `50\%` and `1/2`, do not; what is no mathematics is compared as text.

    Returns:
        The answer, or `None` where there is none.
    """
    # Optional dependencies, `canon-trl[math]`.
    import sympy
    from latex2sympy2_extended import NormalizationConfig
    from math_verify import LatexExtractionConfig, parse

    found = parse(
        text,
        extraction_config=[
            LatexExtractionConfig(
                normalization_config=NormalizationConfig(units=True),
                boxed_match_priority=0,
                try_extract_without_anchor=False,
            )
        ],
        extraction_mode="first_match",
        # Its time limit is a signal, which only the main thread can have.
        parsing_timeout=10 if threading.current_thread() is threading.main_thread() else None,
    )
    if not found:
        return None
    return str(sympy.Rational(str(found[0])) if isinstance(found[0], sympy.Float) else found[0])
