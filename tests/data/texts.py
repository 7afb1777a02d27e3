"""Texts of several languages, made up the same way each time: real words, in no real order."""

from __future__ import annotations

import random
from collections.abc import Callable

__all__ = ["chinese", "czech", "python", "unicode"]

_WORDS = """
že být ten který když přišel město dům řeka příběh světlo žena dítě člověk krásný nový starý rychle včera
zítra dnes už ještě nikdy vždycky možná protože aby ačkoli přestože kůň žluťoučký úpěl ďábelské ódy
nejneobvyklejší obhospodařovávatelný zmrzlina švestka čtvrtek neděle říjen únor škola učitelka žák kniha čtení
psaní počítač jazyk čeština slovo věta písmeno háček čárka dvě tři čtyři pět šest sedm osm devět deset ó ú ů ň
ť ď
"""
_CZECH = _WORDS.split()
_CHINESE = (
    "的一是不了在人有我他这个们中来上大为和国地到以说时要就出会可也你对生能而子那得于着下自之年过发后作里用道行所然家种事成方多经"
    "么去法学如都同现当没动面起看定天分还进好小部其些主样理心她本前开但因只从想实日军者意无力它与长把机十民第公此已工使情明性知全"
    "三又关点正业外将两高间由问很最重并物手应战向头文体政美相见被利什二等产或新己制身果加西斯月话合回特代内信表化老给世位次度门任"
)
_SOURCE = """def {name}({first}, {second}=None, *args):
    \"\"\"Return {name} of {first!r}; raises ValueError.\"\"\"
    if {second} is None and len({first}) > {number}:
        return [{first}[i] for i in range({number}) if i % 2 == 0x{number:x}]
\tself.{name} = {second} or {{'{first}': {number}.5e-3}}   # {name}: {second}
    raise ValueError(f"{{{first}}} isn't {number:,}")\r\n\n
"""


def czech(size: int, seed: int = 0) -> str:
    """At least ``size`` bytes of Czech words with punctuation and paragraphs."""
    return _sentences(size, random.Random(seed), lambda r: r.choice(_CZECH), " ", 2)


def chinese(size: int, seed: int = 0) -> str:
    """At least ``size`` bytes of Chinese characters with full-width punctuation."""
    return _sentences(size, random.Random(seed), lambda r: r.choice(_CHINESE), "", 3)


def python(size: int, seed: int = 0) -> str:
    """At least ``size`` bytes of something like Python source."""
    rng, parts, length = random.Random(seed), [], 0
    words = ["parse", "value_of", "HTTPServer", "x", "_private", "i18n", "toString", "naïve"]
    while length < size:
        name, first, second = rng.choices(words, k=3)
        parts.append(_SOURCE.format(name=name, first=first, second=second, number=rng.randrange(10**6)))
        length += len(parts[-1])
    return "".join(parts)


def unicode(size: int, seed: int = 0) -> str:
    """At least ``size`` bytes of characters from all planes, many of them white space, digits and contractions."""
    rng, parts, length = random.Random(seed), [], 0
    while length < size:
        kind = rng.random()
        if kind < 0.4:
            part = rng.choice(
                [" ", "  ", "\n", "\r\n", "\t", "\u00a0", "\u2003", "\u3000", "\x85", "'s", "'LL", "1", "234", "_"]
            )
        elif kind < 0.6:
            part = chr(rng.randrange(0x20, 0x300))
        else:
            part = chr(rng.choice([rng.randrange(0x300, 0xD800), rng.randrange(0xE000, 0x110000)]))
        parts.append(part)
        length += len(part.encode())
    return "".join(parts)


def _sentences(size: int, rng: random.Random, word: Callable[[random.Random], str], between: str, width: int) -> str:
    parts, length = [], 0
    while length < size:
        sentence = between.join(word(rng) for _ in range(rng.randrange(3, 20)))
        end = rng.choice([".", "!", ", ", "; ", ".\n", "。", "，", " (1989) ", "…\n\n"])
        parts.append(sentence.capitalize() + end + between)
        length += len(sentence) * width // 2 + 2
    return "".join(parts)
