"""The operator: watches FineTuneJobs and keeps the cluster as they want it. Stands on kube, lifecycle and spec alone."""
