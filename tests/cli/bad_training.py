"""Cases of bad input to the training: texts, settings, runs. ``spoiling.py`` says what a case is."""

from __future__ import annotations

import gzip
import json
import os

from tests.cli.spoiling import (
    NEW,
    RECIPE,
    STEP,
    Case,
    append_text,
    both,
    delete,
    flip,
    no_bf16,
    other_run,
    truncate,
    write,
)

__all__ = ["RUNS", "SETTINGS", "TEXTS"]

TEXTS = [
    Case("text missing", f"{NEW} --data.path nowhere.txt", ("nowhere.txt", "--data.path"), mended=NEW),
    Case("text empty", f"{NEW} --data.path empty.txt", ("empty.txt is empty", "give"), write("empty.txt", b"")),
    Case("text binary", f"{NEW} --data.path b.txt", ("binary", "UTF-8"), write("b.txt", b"\x7fELF\0\0\1")),
    Case("text latin-1", f"{NEW} --data.path l.txt", ("not UTF-8 (byte 3)", "iconv"), write("l.txt", b"caf\xe9 noir")),
    Case("text too short to split", f"{NEW} --data.path s.txt", ("1 character", "more text"), write("s.txt", "x")),
    Case(
        "block longer than the data",
        f"{NEW} --model.block_size 5000",
        ("model.block_size = 5000", "smaller block size"),
        prepares=True,
        mended=NEW,
    ),
    Case(
        "streams longer than the data",
        f"{NEW} --data.order streams --train.batch_size 500",
        ("streams", "smaller batch"),
        prepares=True,
        mended=f"{NEW} --data.order streams",
    ),
    Case(
        "folder without matching files",
        f"{NEW} --data.path texts",
        ("no file below texts matches '**/*.txt'", "--data.pattern"),
        write("texts/readme.md", "words\n" * 99),
        mended=f"{NEW} --data.path texts --data.pattern '*.md'",
    ),
    Case(
        "folder of empty files",
        f"{NEW} --data.path texts",
        ("empty", "text in them"),
        write("texts/a.txt", b""),
    ),
    Case(
        "pattern that is absolute",
        f"{NEW} --data.path texts --data.pattern '/etc/*'",
        ("'/etc/*'", "--data.pattern"),
        write("texts/a.txt", "words\n"),
    ),
    Case(
        "gzip cut short",
        f"{NEW} --data.path text.txt.gz",
        ("text.txt.gz is cut short: at byte", "fetch it again"),
        write("text.txt.gz", gzip.compress(os.urandom(9999).hex().encode())[:5000]),
    ),
    Case(
        "a line that is no JSON",
        f"{NEW} --data.path t.jsonl",
        ("t.jsonl, line 2 (byte 14) is no JSON", "one object a line"),
        write("t.jsonl", '{"text": "a"}\n{"text"\n'),
    ),
    Case(
        "JSON without the field",
        f"{NEW} --data.path t.jsonl --data.field body",
        ("t.jsonl, line 1 (byte 0) has no field 'body', only text", "--data.field"),
        write("t.jsonl", json.dumps({"text": "the cat sat on a mat\n" * 9})),
        mended=f"{NEW} --data.path t.jsonl",
    ),
    Case(
        "text that is no dump",
        f"{NEW} --data.kind wikipedia --data.path text.txt",
        ("text.txt is no dump of a MediaWiki", "line 1"),
    ),
    Case(
        "a data set that was never fetched",
        f"{NEW} --data.kind tinystories",
        ("roneneldan/TinyStories must be fetched", "bonsai prepare tinystories --download", "--data.kind files"),
    ),
    Case(
        "gpt2 tokenizer without files",
        f"{NEW} --data.tokenizer.kind gpt2 --data.tokenizer.path texts",
        ("vocab.bpe", "--data.tokenizer.path"),
        write("texts/a.txt", "words\n"),
    ),
    Case(
        "gpt2 tokenizer of words",
        f"{NEW} --data.tokenizer.kind gpt2 --data.tokenizer.path words.json",
        ("words.json", "a list of words (WordLevel)"),
        write(
            "words.json",
            json.dumps({"version": "1.0", "model": {"type": "WordLevel", "vocab": {"ein Wort": 0}, "unk_token": "x"}}),
        ),
    ),
    Case(
        "tokenizer file missing",
        f"{NEW} --data.tokenizer.kind file --data.tokenizer.path nowhere.json",
        ("no tokenizer at nowhere.json", "tokenizer.json"),
        mended=f"{NEW} --data.tokenizer.kind file --data.tokenizer.path runs/tiny",
    ),
    Case(
        "gpt2 tokenizer of another vocabulary",
        f"{NEW} --data.tokenizer.kind gpt2 --data.tokenizer.path runs/tiny",
        ("not GPT-2's vocabulary", "--data.tokenizer.kind file"),
    ),
    Case(
        "vocabulary without room for special tokens",
        f"{NEW} --data.tokenizer.kind bpe --data.tokenizer.vocab_size 257 --data.tokenizer.special ['<|a|>']",
        ("vocab_size = 257", "at least 258"),
    ),
    Case(
        "special token that is a word",
        f"{NEW} --data.tokenizer.kind bpe --data.tokenizer.special ['the']",
        ("'the' could also be learned", "<|the|>"),
    ),
    Case(
        "Tiny Shakespeare missing",
        "train shakespeare-char",
        ("not at tinyshakespeare.txt", "bonsai prepare shakespeare --download"),
    ),
    Case(
        "not Tiny Shakespeare",
        "train shakespeare-char --data.path text.txt",
        ("text.txt is not Tiny Shakespeare", "--data.kind files --data.path text.txt"),
        mended="train shakespeare-char --data.kind files --data.path text.txt --train.steps 1",
    ),
    Case("prepare a toy", "prepare sort", ("nothing to prepare",)),
    Case("prepare without a path", "prepare files", ("data.path is missing", "--data.path")),
    Case(
        "prepare and download a file", "prepare files --data.path text.txt --download", ("--download", "leave it out")
    ),
    Case(
        "corpus truncated",
        NEW,
        ("train-000000.bin", "delete corpora"),
        truncate("corpora/*/train-000000.bin"),
    ),
    Case(
        "corpus with a flipped bit",
        NEW,
        ("train-000000.bin was changed", "delete corpora"),
        flip("corpora/*/train-*.bin"),
    ),
    Case("data verify nothing", "data verify nowhere", ("nowhere is neither a corpus", "bonsai prepare")),
    Case("data of no kind", "data look tiny", ("invalid choice: 'look'", "bonsai data --help")),
    Case("corpus without description", NEW, ("not a whole corpus", "delete"), truncate("corpora/*/corpus.json")),
    Case("corpus without tokenizer", NEW, ("tokenizer.json", "delete"), truncate("corpora/*/tokenizer.json")),
]

SETTINGS = [
    Case("unknown verb", "trian tiny.toml", ("no verb 'trian'", "Did you mean 'train'?"), mended=NEW),
    Case("misspelt flag", f"{NEW} --model.n_layers 2", ("--model.n_layers", "Did you mean --model.n_layer?")),
    Case("flag without its section", f"{NEW} --n_layer 2", ("--n_layer", "Did you mean --model.n_layer?")),
    Case("argument too many", f"{NEW} more", ("unexpected argument more", "bonsai train --help")),
    Case("flag without a value", f"{NEW} --train.steps", ("--train.steps", "expected one argument")),
    Case("section that is no JSON", f"{NEW} --model {{bad", ("--model", "--model.n_layer")),
    Case(
        "misspelt key in a recipe",
        "train mine.toml",
        ("unknown setting 'model.n_layerz' in recipe 'mine.toml'", "Did you mean 'model.n_layer'?"),
        write("mine.toml", RECIPE.replace("n_layer", "n_layerz")),
    ),
    Case(
        "two misspelt keys",
        "train mine.toml",
        ("'model.n_layerz'", "'model.n_embed'", "Did you mean 'model.n_embd'?"),
        write("mine.toml", RECIPE.replace("n_layer", "n_layerz").replace("n_embd", "n_embed")),
    ),
    Case("wrong type", f"{NEW} --model.n_layer two", ("model.n_layer = 'two'", "valid integer"), mended=NEW),
    Case("wrong type of a section", "train mine.toml", ("model = 3", "dictionary"), write("mine.toml", "model = 3")),
    Case("out of range", f"{NEW} --model.dropout 1.5", ("model.dropout", "less than 1")),
    Case("infinite", f"{NEW} --optim.lr inf", ("optim.lr", "finite")),
    Case(
        "width that heads do not divide",
        f"{NEW} --model.n_embd 15",
        ("model.n_embd = 15 is not divisible by model.n_head = 2", "14 or 16"),
        mended=f"{NEW} --model.n_embd 14",
    ),
    Case(
        "key/value heads that do not divide",
        f"{NEW} --model.n_head 4 --model.attention.n_kv_head 3",
        ("n_kv_head = 3", "use one of [1, 2, 4]"),
        mended=f"{NEW} --model.n_head 4 --model.attention.n_kv_head 2",
    ),
    Case(
        "rope with odd heads",
        f"{NEW} --model.n_embd 6 --model.position.kind rope",
        ("a head has 3", "even"),
        mended=f"{NEW} --model.n_embd 8 --model.position.kind rope",
    ),
    Case(
        "unknown kind of a union",
        f"{NEW} --model.mlp.kind swigl",
        ("model.mlp.kind = 'swigl'", "Did you mean 'swiglu'?"),
        mended=f"{NEW} --model.mlp.kind swiglu",
    ),
    Case(
        "vocabulary too small",
        f"{NEW} --model.vocab_size 5",
        ("model.vocab_size = 5 is smaller than the tokenizer's", "leave it out"),
        mended=f"{NEW} --model.vocab_size 64",
    ),
    Case(
        "a ramp of unequal lists",
        f"{NEW} --train.batch_ramp.kind staged --train.batch_ramp.sizes [2,4] --train.batch_ramp.until [5]",
        ("2 sizes and 1 ends", "one for each"),
        mended=f"{NEW} --train.batch_ramp.kind staged --train.batch_ramp.sizes [2,4] --train.batch_ramp.until [1,2]",
    ),
    Case("block too short to sort", "train sort --model.block_size 5", ("6 digits", "at least 11")),
    Case("unknown recipe", "train shakespear-char", ("'shakespear-char'", "Did you mean 'shakespeare-char'?")),
    Case("recipe file missing", "train nowhere.toml", ("nowhere.toml cannot be read", "Check the path")),
    Case("broken TOML", "train mine.toml", ("not valid TOML", "line 1"), write("mine.toml", "[model\nn_layer = 1")),
    Case("binary TOML", "train mine.toml", ("not valid TOML", "recipes show"), write("mine.toml", b"\xff\xfe\0")),
    Case(
        "recipe that extends itself",
        "train mine.toml",
        ("extends itself", "remove one 'extends'"),
        write("mine.toml", 'extends = "mine.toml"'),
    ),
    Case(
        "recipes that extend each other by other paths",
        "train ./a/mine.toml",
        ("mine.toml",),  # recipes/__init__.py compares unresolved paths: the message is long, though one line
        both(
            write("a/mine.toml", 'extends = "../b/mine.toml"'),
            write("b/mine.toml", 'extends = "../a/mine.toml"'),
        ),
    ),
    Case("extends no name", "train mine.toml", ("'extends'", "name of a recipe"), write("mine.toml", "extends = 3")),
    Case("recipes show nothing", "recipes show zero-on", ("'zero-on'", "Did you mean 'zero-one'?")),
    Case("recipes diff of one", "recipes diff zero-one", ("takes 2", "not 1")),
    Case("unknown device", f"{NEW} --train.device gpu", ("'gpu'", "use auto, cpu"), mended=NEW),
    Case("device that is not there", f"{NEW} --train.device cuda:99", ("cuda:99", "cpu or auto")),
    Case(
        "bf16 on a CPU without it",
        f"{NEW} --train.precision bf16",
        ("bf16", "Use fp32, or auto"),
        no_bf16(False),
        mended=f"{NEW} --train.precision fp32",
    ),
]

RUNS = [
    Case("dry run, misspelt", f"{NEW} --dry-rn", ("--dry-rn", "Did you mean --dry-run?"), mended=f"{NEW} --dry-run"),
    Case(
        "dry run of what cannot be",
        f"{NEW} --dry-run --model.block_size 5000",
        ("model.block_size = 5000", "smaller block size"),
        prepares=True,
        mended="train tiny --dry-run",  # a run that exists is no obstacle
    ),
    Case(
        "dry run of a finished run",
        "train tiny --resume --dry-run",
        ("has done all of its 4 steps", "--train.steps 8"),
        mended="train tiny --resume --dry-run --train.steps 8",
    ),
    Case(
        "dry run from damaged weights",
        f"{NEW} --dry-run --init tiny@4",
        (f"{STEP}/model.safetensors is damaged", "use another checkpoint"),
        flip(f"{STEP}/model.safetensors"),
        mended=f"{NEW} --dry-run --init tiny@2",
    ),
    Case("run exists", "train tiny.toml --name tiny", ("runs/tiny exists already", "--resume", "--name"), mended=NEW),
    Case("run trained again", "train runs/tiny", ("runs/tiny exists already", "--resume"), mended=f"{NEW} --seed 1"),
    Case("name of several folders", "train tiny.toml --name a/b", ("named 'a/b'", "one folder", "--name"), mended=NEW),
    Case("name with an @", "train tiny.toml --name a@3", ("named 'a@3'", "without @", "--name"), mended=NEW),
    Case("name too long", f"train tiny.toml --name {'n' * 300}", ("File name too long", "Check"), mended=NEW),
    Case("name empty", "train tiny.toml --name ''", ("named ''", "--name"), mended=NEW),
    Case("file in the way of runs", f"{NEW} --runs text.txt", ("text.txt", "Choose another folder"), mended=NEW),
    Case(
        "file in the way of corpora",
        f"{NEW} --corpora text.txt",
        ("text.txt", "Choose another folder"),
        mended=NEW,
    ),
    Case(
        "resume with another size",
        "train tiny --resume --train.steps 6 --model.n_embd 32",
        ("model.n_embd cannot change", "--init"),
        mended="train tiny --resume --train.steps 6",
    ),
    Case(
        "resume with another batch size",
        "train tiny --resume --train.steps 6 --train.batch_size 2",
        ("train.batch_size cannot change", "--init"),
        mended="train tiny --resume --train.steps 6",
    ),
    Case(
        "resume with other data",
        "train tiny --resume --train.steps 6",
        ("the data is not what this run was trained on", "restore the text"),
        append_text,
        prepares=True,
    ),
    Case(
        "resume with data of more characters",
        "train tiny --resume --train.steps 6",
        ("the data is not what this run was trained on", "restore the text"),
        write("text.txt", "THE QUICK BROWN FOX, and the lazy dog. " * 50),
        prepares=True,
    ),
    Case(
        "resume before the first checkpoint with other data",
        "train tiny --resume",
        ("the data is not what this run was trained on", "restore the text"),
        both(delete("runs/tiny/checkpoints"), append_text),
        prepares=True,
    ),
    Case(
        "resume of a finished run",
        "train tiny --resume",
        ("has done all of its 4 steps", "--train.steps 8"),
        delete("corpora"),  # refused before anything is prepared
        mended="train tiny --resume --train.steps 8",
    ),
    Case("resume of nothing", "train nothing --resume", ("nothing is none", "the folder of a run")),
    Case("resume of a misspelt run", "train runs/tinny --resume", ("no run at runs/tinny", "Did you mean 'tiny'?")),
    Case("resume of a recipe", "train tiny.toml --resume", ("tiny.toml is none", "the folder of a run")),
    Case(
        "resume of a foreign folder", "train foreign --resume", ("is not a run", "config.toml"), write("foreign/x", "")
    ),
    Case(
        "resume under another name",
        "train tiny --resume --name more",
        ("--resume goes on with a run as it is", "leave out"),
    ),
    Case(
        "resume without a tokenizer",
        "train tiny --resume --train.steps 6",
        ("runs/tiny/tokenizer.json", "restore it"),
        delete("runs/tiny/tokenizer.json"),
    ),
    Case(
        "resume with no whole checkpoint",
        "train tiny --resume --train.steps 6",
        ("no whole checkpoint", "model.safetensors", "manifest"),
        both(flip(f"{STEP}/model.safetensors"), delete("runs/tiny/checkpoints/step-000002/manifest.json")),
    ),
    Case(
        "init with another architecture",
        f"{NEW} --init tiny --model.n_embd 32",
        ("has shape (18, 16), the configuration says (18, 32)",),
        mended=f"{NEW} --init tiny",
    ),
    Case(
        "init with another tokenizer",
        f"{NEW} --init digits --model.vocab_size 12 --data.tokenizer.kind bytes",
        ("tokenizer",),
        other_run,
        prepares=True,
    ),
    Case(
        "init of nothing",
        f"{NEW} --init runs/tinny --data.tokenizer.kind bytes",  # refused before anything is prepared
        ("no run at runs/tinny", "Did you mean 'tiny'?"),
        mended=f"{NEW} --init runs/tiny@2",
    ),
]
