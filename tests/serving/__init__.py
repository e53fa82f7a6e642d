"""Serving on a real control plane under load: who answers, what fails, and how long a rollout or a way back takes."""
