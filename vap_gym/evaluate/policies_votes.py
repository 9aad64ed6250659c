"""Votes: what counts as a yes or a no in a model's words; a refusal, or not knowing, counts as neither."""

from __future__ import annotations

import re

RULES = 2
"""Raised whenever the same words come to count otherwise: what was kept under others is asked again."""
DOES_NOT_KNOW = re.compile(
    r"""
      \bi\ (?:can\ ?not|can't|could\ not|couldn't|am\ unable|am\ not\ able|am\ not\ (?:sure|certain)|won't|will\ not)\b
    | \bi'm\ (?:unable|not\ able|not\ sure|not\ certain|just\ an?|only\ an?)\b
    | \b(?:can\ ?not|can't|could\ not|couldn't|unable\ to|not\ able\ to|not\ possible\ to|impossible\ to
        |hard\ to|difficult\ to|not\ enough\ to)\ (?:be\ )?(?:say|said|tell|know|see\ from|determined?|judged?
        |answer(?:ed)?|assess(?:ed)?|verify|verified|confirm(?:ed)?|decided?|evaluated?|help|assist|comply)\b
    | \b(?:do\ not|don't|does\ not|doesn't|did\ not|didn't)\ (?:know|have\ (?:enough|sufficient|access|any))\b
    | \bnot\ (?:sure|certain|clear|known|enough\ (?:information|context|detail|evidence))\b
    | \b(?:unsure|uncertain|unclear|unknown|undetermined|inconclusive|ambiguous|insufficient|unanswerable)\b
    | \b(?:nobody|no\ one|no-one|who)\ (?:knows|can\ (?:know|say|tell))\b
    | \bno\ (?:idea|clue|comment|answer|opinion|information|way\ to|(?:image|picture|photo|frame|video)s?)\b
    | \b(?:sorry|apolog\w*|as\ an\ ai|decline|refuse|would\ rather\ not|prefer\ not|guidelines)\b
    """,
    re.VERBOSE,
)
LEADS = re.compile(
    r"(?:(?:the |my |final |the final )?answer(?: is| would be)?[ :,]*)?(yes|no)"
    r"(?=[^\w\s-]|\s*$|\n|\s+[-–—]|\s+(?:the|it|its|this|that|because|since|as)\b)"
)
"""Alone, or before the reasons: "no" of "no box" is none."""
ENDS = re.compile(
    r"(?:^|[.!?:;\n]|[-–—]\ |\b(?:so|thus|hence|therefore|answer is|answer would be|verdict is|conclusion is"
    r"|i(?:'d| would) say)[:,]?)\s*(yes|no)[^\w]*$"
)
"""After the reasons: as a sentence of its own, or as what follows from them."""


def vote_of(answer: str) -> str:
    """Return "yes" or "no" where an answer says just that, before its reasons or after them; "" otherwise.

    Words of refusal or of not knowing veto, wherever they stand, and so does the other word: "No, I cannot help with
    that", "I cannot tell from these pictures, so no" and "yes and no" are no votes.
    """
    text = re.sub(r"<[^<>]*>|[*_`\"“”()\[\]#]+", " ", answer.lower().replace("’", "'"))
    text = re.sub(r"[ \t]+", " ", text).strip(" '\n\r\t")
    said = {"yes", "no"} & set(re.findall(r"[a-z]+", text))
    if len(said) != 1 or DOES_NOT_KNOW.search(text):
        return ""
    found = LEADS.match(text) or ENDS.search(text)
    return "" if found is None else found[1]
