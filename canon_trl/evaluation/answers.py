"""Extract answers from responses, as strings that are equal for equal answers."""

import threading


def math_answer(text: str) -> str | None:
    r"""Extract the answer of a mathematical solution with math-verify, from `\boxed{}` first.

    `trl.rewards.accuracy_reward` extracts it in the same way, so majority votes count the answers that are judged.
    `\frac{1}{2}`, `1/2` and `0.5` give the same string, and so do `x+1` and `1+x`. Answers that are equal only after
    algebra, such as `(x+1)^2` and `x^2+2x+1`, or `50\%` and `1/2`, give different strings. Other text is compared as
    text.

    Returns:
        The answer, or `None` if there is none.
    """
    # Optional dependencies of `canon-trl[math]`.
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
        # Its time limit uses a signal, which works only on the main thread.
        parsing_timeout=10 if threading.current_thread() is threading.main_thread() else None,
    )
    if not found:
        return None
    return str(sympy.Rational(str(found[0])) if isinstance(found[0], sympy.Float) else found[0])
