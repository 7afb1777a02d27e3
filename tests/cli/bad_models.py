"""Cases of bad input to whatever reads a model or studies one. ``spoiling.py`` says what a case is."""

from __future__ import annotations

from tests.cli.spoiling import (
    HF_CONFIG,
    NEW,
    STEP,
    Case,
    both,
    delete,
    flip,
    other_run,
    standard_input,
    truncate,
    write,
)

__all__ = ["CHECKPOINTS", "COMPRESSIONS", "FORECASTS", "PROMPTS", "STUDIES"]

CHECKPOINTS = [
    Case(
        "flipped bit in the weights",
        "sample tiny@4",
        (f"{STEP}/model.safetensors is damaged", "use another checkpoint"),
        flip(f"{STEP}/model.safetensors"),
        mended="sample tiny@2 --tokens 3",
    ),
    Case(
        "flipped bit in the optimizer",
        "sample tiny@4",
        (f"{STEP}/optimizer.safetensors is damaged", "use another checkpoint"),
        flip(f"{STEP}/optimizer.safetensors"),
        mended="train tiny --resume --train.steps 6",
    ),
    Case(
        "truncated weights",
        "sample tiny@4",
        ("model.safetensors is damaged", "use another checkpoint"),
        truncate(f"{STEP}/model.safetensors"),
        mended="sample tiny@2 --tokens 3",
    ),
    Case(
        "manifest missing",
        "sample tiny@4",
        (f"{STEP} is not a whole checkpoint", "use another one"),
        delete(f"{STEP}/manifest.json"),
        mended="sample tiny@last --tokens 3",
    ),
    Case(
        "manifest that is no manifest",
        "sample tiny@4",
        ("not a whole checkpoint",),
        write(f"{STEP}/manifest.json", "[]"),
    ),
    Case("weights missing", "sample tiny@4", ("model.safetensors is missing",), delete(f"{STEP}/model.safetensors")),
    Case("state damaged", "sample tiny@4", ("state.json is damaged",), flip(f"{STEP}/state.json")),
    Case("unknown step", "sample tiny@123", ("no checkpoint of step 123", "2, 4"), mended="sample tiny@2 --tokens 3"),
    Case("bad @name", "sample tiny@bset", ("'@bset' names no checkpoint", "@best, @last"), mended="sample tiny@best"),
    Case("@ and a digit of another kind", "sample tiny@²", ("'@²' names no checkpoint", "@best, @last")),
    Case("no checkpoint yet", "sample tiny", ("no checkpoint yet", "bonsai train"), delete("runs/tiny/checkpoints")),
    Case("tokenizer missing", "sample tiny", ("tokenizer.json", "restore it"), delete("runs/tiny/tokenizer.json")),
    Case("tokenizer damaged", "sample tiny", ("tokenizer.json", "restore it"), truncate("runs/tiny/tokenizer.json")),
    Case(
        "tokenizer of another run",
        "sample tiny",
        ("257 tokens", "restore it"),
        write("runs/tiny/tokenizer.json", '{"kind": "bytes"}'),
    ),
    Case("configuration damaged", "sample tiny", ("config.toml", "TOML"), write("runs/tiny/config.toml", "[model")),
    Case(
        "configuration changed by hand",
        "sample tiny",
        ("shape (18, 16)", "says (18, 32)"),
        lambda root: write(
            "runs/tiny/config.toml", (root / "runs/tiny/config.toml").read_text().replace("n_embd = 16", "n_embd = 32")
        )(root),
    ),
    Case(
        "run missing", "sample runs/tinny", ("no run at runs/tinny", "Did you mean 'tiny'?"), mended="sample runs/tiny"
    ),
    Case("foreign folder", "sample foreign", ("foreign is not a run", "config.toml"), write("foreign/notes.txt", "x")),
    Case("file in place of a run", "sample text.txt", ("no run at text.txt",)),
    Case(
        "pickle of Hugging Face",
        "sample hf",
        ("no model.safetensors", "never loaded", "safe_serialization=True"),
        both(write("hf/config.json", HF_CONFIG), write("hf/pytorch_model.bin", b"\x80\x02}q\0.")),
    ),
    Case(
        "pickle alone",
        "sample pt",
        ("pt is not a run",),
        write("pt/ckpt.pt", b"\x80\x02}q\0."),
    ),
    Case(
        "another family of Hugging Face",
        "sample hf",
        ("'bert'", "gpt2", "llama"),
        both(
            write("hf/config.json", '{"model_type": "bert"}'), write("hf/model.safetensors", b"\2" + b"\0" * 7 + b"{}")
        ),
    ),
    Case(
        "truncated safetensors of Hugging Face",
        "sample hf",
        ("hf/model.safetensors is damaged",),
        both(write("hf/config.json", HF_CONFIG), write("hf/model.safetensors", b"\xff\0\0\0\0\0\0\0{")),
    ),
    Case("compare of a missing run", "compare tiny tinny", ("no run at runs/tinny", "Did you mean 'tiny'?")),
    Case("report of a missing run", "report runs/tinny", ("no run at runs/tinny", "Did you mean 'tiny'?")),
    Case("eval of a missing text", "eval tiny --text nowhere.txt", ("nowhere.txt cannot be read", "Check the path")),
    Case("eval of an empty text", "eval tiny --text e.txt", ("e.txt is empty",), write("e.txt", "")),
    Case("eval of one token", "eval tiny --text e.txt", ("1 token:", "at least two"), write("e.txt", "a")),
    Case("eval of unknown characters", "eval tiny --text e.txt", ("'é'", "closest"), write("e.txt", "the é")),
    Case(
        "eval of lost data",
        "eval tiny",
        ("text.txt does not exist", "--data.path"),
        delete("text.txt"),
    ),
]

PROMPTS = [
    Case(
        "unknown character",
        "sample tiny --prompt 'the Cat'",
        ("'C' (LATIN CAPITAL LETTER C) at position 4", "closest it knows: 'c'"),
        mended="sample tiny --prompt 'the cat' --tokens 3",
    ),
    Case("empty prompt", "sample tiny --prompt ''", ("the prompt from --prompt is empty", "at least one character")),
    Case("prompt file missing", "sample tiny --prompt @nowhere", ("prompt file nowhere", "No such file")),
    Case("prompt file empty", "sample tiny --prompt @p", ("the prompt from p is empty",), write("p", "")),
    Case("prompt file that is no UTF-8", "sample tiny --prompt @p", ("p is not UTF-8",), write("p", b"caf\xe9")),
    Case("prompt that is a folder", "sample tiny --prompt @runs", ("runs cannot be read",)),
    Case(
        "standard input that is no UTF-8",
        "sample tiny --prompt -",
        ("standard input is not UTF-8",),
        standard_input(b"\xe9"),
    ),
    Case("standard input that is empty", "sample tiny --prompt -", ("standard input is empty",), standard_input(b"")),
    Case("flag that is no UTF-8", "sample tiny --prompt 'the \udce9'", ("--prompt is not UTF-8",)),
    Case(
        "prompt longer than the block",
        "sample tiny --prompt 'the cat sat on a mat' --overflow error",
        ("do not fit the model's block of 8", "--overflow slide"),
        mended="sample tiny --prompt 'the cat sat on a mat' --tokens 3",
    ),
    Case("unknown overflow", "sample tiny --overflow stop", ("--overflow", "slide")),
    Case(
        "slide of nothing", "sample tiny --slide 0", ("slide = 0", "1 to 8"), mended="sample tiny --slide 1 --tokens 9"
    ),
    Case("temperature below 0", "sample tiny --temperature -1", ("--temperature -1.0", "use 0")),
    Case("temperature that is no number", "sample tiny --temperature nan", ("--temperature nan", "use 0")),
    Case("temperature in words", "sample tiny --temperature hot", ("--temperature", "'hot'")),
    Case("top-k 0", "sample tiny --top-k 0", ("--top-k 0", "use 1 or more")),
    Case("top-p 2", "sample tiny --top-p 2", ("--top-p 2.0", "at most 1")),
    Case("samples 0", "sample tiny --samples 0", ("--samples 0", "1 or more")),
    Case("tokens below 0", "sample tiny --tokens -5", ("-5 new tokens", "0 or more"), mended="sample tiny --tokens 0"),
    Case("threads below 0", "sample tiny --threads -1", ("--threads", "-1", "0 or more")),
    Case("min-p 0", "sample tiny --min-p 0", ("--min-p 0.0", "more than 0")),
    Case("typical-p 2", "sample tiny --typical-p 2", ("--typical-p 2.0", "at most 1")),
    Case("repetition penalty 0", "sample tiny --repetition-penalty 0", ("--repetition-penalty 0.0", "more than 0")),
    Case("penalty without end", "sample tiny --presence-penalty inf", ("--presence-penalty inf", "finite")),
    Case("bias of nothing", "sample tiny --logit-bias 3", ("--logit-bias 3", "ID=NATS", "13=-100")),
    Case(
        "bias of a foreign token",
        "sample tiny --logit-bias 99=1",
        ("no token 99", "0 to 17"),
        mended="sample tiny --logit-bias 9=1 --tokens 3",
    ),
    Case("empty stop string", "sample tiny --stop ''", ("empty stop string", "leave it out")),
    Case(
        "stop at an end that is none",
        "sample tiny --stop-token end",
        ("no token for the end of a text", "--stop TEXT"),
        mended="sample tiny --stop e --tokens 5",
    ),
    Case("stop at a foreign token", "sample tiny --stop-token 18", ("--stop-token 18", "0 to 17")),
    Case(
        "log-probabilities without a form",
        "sample tiny --logprobs 2",
        ("--logprobs", "--json"),
        mended="sample tiny --logprobs 2 --json --tokens 3",
    ),
    Case("fewer than no log-probabilities", "sample tiny --json --logprobs -1", ("ask for 0 or more",)),
    Case("best of none", "sample tiny --best-of 0", ("--best-of 0", "1 or more")),
    Case("best of several samples", "sample tiny --best-of 3 --samples 2", ("--best-of and --samples", "one text")),
    Case("best of equals", "sample tiny --best-of 3 --temperature 0", ("without chance",)),
    Case("beams 0", "sample tiny --beams 0", ("--beams 0", "1 or more")),
    Case(
        "beams with chance",
        "sample tiny --beams 2 --temperature 0.5",
        ("--beams and --temperature", "likeliest text"),
        mended="sample tiny --beams 2 --length-penalty 0.6 --tokens 5",
    ),
    Case("beams with a draft", "sample tiny --beams 2 --lookup 2", ("--beams and --lookup",)),
    Case("length penalty without beams", "sample tiny --length-penalty 1", ("--beams 4",)),
    Case("two drafts", "sample tiny --draft tiny --lookup 3", ("--draft and --lookup", "choose one")),
    Case(
        "guesses of nobody",
        "sample tiny --guesses 3",
        ("--guesses", "--lookup 3"),
        mended="sample tiny --guesses 3 --lookup 2 --tokens 9",
    ),
    Case("no guess", "sample tiny --lookup 2 --guesses 0", ("0 guesses", "1 or more")),
    Case("look-up of nothing", "sample tiny --lookup 0", ("last 0 tokens", "1 or more")),
    Case(
        "draft with another tokenizer",
        "sample tiny --draft digits",
        ("runs/digits@", "another tokenizer", "the same one"),
        other_run,
        mended="sample tiny --draft tiny@2 --tokens 9",
    ),
    Case("draft that is not there", "sample tiny --draft tinny", ("no run at runs/tinny", "Did you mean 'tiny'?")),
    Case("two patterns", "sample tiny --pattern a --json-schema s.json", ("--pattern and --json-schema", "choose one")),
    Case("schema missing", "sample tiny --json-schema nowhere.json", ("nowhere.json cannot be read", "Check the path")),
    Case("schema in latin-1", "sample tiny --json-schema s", ("s is not UTF-8", "iconv"), write("s", b"\xe9")),
    Case("chat in letters that the model lacks", "chat tiny", ("roles cannot be written", "'U'", "Choose others")),
    Case("chat without a role", "chat tiny --user '' --end ''", ("needs a role for the user",)),
    Case("chat of no tokens", "chat tiny --tokens 0", ("no room for an answer", "1 or more")),
    Case("unknown device of a sample", "sample tiny --device gpu", ("'gpu'", "use auto, cpu")),
    Case("no model at all", "sample", ("required: model", "bonsai sample --help")),
]

STUDIES = [
    Case("study of nothing", "study lrr tiny.toml", ("invalid choice: 'lrr'", "bonsai study --help")),
    Case(
        "learning rate of two",
        "study lr tiny.toml --multiples 1,2",
        ("'1,2' is not three different positive factors", "e.g. 0.5,1,2"),
    ),
    Case(
        "trials longer than the training",
        "study lr tiny.toml --steps 5",
        ("--steps 5 is more than the recipe's own 4", "use fewer", "--train.steps"),
    ),
    Case(
        "learning rate of a misspelt recipe",
        "study lr tinny.toml",
        ("tinny.toml cannot be read", "Check the path"),
    ),
    Case("study in the place of a run", "study lr tiny.toml --name tiny", ("no sweep", "--name")),
    Case("text of a study missing", "study lr tiny.toml --data.path nowhere.txt", ("nowhere.txt", "--data.path")),
]

# Before a run, `train --dry-run` and `profile` refuse what the training would.
_ALIKE = [
    ("misspelt recipe", "my-txt", ("'my-txt'", "Did you mean 'my-text'?")),
    ("missing text", "tiny.toml --data.path nowhere.txt", ("nowhere.txt", "--data.path")),
    ("width that heads do not divide", "tiny.toml --model.n_embd 15", ("not divisible", "14 or 16")),
    ("missing run", "runs/nobody", ("there is no run at runs/nobody",)),
    ("name of several folders", "tiny.toml --name a/b", ("named 'a/b'", "one folder", "--name")),
]

FORECASTS = [
    *(Case(f"dry run, {name}", f"train {words} --dry-run", says) for name, words, says in _ALIKE),
    *(Case(f"profile, {name}", f"profile {words}", says) for name, words, says in _ALIKE),
    Case("dry run, resume of a recipe", "train tiny.toml --dry-run --resume", ("--resume needs the folder of a run",)),
    Case("dry run, init of nothing", f"{NEW} --dry-run --init runs/tinny", ("no run at", "Did you mean 'tiny'?")),
    Case("profile of no step", "profile tiny.toml --steps 0", ("--steps", "use 1 or more")),
    Case("profile of many operators", "profile tiny.toml --top many", ("--top", "use 1 or more")),
    Case("profile before the first step", "profile tiny.toml --at -1", ("--at",)),
    Case("profile, misspelt flag", "profile tiny.toml --stps 3", ("--stps", "Did you mean --steps?")),
]

_PLAN = '[structure]\n"*.c_fc.weight" = {kind = "lowrank", rank = %s}\n'

COMPRESSIONS = [
    Case("compress a missing run", "compress tinny", ("no run at runs/tinny", "Did you mean 'tiny'?")),
    Case("compress into an existing run", "compress tiny --name tiny", ("runs/tiny exists already", "--name")),
    Case("unknown structure", "compress tiny --structure kronekcer", ("'kronekcer'", "Did you mean 'kronecker'?")),
    Case("narrow and another", "compress tiny --structure narrow,lowrank", ("'narrow' takes whole MLPs", "alone")),
    Case("target of nothing", "compress tiny --target-params 0", ("'0' is no target", "0.5")),
    Case("target above the model", "compress tiny --target-params 99999999", ("no smaller", "lower target")),
    Case("target below the rest", "compress tiny --target-params 9", ("9 values are less than", "--layers")),
    Case("target twice", "compress tiny --target-params 0.5 --max-loss 0.1", ("not allowed with",)),
    Case("size that is none", "compress tiny --target-bytes 3MB", ("'3MB' is no size", "1.5M")),
    Case(
        "loss that is none",
        "compress tiny --max-loss -1",
        ("'-1' is no loss", "0.02"),
    ),
    Case("layers that are none", "compress tiny --layers '*.mpl.*'", ("'*.mpl.*' matches no weight", "'*.mlp.*'")),
    Case("distil without healing", "compress tiny --distill", ("--distill is a way to heal", "--heal STEPS")),
    Case(
        "plan with a key too many",
        "compress tiny --plan p.toml",
        ("p.toml", "'strucure'", "Did you mean 'structure'?"),
        write("p.toml", "[strucure]\n"),
    ),
    Case(
        "plan of a rank too high",
        "compress tiny --plan p.toml",
        ("rank = 99", "at most"),
        write("p.toml", _PLAN % 99),
        mended="compress tiny --layers '*.mlp.*' --structure lowrank --calibrate 100 --name other",
    ),
    Case(
        "plan of nothing", "compress tiny --plan p.toml", ("nothing of any weight", "[structure]"), write("p.toml", "")
    ),
    Case(
        "plan and target",
        "compress tiny --plan p.toml --target-params 0.5",
        ("p.toml is a plan already", "one of both"),
        write("p.toml", _PLAN % 2),
    ),
    Case(
        "plan with an unknown init",
        "compress tiny --plan p.toml",
        ("init = 'randm'", "Did you mean 'random'?"),
        write("p.toml", 'init = "randm"\n' + _PLAN % 2),
    ),
    Case(
        "setting of the healing misspelt",
        "compress tiny --heal 5 --optim.lrr 1",
        ("--optim.lrr", "--optim.lr"),
    ),
    Case(
        "teacher that is not there",
        "train tiny.toml --name x --optim.distill.kind logits --optim.distill.teacher runs/nobody",
        ("no run at runs/nobody",),
        prepares=True,
    ),
    Case(
        "teacher of another tokenizer",
        "train tiny.toml --name x --optim.distill.kind logits --optim.distill.teacher runs/digits",
        ("another tokenizer", "--optim.distill.teacher"),
        other_run,
    ),
    Case(
        "teacher of another depth to be followed",
        "train tiny.toml --name x --model.n_layer 2 --optim.distill.kind logits --optim.distill.teacher runs/tiny "
        "--optim.distill.hidden 0.1",
        ("1 of width 16", "set it to 0"),
    ),
]
