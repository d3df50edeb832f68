"""Download a model repository from the Hugging Face Hub, run by the Python of the vLLM environment.

    python hub.py REPOSITORY FOLDER

The Hub is huggingface_hub's own, or the one named by ``HF_ENDPOINT`` (a labkit mirror). Weights are compared
with the SHA-256 that the Hub gives. One line a file on stdout; the last line is the commit.
Exit status 1 when the Hub cannot be reached, has no such repository for us, or a file differs.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

from huggingface_hub import HfApi, hf_hub_download


def wanted(name: str) -> bool:
    """Whether vLLM needs this file: weights, configuration and tokenizer at the top level."""
    return "/" not in name and Path(name).suffix in (".safetensors", ".json", ".jinja", ".txt", ".model")


def download(repo: str, folder: Path) -> str:
    """Fill ``folder`` with one commit of ``repo``; returns the commit."""
    info = HfApi().model_info(repo, files_metadata=True, timeout=5)
    files = [file for file in info.siblings or [] if wanted(file.rfilename)]
    for number, file in enumerate(files, 1):
        print(f"file {number} of {len(files)}: {file.rfilename}, {file.size} bytes", flush=True)  # noqa: T201
        path = Path(hf_hub_download(repo, file.rfilename, revision=info.sha, local_dir=folder))
        if file.lfs is not None:
            with path.open("rb") as source:
                digest = hashlib.file_digest(source, "sha256").hexdigest()
            if digest != file.lfs.sha256:
                sys.exit(f"{file.rfilename}: SHA-256 {digest}, but the Hub says {file.lfs.sha256}")
    return str(info.sha)


if __name__ == "__main__":
    # labkit quotes the end of stderr: the reason, not the way there.
    sys.excepthook = lambda kind, error, _: print(f"{kind.__name__}: {error}", file=sys.stderr)  # noqa: T201
    print(download(sys.argv[1], Path(sys.argv[2])))  # noqa: T201
