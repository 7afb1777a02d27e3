"""Source `shakespeare`: the 1.1 MB of Tiny Shakespeare (Karpathy, char-rnn). Fetched only when asked to."""

from __future__ import annotations

import hashlib
import http.client
import shlex
import urllib.error
import urllib.request
from pathlib import Path

from bonsaigpt.config import ShakespeareData
from bonsaigpt.data.corpora.document import read_document, whole
from bonsaigpt.data.corpora.files import find, over_files
from bonsaigpt.data.corpora.source import Source
from bonsaigpt.data.hashes import FileHashes
from bonsaigpt.errors import DataError
from bonsaigpt.files import write_text
from bonsaigpt.progress import Advance

__all__ = ["SHA256", "URL", "fetch", "open_shakespeare"]

URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
LOCAL = Path("tinyshakespeare.txt")


def open_shakespeare(config: ShakespeareData, *, hashes: FileHashes, download: bool, advance: Advance) -> Source:
    """The text, from ``--data.path`` or from what ``fetch`` left in the working folder."""
    path = config.path or LOCAL
    if download and config.path is None:
        advance("fetching Tiny Shakespeare", 0, 0)
        fetch()
    if not path.exists():
        raise DataError(
            f"Tiny Shakespeare is not at {path}. Fetch it once with `bonsai prepare shakespeare --download`, "
            "or give a copy of it with --data.path FILE; without a network, recipe `stdlib` trains on text that is "
            "already here, and --data.kind files --data.path FILE on your own."
        )
    if path.is_dir() or hashlib.sha256(read_document(path).text.encode()).hexdigest() != SHA256:
        raise DataError(
            f"{path} is not Tiny Shakespeare (its SHA-256 differs): for text of your own give "
            f"--data.kind files --data.path {shlex.quote(str(path))}; "
            "`bonsai prepare shakespeare --download` fetches Tiny Shakespeare."
        )
    found = find(path, "")
    return over_files(str(path), found, [whole], settings="files", hashes=hashes, advance=advance)


def fetch(target: Path = LOCAL, *, url: str = URL, timeout: float = 30.0) -> Path:
    """Fetch the text once, check its hash, and only then give it its name. ``timeout`` is in seconds."""
    if target.exists() and hashlib.sha256(target.read_bytes()).hexdigest() == SHA256:
        return target
    try:
        with urllib.request.urlopen(url, timeout=timeout) as response:
            body = response.read()
    except (urllib.error.URLError, http.client.HTTPException, OSError, ValueError) as error:
        raise DataError(
            f"{url} could not be fetched ({error}). Without a network give the file with --data.path, "
            "or use recipe `stdlib`, which needs none."
        ) from None
    if hashlib.sha256(body).hexdigest() != SHA256:
        raise DataError(f"what {url} sent is not Tiny Shakespeare (its SHA-256 differs): try again later.")
    write_text(target, body.decode("utf-8"))
    return target
