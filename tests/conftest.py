"""What all tests share."""

from __future__ import annotations

import hypothesis

# A busy machine is no defect: pytest-timeout watches over what hangs.
hypothesis.settings.register_profile("maskloom", deadline=None)
hypothesis.settings.load_profile("maskloom")
