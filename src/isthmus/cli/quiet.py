"""Keeping libraries quiet in the command, whose output is its own lines and tables."""

from __future__ import annotations

import logging
import os
import sys
import warnings

_ENVIRONMENT = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TQDM_DISABLE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
}
_LOGGERS = ("accelerate", "huggingface_hub", "nncf", "onnx", "onnxscript", "openvino", "torch", "transformers")


def quieten() -> None:
    """Silence progress bars, advice and usage statistics of libraries; to be called before they are imported.

    What the user has set in the environment is left as it is.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    for name in _LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    if "transformers" in sys.modules:  # imported before, so that it did not see the environment
        from transformers.utils import logging as transformers_logging

        transformers_logging.disable_progress_bar()
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
