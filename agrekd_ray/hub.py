"""The optional libraries of models and tokenizers, and the hub that they fetch files from."""

from __future__ import annotations

import importlib
from typing import Any

from agrekd_ray.errors import AgrekdError, first_line


def hub_library(name: str, extra: str) -> Any:
    """A library that fetches from the Hugging Face hub: timm, or transformers.

    What it and the hub's own library say on the screen meanwhile is switched off: warnings of heads
    that stay fresh, which is meant, bars of milliseconds, every try of a request. What came of a
    request is an error of ours.

    Args:
        name: of the library.
        extra: of this package, which installs it.

    Raises:
        AgrekdError: it is not installed.
    """
    try:
        library = importlib.import_module(name)
    except ImportError as error:
        raise AgrekdError(
            f"{error.name or name} is not installed; pip install 'agrekd_ray[{extra}]'"
        ) from None
    from huggingface_hub.utils import logging

    logging.set_verbosity_error()
    if name == "transformers":
        library.logging.set_verbosity_error()
        library.logging.disable_progress_bar()
    return library


def offline_errors() -> tuple[type[Exception], ...]:
    """What a library raises where a file is neither here nor to be had."""
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    return (LocalEntryNotFoundError, HfHubHTTPError, OSError)


def not_there(name: str, what: str, error: Exception, hint: str = "") -> AgrekdError:
    """For files of the Hugging Face hub that are neither cached nor to be downloaded."""
    return AgrekdError(
        f"{name}: no {what}, neither in the local cache nor to be downloaded "
        f"({first_line(error)}). Without a network, fetch the files on another machine (hf "
        f"download) and copy the cache (HF_HOME) here, or name a local file or folder.{hint}"
    )
