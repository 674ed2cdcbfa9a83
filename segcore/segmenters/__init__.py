"""One file a method. Importing this package registers all segmenters."""

from maskloom.segcore.registry import import_modules

import_modules(__name__)
