"""Artifacts on the Hugging Face Hub: `hf:USER/NAME`, or `hf:USER/NAME@REVISION`.

Only an artifact's own files are fetched, into the local cache of `huggingface_hub`; nothing else that a repository holds, so no
pickle. Tokens, proxies, the place of the cache and offline mode are those of `huggingface_hub`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from secateurs.errors import ArtifactError
from secateurs.files import StrPath, shown

PREFIX = "hf:"
_name = re.compile(r"([\w.-]+/[\w.-]+)(?:@([\w./-]+))?", re.ASCII)


def on_hub(folder: Any) -> bool:
    """Whether this names a repository on the hub, rather than a folder."""
    return isinstance(folder, str | os.PathLike) and str(os.fspath(folder)).startswith(PREFIX)


def fetched(folder: StrPath, files: Sequence[str], check: Callable[[Path], None]) -> Path:
    """The local folder with these files of a repository: from the cache, or downloaded first. The revision that a name stands
    for is looked up once in a process.

    check: called with the first file before the others are fetched; it raises ArtifactError for what is none of ours.

    Raises ArtifactError for a name that is not valid, a repository or revision that does not exist or must not be read, one
    without these files, and one that is not in the cache where the hub cannot be reached.
    """
    name = os.fspath(folder).replace(os.sep, "/")
    found = _name.fullmatch(name.removeprefix(PREFIX))
    if found is None:
        raise ArtifactError(f"{shown(name)} is not a valid name: write hf:USER/NAME, or hf:USER/NAME@REVISION.")
    return _fetched(name, found[1], found[2], tuple(files), check)


@cache
def _fetched(
    name: str, repository: str, revision: str | None, files: tuple[str, ...], check: Callable[[Path], None]
) -> Path:
    first = _file(name, repository, revision, files[0])
    try:
        check(first)
    except ArtifactError as error:
        raise ArtifactError(f"{name} is not a Secateurs artifact: {error}") from error
    commit = first.parent.name  # …/snapshots/COMMIT/card.json: the others are of the same commit
    for file in files[1:]:
        _file(name, repository, commit, file)
    return first.parent


def _file(name: str, repository: str, revision: str | None, file: str) -> Path:
    """A file of a repository, in the cache."""
    try:
        from huggingface_hub import constants, errors, hf_hub_download, hf_hub_url, try_to_load_from_cache
    except ImportError as error:
        raise ArtifactError(
            f"{name} needs huggingface_hub, which is not installed. Run: pip install 'secateurs[hub]'"
        ) from error
    try:
        if not constants.HF_HUB_OFFLINE and try_to_load_from_cache(repository, file, revision=revision) is None:
            _check_reachable(name, file, hf_hub_url(repository, file, revision=revision))
        return Path(hf_hub_download(repository, file, revision=revision))
    except errors.HFValidationError as error:
        raise ArtifactError(f"{name} is not a valid name: {shown(str(error))}") from error
    except errors.GatedRepoError as error:
        raise ArtifactError(f"{name} is gated: ask for access on its page, and log in with `hf auth login`.") from error
    except errors.RepositoryNotFoundError as error:
        raise ArtifactError(
            f"There is no repository {repository} on the hub that you may read. If it is private, log in with `hf auth login`."
        ) from error
    except errors.RevisionNotFoundError as error:
        raise ArtifactError(f"{repository} has no revision {revision}: give a branch, a tag or a commit.") from error
    except errors.LocalEntryNotFoundError as error:
        raise _unreachable(name, file) from error
    except errors.EntryNotFoundError as error:
        raise ArtifactError(f"{name} is not a Secateurs artifact: it has no {file}.") from error
    except (OSError, ValueError, RuntimeError) as error:  # of the network, the disk or the hub
        raise ArtifactError(f"{file} of {name} could not be fetched: {shown(str(error))[:300]}") from error


def _check_reachable(name: str, file: str, url: str) -> None:
    """Raise ArtifactError at once if the hub does not answer: a download would be tried several times, for half a minute."""
    from huggingface_hub import errors, get_hf_file_metadata

    try:
        get_hf_file_metadata(url)
    except errors.HfHubHTTPError:  # it answers; what it says is for the download
        return
    except Exception as error:  # of whatever library sends its requests
        raise _unreachable(name, file) from error


def _unreachable(name: str, file: str) -> ArtifactError:
    return ArtifactError(
        f"{file} of {name} is not in the local cache, and the hub cannot be reached (or HF_HUB_OFFLINE is set)."
    )
