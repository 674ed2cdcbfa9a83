"""What all tests share."""

from __future__ import annotations

import hypothesis

# A busy machine is no defect: pytest-timeout watches over what hangs. And a run that fails, fails again: the examples are the
# same every time; `--hypothesis-profile=default` draws others.
hypothesis.settings.register_profile(
    "maskloom", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow], derandomize=True
)
hypothesis.settings.load_profile("maskloom")
