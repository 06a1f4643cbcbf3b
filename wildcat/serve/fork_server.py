"""Imported by multiprocessing's fork server, from which worker processes start at once and share its memory."""

from __future__ import annotations

import gc
import signal

import wildcat.serve.workers  # noqa: F401

signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it ends with the service, which finishes its requests before
gc.freeze()  # collections in the workers would write to all shared pages
