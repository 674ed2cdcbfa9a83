"""pydicom, kept silent: its warnings and log lines quote values, which may be names of patients."""

from __future__ import annotations

import logging
import warnings
from functools import cache
from typing import Any

from maskloom.segcore.errors import NotInstalled


@cache
def pydicom() -> Any:
    """The library. Raises `NotInstalled` if it is not installed."""
    try:
        import pydicom as library
        import pydicom.config
        import pydicom.encaps
        import pydicom.pixels
    except ImportError:
        raise NotInstalled(
            "DICOM files need the extra 'medical': pip install 'maskloom[medical]'."
        ) from None
    # For the whole process: a filter for a while would race with other threads.
    warnings.filterwarnings("ignore", category=UserWarning, module="(pydicom|highdicom)")
    logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)
    # Values that break the standard are judged by us.
    library.config.settings.reading_validation_mode = library.config.IGNORE
    return library
