"""Artifacts on the Hugging Face Hub: `hf:USER/NAME`, or `hf:USER/NAME@REVISION`.

Only an artifact's own files are fetched, into the local cache of `huggingface_hub`. Other files of a repository, such as
pickles, are not. Tokens, proxies, the location of the cache and offline mode are those of `huggingface_hub`.
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
    """Whether this names a repository on the Hub instead of a folder."""
    return isinstance(folder, str | os.PathLike) and str(os.fspath(folder)).startswith(PREFIX)


def fetched(folder: StrPath, files: Sequence[str], check: Callable[[Path], None]) -> Path:
    """Return the local folder with these files of a repository, which are downloaded unless they are in the cache. The revision
    of a name is looked up once per process.

    check: called with the first file before the others are fetched. It raises ArtifactError if the file is not Secateurs'.

    Raises ArtifactError for an invalid name, for a repository or revision that does not exist or may not be read, for a
    repository without these files, and for one that is not in the cache if the Hub cannot be reached.
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
    commit = first.parent.name  # …/snapshots/COMMIT/card.json: the other files must be from the same commit
    for file in files[1:]:
        _file(name, repository, commit, file)
    return first.parent


def _file(name: str, repository: str, revision: str | None, file: str) -> Path:
    """Return the path in the cache of a file of a repository, which is downloaded if necessary."""
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
    except (OSError, ValueError, RuntimeError) as error:  # from the network, the disk or the Hub
        raise ArtifactError(f"{file} of {name} could not be fetched: {shown(str(error))[:300]}") from error


def _check_reachable(name: str, file: str, url: str) -> None:
    """Raise ArtifactError at once if the Hub does not answer. A download would be retried for half a minute."""
    from huggingface_hub import errors, get_hf_file_metadata

    try:
        get_hf_file_metadata(url)
    except errors.HfHubHTTPError:  # the Hub answers; the download handles the error
        return
    except Exception as error:  # from whatever library sends its requests
        raise _unreachable(name, file) from error


def _unreachable(name: str, file: str) -> ArtifactError:
    return ArtifactError(
        f"{file} of {name} is not in the local cache, and the hub cannot be reached (or HF_HUB_OFFLINE is set)."
    )
