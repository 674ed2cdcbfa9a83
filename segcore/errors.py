"""The whole error tree.

MaskloomError
├── RecipeError            wrong usage or recipe; nothing was started              (exit code 2)
│   └── WeightsError       a file of weights or its card is missing, broken or hostile, or belongs
│                          to another network
├── RunError               the run cannot go on; the same command resumes it       (exit code 1)
│   ├── FitError           no model can be fitted to these images
│   │   └── NothingToFit   they have no valid pixel: nothing is there to be classified either
│   ├── StoreError         a store refused to list, read or keep something
│   ├── DamagedRecord      a record or table of the output cannot be read back
│   ├── TooManyFailures    more images failed than `max_failed_fraction` allows
│   └── Stopped            somebody asked the run to stop
└── ImageError             one image cannot be processed; it becomes a failed row  (exit code 3)
    ├── FormatError        the file is not what its name or header says, or is beyond our limits
    ├── ReadError          the header is fine, the pixels are not
    ├── ModelMismatch      the image does not suit the segmenter (bands, dtype)
    ├── Missing            a file that the inputs name does not exist
    ├── Unavailable        a store or the memory failed this image; the next run tries again
    ├── SourceChanged      the file is no longer the one that was planned; the next run takes the
    │                      new one
    └── WorkerDied         a process died while it worked on this image alone
        ├── TimedOut       it was given up because a step of the work did not end
        └── OutOfMemory    the image needs more memory than a worker has

Messages say what was expected, what came, where, and what to do.
"""

from __future__ import annotations


class MaskloomError(Exception):
    """Base of every error that maskloom raises on purpose."""


class RecipeError(MaskloomError, ValueError):
    """The recipe or the command line is wrong; found before any work."""


class WeightsError(RecipeError):
    """A file of weights, or the card beside it, cannot be used."""


class RunError(MaskloomError, RuntimeError):
    """The run cannot go on. The same command resumes it."""


class FitError(RunError):
    """No model can be fitted to the images at hand."""

    permanent = True
    """As in `ImageError`, where a model is fitted to one image by itself."""


class NothingToFit(FitError):
    """The images have no valid pixel. What has none needs no model:
    `segcore.models.protocols.concluded`.
    """


class StoreError(RunError, OSError):
    """A store refused to list, read or keep something."""


class DamagedRecord(RunError):
    """A record or table of an output is cut, empty or of another program."""


class TooManyFailures(RunError):
    """More images failed than `max_failed_fraction` allows."""


class Stopped(RunError):
    """Somebody asked the run to stop (Ctrl-C, SIGTERM, a cancel)."""


class ImageError(MaskloomError):
    """One image cannot be processed; the others go on."""

    permanent = True
    """Whether the same bytes would fail again. If False, the next run tries once more."""


class FormatError(ImageError, ValueError):
    """The file is not what its name or header says, or is beyond our limits."""


class ReadError(ImageError, OSError):
    """The header could be read, the pixels could not."""


class ModelMismatch(ImageError, ValueError):
    """The image does not suit the segmenter."""


class Missing(ImageError, OSError):
    """A file that the inputs name does not exist. It is tried again once it is there, since its
    version is another then.
    """


class Unavailable(ImageError, OSError):
    """A store or the memory failed this image, which may be otherwise next time."""

    permanent = False


class SourceChanged(ImageError, OSError):
    """The file was changed or replaced while the run was under way."""

    permanent = False


class WorkerDied(ImageError, RuntimeError):
    """A process died while it worked on this image alone."""

    permanent = False


class TimedOut(WorkerDied):
    """A read, or the work on what was read, did not end in time (`segcore.processes.limits`)."""


class OutOfMemory(WorkerDied):
    """The image needs more memory than a worker has. A run whose workers have more tries it again
    (`tasks.memory`).
    """

    permanent = True
