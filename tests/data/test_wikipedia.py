"""Source `wikipedia`: from a dump to the text of its articles."""

from __future__ import annotations

import bz2
import gzip
import itertools
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bonsaigpt.config import ByteTokenizerConfig, WikipediaData
from bonsaigpt.data.corpora import open_text
from bonsaigpt.data.corpora.brackets import without_brackets
from bonsaigpt.data.corpora.markup import plain
from bonsaigpt.data.corpora.source import Cursor, Document
from bonsaigpt.data.hashes import FileHashes
from bonsaigpt.data.prepare import prepare
from bonsaigpt.errors import DataError
from tests.data.dumps import Page, dump

BONSAI = Page(
    "Bonsai",
    """{{Short description|Japanese art form}}
{{Infobox plant
| name  = Bonsai
| image = {{#if:x|[[File:Infobox.jpg]]}}
| note  = see <ref>{{cite web|url=http://a.b|title=A}}</ref>
}}
[[File:Tree.jpg|thumb|upright=1.2|A [[pine]] of ''Kyoto''{{clarify}} (see [[File:Nested.png|20px]])]]
'''Bonsai''' ({{lang-ja|盆栽}}; {{IPA|x}}, lit. "tray planting") is the [[Japan|Japanese]] art of growing
[[tree]]s in trays.<ref name="a">{{cite book|last=Koreshoff|title=Bonsai [x]}}</ref><ref name="a" />{{efn|a note}}
It differs from ''[[penjing]]'' &mdash; its '''''Chinese''''' parent&nbsp;art &ndash; in style.<!-- not
for readers -->__NOTOC__

== History<span id="h"></span> ==
{| class="wikitable" style="x"
! Year !! Event
|-
| 1604 || {{nowrap|A [[list]]}}
|-
|
{| class="nested"
| inner || table
|}
|}
<table><tr><td>an HTML table</td></tr></table>
In 1604 it was mentioned.{{sfn|Smith|2001|p=3}} H<sub>2</sub>O is needed, a&nbsp;lot of it.<br />Every day.

=== Empty below {{anchor|x}} ===
<gallery mode="packed">
File:One.jpg|The [[first]]
File:Two.jpg|The second
</gallery>

=== Tools ===
* '''Scissors''', see [https://example.org/s the catalogue], [http://example.org/bare] and https://example.org
* [[Wire (bonsai)|Wire]]
# number
; Term : meaning
: indented

== Formulas and code ==
Growth is <math>\\frac{dh}{dt} < k \\{h\\}</math>, so <nowiki>[[not a link]] {{not a template}}</nowiki> stays.
<syntaxhighlight lang="python">
for tree in trees:
    tree.prune()  # {{x}}
</syntaxhighlight>
An interlanguage link [[de:Bonsai]][[zh-min-nan:Phûn-chai]] shows nothing, [[:de:Bonsai|this one]] does,
[[:Category:Trees]] too. <div style="float:right; display: none">hidden</div>L'art d'''été'' l''''art'''.
{{Unclosed template | x

== References ==
{{Reflist}}
<references>
<ref name="b">b</ref>
</references>

== External links ==
{{Commons category|Bonsai}}
[[Category:Bonsai| ]] [[category:Trees]]
""",
)

BONSAI_TEXT = """Bonsai

Bonsai (lit. "tray planting") is the Japanese art of growing
trees in trays.
It differs from penjing — its Chinese parent art – in style.

History

In 1604 it was mentioned. H2O is needed, a lot of it.
Every day.

Tools

Scissors, see the catalogue, and https://example.org
Wire
number
Term
meaning
indented

Formulas and code

Growth is $\\frac{dh}{dt} < k \\{h\\}$, so [[not a link]] {{not a template}} stays.
for tree in trees:
    tree.prune()  # {{x}}

An interlanguage link shows nothing, this one does,
Category:Trees too. L'art d'été l'art.
Unclosed template | x"""

PAGES = [
    BONSAI,
    Page("Bonsaï", "#REDIRECT [[Bonsai]]", redirect="Bonsai"),
    Page("Talk:Bonsai", "A discussion that is long enough to be kept, were it an article of namespace 0.", namespace=1),
    Page("Template:Infobox", "{{{name}}} and some words that are long enough to be kept.", namespace=10),
    Page("Empty", ""),
    Page("Short", "{{Infobox}} Hardly anything."),
    Page("Q1", '{"labels": "a JSON page that is long enough to be kept, were it wikitext"}', model="json"),
    Page(
        "Pine (disambiguation)",
        "'''Pine''' may mean:\n* [[Pine]], a tree\n* [[Pine Island]], an island in the north\n{{disambiguation}}",
    ),
    Page("Łódź & <co>", "A title of signs & letters.<ref>x</ref> " * 4),
]


def write(path: Path, raw: bytes) -> Path:
    path.write_bytes({".bz2": bz2.compress, ".gz": gzip.compress}.get(path.suffix, bytes)(raw))
    return path


def articles(path: Path, **settings: object) -> dict[str, str]:
    source = open_text(WikipediaData.model_validate({"path": path, **settings}), hashes=FileHashes())
    clean = pickle.loads(pickle.dumps(source.clean))  # as it goes to another process
    texts = [document.text for read, _ in source.stream(Cursor()) if (document := clean(read)) is not None]
    return {text.split("\n")[0]: text for text in texts}


@pytest.mark.parametrize("suffix", [".xml", ".xml.bz2", ".xml.gz"])
def test_a_dump_becomes_clean_articles(tmp_path: Path, suffix: str) -> None:
    found = articles(write(tmp_path / f"enwiki-20240101-pages-articles{suffix}", dump(PAGES)))
    assert list(found) == ["Bonsai", "Pine (disambiguation)", "Łódź & <co>"]
    assert found["Bonsai"] == BONSAI_TEXT
    assert found["Pine (disambiguation)"].endswith("Pine may mean:\nPine, a tree\nPine Island, an island in the north")
    assert found["Łódź & <co>"].startswith("Łódź & <co>\n\nA title of signs & letters. A title")


def test_short_articles_are_dropped_as_the_setting_says(tmp_path: Path) -> None:
    path = write(tmp_path / "d.xml", dump(PAGES))
    assert "Short" in articles(path, min_characters=10)
    assert "Empty" not in articles(path, min_characters=0)
    assert list(articles(path, min_characters=500)) == ["Bonsai"]


def test_a_multistream_dump_is_one(tmp_path: Path) -> None:
    raw = dump(PAGES)
    cuts = [0, *(i for i in range(len(raw)) if raw.startswith(b"  <page>", i)), len(raw)]
    path = tmp_path / "d-multistream.xml.bz2"
    path.write_bytes(b"".join(bz2.compress(raw[a:b]) for a, b in itertools.pairwise(cuts)))
    assert articles(path) == articles(write(tmp_path / "d.xml", raw))


def test_a_dump_in_several_files_goes_on_from_any_place(tmp_path: Path) -> None:
    for i in range(3):
        write(tmp_path / f"d{i}.xml.bz2", dump([replace(page, title=f"{page.title} {i}") for page in PAGES]))
    source = open_text(WikipediaData(path=tmp_path / "d*.xml.bz2"), hashes=FileHashes())
    everything = list(source.stream(Cursor()))
    assert len(everything) == 3 * 4
    for i, (_, cursor) in enumerate(everything):
        assert list(source.stream(cursor)) == everything[i + 1 :]
    assert everything[-1][1].read == source.size


LANGUAGES = {
    "cs": (
        "Soubor",
        "Kategorie",
        "'''Bonsaj''' je [[Strom|stromek]] v misce.[[Soubor:A.jpg|náhled|Popis]] Roste pomalu.",
        "Bonsaj je stromek v misce. Roste pomalu.",
    ),
    "zh": (
        "File",
        "Category",
        "'''盆景'''是[[树|树木]]的艺术。[[File:A.jpg|thumb|图片]]-{zh-hans:软件; zh-hant:軟體}-很慢。-{T|盆}-",
        "盆景是树木的艺术。软件很慢。",
    ),
    "ar": (
        "ملف",
        "تصنيف",
        "'''بونساي''' هو [[شجرة|فن]] ياباني.[[ملف:A.jpg|تصغير|صورة]] ينمو ببطء.",
        "بونساي هو فن ياباني. ينمو ببطء.",
    ),
    "de": (
        "Datei",
        "Kategorie",
        "'''Bonsai''' ist ein [[Baum]].[[Bild:A.JPG|mini|Alter Name]][[datei:B.svg|x]] Er wächst.",
        "Bonsai ist ein Baum. Er wächst.",
    ),
}


@pytest.mark.parametrize("language", LANGUAGES)
def test_other_languages_keep_their_script_and_lose_their_files_and_categories(tmp_path: Path, language: str) -> None:
    file, category, markup, text = LANGUAGES[language]
    page = Page("盆栽", f"{markup}\n[[{category}:X]] [[{category}:Y|z]]")
    path = write(tmp_path / "d.xml", dump([page], file=file, category=category, language=language))
    assert articles(path, min_characters=1) == {"盆栽": f"盆栽\n\n{text}"}
    if category != "Category":  # negative control: the names come from the dump alone
        foreign = write(tmp_path / "e.xml", dump([page]))
        assert articles(foreign, min_characters=1)["盆栽"] != f"盆栽\n\n{text}"


@pytest.mark.parametrize(
    ("markup", "text"),
    [
        ("'''''both''' italic'' and ''''four'''' don't", "both italic and 'four' don't"),
        ("l'''Iliade'' et '''gras'''", "l'Iliade et gras"),
        ("dell'''arte'' e '''x'''", "dell'arte e x"),
        ("'''gras''' ''it''\nd'''été''", "gras it\nd'été"),
        ("a ({{x}}) b (, {{y}} c) d（{{z}}）e", "a b (c) de"),
        ("[[a]]s, [[b|''B'']], [[c#d]], [[:e]]", "as, B, c#d, e"),
        ("x<ref>unclosed", "xunclosed"),
        ("a\n{| class=x\n| never closed\n\nb", "a\n\nb"),
        ("__NOTOC____init__ __x__ __KEIN_TOC__", "__init__ __x__"),
        ("<b>bold</b> <u>x</u> <font color=red>red</font> 1 < 2 > 0", "bold x red 1 < 2 > 0"),
        ("== A ==\n=== B ===\n== C ==\ntext\n=== D ===\n", "C\n\ntext"),
        ("{{a|{{b|{{c}}}}|[[d]]}}e{{{f|g}}}", "e"),
        ("<noinclude>a</noinclude><includeonly>b</includeonly><small>c</small>", "ac"),
        ("<blockquote>q</blockquote>r<poem>s\nt</poem>", "q\nr\ns\nt"),
        ("-{x}- -{H|zh:a;b}- -{zh-cn:A;zh-tw:B}- {x}-{", "x A {x}-{"),
        ("&lt;b&gt; &#65; &amp;nbsp;", "<b> A &nbsp;"),
        ("[[Image:a.png|thumb|x [[y|z [[w]]]] {{v}}]]end", "end"),
    ],
)
def test_markup_one_thing_at_a_time(markup: str, text: str) -> None:
    assert plain(markup, frozenset({"image", "file", "category"})) == text


NESTED = st.recursive(
    st.sampled_from(["a", " b ", "\n", "|", "[[c|d]]", "'", "{x}", "<nowiki>{{</nowiki>", "<!-- }} -->", "<ref/>"]),
    lambda inner: st.builds(
        lambda parts, around: around[0] + "".join(parts) + around[1],
        st.lists(inner, max_size=4),
        st.sampled_from(
            [("{{t|", "}}"), ("\n{|\n|", "\n|}\n"), ("<ref>", "</ref>"), ('<ref name="x">', "</ref >"), ("", "")]
        ),
    ),
    max_leaves=12,
)


@given(NESTED)
@settings(max_examples=200, deadline=None)
def test_what_brackets_take_away_the_parser_would_have_taken(markup: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        found = plain(markup, frozenset())
        patch.setattr("bonsaigpt.data.corpora.markup.without_brackets", lambda markup: markup)
        assert found.split() == plain(markup, frozenset()).split()


@pytest.mark.parametrize(
    ("markup", "rest"),
    [
        ("a {{b|{{c|}} {| }} d", "a  d"),
        ("{{never {{closed}} x <ref>y", "never  x y"),
        ("{| class=x\n| a {{b}}\nc", "\n| a \nc"),
        ("a |} }} </ref> b", "a |} }} </ref> b"),
        ("<math>{{</math> {{a}} <nowiki>}}</nowiki>", "<math>{{</math>  <nowiki>}}</nowiki>"),
        ("<ref>a {{b</ref> c }}", " c }}"),
        ("x <!-- {{ -- --> y <!-- never", "x  y "),
        ("<references /> <REF name=a/> <Ref>x</rEf>", "<references />  "),
    ],
)
def test_brackets_that_do_not_match(markup: str, rest: str) -> None:
    assert without_brackets(markup) == rest


def test_a_page_in_parts_keeps_its_title_once(tmp_path: Path) -> None:
    clean = open_text(WikipediaData(path=write(tmp_path / "d.xml", dump(PAGES))), hashes=FileHashes()).clean
    first, rest = clean(Document("d", "Title\n'''a'''", 0, 20)), clean(Document("d", "''b''\nc", 13, 20))
    assert first is not None
    assert rest is not None
    assert (first.text, rest.text) == ("Title\n\na", "b\nc")


# -------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize("suffix", [".xml", ".xml.bz2", ".xml.gz"])
def test_a_dump_cut_short_is_one_error_with_the_last_page(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"d{suffix}", dump([BONSAI, *(Page(f"P{i}", f"words {i} " * 99) for i in range(300))]))
    path.write_bytes(path.read_bytes()[:-60])
    with pytest.raises(
        DataError, match=r"d\.xml.* is cut short.* byte \d+.* last whole page was ('P\d+'|none)"
    ) as caught:
        articles(path)
    assert "\n" not in str(caught.value)


def test_what_is_no_dump_is_refused(tmp_path: Path) -> None:
    for raw, words in (
        (b"<html><body></body></html>", "is XML, but no dump of a MediaWiki"),
        (b"plain text", r"is no dump of a MediaWiki \(syntax error in line 1.*give a .*pages-articles"),
        (dump(PAGES).replace(b"</title>", b"</tilte>"), "mismatched tag in line 16"),
    ):
        with pytest.raises(DataError, match=words):
            articles(write(tmp_path / "d.xml", raw))


# ---------------------------------------------------------------------------------------------------- as a whole


def test_a_dump_is_prepared(tmp_path: Path) -> None:
    path = write(tmp_path / "d.xml.bz2", dump(PAGES))
    corpus = prepare(WikipediaData(path=path, tokenizer=ByteTokenizerConfig()), tmp_path / "corpora")
    assert corpus.documents == 3
    text = "".join(corpus.tokenizer.decode(corpus.tokens(split)) for split in ("train", "val"))
    assert "Japanese art of growing" in text
    assert "Infobox" not in text


@pytest.mark.slow
def test_a_dump_of_100_mb_is_read_in_bounded_memory(tmp_path: Path) -> None:
    path = tmp_path / "big.xml.bz2"
    page = dump([replace(BONSAI, markup=BONSAI.markup * 8)])
    head, tail = page.index(b"  <page>"), page.index(b"</mediawiki>")
    count = 100_000_000 // (tail - head) + 1
    with bz2.open(path, "wb", compresslevel=1) as out:
        out.write(page[:head])
        for _ in range(count):
            out.write(page[head:tail])
        out.write(page[tail:])
    code = f"""
import resource
from pathlib import Path
from bonsaigpt.config import WikipediaData
from bonsaigpt.data.corpora import open_text
from bonsaigpt.data.corpora.source import Cursor
from bonsaigpt.data.hashes import FileHashes
source = open_text(WikipediaData(path=Path({str(path)!r})), hashes=FileHashes())
peaks, count, size = [], 0, 0
for document, _ in source.stream(Cursor()):
    if count % 400 == 0:
        source.clean(document)
        peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    count, size = count + 1, size + len(document.text)
print(count, size, peaks[1], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    pages, size, early, peak = map(int, done.stdout.split())
    assert pages == count
    assert size > 80_000_000
    assert peak < 300_000  # KiB: Python, pydantic and the parser are most of it
    assert peak - early < 30_000  # nothing gathers on the way


@pytest.mark.parametrize(
    ("markup", "text"),
    [
        ("Praha ([[Prag]], {{lang|la|Praga}}) je", "Praha (Prag) je"),
        ("Ada (born {{birth date|1815}}) was", "Ada (born) was"),
        ("Ada (born 1950–{{x}}) is", "Ada (born 1950–) is"),
        ("Ada (1950 – {{x}}) is", "Ada (1950) is"),
        ("outer (inner (a, {{x}}), {{y}}) end", "outer (inner (a)) end"),
        ("布拉格（Praha，{{x}}）是", "布拉格（Praha）是"),
        ("whole (a, b; c) and 1) that", "whole (a, b; c) and 1) that"),
    ],
)
def test_no_holes_stay_where_a_template_stood_in_brackets(markup: str, text: str) -> None:
    assert plain(markup, frozenset()) == text


def test_a_folder_without_a_dump_and_a_text_say_what_to_give(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    for path in (tmp_path, tmp_path / "a.txt"):
        with pytest.raises(DataError, match=r"give .*pages-articles\.xml\.bz2 from https://dumps") as caught:
            open_text(WikipediaData(path=path), hashes=FileHashes())
        assert "pattern," not in str(caught.value)
        assert "Fetch it again" not in str(caught.value)
