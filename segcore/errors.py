"""The hierarchy of all errors.

MaskloomError
├── RecipeError            wrong usage or recipe; nothing was started              (exit code 2)
│   └── WeightsError       a file of weights or its card is missing, broken or hostile, or belongs
│                          to another network
├── RunError               the run cannot continue; the same command resumes it    (exit code 1)
│   ├── FitError           no model can be fitted to these images
│   │   └── NothingToFit   the images have no valid pixel, so nothing can be classified either
│   ├── StoreError         a store failed to list, read or write
│   ├── DamagedRecord      a record or table of the output cannot be read back
│   ├── TooManyFailures    more images failed than `max_failed_fraction` allows
│   └── Stopped            the run was asked to stop
└── ImageError             one image cannot be processed; it becomes a failed row  (exit code 3)
    ├── FormatError        the file does not match its name or header, or exceeds our limits
    │   ├── NotInstalled   a package that reads the file is not installed; the next run tries again
    │   └── Incomplete     a file that belongs to this one is missing; the next run tries again
    ├── ReadError          the header can be read, the pixels cannot
    ├── ModelMismatch      the image does not suit the segmenter (bands, dtype)
    ├── Missing            a file that the inputs name does not exist
    ├── Unavailable        a store or the memory failed this image; the next run tries again
    ├── SourceChanged      the file has changed since it was planned; the next run takes the new
    │                      version
    └── WorkerDied         a process died while it worked on this image alone
        ├── TimedOut       a step of the work exceeded its time limit
        └── OutOfMemory    the image needs more memory than a worker has

Each message says what was expected, what was found, where, and what to do.
"""

from __future__ import annotations


class MaskloomError(Exception):
    """Base of every error that maskloom raises on purpose."""


class RecipeError(MaskloomError, ValueError):
    """The recipe or the command line is wrong; found before any work starts."""


class WeightsError(RecipeError):
    """A file of weights, or the card beside it, cannot be used."""


class RunError(MaskloomError, RuntimeError):
    """The run cannot continue. The same command resumes it."""


class FitError(RunError):
    """No model can be fitted to these images."""

    permanent = True
    """As in `ImageError`, when a model is fitted to each image separately."""


class NothingToFit(FitError):
    """The images have no valid pixel. Such images need no model: see
    `segcore.models.protocols.concluded`.
    """


class StoreError(RunError, OSError):
    """A store failed to list, read or write."""


class DamagedRecord(RunError):
    """A record or table of an output is truncated, empty or written by another program."""


class TooManyFailures(RunError):
    """More images failed than `max_failed_fraction` allows."""


class Stopped(RunError):
    """The run was asked to stop (Ctrl-C, SIGTERM, a cancel)."""


class ImageError(MaskloomError):
    """One image cannot be processed; the run continues with the others."""

    permanent = True
    """Whether the same bytes would fail again. If False, the next run tries once more."""


class FormatError(ImageError, ValueError):
    """The file does not match its name or header, or exceeds our limits."""


class NotInstalled(FormatError):
    """A package that reads the file is not installed."""

    permanent = False


class Incomplete(FormatError):
    """A file that belongs to this one, such as the voxels of a header, is missing."""

    permanent = False


class ReadError(ImageError, OSError):
    """The header could be read, the pixels could not."""


class ModelMismatch(ImageError, ValueError):
    """The image does not suit the segmenter."""


class Missing(ImageError, OSError):
    """A file that the inputs name does not exist. Once the file exists, its version differs, so the
    next run tries again.
    """


class Unavailable(ImageError, OSError):
    """A store or the memory failed this image; the next run may succeed."""

    permanent = False


class SourceChanged(ImageError, OSError):
    """The file was changed or replaced during the run."""

    permanent = False


class WorkerDied(ImageError, RuntimeError):
    """A process died while it worked on this image alone."""

    permanent = False


class TimedOut(WorkerDied):
    """A read, or the work on its pixels, exceeded its time limit (`segcore.processes.limits`)."""


class OutOfMemory(WorkerDied):
    """The image needs more memory than a worker has. A run with more memory per worker tries it
    again (`tasks.memory`).
    """

    permanent = True
