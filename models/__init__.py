"""Builds models: data, training, export, instrumentation. What the service uses of it needs no torch."""

import os

# ONNX Runtime reports usage to its vendor unless this is set before it is first imported; a server must not, unasked.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
