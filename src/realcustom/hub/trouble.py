"""What can go wrong between here and the hub, told apart in sentences one can act on."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager


class NeedsOption(ValueError):
    """Something is missing that an option can give.

    The sentence names the option as Python's keyword argument; `spoken` puts it in the command line's words.
    """

    def __init__(self, sentence: str, option: str, value: str = "FOLDER"):
        """
        Args:
            sentence: with {option} in the place where the option is named.
            option: the keyword argument's name.
            value: what is to be put there.
        """
        super().__init__(sentence.format(option=f"{option}={value}"))
        self.spoken = sentence.format(option=f"--{option.replace('_', '-')} {value}")

    def __reduce__(self):
        return _said, (str(self), self.spoken)


def _said(python: str, spoken: str) -> NeedsOption:
    error = NeedsOption("", "")
    error.args, error.spoken = (python,), spoken
    return error


@contextmanager
def told_apart(repo: str, revision: str | None = None) -> Iterator[None]:
    """Errors of huggingface_hub inside the block become ValueErrors: offline switch set, hub unreachable, no such
    repository, gated, private or a refused token, no such revision or file, disk full."""
    from huggingface_hub import constants, errors

    try:
        yield
    except errors.OfflineModeIsEnabled as error:
        raise ValueError(offline_sentence(repo)) from error
    except errors.GatedRepoError as error:
        raise ValueError(
            f'The repository "{repo}" is gated: accept its terms at {constants.ENDPOINT}/{repo}, then give your token '
            "(HF_TOKEN=..., or hf auth login)."
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise ValueError(_not_found(repo, error)) from error
    except errors.RevisionNotFoundError as error:
        raise ValueError(f'The repository "{repo}" has no revision "{revision}".') from error
    except errors.LocalEntryNotFoundError as error:
        raise ValueError(unreachable_sentence(repo)) from error
    except errors.EntryNotFoundError as error:
        raise ValueError(f'A file is missing in the repository "{repo}": {_first_line(error)}') from error
    except errors.HFValidationError as error:
        raise ValueError(f'"{repo}" is no hub id (owner/name).') from error
    except errors.HfHubHTTPError as error:
        raise ValueError(_refused(repo, error)) from error
    except OSError as error:
        raise ValueError(_system(repo, error)) from error
    except Exception as error:
        if not _is_connection(error):
            raise
        raise ValueError(unreachable_sentence(repo)) from error


def offline_sentence(repo: str) -> str:
    """The switch is set and the cache does not have it."""
    return (
        f'"{repo}" is not here completely, and the switch HF_HUB_OFFLINE is set, so it cannot be fetched: unset it '
        "(HF_HUB_OFFLINE=0), or fetch it where there is a network."
    )


def local_sentence(repo: str) -> str:
    """The caller forbade asking, and the cache does not have it."""
    return f'"{repo}" is not here completely, and local_files_only=True forbids to fetch it: leave it out once.'


def unreachable_sentence(repo: str) -> str:
    """There is no answer, and the cache does not have it."""
    from huggingface_hub import constants

    return (
        f'The hub at {constants.ENDPOINT} cannot be reached, and "{repo}" is not here completely: check the network, '
        "the proxy and HF_ENDPOINT; what was fetched so far is kept."
    )


def is_unreachable(error: Exception) -> bool:
    """Whether the hub gave no answer at all, or only that it cannot answer now."""
    from huggingface_hub import errors

    response = getattr(error, "response", None)
    if isinstance(error, errors.HfHubHTTPError):
        return response is not None and response.status_code in (500, 502, 503, 504)
    return _is_connection(error)


def _is_connection(error: Exception) -> bool:
    # The http library's own classes, whose package differs between versions of huggingface_hub.
    names = {kind.__name__ for kind in type(error).__mro__}
    return bool(names & {"TransportError", "ConnectionError", "TimeoutError", "RequestException"})


def _not_found(repo: str, error: Exception) -> str:
    response = getattr(error, "response", None)
    if response is not None and response.status_code == 401:
        return (
            f'There is no repository "{repo}" on the hub, or it is private: then give a token that may read it '
            "(HF_TOKEN=..., or hf auth login)."
        )
    return f'There is no repository "{repo}" on the hub; with your token it is not to be seen either, if it is private.'


def _refused(repo: str, error: Exception) -> str:
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status == 401:
        return f'The hub refuses your token for "{repo}": it is wrong or has run out (HF_TOKEN, or hf auth login).'
    if status == 403:
        return f'Your token may not read the repository "{repo}": its rights do not reach that far.'
    if status in (500, 502, 503, 504):
        return unreachable_sentence(repo)
    return f'The hub does not give "{repo}": {_first_line(error)}'


def _system(repo: str, error: OSError) -> str:
    if error.errno == errno.ENOSPC:
        return f'The disk is full, so "{repo}" could not be stored: free some of it, or set HF_HOME to another one.'
    if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
        return f'"{repo}" cannot be stored: no permission to write {error.filename}; set HF_HOME to another folder.'
    if _is_connection(error):
        return unreachable_sentence(repo)
    return f'"{repo}" cannot be fetched: {_first_line(error)}'


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".") + "."
