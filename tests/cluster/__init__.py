"""A real Kubernetes control plane, a node that runs pods as local processes, a real Redis, and proxies that misbehave: see README.md."""
