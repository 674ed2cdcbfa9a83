"""Statistics, one file or folder a table. Importing this package registers them."""

from maskloom.segcore.registry import import_modules

import_modules(__name__)
