"""The whole system for stories, faults and benchmarks: control plane, node, Redis, the operator's process, and workers real or played."""
