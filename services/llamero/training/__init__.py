"""Trains an adapter as a process of its own: checkpoints, resumes, reports."""
