"""Serves artifacts over HTTP with the statistics of their layers. Never imports torch."""
