"""Malformed files: each is a named error or a right result, never a traceback, hang or damage."""
