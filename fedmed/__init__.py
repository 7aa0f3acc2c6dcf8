"""fedmed: hospitals train medical-imaging models together; no image leaves a hospital."""

import os

# No telemetry and no look-up of newer versions, ever: both are read by Flower when it is imported.
os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["FLWR_DISABLE_UPDATE_CHECK"] = "1"
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

__version__ = "0.1.0"
