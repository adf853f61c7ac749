"""What the optional libraries share: a missing extra, and a hub that cannot be reached."""

from __future__ import annotations

from agrekd_ray.errors import AgrekdError
from agrekd_ray.models.classifier import first_line


def missing_extra(extra: str, error: ImportError) -> AgrekdError:
    """For a library that is not installed."""
    return AgrekdError(f"{error.name or extra} is not installed; pip install 'agrekd_ray[{extra}]'")


def offline_errors() -> tuple[type[Exception], ...]:
    """What a library raises where a file is neither here nor to be had."""
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    return (LocalEntryNotFoundError, HfHubHTTPError, OSError)


def quiet_hub() -> None:
    """Its library reports every try of a request; what came of it is an error of ours."""
    from huggingface_hub.utils import logging

    logging.set_verbosity_error()


def not_there(name: str, what: str, error: Exception, hint: str = "") -> AgrekdError:
    """For files of the Hugging Face hub that are neither cached nor to be downloaded."""
    return AgrekdError(
        f"{name}: no {what}, neither in the local cache nor to be downloaded "
        f"({first_line(error)}). Without a network, fetch the files on another machine (hf "
        f"download) and copy the cache (HF_HOME) here, or name a local file or folder.{hint}"
    )
