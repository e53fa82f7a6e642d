"""A ModelServer's decisions: which adapter serves a name, a rollout's next step, what pods are told, the routes. All pure."""
